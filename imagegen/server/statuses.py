"""What nodes report: status documents, checked before the ledger takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagegen.base.console import printable, read_steps
from imagegen.base.resources import PACKAGE

_SHAPE = json.loads((PACKAGE / "data/status.schema.json").read_bytes())["properties"]
STATES: Sequence[str] = _SHAPE["state"]["enum"]
LONGEST = {"node": 63, "role": 63, "step": 100, "detail": _SHAPE["detail"]["maxLength"]}  # characters
MOST_STEPS = 200


def check_document(data: bytes, roles: Mapping[str, str]) -> dict[str, Any]:
    """The status document (version 1 of the design) in a POST's body. Raises ValueError, which says what is wrong."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.get("version") != 1:
        raise ValueError("not a status document of version 1")
    for key, longest in LONGEST.items():
        if not isinstance(document.get(key), str) or len(document[key]) > longest:
            raise ValueError(f"{key} must be text of at most {longest} characters")
        document[key].encode()  # half a surrogate pair is not text
    if document.get("state") not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}")
    steps: Sequence[Any] = document.get("steps", ())
    if not isinstance(steps, list) or len(steps) > MOST_STEPS or len(read_steps(document)) < len(steps):
        raise ValueError(f"steps must be a list of at most {MOST_STEPS} mappings, each with a name")
    if document["node"] not in roles:
        raise ValueError("not a node of this cluster")
    if document["role"] not in ("", roles[document["node"]]):
        raise ValueError("not the node's role")
    return {
        **document,
        "step": printable(document["step"]),
        "detail": printable(document["detail"]),
        "steps": read_steps(document),
    }
