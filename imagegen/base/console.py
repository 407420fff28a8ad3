"""What a node says on its console and its status port: the end of a log, as lines without control sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_NAME = 100  # characters of a step's name or state
MOST = 1 << 31  # of a step's seconds and return code
TAIL = 1 << 18  # bytes of a log that are read

# CSI, OSC and the other escape sequences (ECMA-48).
CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")


def newest_document(data: bytes) -> dict[str, Any] | None:
    """The last JSON object on a complete line of its own, if there is one."""
    for line in reversed(data.split(b"\n")[:-1]):
        with suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict):
                return document
    return None


def read_tail(path: Path) -> bytes:
    """The end of a file; empty when there is no file."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            return stream.read()
    except OSError:
        return b""


def plain_lines(data: bytes) -> list[str]:
    """The lines of a console without control sequences and empty lines."""
    plain = CONTROL_SEQUENCE.sub("", data.decode(errors="replace"))
    lines = (re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", line).rstrip() for line in plain.split("\n"))
    return [line for line in lines if line]


def printable(value: object) -> str:
    """Text from a node without control characters."""
    return "".join(c if c.isprintable() else " " for c in str(value))


def read_steps(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps `{name, state, seconds, rc}` of a status document; leaves out what is not valid."""
    steps = document.get("steps")
    return [
        {
            "name": printable(step["name"])[:LONGEST_NAME],
            "state": printable(step.get("state", ""))[:LONGEST_NAME],
            "seconds": _number(step.get("seconds")),
            "rc": step.get("rc") if type(step.get("rc")) is int and abs(step["rc"]) < MOST else None,
        }
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, dict) and isinstance(step.get("name"), str)
    ]


def _number(value: object) -> float:
    """Seconds of a step; 0 for anything but a sensible number."""
    return float(value) if isinstance(value, int | float) and 0 <= value < MOST else 0.0
