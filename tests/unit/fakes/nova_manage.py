"""nova-manage on the fake database, with the return codes and the habits of the real one (Nova 31).

tests/contract.py holds what is promised here; the cluster tier runs the same against the real program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from fakes.mariadb import Server

Answer = tuple[int, str, str]  # return code, stdout, stderr
DONE: Answer = (0, "", "")
CELL0_UUID = "00000000-0000-0000-0000-000000000000"
API_TABLES = ("cell_mappings", "host_mappings", "flavors")
HALF_MADE = "half_made"  # a table that a sync left which was cut off in its first revision
MAIN_TABLES = ("compute_nodes", "services")


@dataclass(frozen=True)
class Configuration:
    """What nova-manage reads of nova.conf."""

    api: str  # the API schema
    database: str  # URL of [database]
    transport_url: str


def schema_of(url: str) -> str:
    return url.rsplit("/", 1)[1]


class NovaManage:
    """One installation: its configuration, and the heads that its packages hold."""

    def __init__(self, server: Server, configuration: Configuration, heads: dict[str, list[str]]) -> None:
        self.server = server
        self.configuration = configuration
        self.heads = heads

    def run(self, words: Sequence[str]) -> Answer:
        """The answer to `nova-manage WORDS`. Anything unexpected is 255."""
        following = [*words[1:], "--"]
        options = {
            word: "" if value.startswith("--") else value
            for word, value in zip(words, following, strict=True)
            if word.startswith("--")
        }
        name = "_".join(words[:2])
        if not self.server.up:
            return 255, "", '(pymysql.err.OperationalError) (2003, "Can\'t connect to MySQL server")'
        try:
            return getattr(self, f"_{name}")(options)  # type: ignore[no-any-return]
        except KeyError as error:
            return 255, "", f'(1049, "Unknown database {error}")'

    # schemas

    def _api_db_sync(self, options: dict[str, str]) -> Answer:
        return self._sync(self.configuration.api, "nova_api", API_TABLES)

    def _db_sync(self, options: dict[str, str]) -> Answer:
        """1 before api_db sync (since Train); without a row for cell0 it warns, skips cell0 and ends with 0."""
        if "--local_cell" not in options:
            if not self._at_head(self.configuration.api, "nova_api"):
                return 1, "ERROR: Could not access cell0.\nHas the nova_api database been created?", ""
            for row in self._rows():
                if row["uuid"] == CELL0_UUID:
                    done = self._sync(schema_of(row["database_connection"]), "nova", MAIN_TABLES)
                    if done != DONE:
                        return done
        return self._sync(schema_of(self.configuration.database), "nova", MAIN_TABLES)

    def _db_online_data_migrations(self, options: dict[str, str]) -> Answer:
        if "--max-count" in options and int(options["--max-count"]) < 1:
            return 127, "Must supply a positive value for max_count", ""
        return DONE

    def _sync(self, schema: str, kind: str, tables: Sequence[str]) -> Answer:
        if HALF_MADE in self.server.schemas[schema]:
            return 255, "", "(pymysql.err.OperationalError) (1050, \"Table 'half_made' already exists\")"
        rows = self.server.schemas[schema].setdefault("alembic_version", [])
        rows[:] = [{"version_num": head} for head in self.heads[kind]]
        for table in tables:
            self.server.rows(schema, table)
        return DONE

    def _at_head(self, schema: str, kind: str) -> bool:
        rows = self.server.schemas[schema].get("alembic_version", [])
        return sorted(row["version_num"] for row in rows) == sorted(self.heads[kind])

    # cells

    def _rows(self) -> list[dict[str, Any]]:
        return self.server.rows(self.configuration.api, "cell_mappings")

    def _cell_v2_map_cell0(self, options: dict[str, str]) -> Answer:
        """0 in any case; a row that is there is never changed; the default URL is [database]'s, un-escaped."""
        if any(row["uuid"] == CELL0_UUID for row in self._rows()):
            return 0, "Cell0 is already setup", ""
        database = options.get("--database_connection") or unquote(self.configuration.database + "_cell0")
        self._insert(CELL0_UUID, "cell0", "none:///", database)
        return DONE

    def _cell_v2_create_cell(self, options: dict[str, str]) -> Answer:
        """A random uuid after a look at the rows, whose templates are formatted and the new one's are not."""
        database = options.get("--database_connection") or self.configuration.database
        transport_url = options.get("--transport-url") or self.configuration.transport_url
        if self._is_taken("", transport_url, database):
            return 2, "The specified transport_url and/or database_connection combination already exists", ""
        self._insert(str(uuid4()), options["--name"], transport_url, database)
        return DONE

    def _cell_v2_update_cell(self, options: dict[str, str]) -> Answer:
        """A URL that is left out becomes that of nova.conf."""
        row = self._find(options["--cell_uuid"])
        if row is None:
            return 1, "Cell was not found", ""
        database = options.get("--database_connection") or self.configuration.database
        transport_url = options.get("--transport-url") or self.configuration.transport_url
        if self._is_taken(row["uuid"], transport_url, database):
            return 3, "The specified transport_url and/or database_connection combination already exists", ""
        row.update(name=options.get("--name", row["name"]), transport_url=transport_url, database_connection=database)
        return DONE

    def _cell_v2_delete_cell(self, options: dict[str, str]) -> Answer:
        row = self._find(options["--cell_uuid"])
        if row is None:
            return 1, "Cell was not found", ""
        hosts = self.server.rows(self.configuration.api, "host_mappings")
        if any(host.get("cell") == row["uuid"] for host in hosts):
            return 2, "There are existing hosts mapped to cell", ""
        self._rows().remove(row)
        return DONE

    def _cell_v2_discover_hosts(self, options: dict[str, str]) -> Answer:
        """0 with nothing new is normal, unless --strict; `mapped` stays 0 where a mapping was there before."""
        cells = [row for row in self._rows() if row["uuid"] != CELL0_UUID]
        if "--cell_uuid" in options:
            cells = [row for row in self._rows() if row["uuid"] == options["--cell_uuid"]]
            if not cells:
                return 255, "", "CellMappingNotFound"
        hosts = self.server.rows(self.configuration.api, "host_mappings")
        found = []
        for cell in cells:
            for compute in self.server.rows(schema_of(cell["database_connection"]), "compute_nodes"):
                marked = compute["mapped"] and "--by-service" not in options
                if not marked and compute["host"] not in [host["host"] for host in hosts]:
                    hosts.append({"host": compute["host"], "cell": cell["uuid"]})
                    compute["mapped"] = 1
                    found.append(compute["host"])
        return (1, "", "") if "--strict" in options and not found else DONE

    def _insert(self, uuid: str, name: str, transport_url: str, database: str) -> None:
        row = {"uuid": uuid, "name": name, "transport_url": transport_url, "database_connection": database}
        self._rows().append(row)

    def _find(self, uuid: str) -> dict[str, Any] | None:
        return next((row for row in self._rows() if row["uuid"] == uuid), None)

    def _is_taken(self, uuid: str, transport_url: str, database: str) -> bool:
        others = [row for row in self._rows() if row["uuid"] != uuid]
        return any(
            transport_url == self._format(row["transport_url"], self.configuration.transport_url)
            or database == self._format(row["database_connection"], self.configuration.database)
            for row in others
        )

    @staticmethod
    def _format(template: str, url: str) -> str:
        """A row's URL with nova.conf's parts in the place of {username} and the like (Rocky and later)."""
        parts = urlsplit(url)
        if "{" not in template:
            return template
        return template.format(
            scheme=parts.scheme,
            username=parts.username,
            password=parts.password,
            hostname=parts.hostname,
            port=parts.port,
            path=parts.path.lstrip("/"),
        )
