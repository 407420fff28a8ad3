"""The SQL side: schemas and users on the hosting node, versions and rows read without importing Nova."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

from imagegen_node.engine.errors import Refused, Waiting
from imagegen_node.node.declared import find_schema, read_declared

SOCKET = Path("/run/mysqld/mysqld.sock")
PACKAGES = Path("/usr/lib/python3/dist-packages")
AGENT_SCHEMA = "imagegen"
NO_SUCH_TABLE = 1146
MOST_ROWS = 1  # of a table in a schema that nobody uses yet: Keystone's first migration makes its root domain
# `Password` is what every MariaDB has: a column, and from 10.4 on a part of a view.
ACCOUNTS = "SELECT host, password = PASSWORD(%s) FROM mysql.user WHERE user = %s"
OTHERS = "SELECT id FROM information_schema.processlist WHERE db = %s AND id <> CONNECTION_ID()"


@contextmanager
def connect_root() -> Iterator[Any]:
    """A connection to the server on this node as root, by the unix socket. Raises Waiting."""
    try:
        connection = pymysql.connect(
            unix_socket=str(SOCKET), user="root", autocommit=True, connect_timeout=5, read_timeout=30
        )
    except pymysql.err.OperationalError as error:
        raise Waiting(f"MariaDB on this node: {error.args[-1]}") from error
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def connect_schema(database: dict[str, Any], schema: str) -> Iterator[Any]:
    """A connection to one schema with its own user. Raises Waiting until the server accepts the login."""
    entry = next(item for item in database["schemas"] if item["name"] == schema)
    try:
        connection = _log_in(database, entry, schema)
    except pymysql.err.OperationalError as error:
        where = "{host}:{port}".format(**database)
        raise Waiting(
            "database {} at {} as user {}: {}".format(schema, where, entry["user"], error.args[-1])
        ) from error
    try:
        yield connection
    finally:
        connection.close()


def _log_in(database: dict[str, Any], entry: dict[str, str], schema: str) -> Any:
    return pymysql.connect(
        host=database["host"],
        port=database["port"],
        user=entry["user"],
        password=entry["password"],
        database=schema,
        autocommit=True,
        charset="utf8mb4",
        connect_timeout=5,
        read_timeout=30,
        write_timeout=30,
    )


def ensure_schemas(database: dict[str, Any]) -> str:
    """Makes missing schemas and users, which may log in from the clients' addresses only.

    Every user ends up with its password and with rights on its own schemas, and nowhere else.
    """
    changes = []
    with connect_root() as connection, connection.cursor() as cursor:
        there = {row[0] for row in fetch_rows(connection, "SHOW DATABASES")}
        for entry in database["schemas"]:
            if entry["name"] not in there:
                cursor.execute("CREATE DATABASE IF NOT EXISTS `{}` CHARACTER SET utf8mb4".format(entry["name"]))
                changes.append("schema {}".format(entry["name"]))
        for entry in {entry["user"]: entry for entry in database["schemas"]}.values():
            changes += ensure_user(connection, database, entry)
    return "made " + ", ".join(changes) if changes else "all there"


def ensure_user(connection: Any, database: dict[str, Any], entry: dict[str, str]) -> list[str]:
    """The user of that entry at each client's address, and nowhere else; one phrase for each change."""
    user, password = entry["user"], entry["password"]
    names = [item["name"] for item in database["schemas"] if item["user"] == user]
    wanted = {"ALL PRIVILEGES ON `{}`.*".format(name.replace("_", "\\_")) for name in names}
    # Host -> whether the account there has this password.
    hosts: dict[str, int] = dict(fetch_rows(connection, ACCOUNTS, (password, user)))
    changes = []
    with connection.cursor() as cursor:
        for host in database["clients"]:
            if host not in hosts:
                cursor.execute("CREATE USER %s@%s IDENTIFIED BY %s", (user, host, password))
                changes.append(f"user {user} at {host}")
            elif not hosts[host]:
                cursor.execute("ALTER USER %s@%s IDENTIFIED BY %s", (user, host, password))
                changes.append(f"password of {user} at {host}")
            changes += ensure_rights(connection, (user, host), wanted)
        # The right accounts are there before a wrong one goes, such as one of any host that an earlier version made.
        for host in sorted(hosts.keys() - set(database["clients"])):
            cursor.execute("DROP USER %s@%s", (user, host))
            changes.append(f"no user {user} at {host}")
    return changes


def ensure_rights(connection: Any, account: tuple[str, str], wanted: set[str]) -> list[str]:
    """Exactly these rights for (user, host); one phrase if they had to change."""
    there = read_rights(connection, account)
    with connection.cursor() as cursor:
        if there - wanted:
            cursor.execute("REVOKE ALL PRIVILEGES, GRANT OPTION FROM %s@%s", account)
        for right in sorted(wanted if there - wanted else wanted - there):
            cursor.execute("GRANT " + right + " TO %s@%s", account)
    return [] if there == wanted else ["rights of {} at {}".format(*account)]


def read_rights(connection: Any, account: tuple[str, str]) -> set[str]:
    """What SHOW GRANTS lists for (user, host), as `PRIVILEGES ON OBJECT`, with any further rights in the text."""
    rights = set()
    for (line,) in fetch_rows(connection, "SHOW GRANTS FOR %s@%s", account):
        found = re.match(r"GRANT (.+?) TO \S+(?: IDENTIFIED .*|( .*))?$", line)
        right = found.group(1) + (found.group(2) or "") if found else line
        if right != "USAGE ON *.*":
            rights.add(right)
    return rights


def schema_of(cell: dict[str, str]) -> str:
    """The name of a cell's schema, from the path of its URL."""
    return cell["database_connection"].split("?")[0].rsplit("/", 1)[1]


def fetch_rows(connection: Any, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The rows of a query; a table that does not exist yet has none."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(query, values)
        except pymysql.err.ProgrammingError as error:
            if error.args[0] == NO_SUCH_TABLE:
                return []
            raise
        return list(cursor.fetchall())


def drop_unfinished(database: dict[str, Any], schema: str) -> None:
    """Empties a schema whose first sync was cut off: it has tables and no version, and the sync would stop at them.

    Nothing has used it, because services start at the head. Whoever may still be at work in it is disconnected first.
    Raises Refused for tables that hold data.
    """
    with connect_schema(database, schema) as connection, connection.cursor() as cursor:
        tables = [row[0] for row in fetch_rows(connection, "SHOW TABLES")]
        if not set(tables) - {"alembic_version"}:
            return
        # Names that the server itself has just listed.
        some = {name: fetch_rows(connection, f"SELECT 1 FROM `{name}` LIMIT 2") for name in tables}  # noqa: S608
        full = [name for name, rows in some.items() if len(rows) > MOST_ROWS]
        if full or "migrate_version" in tables:
            raise Refused(
                "schema {} has tables, but no alembic version, and holds {}: it was not made here. Give the cluster an "
                "empty schema, or upgrade this one to a release that uses alembic".format(
                    schema, "data in " + ", ".join(full) if full else "an older release's version"
                )
            )
        for (thread,) in fetch_rows(connection, OTHERS, (schema,)):
            try:
                cursor.execute("KILL %s", (thread,))
            except pymysql.err.MySQLError:  # it has ended meanwhile
                continue
        cursor.execute("SET FOREIGN_KEY_CHECKS = 0")
        for name in tables:
            cursor.execute(f"DROP TABLE IF EXISTS `{name}`")


def read_done(database: dict[str, Any]) -> set[str]:
    """The names of work for the whole cluster that was finished, whoever did it."""
    with connect_schema(database, AGENT_SCHEMA) as connection:
        return {row[0] for row in fetch_rows(connection, "SELECT name FROM done")}


def set_done(database: dict[str, Any], name: str, done: bool) -> None:
    """Records work as done, or not done, where the other schemas do not show it."""
    with connect_schema(database, AGENT_SCHEMA) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS done (name VARCHAR(64) NOT NULL PRIMARY KEY) ENGINE=InnoDB")
        cursor.execute(
            "INSERT IGNORE INTO done (name) VALUES (%s)" if done else "DELETE FROM done WHERE name = %s", (name,)
        )


def read_packaged(schema: str) -> tuple[frozenset[str], frozenset[str]]:
    """(every revision, the heads) of the installed alembic scripts for a schema."""
    declared = find_schema(schema, read_declared()["elements"])
    if declared is None:
        raise LookupError(f"no element of this image declares schema {schema}")
    scripts = PACKAGES / declared["revisions"]
    revisions: set[str] = set()
    parents: set[str] = set()
    for script in scripts.rglob("*.py"):
        text = script.read_text()
        found = re.search(r"^revision\s*(?::\s*\w+\s*)?=\s*['\"](\w+)['\"]", text, re.M)
        if found:
            revisions.add(found.group(1))
            # What another branch depends on is no head of its own once that is there, and alembic forgets it.
            for line in re.findall(r"^(?:down_revision|depends_on)\s*(?::[^=]+)?=\s*(.+)$", text, re.M):
                parents.update(re.findall(r"['\"](\w+)['\"]", line))
    if not revisions:
        raise FileNotFoundError(f"no alembic revisions below {scripts}")
    return frozenset(revisions), frozenset(revisions - parents)


def read_schema_state(connection: Any, schema: str) -> str:
    """absent, behind, head, or ahead (made by a newer release than this image holds)."""
    stamped = {row[0] for row in fetch_rows(connection, "SELECT version_num FROM alembic_version")}
    revisions, heads = read_packaged(schema)
    if not stamped:
        return "absent"
    if stamped - revisions:
        return "ahead"
    return "head" if stamped == heads else "behind"
