"""The real nova-manage of the image keeps the contract that the unit tests' fake is held to, in schemas of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from contract import CONTRACT, Installation
from deployment import Deployment, RunningNode

SCHEMAS = ("contract_api", "contract", "contract_cell0", "contract_zero")
PASSWORD = "p@ss/w r%d"
DIRECTORY = "/var/lib/nova/contract"
CONFIGURATION = """\
[DEFAULT]
transport_url = {transport_url}

[api_database]
connection = {api}
max_retries = 1
retry_interval = 1

[database]
connection = {database}
max_retries = 1
retry_interval = 1
"""


class RealInstallation:
    """nova-manage on a controller, with configuration files of its own; Nova's own schemas are not touched."""

    transport_url = "rabbit://contract:x@192.0.2.1:5672/contract"

    def __init__(self, controller: RunningNode) -> None:
        self.controller = controller
        self.host = str(controller.node.address)
        self.database = self.url(self.host, "contract")
        self.database_cell0 = self.url(self.host, "contract_zero")
        controller.ask("install", "-d", "-o", "nova", "-g", "nova", f"{DIRECTORY}/empty")
        self.write("nova.conf", self.host, 3306)
        self.write("away.conf", self.host, 1)
        self.drop_tables()
        user = f"'contract'@'%' IDENTIFIED BY '{PASSWORD}'"
        self.sql(f"CREATE OR REPLACE USER {user}; GRANT ALL ON `contract%`.* TO 'contract'@'%'")
        assert self.run("api_db", "sync") == self.run("db", "sync") == 0

    @staticmethod
    def url(host: str, schema: str, port: int = 3306) -> str:
        return f"mysql+pymysql://contract:{quote(PASSWORD, safe='')}@{host}:{port}/{schema}"

    def write(self, name: str, host: str, port: int) -> None:
        text = CONFIGURATION.format(
            transport_url=self.transport_url,
            api=self.url(host, "contract_api", port),
            database=self.url(host, "contract", port),
        )
        self.controller.ask("tee", f"{DIRECTORY}/{name}", input=text)

    def sql(self, statement: str) -> list[list[str]]:
        argv = ("mariadb", "--batch", "--skip-column-names", "--execute", statement)
        return [line.split("\t") for line in self.controller.ask(*argv).splitlines()]

    def run(self, *words: str, configuration: str = "nova.conf") -> int:
        # With a directory named, the node's own /etc/nova/nova.conf.d is not read.
        files = ("--config-file", f"{DIRECTORY}/{configuration}", "--config-dir", f"{DIRECTORY}/empty")
        argv = ["runuser", "-u", "nova", "--", "nova-manage", *files, *words]
        return self.controller.execute(argv, timeout=300).returncode

    def run_without_database(self, *words: str) -> int:
        return self.run(*words, configuration="away.conf")

    def drop_tables(self) -> None:
        for schema in SCHEMAS:
            self.sql(f"DROP DATABASE IF EXISTS {schema}; CREATE DATABASE {schema} CHARACTER SET utf8mb4")

    def forget_version(self) -> None:
        self.sql("DELETE FROM contract_api.alembic_version")

    def has_tables(self, url: str) -> bool:
        return ["compute_nodes"] in self.sql(f"SHOW TABLES FROM {url.rsplit('/', 1)[1]}")

    def cells(self) -> list[tuple[str, str, str, str]]:
        columns = "uuid, name, transport_url, database_connection"
        rows = self.sql(f"SELECT {columns} FROM contract_api.cell_mappings ORDER BY id")
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def map_host(self, cell: str) -> None:
        rows = "SELECT id, 'somebody' FROM contract_api.cell_mappings"
        self.sql(f"INSERT INTO contract_api.host_mappings (cell_id, host) {rows} WHERE uuid = '{cell}'")

    def add_marked_compute(self) -> None:
        """A copy of the deployment's own compute in its second cell, service and all."""
        for table in ("compute_nodes", "services"):
            self.sql(f"INSERT INTO contract.{table} SELECT * FROM nova_oost.{table} WHERE host = 'c-3'")
        self.sql("UPDATE contract.compute_nodes SET mapped = 1")

    def count_mapped_hosts(self) -> int:
        return int(self.sql("SELECT COUNT(*) FROM contract_api.host_mappings")[0][0])

    def forget_rows(self) -> None:
        tables = ("contract_api.host_mappings", "contract_api.cell_mappings", "contract.compute_nodes")
        self.sql("; ".join(f"DELETE FROM {table}" for table in (*tables, "contract.services")))


@pytest.fixture(scope="module")
def installation(deployment: Deployment) -> Iterator[RealInstallation]:
    """One for all clauses; gone afterwards."""
    try:
        yield RealInstallation(deployment.controller)
    finally:
        drops = "; ".join(f"DROP DATABASE IF EXISTS {schema}" for schema in SCHEMAS)
        deployment.controller.ask("mariadb", "--execute", f"{drops}; DROP USER IF EXISTS 'contract'@'%'")
        deployment.controller.ask("rm", "-rf", DIRECTORY)


# Those about syncs come last: they begin with empty schemas.
@pytest.mark.parametrize("clause", [*CONTRACT[2:], *CONTRACT[:2]], ids=lambda clause: clause.__name__)
def test_nova_manage_keeps_the_contract(installation: RealInstallation, clause: Callable[[Installation], None]) -> None:
    """Return codes and rows as the fake has them."""
    installation.forget_rows()
    clause(installation)
