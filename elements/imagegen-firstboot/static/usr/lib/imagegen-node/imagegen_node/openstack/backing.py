"""The services that controllers host: started on the node that hosts them, waited for on every other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import amqp

from imagegen_node.engine.errors import CommandFailed, Refused, Waiting
from imagegen_node.engine.files import own_tree, put_file
from imagegen_node.engine.system import check_port, queue_units, run, start_units
from imagegen_node.node.declared import Element, list_hosted, list_units
from imagegen_node.openstack import ovn
from imagegen_node.openstack.api import INTERFACES, Session, Unauthorized, fetch
from imagegen_node.openstack.database import connect_schema, drop_unfinished, ensure_schemas, read_schema_state

RABBITMQ_DEFINITIONS = Path("/etc/rabbitmq/definitions.json")
COOKIE = Path("/var/lib/rabbitmq/.erlang.cookie")
# A table, column or key that is there before it is made, or gone before it is dropped (MariaDB's error codes).
MADE_BEFORE = (1050, 1060, 1061, 1091)


class LoginRefused(Waiting):
    """The broker is up, but does not let one of the cluster's users in."""


def list_backing(node: dict[str, Any]) -> list[Element]:
    """What this node hosts for all others to build on."""
    return [element for element in list_hosted(node) if not element["users"]]


def list_customers(node: dict[str, Any]) -> list[Element]:
    """What this node hosts that logs in to Keystone itself, so that it comes after the users there."""
    return [element for element in list_hosted(node) if element["users"]]


def start_hosted(node: dict[str, Any]) -> str:
    """Starts what this node hosts for others, all at once; whatever needs one waits for it."""
    for element in list_hosted(node):
        for data in element["data"]:
            # A disk that outlived its image may hold it under another uid: Debian numbers accounts as packages come.
            if data["account"]:
                own_tree(Path(data["path"]), data["account"])
        if element["hosted"] == "messaging":
            # RabbitMQ owns the directory, so cloud-init writes no file there.
            put_file(COOKIE, node["erlang_cookie"], 0o400, "rabbitmq", "rabbitmq")
    for element in list_backing(node):
        if not element["schemas"]:  # with one it comes when that is there
            queue_units(list_units([element]))
    return ""


def prepare(node: dict[str, Any], element: Element) -> str:
    """A service that this node hosts: its schemas, its units, then what is to be done in it."""
    for schema in element["schemas"]:
        if schema["sync"]:
            sync_declared(node, schema)
    start_units(list_units([element]))
    finish = PREPARATIONS.get(element["element"])
    said = finish(node) if finish else ""
    for what, port in element["listens"].items():
        check_port(node["address"], port, what)
    return said


def prepare_database(node: dict[str, Any]) -> str:
    """MariaDB with the cluster's schemas and users."""
    return ensure_schemas(node["database"])


def prepare_messaging(node: dict[str, Any]) -> str:
    """RabbitMQ with the seed's definitions: each of their users can log in."""
    logins = [node["messaging"], *node["other_messaging"]]
    try:
        for login in logins:
            check_messaging(login)
        return ""
    except LoginRefused:
        # It reads its definitions when it starts; since then the seed or somebody else changed them.
        run(["rabbitmqctl", "import_definitions", str(RABBITMQ_DEFINITIONS)])
    for login in logins:
        check_messaging(login)
    return "definitions imported"


def prepare_cache(node: dict[str, Any]) -> str:
    """memcached answering."""
    check_port(node["cache"]["host"], node["cache"]["port"], "memcached")
    return ""


def prepare_identity(node: dict[str, Any]) -> str:
    """Keystone's API, then its administrator and own endpoints."""
    fetch(node["auth_url"])
    if see_administrator(node):
        return "administrator known"
    argv = ["keystone-manage", "bootstrap", "--bootstrap-region-id", node["region"]]
    for interface in INTERFACES:
        argv += [f"--bootstrap-{interface}-url", node["auth_url"]]
    run(argv, user="keystone", env={"OS_BOOTSTRAP_PASSWORD": node["identity"]["admin_password"]})
    if not see_administrator(node):
        raise Waiting("Keystone to accept the administrator's password and list its endpoints after bootstrap")
    return "bootstrapped"


def prepare_ovn(node: dict[str, Any]) -> str:
    """OVN's databases answering on this node's address."""
    return ovn.listen(node["address"])


def see_administrator(node: dict[str, Any]) -> bool:
    """Whether Keystone accepts the administrator's password and lists itself at its URL."""
    try:
        session = Session(node["auth_url"], "admin", node["identity"]["admin_password"], "admin")
    except Unauthorized:
        return False
    wanted = {interface: [node["auth_url"]] for interface in INTERFACES}
    return session.endpoints("identity", node["region"]) == wanted


# By element; a service without one is prepared when its units are up and its ports answer.
PREPARATIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mariadb-server": prepare_database,
    "rabbitmq-server": prepare_messaging,
    "memcached": prepare_cache,
    "keystone": prepare_identity,
    "ovn-central": prepare_ovn,
}


@contextmanager
def connect_messaging(messaging: dict[str, Any], vhost: str) -> Iterator[Any]:
    """A connection as that login's user. Raises Waiting when the broker is away, LoginRefused when it refuses."""
    where = "{host}:{port}".format(**messaging)
    what = "message queue at {} as user {}, virtual host {}".format(where, messaging["user"], vhost)
    connection = amqp.Connection(
        where,
        userid=messaging["user"],
        password=messaging["password"],
        virtual_host=vhost,
        connect_timeout=5,
        read_timeout=30,
        write_timeout=30,
    )
    try:
        connection.connect()
        yield connection
        connection.close()
    except (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed) as error:
        raise LoginRefused(f"{what}: {error}") from error
    except (OSError, amqp.exceptions.AMQPError) as error:
        raise Waiting(f"{what}: {error or type(error).__name__}") from error


def check_messaging(messaging: dict[str, Any]) -> str:
    """Raises Waiting until the broker accepts this login in each of its virtual hosts."""
    for vhost in messaging["vhosts"]:
        with connect_messaging(messaging, vhost):
            pass
    return ""


def check_consumers(messaging: dict[str, Any], vhost: str, queues: Iterable[str]) -> None:
    """Raises Waiting until each of these queues has a reader: a daemon can be up without reaching the broker."""
    for queue in queues:
        if not has_reader(messaging, vhost, queue):
            raise Waiting(f"a reader of the queue {queue}")


def has_reader(messaging: dict[str, Any], vhost: str, queue: str) -> bool:
    """Whether somebody reads this queue. Raises Waiting when the broker does not say."""
    with connect_messaging(messaging, vhost) as connection:
        try:
            return bool(connection.channel().queue_declare(queue=queue, passive=True).consumer_count)
        except amqp.exceptions.NotFound:  # it went with its last reader
            return False


def check_database(node: dict[str, Any]) -> str:
    """Raises Waiting until every schema accepts its user's login."""
    for entry in node["database"]["schemas"]:
        with connect_schema(node["database"], entry["name"]):
            pass
    return ""


def check_identity(node: dict[str, Any]) -> str:
    """Raises Waiting until Keystone answers."""
    fetch(node["auth_url"])
    return ""


def read_state(node: dict[str, Any], schema: str) -> str:
    """absent, behind or head. Raises Refused for a schema with a revision that this image does not know."""
    with connect_schema(node["database"], schema) as connection:
        state = read_schema_state(connection, schema)
    if state == "ahead":
        raise Refused(f"schema {schema} was made by a newer release than this image holds: boot the newer image")
    return state


def sync_schema(node: dict[str, Any], schema: str, argv: list[str], user: str) -> str:
    """Brings one schema to the packaged head, by that command."""
    state = read_state(node, schema)
    if state == "head":
        return "at head"
    if state == "absent":
        drop_unfinished(node["database"], schema)
    try:
        run(argv, user=user)
    except CommandFailed as error:
        if state == "behind" and any(f"({code}, " in str(error) for code in MADE_BEFORE):
            raise Refused(
                f"an upgrade of schema {schema} was interrupted in the middle of a change, which MariaDB cannot roll "
                f"back: {error}. Undo by hand what the message names, or restore the schema, then: imagegen-node retry"
            ) from error
        raise
    after = read_state(node, schema)
    if after != "head":
        raise Waiting("schema {} at its head; it is {} after `{}`".format(schema, after, " ".join(argv)))
    return f"{state}, now at head"


def is_synced(node: dict[str, Any], element: Element) -> bool:
    """Whether every schema of this element is at its head."""
    return all(read_state(node, schema["name"]) == "head" for schema in element["schemas"])


def sync_declared(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """Likewise, by the command and the account that the schema's element declares."""
    return sync_schema(node, schema["name"], schema["sync"], schema["account"])
