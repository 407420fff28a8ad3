"""Roles: declared by elements, and the same wherever one is named."""

from __future__ import annotations

import json

from imagegen.base.resources import PACKAGE
from imagegen.model.cluster import Role
from imagegen.model.declarations import declarations
from imagegen.model.roles import roles

SCHEMAS = {
    "cluster.schema.json": ("$defs", "node", "properties", "role", "enum"),
    "output.schema.json": ("$defs", "role", "enum"),
    "status.schema.json": ("properties", "role", "enum"),
}


def test_every_role_is_declared_once() -> None:
    """By the element at the top of its image."""
    declared = [one["role"]["name"] for one in declarations().values() if "role" in one]
    assert sorted(declared) == sorted(role.value for role in Role)
    assert list(roles()) == list(Role)
    assert roles()[Role.COMPUTE].element == "nova-compute"


def test_schemas_know_the_same_roles() -> None:
    """The status document has none, too, of a node that does not know its own yet."""
    for name, path in SCHEMAS.items():
        found = json.loads((PACKAGE / "data" / name).read_bytes())
        for key in path:
            found = found[key]
        assert [role for role in found if role] == [role.value for role in Role], name
