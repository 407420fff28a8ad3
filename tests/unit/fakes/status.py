"""The status document's JSON schema, as the design promises it."""

from __future__ import annotations

STATUS_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "node", "role", "state", "step", "detail", "since", "steps"],
    "properties": {
        "version": {"const": 1},
        "node": {"type": "string", "minLength": 1},
        "role": {"enum": ["", "controller", "compute"]},
        "state": {"enum": ["waiting", "working", "ready", "failed"]},
        "step": {"type": "string"},
        "detail": {"type": "string", "maxLength": 1000, "pattern": "^[^\\n\\r]*$"},
        "since": {"type": "string", "pattern": "^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ$"},
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "state", "seconds", "rc"],
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "state": {"enum": ["waiting", "working", "done", "failed"]},
                    "seconds": {"type": "number", "minimum": 0},
                    "rc": {"type": ["integer", "null"]},
                },
            },
        },
    },
    "allOf": [
        {
            "if": {"properties": {"state": {"enum": ["waiting", "failed"]}}},
            "then": {"properties": {"detail": {"minLength": 1}, "step": {"minLength": 1}}},
        }
    ],
}
