"""Bringing Nova's own schemas to the packaged version, and what must be true before its services may start."""

from __future__ import annotations

import json
import re
from typing import Any

from imagegen_node.engine.errors import CommandFailed, Refused, Waiting
from imagegen_node.engine.system import run
from imagegen_node.node.metadata import IMAGE_FILE
from imagegen_node.openstack.backing import read_state, sync_schema
from imagegen_node.openstack.cells import CELL0, configuration_of, further_cells
from imagegen_node.openstack.database import PACKAGES, connect_schema, fetch_rows, read_done, schema_of, set_done

MIGRATIONS = "online_data_migrations"
CHECK = "upgrade_check"
SERVICE_VERSIONS = PACKAGES / "nova/objects/service.py"
# Nova leaves out the same: what is deleted, and what an operator forced down (nova/db/main/api.py, minimum version).
OLD_COMPUTES = (
    "SELECT host, version FROM services "
    "WHERE `binary` = 'nova-compute' AND deleted = 0 AND COALESCE(forced_down, 0) = 0 AND version < %s"
)


def name_work(work: str) -> str:
    """The name under which work that each release needs once is recorded as done."""
    return "{} of {release}".format(work, **json.loads(IMAGE_FILE.read_text()))


def is_done(node: dict[str, Any], work: str) -> bool:
    return name_work(work) in read_done(node["database"])


def note_work(node: dict[str, Any]) -> None:
    """Before the schemas are touched: marks what this release must do again because one of them is older."""
    states = {read_state(node, schema) for schema in ("nova_api", *map(schema_of, node["cells"]))}
    if "behind" in states:
        for work in (MIGRATIONS, CHECK):
            set_done(node["database"], name_work(work), False)
    if states == {"absent"}:  # there are no data to migrate
        set_done(node["database"], name_work(MIGRATIONS), True)


def sync_api(node: dict[str, Any]) -> str:
    """`api_db sync`, unless the schema is at its head. Comes before every other change of Nova's schemas."""
    note_work(node)
    return sync_schema(node, "nova_api", ["nova-manage", "api_db", "sync"], "nova")


def sync_nova(node: dict[str, Any]) -> str:
    """`db sync` for every cell that is not at the head, then online_data_migrations unless already done."""
    said = []
    for cell in node["cells"]:
        if cell["name"] in (CELL0, node["cell"]):
            argv = ["nova-manage", "db", "sync"]  # reaches cell0 and [database]
        else:
            argv = ["nova-manage", *options_for(cell["name"]), "db", "sync", "--local_cell"]
        said.append("{} {}".format(schema_of(cell), sync_schema(node, schema_of(cell), argv, "nova")))
    if not is_done(node, MIGRATIONS):
        migrate_online([])
        for cell in further_cells(node):
            migrate_online(options_for(cell))
        set_done(node["database"], name_work(MIGRATIONS), True)
        said.append("data migrated")
    return ", ".join(said)


def options_for(cell: str) -> list[str]:
    """nova-manage's options for a cell that is not this node's own: with its [database]."""
    return ["--config-dir", "/etc/nova/nova.conf.d", "--config-file", str(configuration_of(cell))]


def migrate_online(options: list[str]) -> None:
    """online_data_migrations, which works on [database] only, until it returns 0 (done); 1: run it again; 2: stuck."""
    for _ in range(5):
        try:
            run(["nova-manage", *options, "db", MIGRATIONS], user="nova")
            return
        except CommandFailed as error:
            if error.rc != 1:
                raise
    raise Waiting(f"{MIGRATIONS} to finish")


def read_oldest_compute() -> int:
    """The oldest version of nova-compute with which this Nova starts (Wallaby and later); 0: it does not check."""
    text = SERVICE_VERSIONS.read_text()
    name = re.search(r"^OLDEST_SUPPORTED_SERVICE_VERSION = ['\"](\w+)['\"]", text, re.M)
    version = name and re.search(rf"^    ['\"]{name.group(1)}['\"]: (\d+),", text, re.M)
    return int(version.group(1)) if version else 0


def check_upgrade(node: dict[str, Any]) -> None:
    """nova-status upgrade check: 0 and 1 (warnings) pass, 2 fails - also while computes are there but unmapped."""
    run(["nova-status", "upgrade", "check"], user="nova", ok=(0, 1))
    set_done(node["database"], name_work(CHECK), True)


def find_old_computes(node: dict[str, Any], oldest: int) -> list[tuple[str, int]]:
    """(host, version) of every nova-compute older than that, in any cell."""
    found: list[tuple[str, int]] = []
    for cell in node["cells"]:
        if cell["name"] != CELL0:
            with connect_schema(node["database"], schema_of(cell)) as connection:
                found += fetch_rows(connection, OLD_COMPUTES, (oldest,))
    return sorted(found)


def check_computes(node: dict[str, Any]) -> str:
    """Raises Refused with the names of computes that are too old: with them Nova's services refuse to start."""
    oldest = read_oldest_compute()
    old = find_old_computes(node, oldest)
    if old:
        named = ", ".join(f"{host} (version {version})" for host, version in old)
        raise Refused(
            f"{named}: older than version {oldest} of nova-compute, the oldest with which this Nova's services start. "
            "Upgrade these computes; if one is gone for good, delete its service from a controller of the old release: "
            "`openstack compute service delete ID`"
        )
    return ""
