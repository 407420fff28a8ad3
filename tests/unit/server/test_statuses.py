"""statuses.py: what a status document may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes.reports import ROLES, document
from fakes.status import STATUS_SCHEMA
from hypothesis import given
from hypothesis import strategies as st

from imagegen.server.ledger import Ledger
from imagegen.server.statuses import check_document


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 1"),
        ({"node": "c-9"}, "not a node"),
        ({"node": None}, "node must be"),
        ({"role": "controller"}, "not the node's role"),
        ({"state": "happy"}, "state must be"),
        ({"state": ["ready"]}, "state must be"),
        ({"step": "s" * 101}, "step must be"),
        ({"detail": "d" * 1001}, "detail must be"),
        ({"detail": "\ud800"}, "surrogates"),
        ({"steps": {}}, "steps must be"),
        ({"steps": [{"name": "x"}] * 201}, "steps must be"),
        ({"steps": [{"name": "x"}, "y"]}, "steps must be"),
        ({"steps": [{"name": ["x"]}]}, "steps must be"),
    ],
)
def test_a_document_that_is_none_is_refused(change: dict[str, Any], words: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(ValueError, match=words):
        check_document(json.dumps({**document("c-1", "working", "role"), **change}).encode(), ROLES)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b'"x"'])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    """As a ValueError, whatever they are."""
    with pytest.raises(ValueError):
        check_document(data, ROLES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KEYS = st.sampled_from(["version", "node", "role", "state", "step", "detail", "steps"])


@given(st.dictionaries(KEYS, JSON))
def test_what_is_taken_can_be_recorded(changes: dict[str, Any]) -> None:
    """Any JSON under any key is refused or recorded; nothing else happens."""
    data = json.dumps({**document("c-1", "working", "role"), **changes}).encode()
    try:
        taken = check_document(data, ROLES)
    except ValueError:
        return
    memory = Ledger(Path(":memory:"))
    memory.enter_nodes(ROLES)
    memory.record(taken)
    assert memory.find_document(taken["node"]) is not None


@given(
    st.sampled_from(list(ROLES)),
    st.sampled_from(STATUS_SCHEMA["properties"]["state"]["enum"]),
    st.from_regex(r"[a-z-]{1,30}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=300),
    st.integers(0, 60),
)
def test_what_nodes_may_say_is_taken(node: str, state: str, step: str, detail: str, count: int) -> None:
    """Every document of the schema that agents are held to, whatever its texts."""
    said = document(node, state, step, count, detail)
    jsonschema.validate(said, STATUS_SCHEMA)
    taken = check_document(json.dumps(said).encode(), ROLES)
    assert taken["state"] == state and [one["name"] for one in taken["steps"]] == [f"step{n}" for n in range(count)]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"state": "degraded"}, {"state": None}, {"node": 1}, {"role": "network"}, {"role": None},
        {"step": 5}, {"detail": []}, {"detail": "x" * 1001}, {"steps": {}}, {"steps": [1]},
        {"steps": [{"state": "done"}]},
    ],
)  # fmt: skip
def test_what_no_node_says_is_refused(change: dict[str, Any]) -> None:
    """What the schema forbids, the ledger does not take either."""
    said = {**document("c-1", "working", "role"), **change}
    assert not jsonschema.Draft202012Validator(STATUS_SCHEMA).is_valid(said)
    with pytest.raises(ValueError):
        check_document(json.dumps(said).encode(), ROLES)
