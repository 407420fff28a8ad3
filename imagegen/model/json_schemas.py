"""The JSON schemas in data/, with the roles that elements declare."""

from __future__ import annotations

import json
from typing import Any

from imagegen.base.resources import PACKAGE
from imagegen.model.roles import roles

ROLE = "ROLE"  # among the values of an enum: the name of any role


def json_schema(name: str) -> dict[str, Any]:
    """The schema in data/NAME.schema.json."""
    loaded: dict[str, Any] = json.loads((PACKAGE / f"data/{name}.schema.json").read_bytes(), object_hook=_name_roles)
    return loaded


def _name_roles(found: dict[str, Any]) -> dict[str, Any]:
    values, names = found.get("enum"), [role.name for role in roles()]
    if isinstance(values, list):
        found["enum"] = [one for value in values for one in (names if value == ROLE else [value])]
    return found
