"""What the elements of this image declare: units, ports, schemas and data, as services.json has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imagegen_node.engine.system import Units

FILE = Path("/usr/lib/imagegen-node/services.json")

Element = dict[str, Any]


def read_declared() -> dict[str, Any]:
    """The whole document. Raises FileNotFoundError for an image without a role's element."""
    return dict(json.loads(FILE.read_text()))


def list_services(node: dict[str, Any]) -> list[Element]:
    """The elements that are at work here because of the node's role, after those that they need."""
    declared = read_declared()
    at_work = set(declared["services"]) & set(node["elements"])
    return [element for element in declared["elements"] if element["element"] in at_work]


def list_hosted(node: dict[str, Any]) -> list[Element]:
    """The elements whose services this node hosts, in the declared order."""
    declared = read_declared()
    elements = {element["element"]: element for element in declared["elements"]}
    return [elements[name] for name in declared["hosts"] if name in node["elements"]]


def list_at_work(node: dict[str, Any]) -> list[Element]:
    """The elements that are at work on this node, the hosted ones first."""
    return [*list_hosted(node), *list_services(node)]


def list_units(elements: Iterable[Element], cells: Sequence[str] = (), step: str | None = None) -> Units:
    """The units of these elements, or those that this step starts, with one more of some for each of these cells."""
    entries = [entry for element in elements for entry in element["units"] if step in (None, entry["step"])]
    units = {entry["unit"]: _read_by(entry) for entry in entries}
    for cell in cells:
        units.update({_unit_of(cell, entry): _read_by(entry) for entry in entries if entry["per_cell"]})
    return units


def find_unit(service: str) -> str:
    """The unit of that service in this distro. Raises KeyError for a service that no element declares."""
    return {entry["service"]: str(entry["unit"]) for entry in _list_entries()}[service]


def find_step(unit: str) -> str:
    """The step that starts that unit, which may be a cell's. Raises KeyError for a unit that no element declares."""
    name = unit.partition("@")[0].removesuffix(".service")
    return {entry["unit"]: str(entry["step"]) for entry in _list_entries()}[f"{name}.service"]


def find_schema(name: str, elements: Iterable[Element]) -> dict[str, Any] | None:
    """What one of these elements declares of that schema, a further cell's too; None: nothing."""
    schemas = [schema for element in elements for schema in element["schemas"]]
    named = [schema for schema in schemas if schema["name"] == name]
    of_cells = [schema for schema in schemas if schema["per_cell"] and name.startswith(schema["name"] + "_")]
    return next(iter([*named, *of_cells]), None)


def list_places(node: dict[str, Any]) -> list[Path]:
    """The directories whose disks must not fill up, those of every image first."""
    return [Path(data["path"]) for element in [*list_services(node), *list_hosted(node)] for data in element["data"]]


def _list_entries() -> list[dict[str, Any]]:
    return [entry for element in read_declared()["elements"] for entry in element["units"]]


def _read_by(entry: dict[str, Any]) -> tuple[Path, ...]:
    return tuple(map(Path, entry["reads"]))


def _unit_of(cell: str, entry: dict[str, Any]) -> str:
    return "{}@{}.service".format(entry["unit"].removesuffix(".service"), cell)
