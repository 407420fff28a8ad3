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
        self.users: dict[tuple[str, str], dict[str, Any]] = {}  # (name, host)
        self.client = "192.168.56.11"  # the address from which everybody comes
        self.threads: dict[str, list[int]] = {}  # schema -> connections that somebody else has to it
        self.changes: list[str] = []  # statements that change something, without the lease's
        self.before_connect: Callable[[], None] = lambda: None
        self.before_change: Callable[[], None] = lambda: None
        self.faults: list[tuple[str, Exception]] = []  # (start of a statement, what it raises once)

    def connect(self, **options: Any) -> Connection:
        self.before_connect()
        if not self.up:
            raise OperationalError(2003, "Can't connect to MySQL server ([Errno 111] Connection refused)")
        schema = options.get("database")
        if "unix_socket" not in options:
            self._check_login(options["user"], options["password"], schema)
        return Connection(self, schema)

    def _check_login(self, user: str, password: str, schema: str | None) -> None:
        # The account of the address goes before that of any.
        host = self.client if (user, self.client) in self.users else "%"
        account = self.users.get((user, host))
        if account is None or account["password"] != password:
            raise OperationalError(1045, f"Access denied for user '{user}'@'{self.client}' (using password: YES)")
        if schema is not None and not account["rights"] & {right_on(schema), "ALL PRIVILEGES ON *.*"}:
            raise OperationalError(1044, f"Access denied for user '{user}'@'{host}' to database '{schema}'")
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

    def list_accounts(self, password: str, user: str) -> None:
        mine = sorted((host, account) for (name, host), account in self.server.users.items() if name == user)
        self.result = [(host, int(account["password"] == password)) for host, account in mine]

    def create_user(self, user: str, host: str, password: str) -> None:
        assert (user, host) not in self.server.users
        self.server.users[user, host] = {"password": password, "rights": set()}

    def alter_user(self, user: str, host: str, password: str) -> None:
        self.server.users[user, host]["password"] = password

    def drop_user(self, user: str, host: str) -> None:
        del self.server.users[user, host]

    def show_grants(self, user: str, host: str) -> None:
        account = f"`{user}`@`{host}`"
        lines = [f"GRANT USAGE ON *.* TO {account} IDENTIFIED BY PASSWORD '*1234'"]
        for right in sorted(self.server.users[user, host]["rights"]):
            what, with_option, _ = right.partition(" WITH ")
            lines.append(f"GRANT {what} TO {account}{with_option and ' WITH ' + right.split(' WITH ')[1]}")
        self.result = [(line,) for line in lines]

    def grant(self, right: str, user: str, host: str) -> None:
        self.server.users[user, host]["rights"].add(right.replace("%%", "%"))

    def revoke_all(self, user: str, host: str) -> None:
        self.server.users[user, host]["rights"].clear()

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

    def give_back(self, name: str, holder: str) -> None:
        rows = self.table("lease")
        rows[:] = [row for row in rows if (row["name"], row["holder"]) != (name, holder)]

    def take_new(self, name: str, holder: str, seconds: int) -> int:
        if any(row["name"] == name for row in self.table("lease")):
            return 0
        self.table("lease").append({"name": name, "holder": holder, "expires": self.server.now() + seconds})
        return 1

    def read_clock(self) -> None:
        self.result = [(self.server.now(),)]

    def read_done(self) -> None:
        self.result = [(row["name"],) for row in self.table("done")]

    def add_done(self, name: str) -> None:
        if {"name": name} not in self.table("done"):
            self.table("done").append({"name": name})

    def strike_done(self, name: str) -> None:
        self.table("done")[:] = [row for row in self.table("done") if row["name"] != name]

    # Nova's and the others' rows

    def read_versions(self) -> None:
        self.result = [(row["version_num"],) for row in self.table("alembic_version")]

    def read_cells(self) -> None:
        keys = ("name", "uuid", "database_connection", "transport_url")
        rows = sorted(self.table("cell_mappings"), key=lambda row: (row["name"] or "", row["uuid"]))
        self.result = [tuple(row[key] for key in keys) for row in rows]

    def read_unmapped(self) -> None:
        hosts = {row["host"] for row in self.server.rows("nova_api", "host_mappings")}
        rows = [row for row in self.table("compute_nodes") if row["host"] not in hosts and not row["deleted"]]
        self.result = [(row["host"], row["mapped"]) for row in sorted(rows, key=lambda row: str(row["host"]))]

    def read_elsewhere(self, uuid: str) -> None:
        mapped = {row["host"]: row["cell"] for row in self.server.rows("nova_api", "host_mappings") if "cell" in row}
        rows = [row for row in self.table("compute_nodes") if mapped.get(row["host"], uuid) != uuid]
        self.result = [(row["host"], mapped[row["host"]]) for row in rows if not row["deleted"]]

    def read_old_computes(self, oldest: int) -> None:
        self.result = [
            (row["host"], row["version"])
            for row in self.table("services")
            if row["version"] < oldest and not row.get("forced_down")
        ]

    def count_flavors(self) -> None:
        self.result = [(len(self.table("flavors")),)]

    def add_flavors(self, *values: Any) -> None:
        """Five values a row, as the statement has them."""
        keys = ("name", "memory_mb", "vcpus", "root_gb", "flavorid")
        rows = [dict(zip(keys, values[at : at + len(keys)], strict=True)) for at in range(0, len(values), len(keys))]
        assert not {row["name"] for row in rows} & {row["name"] for row in self.table("flavors")}
        self.table("flavors").extend(rows)

    # a schema whose first sync was cut off

    def show_tables(self) -> None:
        assert self.schema is not None
        self.result = [(name,) for name in self.server.schemas[self.schema]]

    def read_two(self, name: str) -> None:
        self.result = [(1,) for _ in self.table(name)[:2]]

    def read_threads(self, schema: str) -> None:
        self.result = [(thread,) for thread in self.server.threads.get(schema, [])]

    def kill(self, thread: int) -> None:
        for threads in self.server.threads.values():
            if thread in threads:
                threads.remove(thread)

    def drop_table(self, name: str) -> None:
        assert self.schema is not None
        self.server.schemas[self.schema].pop(name, None)

    def do_nothing(self) -> None:
        pass


# (statement, method, whether it counts as a change)
STATEMENTS: tuple[tuple[str, Callable[..., int | None], bool], ...] = (
    (r"SHOW DATABASES", Connection.show_databases, False),
    (r"CREATE DATABASE IF NOT EXISTS `([^`]+)` CHARACTER SET utf8mb4", Connection.create_database, True),
    (r"SELECT host, password = PASSWORD\(%s\) FROM mysql\.user WHERE user = %s", Connection.list_accounts, False),
    (r"CREATE USER %s@%s IDENTIFIED BY %s", Connection.create_user, True),
    (r"ALTER USER %s@%s IDENTIFIED BY %s", Connection.alter_user, True),
    (r"DROP USER %s@%s", Connection.drop_user, True),
    (r"SHOW GRANTS FOR %s@%s", Connection.show_grants, False),
    (r"GRANT (.+) TO %s@%s", Connection.grant, True),
    (r"REVOKE ALL PRIVILEGES, GRANT OPTION FROM %s@%s", Connection.revoke_all, True),
    (r"CREATE TABLE IF NOT EXISTS (\w+) \(.+\) ENGINE=InnoDB", Connection.create_table, False),
    (r"UPDATE lease SET holder = %s, expires = .+ WHERE name = %s AND .+", Connection.take_over, False),
    (r"INSERT IGNORE INTO lease .+", Connection.take_new, False),
    (r"SELECT UNIX_TIMESTAMP\(NOW\(6\)\)", Connection.read_clock, False),
    (r"DELETE FROM lease WHERE name = %s AND holder = %s", Connection.give_back, False),
    (r"SELECT name FROM done", Connection.read_done, False),
    (r"INSERT IGNORE INTO done .+", Connection.add_done, True),
    (r"DELETE FROM done WHERE name = %s", Connection.strike_done, True),
    (r"SHOW TABLES", Connection.show_tables, False),
    (r"SELECT 1 FROM `(\w+)` LIMIT 2", Connection.read_two, False),
    (r"SELECT id FROM information_schema\.processlist .+", Connection.read_threads, False),
    (r"KILL %s", Connection.kill, True),
    (r"SET FOREIGN_KEY_CHECKS = 0", Connection.do_nothing, False),
    (r"DROP TABLE IF EXISTS `(\w+)`", Connection.drop_table, True),
    (r"SELECT version_num FROM alembic_version", Connection.read_versions, False),
    (r"SELECT name, uuid, .+ FROM cell_mappings ORDER BY name, uuid", Connection.read_cells, False),
    (r"SELECT COUNT\(\*\) FROM flavors", Connection.count_flavors, False),
    (r"INSERT INTO flavors .+", Connection.add_flavors, True),
    (r"SELECT c\.host, c\.mapped FROM compute_nodes c LEFT JOIN .+", Connection.read_unmapped, False),
    (r"SELECT c\.host, m\.uuid FROM compute_nodes c JOIN .+", Connection.read_elsewhere, False),
    (
        r"SELECT host, version FROM services WHERE `binary` = 'nova-compute' AND deleted = 0 AND .+ AND version < %s",
        Connection.read_old_computes,
        False,
    ),
)
