"""Finding computes that have no host mapping yet, and mapping them."""

from __future__ import annotations

from typing import Any

from imagegen_node.database import connect_schema, fetch_rows
from imagegen_node.system import run

UNMAPPED = "SELECT host FROM compute_nodes WHERE mapped = 0 AND deleted = 0 ORDER BY host"


def find_unmapped(node: dict[str, Any]) -> dict[str, list[str]]:
    """cell uuid -> hosts that nova-compute registered and discovery has not mapped. One cheap query a cell."""
    found = {}
    for cell in node["cells"]:
        if cell["name"] == "cell0":
            continue
        schema = cell["database_connection"].split("?")[0].rsplit("/", 1)[1]
        with connect_schema(node["database"], schema) as connection:
            hosts = [row[0] for row in fetch_rows(connection, UNMAPPED)]
        if hosts:
            found[cell["uuid"]] = hosts
    return found


def map_new_hosts(node: dict[str, Any]) -> list[str]:
    """Runs discover_hosts for the cells that have something new; the hosts that are mapped now.

    Return code 2 is a mapping that somebody else made meanwhile, safe to try again (Train and later).
    """
    found = find_unmapped(node)
    for uuid in found:
        run(["nova-manage", "cell_v2", "discover_hosts", "--cell_uuid", uuid], user="nova", ok=(0, 2))
    left = {host for hosts in find_unmapped(node).values() for host in hosts} if found else set()
    return [host for hosts in found.values() for host in hosts if host not in left]
