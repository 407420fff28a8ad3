"""A small fleet for the ledger: what its nodes post, how one claims, and a clock that stands still."""

from __future__ import annotations

from typing import Any

from imagegen.server.ledger import Ledger

ROLES = {"ctl": "controller", "c-1": "compute", "c-2": "compute"}


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def document(node: str, state: str, step: str, count: int = 1, detail: str = "") -> dict[str, Any]:
    """A status document as a node posts it, in its `count`-th step."""
    steps = [{"name": f"step{n}", "state": "done", "seconds": 0.1, "rc": 0} for n in range(count)]
    return {
        "version": 1, "node": node, "role": ROLES[node], "state": state, "step": step, "detail": detail,
        "since": "2026-01-01T00:00:00Z", "steps": steps,
    }  # fmt: skip


def find(ledger: Ledger, name: str) -> dict[str, Any]:
    return next(node for node in ledger.read()["nodes"] if node["name"] == name)


def claim(ledger: Ledger, name: str, token: str = "t", address: str = "10.0.0.1") -> None:
    """A claim by a genuine token of this boot."""
    ledger.claim(name, address, token, ledger.find_boot(name))
