"""Finding computes that have no host mapping yet, and mapping them."""

from __future__ import annotations

from typing import Any

from imagegen_node.database import connect_schema, fetch_rows, schema_of
from imagegen_node.system import run

NOT_MARKED = "SELECT host FROM compute_nodes WHERE mapped = 0 AND deleted = 0 ORDER BY host"
MAPPED = "SELECT host FROM host_mappings WHERE host IN %s"


def find_unmapped(node: dict[str, Any]) -> dict[str, list[str]]:
    """cell uuid -> hosts that nova-compute registered and discovery has not mapped. One cheap query a cell.

    Nova leaves compute_nodes.mapped at 0 when a mapping of that host is there already: such hosts are mapped.
    """
    found = {}
    for cell in node["cells"]:
        if cell["name"] != "cell0":
            with connect_schema(node["database"], schema_of(cell)) as connection:
                found[cell["uuid"]] = [row[0] for row in fetch_rows(connection, NOT_MARKED)]
    hosts = [host for names in found.values() for host in names]
    if not hosts:
        return {}
    with connect_schema(node["database"], "nova_api") as connection:
        mapped = {row[0] for row in fetch_rows(connection, MAPPED, (hosts,))}
    left = {uuid: [host for host in names if host not in mapped] for uuid, names in found.items()}
    return {uuid: names for uuid, names in left.items() if names}


def map_new_hosts(node: dict[str, Any]) -> list[str]:
    """Runs discover_hosts for the cells that have something new; the hosts that are mapped now.

    Return code 2 is a mapping that somebody else made meanwhile, safe to try again (Train and later).
    """
    found = find_unmapped(node)
    for uuid in found:
        run(["nova-manage", "cell_v2", "discover_hosts", "--cell_uuid", uuid], user="nova", ok=(0, 2))
    left = {host for hosts in find_unmapped(node).values() for host in hosts} if found else set()
    return [host for hosts in found.values() for host in hosts if host not in left]
