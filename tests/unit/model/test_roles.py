"""Roles: declared by elements, and the same wherever one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from imagegen_node import metadata
from repository import ELEMENTS

from imagegen.base.resources import PACKAGE
from imagegen.base.tree import read_tree
from imagegen.images.elements import in_house_elements
from imagegen.model.cluster import Services
from imagegen.model.declarations import declarations
from imagegen.model.json_schemas import json_schema
from imagegen.model.roles import Role, UnknownRole, find_role, hosted_services, roles


def test_every_role_is_declared_once() -> None:
    """By the element at the top of its image; those that can host something come first."""
    declared = [one["role"]["name"] for one in declarations().values() if "role" in one]
    assert sorted(declared) == sorted(role.name for role in roles())
    assert len(set(declared)) == len(declared)
    assert [str(role) for role in roles()] == ["controller", "compute"]
    compute = find_role("compute")
    assert (compute.element, compute.machine_memory, compute.processors) == ("nova-compute", 2 << 30, 1)


def test_roles_compare_by_value() -> None:
    """So one may be a key, whoever made it."""
    role = find_role("compute")
    again = Role(**{field.name: getattr(role, field.name) for field in fields(role)})
    assert again is not role and {role: "found"}[again] == "found"


def test_an_unknown_role_is_refused_by_name() -> None:
    """With those that there are."""
    with pytest.raises(UnknownRole, match="there is no role `storage`; choose one of controller, compute"):
        find_role("storage")


def test_a_role_is_what_it_runs() -> None:
    """Each of the two runs its side of Nova, and not the other's."""
    assert [[role.controls, role.runs("nova-compute")] for role in roles()] == [[True, False], [False, True]]


@pytest.mark.parametrize("role", roles(), ids=str)
def test_what_a_role_runs_is_in_its_image(role: Role) -> None:
    """Each of its elements exists, declares itself, and is reached by element-deps from the one at the top."""
    reached = in_house_elements(role.element, read_tree(ELEMENTS))
    assert [element for element in (*role.services, *role.hosts) if element not in declarations()] == []
    assert [element for element in (*role.services, *role.hosts) if element not in reached] == []
    assert not set(role.services) & set(role.hosts)
    assert role.element in role.services


def test_hosted_services_have_one_name_everywhere() -> None:
    """In the declarations, the cluster file and the Cluster, in the order of metadata and seeds."""
    assert hosted_services() == ("database", "messaging", "cache", "identity")
    of_the_file = json_schema("cluster")["properties"]["services"]["properties"]
    assert sorted(of_the_file) == sorted([*hosted_services(), "image"])
    assert set(hosted_services()) <= {field.name for field in fields(Services)}


def find_enums(schema: Any) -> list[list[str]]:
    """Every list of values in a schema that has a role among them."""
    if isinstance(schema, Mapping):
        enum = schema.get("enum")
        own = [enum] if isinstance(enum, list) and set(enum) & {str(role) for role in roles()} else []
        return own + [found for value in schema.values() for found in find_enums(value)]
    return [found for value in schema for found in find_enums(value)] if isinstance(schema, list) else []


def test_schemas_and_agent_know_the_same_roles() -> None:
    """The status document has none, too, of a node that does not know its own yet."""
    names = [str(role) for role in roles()]
    assert find_enums(json_schema("cluster")) == find_enums(json_schema("output")) == [names]
    assert find_enums(json_schema("status")) == [["", *names]]
    assert tuple(names) == metadata.ROLES


def test_no_schema_lists_roles_itself() -> None:
    """They come from the declarations, so a new one is known everywhere."""
    texts = {path: path.read_text() for path in Path(PACKAGE / "data").glob("*.schema.json")}
    assert len(texts) > 3
    assert [(path.name, role.name) for path, text in texts.items() for role in roles() if f'"{role}"' in text] == []
