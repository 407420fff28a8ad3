"""Finding computes that have no host mapping yet, and mapping them."""

from __future__ import annotations

from typing import Any

from imagegen_node.engine.system import run
from imagegen_node.openstack.cells import CELL0
from imagegen_node.openstack.database import connect_schema, fetch_rows, schema_of

# What Nova marks as mapped may have no mapping all the same: a compute service that was deleted and came back.
UNMAPPED = (
    "SELECT c.host, c.mapped FROM compute_nodes c LEFT JOIN nova_api.host_mappings h ON h.host = c.host "
    "WHERE c.deleted = 0 AND h.id IS NULL ORDER BY c.host"
)
ELSEWHERE = (
    "SELECT c.host, m.uuid FROM compute_nodes c JOIN nova_api.host_mappings h ON h.host = c.host "
    "JOIN nova_api.cell_mappings m ON m.id = h.cell_id WHERE c.deleted = 0 AND m.uuid <> %s ORDER BY c.host"
)


def read_hosts(node: dict[str, Any], query: str, of_cell: bool = False) -> dict[str, list[tuple[Any, ...]]]:
    """cell uuid -> rows of that query in the cell's schema, cells without any left out. One cheap query per cell."""
    found = {}
    for cell in node["cells"]:
        if cell["name"] != CELL0:
            with connect_schema(node["database"], schema_of(cell)) as connection:
                rows = fetch_rows(connection, query, (cell["uuid"],) if of_cell else ())
            if rows:
                found[cell["uuid"]] = rows
    return found


def find_unmapped(node: dict[str, Any]) -> dict[str, list[str]]:
    """cell uuid -> hosts that nova-compute registered and no controller has mapped."""
    return {uuid: [row[0] for row in rows] for uuid, rows in read_hosts(node, UNMAPPED).items()}


def find_elsewhere(node: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(host, uuid of the cell where it registered, uuid of the cell to which it is mapped) where these differ."""
    found = read_hosts(node, ELSEWHERE, of_cell=True)
    return [(host, uuid, mapped) for uuid, rows in found.items() for host, mapped in rows]


def map_new_hosts(node: dict[str, Any]) -> list[str]:
    """Runs discover_hosts for the cells that have something new; returns the hosts that are mapped now.

    Return code 2: somebody else made a mapping meanwhile, safe to try again (Train and later). Hosts that Nova marks
    as mapped are found by their service only. A failure in one cell is raised after the others have been looked at.
    """
    failed: list[Exception] = []
    found = read_hosts(node, UNMAPPED)
    for uuid, rows in found.items():
        marked = ["--by-service"] if any(mapped for _, mapped in rows) else []
        try:
            run(["nova-manage", "cell_v2", "discover_hosts", "--cell_uuid", uuid, *marked], user="nova", ok=(0, 2))
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]
    left = {host for hosts in find_unmapped(node).values() for host in hosts} if found else set()
    return [host for rows in found.values() for host, _ in rows if host not in left]
