"""What elements declare about themselves: every folder has a declaration, each of the form that the schema gives."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from repository import ELEMENTS

from imagegen.base.resources import PACKAGE
from imagegen.model.declarations import FILE, declarations

SCHEMA = json.loads((PACKAGE / "data/declaration.schema.json").read_bytes())
SCHEMA_OF_CELLS = {"name": "a", "user": "a", "revisions": "a/versions", "per": "cell"}
WITHOUT_PACKAGES = {"openstack-daemon"}  # brings units' drop-ins alone


def find_faults(declared: Any) -> list[str]:
    """What is wrong with a declaration, a sentence each."""
    errors = jsonschema.Draft202012Validator(SCHEMA).iter_errors(declared)
    return [f"{error.json_path}: {error.message}" for error in errors]


@pytest.mark.parametrize("element", sorted(path.name for path in ELEMENTS.iterdir()))
def test_a_declaration_has_the_form_of_the_schema(element: str) -> None:
    """Of every element that installs packages or has units."""
    if element in WITHOUT_PACKAGES:
        assert element not in declarations()
    else:
        assert find_faults(declarations()[element]) == [], ELEMENTS / element / FILE


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({}, "'packages' is a required property"),
        ({"packages": {"a": {"all": "a"}}, "package": {}}, "'package' was unexpected"),
        ({"packages": {"a": {"debian": "a"}}}, "'all' is a required property"),
        ({"packages": {"a": {"all": "a b"}}}, "does not match"),
        ({"packages": {"a": {"all": "a", "suse": "a"}}}, "'suse' was unexpected"),
        ({"packages": {"a": {"all": "a", "since": 2025.1}}}, "is not of type 'string'"),
        ({"packages": {"a": {"all": "a"}}, "units": {}}, "should be non-empty"),
        (
            {"packages": {"a": {"all": "a"}}, "schemas": [{**SCHEMA_OF_CELLS, "sync": ["s"], "account": "a"}]},
            "should not",
        ),
    ],
)
def test_a_broken_declaration_is_told(declared: Any, said: str) -> None:
    """With the place and what is wrong there."""
    (fault,) = find_faults(declared)
    assert fault.startswith("$") and said in fault
