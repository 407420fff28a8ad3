"""Nova's cells: their rows in nova_api.cell_mappings, and the configuration of those that are not this node's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from imagegen_node.engine.errors import Refused, Waiting
from imagegen_node.engine.system import run
from imagegen_node.openstack.database import connect_schema, fetch_rows

HERE = Path(__file__).parent
COLUMNS = ("name", "uuid", "database_connection", "transport_url")
ROWS = "SELECT name, uuid, database_connection, transport_url FROM cell_mappings ORDER BY name, uuid"
CELL0 = "cell0"
CONFIGURATIONS = Path("/etc/nova/cells")


def read_cells(node: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of cell_mappings, by name."""
    with connect_schema(node["database"], "nova_api") as connection:
        return [dict(zip(COLUMNS, row)) for row in fetch_rows(connection, ROWS)]


def map_cells(node: dict[str, Any]) -> str:
    """cell0 with `none:///` and every cell with its own URLs, under fixed uuids."""
    wanted, there = node["cells"], read_cells(node)
    refuse_duplicates(wanted, there)
    if all(cell in there for cell in wanted):
        return "all mapped"
    text = run([sys.executable, str(HERE / "cell_mappings.py")], user="nova", input=json.dumps(wanted))
    return ", ".join(text.splitlines())


def check_mapped(node: dict[str, Any]) -> None:
    """Raises Waiting until every cell has its row as the seed describes it, and Refused for a surplus row."""
    there = read_cells(node)
    refuse_duplicates(node["cells"], there)
    missing = [cell["name"] for cell in node["cells"] if cell not in there]
    if missing:
        raise Waiting("cell mappings as the seed describes them; not yet right: {}".format(", ".join(missing)))


def find_duplicates(wanted: list[dict[str, str]], there: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows that take the place of one of ours under another uuid."""
    names = {cell["name"] for cell in wanted}
    uuids = {cell["uuid"] for cell in wanted}
    places = {place_of(cell) for cell in wanted}
    return [cell for cell in there if cell["uuid"] not in uuids and (cell["name"] in names or place_of(cell) in places)]


def explain_duplicate(cell: dict[str, str]) -> str:
    """What is wrong with such a row, and the exact commands that remove it."""
    return (
        "Nova's table of cells has a row named {name} that is not in the seed, with the name or the database "
        "of one of this cluster's cells. See what it holds: `nova-manage cell_v2 list_hosts --cell_uuid {uuid}`. "
        "If nothing, run as user nova: `nova-manage cell_v2 delete_cell --cell_uuid {uuid}`, which returns 0 "
        "(deleted), 1 (not found), 2 (it has hosts), 3 (it has instances) or 4 (only deleted instances: "
        "`nova-manage db archive_deleted_rows` first)".format(**cell)
    )


def refuse_duplicates(wanted: list[dict[str, str]], there: list[dict[str, str]]) -> None:
    """Raises Refused for the first row in the place of one of ours; what it holds is not ours to judge."""
    for cell in find_duplicates(wanted, there):
        raise Refused(explain_duplicate(cell))


def place_of(cell: dict[str, str]) -> str:
    """Server and schema of a cell's database, without the login."""
    return cell["database_connection"].rsplit("@", 1)[-1].split("?")[0]


def further_cells(node: dict[str, Any]) -> list[str]:
    """The cells that are not this controller's own: for each it runs one more conductor. A compute has none."""
    return [cell["name"] for cell in node.get("cells", ()) if cell["name"] not in (CELL0, node["cell"])]


def configuration_of(cell: str) -> Path:
    """The seed's drop-in with the database and the message queue of a further cell."""
    return CONFIGURATIONS / f"{cell}.conf"
