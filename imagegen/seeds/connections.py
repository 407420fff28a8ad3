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


def database_url(place: Place, schema: str, user: str, password: str) -> str:
    return f"mysql+pymysql://{user}:{quote_url(password)}@{place.host}:{place.port}/{quote_url(schema)}"


def transport_url(cluster: Cluster, cell: str, user: MessagingUser, secrets: Secrets) -> str:
    place = cluster.services.messaging
    credentials = f"{user.name}:{quote_url(secrets.password(user.secret))}"
    return f"rabbit://{credentials}@{place.host}:{place.port}/{quote_url(schema_of(cluster, cell))}"


def cell_urls(cluster: Cluster, cell: str, secrets: Secrets) -> dict[str, object]:
    """Where a controller finds a cell's database and message queue."""
    schema = schema_of(cluster, cell)
    return {
        "database": database_url(cluster.services.database, schema, "nova", secrets.database_nova),
        "transport_url": transport_url(cluster, cell, controller_messaging(cluster), secrets),
    }


def cache_place(cluster: Cluster) -> dict[str, Any]:
    """The address of a controller's memcached: its own loopback, unless the cluster file names another one."""
    place = cluster.services.cache or Place(LOOPBACK, hosted_port("cache"))
    return {"host": place.host, "port": place.port}
