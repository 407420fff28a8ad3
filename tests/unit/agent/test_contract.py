"""The fake nova-manage keeps the contract that the cluster tier holds the real one to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contract import CONTRACT, Installation
from fakes.mariadb import Server
from fakes.nova_manage import HALF_MADE, Configuration, NovaManage, schema_of
from fakes.world import heads_of

PASSWORD = "p%40ss%2Fw"


class FakeInstallation:
    """Three empty schemas and the fake."""

    database = f"mysql+pymysql://contract:{PASSWORD}@192.0.2.1:3306/contract"
    database_cell0 = f"mysql+pymysql://contract:{PASSWORD}@192.0.2.1:3306/contract_zero"
    transport_url = "rabbit://contract:x@192.0.2.1:5672/contract"

    def __init__(self) -> None:
        self.server = Server(lambda: 0.0)
        self.server.up = True
        configuration = Configuration("contract_api", self.database, self.transport_url)
        self.manage = NovaManage(self.server, configuration, {kind: heads_of(kind) for kind in ("nova_api", "nova")})
        self.drop_tables()
        assert self.run("api_db", "sync") == self.run("db", "sync") == 0

    def run(self, *words: str) -> int:
        return self.manage.run(words)[0]

    def run_without_database(self, *words: str) -> int:
        self.server.up = False
        try:
            return self.run(*words)
        finally:
            self.server.up = True

    def drop_tables(self) -> None:
        self.server.schemas = {"contract_api": {}, "contract": {}, "contract_zero": {}}

    def forget_version(self) -> None:
        self.server.rows("contract_api", "alembic_version").clear()
        self.server.rows("contract_api", HALF_MADE)

    def has_tables(self, url: str) -> bool:
        return "compute_nodes" in self.server.schemas[schema_of(url)]

    def cells(self) -> list[tuple[str, str, str, str]]:
        rows = self.server.rows("contract_api", "cell_mappings")
        return [(row["uuid"], row["name"], row["transport_url"], row["database_connection"]) for row in rows]

    def map_host(self, cell: str) -> None:
        self.server.rows("contract_api", "host_mappings").append({"host": "h", "cell": cell})

    def add_marked_compute(self) -> None:
        self.server.rows("contract", "compute_nodes").append({"host": "c", "mapped": 1, "deleted": 0})

    def count_mapped_hosts(self) -> int:
        return len(self.server.rows("contract_api", "host_mappings"))


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
def test_the_fake_keeps_the_contract(clause: Callable[[Installation], None]) -> None:
    clause(FakeInstallation())
