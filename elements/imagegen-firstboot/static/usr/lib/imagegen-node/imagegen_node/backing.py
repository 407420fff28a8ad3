"""The backing services: started on the node that hosts them, waited for on every other."""

from __future__ import annotations

from typing import Any

import amqp

from imagegen_node.api import Session, Unauthorized, fetch
from imagegen_node.database import connect_schema, ensure_schemas, read_schema_state
from imagegen_node.steps import Refused, Waiting
from imagegen_node.system import check_port, run, start_unit


def prepare_database(node: dict[str, Any]) -> str:
    """MariaDB up, with the cluster's schemas and users."""
    start_unit("mariadb.service")
    return ensure_schemas(node["database"])


def prepare_messaging(node: dict[str, Any]) -> str:
    """RabbitMQ up, with the definitions of the seed."""
    start_unit("rabbitmq-server.service")
    return check_messaging(node["messaging"])


def prepare_cache(node: dict[str, Any]) -> str:
    """memcached up."""
    start_unit("memcached.service")
    check_port(node["cache"]["host"], node["cache"]["port"], "memcached")
    return ""


def check_messaging(messaging: dict[str, Any]) -> str:
    """Raises Waiting until the broker takes the cluster's login in each of its virtual hosts."""
    where = "{host}:{port}".format(**messaging)
    for vhost in messaging["vhosts"]:
        try:
            connection = amqp.Connection(
                where, userid=messaging["user"], password=messaging["password"], virtual_host=vhost, connect_timeout=5
            )
            connection.connect()
            connection.close()
        except (OSError, amqp.exceptions.AMQPError) as error:
            what = "message queue at {} as user {}, virtual host {}".format(where, messaging["user"], vhost)
            raise Waiting(f"{what}: {error or type(error).__name__}") from error
    return ""


def check_database(node: dict[str, Any]) -> str:
    """Raises Waiting until every schema takes its user's login."""
    for entry in node["database"]["schemas"]:
        with connect_schema(node["database"], entry["name"]):
            pass
    return ""


def check_identity(node: dict[str, Any]) -> str:
    """Raises Waiting until Keystone answers."""
    fetch(node["auth_url"])
    return ""


def explain_newer(schema: str) -> str:
    """Why a schema whose revision this image does not know is left alone."""
    return f"schema {schema} was made by a newer release than this image holds: boot the newer image"


def sync_schema(node: dict[str, Any], schema: str, argv: list[str], user: str) -> str:
    """Brings one schema to the packaged head. Raises Refused for a schema that a newer release made."""
    with connect_schema(node["database"], schema) as connection:
        state = read_schema_state(connection, schema)
    if state == "ahead":
        raise Refused(explain_newer(schema))
    if state == "head":
        return "at head"
    run(argv, user=user)
    with connect_schema(node["database"], schema) as connection:
        after = read_schema_state(connection, schema)
    if after != "head":
        raise Waiting("schema {} at its head; it is {} after `{}`".format(schema, after, " ".join(argv)))
    return f"{state}, now at head"


def prepare_identity(node: dict[str, Any]) -> str:
    """Keystone's schema, then its API, then its administrator and own endpoints."""
    sync_schema(node, "keystone", ["keystone-manage", "db_sync"], "keystone")
    start_unit("keystone.service")
    fetch(node["auth_url"])
    password = node["identity"]["admin_password"]
    try:
        Session(node["auth_url"], "admin", password, "admin")
        return "administrator known"
    except Unauthorized:
        pass
    url = node["auth_url"]
    argv = ["keystone-manage", "bootstrap", "--bootstrap-region-id", node["region"]]
    for interface in ("public", "internal", "admin"):
        argv += [f"--bootstrap-{interface}-url", url]
    run(argv, user="keystone", env={"OS_BOOTSTRAP_PASSWORD": password})
    try:
        Session(url, "admin", password, "admin")
    except Unauthorized as error:
        raise Waiting("Keystone to take the administrator's password after bootstrap") from error
    return "bootstrapped"
