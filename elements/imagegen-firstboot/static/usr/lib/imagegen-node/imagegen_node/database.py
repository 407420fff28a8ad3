"""The SQL side: schemas and users on the hosting node, versions and rows read without importing Nova."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

from imagegen_node.steps import Waiting

SOCKET = "/run/mysqld/mysqld.sock"
PACKAGES = Path("/usr/lib/python3/dist-packages")
# Where each schema's alembic revisions are.
REVISIONS = {
    "keystone": "keystone/common/sql/migrations/versions",
    "placement": "placement/db/sqlalchemy/alembic/versions",
    "nova_api": "nova/db/api/migrations/versions",
    "nova": "nova/db/main/migrations/versions",
}


@contextmanager
def connect_root() -> Iterator[Any]:
    """A connection to the server on this node as root, by the unix socket. Raises Waiting."""
    try:
        connection = pymysql.connect(unix_socket=SOCKET, user="root", autocommit=True, connect_timeout=5)
    except pymysql.err.OperationalError as error:
        raise Waiting(f"MariaDB on this node: {error.args[-1]}") from error
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def connect_schema(database: dict[str, Any], schema: str) -> Iterator[Any]:
    """A connection to one schema with its own user. Raises Waiting until the server takes the login."""
    entry = next(item for item in database["schemas"] if item["name"] == schema)
    try:
        connection = pymysql.connect(
            host=database["host"],
            port=database["port"],
            user=entry["user"],
            password=entry["password"],
            database=schema,
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=5,
            read_timeout=30,
        )
    except pymysql.err.OperationalError as error:
        where = "{host}:{port}".format(**database)
        raise Waiting(
            "database {} at {} as user {}: {}".format(schema, where, entry["user"], error.args[-1])
        ) from error
    try:
        yield connection
    finally:
        connection.close()


def can_log_in(database: dict[str, Any], schema: str) -> bool:
    """Whether the schema's own user reaches it with its own password."""
    try:
        with connect_schema(database, schema):
            return True
    except Waiting:
        return False


def ensure_schemas(database: dict[str, Any]) -> str:
    """Makes every schema and user that is missing and grants each user its own schemas only."""
    changed = []
    with connect_root() as connection, connection.cursor() as cursor:
        for entry in database["schemas"]:
            if can_log_in(database, entry["name"]):
                continue
            cursor.execute("CREATE DATABASE IF NOT EXISTS `{}` CHARACTER SET utf8mb4".format(entry["name"]))
            cursor.execute("CREATE USER IF NOT EXISTS %s@'%%'", (entry["user"],))
            cursor.execute("ALTER USER %s@'%%' IDENTIFIED BY %s", (entry["user"], entry["password"]))
            cursor.execute(
                "GRANT ALL PRIVILEGES ON `{}`.* TO %s@'%%'".format(entry["name"].replace("_", "\\_")), (entry["user"],)
            )
            changed.append(entry["name"])
    for entry in database["schemas"]:
        with connect_schema(database, entry["name"]):
            pass
    return "made " + ", ".join(changed) if changed else "all there"


def fetch_rows(connection: Any, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The rows of a query; a table that does not exist yet has none."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(query, values)
        except pymysql.err.ProgrammingError as error:
            if error.args[0] == pymysql.constants.ER.NO_SUCH_TABLE:
                return []
            raise
        return list(cursor.fetchall())


def read_packaged(schema: str) -> tuple[frozenset[str], frozenset[str]]:
    """(every revision, the heads) of the installed alembic scripts for a schema; every cell's is nova's."""
    kind = schema if schema in REVISIONS else "nova"
    revisions, parents = set(), set()
    for script in (PACKAGES / REVISIONS[kind]).rglob("*.py"):
        text = script.read_text()
        found = re.search(r"^revision\s*(?::\s*\w+\s*)?=\s*['\"](\w+)['\"]", text, re.M)
        if found:
            revisions.add(found.group(1))
            line = re.search(r"^down_revision\s*(?::[^=]+)?=\s*(.+)$", text, re.M)
            parents.update(re.findall(r"['\"](\w+)['\"]", line.group(1)) if line else ())
    if not revisions:
        raise FileNotFoundError("no alembic revisions below %s" % (PACKAGES / REVISIONS[kind]))
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
