"""How a controller reaches databases, message queue and cache, as URLs and places."""

from __future__ import annotations

from typing import Any

from imagegen.base.templates import quote_url
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Place
from imagegen.model.logins import (
    MessagingUser,
    controller_messaging,
    schema_of,
)
from imagegen.model.services import hosted_port

LOOPBACK = "127.0.0.1"


def database_url(cluster: Cluster, schema: str, user: str, secrets: Secrets) -> str:
    place, password = cluster.services.database, secrets[f"database_{user}"]
    return f"mysql+pymysql://{user}:{quote_url(password)}@{place.host}:{place.port}/{quote_url(schema)}"


def transport_url(cluster: Cluster, vhost: str, user: MessagingUser, secrets: Secrets) -> str:
    place = cluster.services.messaging
    credentials = f"{user.name}:{quote_url(secrets[user.secret])}"
    return f"rabbit://{credentials}@{place.host}:{place.port}/{quote_url(vhost)}"


def cell_urls(cluster: Cluster, cell: str, secrets: Secrets) -> dict[str, object]:
    """Where a controller finds a cell's database and message queue."""
    schema = schema_of(cluster, cell)
    return {
        "database": database_url(cluster, schema, "nova", secrets),
        "transport_url": transport_url(cluster, schema, controller_messaging(cluster), secrets),
    }


def cache_place(cluster: Cluster) -> dict[str, Any]:
    """The address of a controller's memcached: its own loopback, unless the cluster file names another one."""
    place = cluster.services.cache or Place(LOOPBACK, hosted_port("cache"))
    return {"host": place.host, "port": place.port}
