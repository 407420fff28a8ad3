"""A MariaDB in memory that understands exactly the statements of the agent; any other is an error of the test."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fakes.pymysql import OperationalError, ProgrammingError

Rows = list[dict[str, Any]]


class Server:
    """Schemas with their tables, users with their rights, and what goes wrong."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.up = False
        self.schemas: dict[str, dict[str, Rows]] = {}
        self.users: dict[str, dict[str, Any]] = {}
        self.changes: list[str] = []  # statements that change something, without the lease's
        self.before_change: Callable[[], None] = lambda: None
        self.faults: list[tuple[str, Exception]] = []  # (start of a statement, what it raises once)

    def connect(self, **options: Any) -> Connection:
        if not self.up:
            raise OperationalError(2003, "Can't connect to MySQL server ([Errno 111] Connection refused)")
        schema = options.get("database")
        if "unix_socket" not in options:
            self._check_login(options["user"], options["password"], schema)
        return Connection(self, schema)

    def _check_login(self, user: str, password: str, schema: str | None) -> None:
        account = self.users.get(user)
        if account is None or account["password"] != password:
            raise OperationalError(1045, f"Access denied for user '{user}'@'%' (using password: YES)")
        if schema is not None and not account["rights"] & {right_on(schema), "ALL PRIVILEGES ON *.*"}:
            raise OperationalError(1044, f"Access denied for user '{user}'@'%' to database '{schema}'")
        if schema is not None and schema not in self.schemas:
            raise OperationalError(1049, f"Unknown database '{schema}'")

    def rows(self, schema: str, table: str) -> Rows:
        """The rows of a table that is made when it is missing: for tests and fake commands."""
        return self.schemas[schema].setdefault(table, [])


def right_on(schema: str) -> str:
    """What SHOW GRANTS says of a user's own schema."""
    return "ALL PRIVILEGES ON `{}`.*".format(schema.replace("_", "\\_"))


class Connection:
    """One connection, which is its own cursor."""

    def __init__(self, server: Server, schema: str | None) -> None:
        self.server = server
        self.schema = schema
        self.result: list[tuple[Any, ...]] = []

    def cursor(self) -> Connection:
        return self

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.result

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> int:
        if not self.server.up:
            raise OperationalError(2013, "Lost connection to MySQL server during query")
        for fault in self.server.faults:
            if query.startswith(fault[0]):
                self.server.faults.remove(fault)
                raise fault[1]
        for pattern, method, changes in STATEMENTS:
            found = re.fullmatch(pattern, query)
            if found:
                if changes:
                    self.server.before_change()
                    self.server.changes.append(query)
                self.result = []
                return int(method(self, *found.groups(), *values) or 0)
        raise AssertionError(f"the fake database does not know: {query}")

    def table(self, name: str) -> Rows:
        assert self.schema is not None
        try:
            return self.server.schemas[self.schema][name]
        except KeyError:
            raise ProgrammingError(1146, f"Table '{self.schema}.{name}' doesn't exist") from None

    # schemas and users, as root

    def show_databases(self) -> None:
        self.result = [(name,) for name in self.server.schemas]

    def create_database(self, name: str) -> None:
        self.server.schemas.setdefault(name, {})

    def find_user(self, user: str) -> None:
        self.result = [(1,)] if user in self.server.users else []

    def create_user(self, user: str, password: str) -> None:
        assert user not in self.server.users
        self.server.users[user] = {"password": password, "rights": set()}

    def alter_user(self, user: str, password: str) -> None:
        self.server.users[user]["password"] = password

    def show_grants(self, user: str) -> None:
        lines = [f"GRANT USAGE ON *.* TO `{user}`@`%` IDENTIFIED BY PASSWORD '*1234'"]
        for right in sorted(self.server.users[user]["rights"]):
            what, with_option, _ = right.partition(" WITH ")
            lines.append(f"GRANT {what} TO `{user}`@`%`{with_option and ' WITH ' + right.split(' WITH ')[1]}")
        self.result = [(line,) for line in lines]

    def grant(self, right: str, user: str) -> None:
        self.server.users[user]["rights"].add(right.replace("%%", "%"))

    def revoke_all(self, user: str) -> None:
        self.server.users[user]["rights"].clear()

    # the agent's own schema

    def create_table(self, name: str) -> None:
        assert self.schema is not None
        self.server.schemas[self.schema].setdefault(name, [])

    def take_over(self, holder: str, seconds: int, name: str, again: str, longest: int) -> int:
        rows = [r for r in self.table("lease") if r["name"] == name]
        rows = [r for r in rows if r["holder"] == again or not 0 <= r["expires"] - self.server.now() <= longest]
        for row in rows:
            row.update(holder=holder, expires=self.server.now() + seconds)
        return len(rows)

    def take_new(self, name: str, holder: str, seconds: int) -> int:
        if any(row["name"] == name for row in self.table("lease")):
            return 0
        self.table("lease").append({"name": name, "holder": holder, "expires": self.server.now() + seconds})
        return 1

    def read_clock(self) -> None:
        self.result = [(self.server.now(),)]

    def read_due(self) -> None:
        self.result = [(row["name"],) for row in self.table("due")]

    def add_due(self, name: str) -> None:
        if {"name": name} not in self.table("due"):
            self.table("due").append({"name": name})

    def strike_due(self, name: str) -> None:
        self.table("due")[:] = [row for row in self.table("due") if row["name"] != name]

    # Nova's and the others' rows

    def read_versions(self) -> None:
        self.result = [(row["version_num"],) for row in self.table("alembic_version")]

    def read_cells(self) -> None:
        keys = ("name", "uuid", "database_connection", "transport_url")
        rows = sorted(self.table("cell_mappings"), key=lambda row: (row["name"] or "", row["uuid"]))
        self.result = [tuple(row[key] for key in keys) for row in rows]

    def read_unmarked(self) -> None:
        rows = self.table("compute_nodes")
        self.result = [(row["host"],) for row in rows if not row["mapped"] and not row["deleted"]]

    def read_old_computes(self, oldest: int) -> None:
        self.result = [(row["host"], row["version"]) for row in self.table("services") if row["version"] < oldest]

    def read_mapped(self, hosts: list[str]) -> None:
        self.result = [(row["host"],) for row in self.table("host_mappings") if row["host"] in hosts]


# (statement, method, whether it counts as a change)
STATEMENTS: tuple[tuple[str, Callable[..., int | None], bool], ...] = (
    (r"SHOW DATABASES", Connection.show_databases, False),
    (r"CREATE DATABASE IF NOT EXISTS `([^`]+)` CHARACTER SET utf8mb4", Connection.create_database, True),
    (r"SELECT 1 FROM mysql\.user WHERE user = %s AND host = '%%'", Connection.find_user, False),
    (r"CREATE USER %s@'%%' IDENTIFIED BY %s", Connection.create_user, True),
    (r"ALTER USER %s@'%%' IDENTIFIED BY %s", Connection.alter_user, True),
    (r"SHOW GRANTS FOR %s@'%%'", Connection.show_grants, False),
    (r"GRANT (.+) TO %s@'%%'", Connection.grant, True),
    (r"REVOKE ALL PRIVILEGES, GRANT OPTION FROM %s@'%%'", Connection.revoke_all, True),
    (r"CREATE TABLE IF NOT EXISTS (\w+) \(.+\) ENGINE=InnoDB", Connection.create_table, False),
    (r"UPDATE lease SET holder = %s, expires = .+ WHERE name = %s AND .+", Connection.take_over, False),
    (r"INSERT IGNORE INTO lease .+", Connection.take_new, False),
    (r"SELECT UNIX_TIMESTAMP\(NOW\(6\)\)", Connection.read_clock, False),
    (r"SELECT name FROM due", Connection.read_due, False),
    (r"INSERT IGNORE INTO due .+", Connection.add_due, True),
    (r"DELETE FROM due WHERE name = %s", Connection.strike_due, True),
    (r"SELECT version_num FROM alembic_version", Connection.read_versions, False),
    (r"SELECT name, uuid, .+ FROM cell_mappings ORDER BY name, uuid", Connection.read_cells, False),
    (r"SELECT host FROM compute_nodes WHERE mapped = 0 AND deleted = 0 ORDER BY host", Connection.read_unmarked, False),
    (
        r"SELECT host, version FROM services WHERE `binary` = 'nova-compute' AND deleted = 0 AND version < %s",
        Connection.read_old_computes,
        False,
    ),
    (r"SELECT host FROM host_mappings WHERE host IN %s", Connection.read_mapped, False),
)
