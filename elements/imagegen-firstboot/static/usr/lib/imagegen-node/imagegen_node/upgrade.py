"""Bringing Nova's own schemas to the packaged version, and what has to be so before its services may start."""

from __future__ import annotations

import re
from typing import Any

from imagegen_node.backing import read_state
from imagegen_node.cells import CELL0, configuration_of, further_cells
from imagegen_node.database import PACKAGES, connect_schema, fetch_rows, read_due, schema_of, set_due
from imagegen_node.steps import CommandFailed, Refused, Waiting
from imagegen_node.system import run

MIGRATIONS = "online_data_migrations"
SERVICE_VERSIONS = PACKAGES / "nova/objects/service.py"
OLD_COMPUTES = "SELECT host, version FROM services WHERE `binary` = 'nova-compute' AND deleted = 0 AND version < %s"


def sync_nova(node: dict[str, Any]) -> list[str]:
    """`db sync` for every cell that is not at the head, then migrations after an upgrade; what each cell was before."""
    cells = {schema_of(cell): cell for cell in node["cells"]}
    before = {schema: read_state(node, schema) for schema in cells}
    old = [schema for schema, state in before.items() if state != "head"]
    if "behind" in before.values():
        set_due(node["database"], MIGRATIONS, True)
    own = {schema for schema, cell in cells.items() if cell["name"] in (CELL0, node["cell"])}
    if own & set(old):
        run(["nova-manage", "db", "sync"], user="nova")  # reaches cell0 and [database]
    for schema in old:
        if schema not in own:
            run(["nova-manage", *options_for(cells[schema]["name"]), "db", "sync", "--local_cell"], user="nova")
        after = read_state(node, schema)
        if after != "head":
            raise Waiting(f"schema {schema} at its head; it is {after} after `nova-manage db sync`")
    if MIGRATIONS in read_due(node["database"]):
        migrate_online([])
        for cell in further_cells(node):
            migrate_online(options_for(cell))
        set_due(node["database"], MIGRATIONS, False)
    return [f"{schema} was {before[schema]}" for schema in old]


def options_for(cell: str) -> list[str]:
    """nova-manage's options for a cell that is not this node's own: with its [database]."""
    return ["--config-dir", "/etc/nova/nova.conf.d", "--config-file", str(configuration_of(cell))]


def migrate_online(options: list[str]) -> None:
    """online_data_migrations, which works on [database] only, until it says 0 (done); 1 is: run again; 2: stuck."""
    for _ in range(5):
        try:
            run(["nova-manage", *options, "db", MIGRATIONS], user="nova")
            return
        except CommandFailed as error:
            if error.rc != 1:
                raise
    raise Waiting(f"{MIGRATIONS} to finish")


def read_oldest_compute() -> int:
    """The lowest version of nova-compute beside which this Nova starts (Wallaby and later); 0: it does not look."""
    text = SERVICE_VERSIONS.read_text()
    name = re.search(r"^OLDEST_SUPPORTED_SERVICE_VERSION = ['\"](\w+)['\"]", text, re.M)
    version = name and re.search(rf"^    ['\"]{name.group(1)}['\"]: (\d+),", text, re.M)
    return int(version.group(1)) if version else 0


def find_old_computes(node: dict[str, Any], oldest: int) -> list[tuple[str, int]]:
    """(host, version) of every nova-compute older than that, in any cell."""
    found: list[tuple[str, int]] = []
    for cell in node["cells"]:
        if cell["name"] != CELL0:
            with connect_schema(node["database"], schema_of(cell)) as connection:
                found += fetch_rows(connection, OLD_COMPUTES, (oldest,))
    return sorted(found)


def check_computes(node: dict[str, Any]) -> str:
    """Raises Refused with the names of computes that are too old: beside them Nova's services refuse to start."""
    oldest = read_oldest_compute()
    old = find_old_computes(node, oldest)
    if old:
        named = ", ".join(f"{host} (version {version})" for host, version in old)
        raise Refused(
            f"{named}: older than version {oldest} of nova-compute, and beside them this Nova's services do not start. "
            "Upgrade these computes; of one that is gone, delete the service from a controller of the old release: "
            "`openstack compute service delete ID`"
        )
    return ""
