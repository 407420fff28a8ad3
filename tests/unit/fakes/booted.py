"""Machines of `imagegen boot` that play a script."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from imagegen.base.commands import Completed
from imagegen.base.tree import Tree
from imagegen.model.cluster import Node


def document(state: str, step: str = "", detail: str = "", *steps: dict[str, Any]) -> dict[str, Any]:
    """A status document as the agent writes it."""
    return {"version": 1, "state": state, "step": step, "detail": detail, "steps": list(steps)}


class FakeMachine:
    """Says one document of its script at each look; None ends it."""

    def __init__(self, node: Node, script: Sequence[dict[str, Any] | None] = ()) -> None:
        self.node, self.image, self.login = node, f"{node.role}.tar", f"enter {node.name}"
        self.script, self.looks, self.started = list(script), 0, False
        self.journal: Completed | Exception = Completed([], 0, b"", b"")

    def start(self) -> None:
        self.started = True

    def _now(self) -> dict[str, Any] | None:
        return self.script[min(self.looks, len(self.script)) - 1]

    def alive(self) -> bool:
        self.looks += 1
        return self._now() is not None

    def status(self) -> dict[str, Any] | None:
        return self._now() or None

    def console(self, lines: int = 20) -> list[str]:
        return ["login:"][:lines]

    def execute(self, argv: Sequence[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        if isinstance(self.journal, Exception):
            raise self.journal
        return self.journal


class FakeNetwork:
    """Remembers what was done with it."""

    timeout = 100.0

    def __init__(self, scripts: Sequence[Sequence[dict[str, Any] | None]], needs: tuple[int, int] = (0, 0)) -> None:
        self.scripts, self.need, self.machines = list(scripts), needs, []
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self.log.append("enter")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append("close")

    def keep(self) -> None:
        self.log.append("keep")

    def needs(self, node: Node, image: Path) -> tuple[int, int]:
        return self.need

    def add(self, node: Node, image: Path, seed: Tree) -> FakeMachine:
        assert {"user-data", "meta-data", "network-config"} <= set(seed)
        self.machines.append(FakeMachine(node, self.scripts[len(self.machines)]))
        return self.machines[-1]


READY = [document("ready")]


def option_values(argv: Sequence[str], option: str) -> list[str]:
    """Every value that the option has in a command."""
    return [word for before, word in itertools.pairwise(argv) if before == option]
