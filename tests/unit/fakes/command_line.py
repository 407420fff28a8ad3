"""A directory for the command line, what it printed, and what other programs would have left there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagegen.server.ledger import Ledger

COMMANDS = (
    *("init", "validate", "generate", "build", "seed", "boot"),
    *("verify", "credentials", "pxe", "serve", "status", "baremetal", "schema", "help"),
)


@pytest.fixture(autouse=True)
def fixed_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty directory, without colours that a terminal of the tester would bring."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")


Output = Callable[[], tuple[str, str]]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    """Takes what was printed so far: stdout, stderr."""
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


def files_below(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


@contextmanager
def serve_nothing(*_: Any, **__: Any) -> Iterator[Any]:
    """A server that is interrupted as soon as it serves."""

    def wait(seconds: float) -> None:
        raise KeyboardInterrupt

    ledger = SimpleNamespace(read=lambda: {"now": 0.0, "nodes": []})
    serving = SimpleNamespace(wait=wait)
    yield SimpleNamespace(url="http://x", seed_url="https://x", serving=serving, ledger=ledger, left_out=())


def keep_ledger(states: dict[str, str]) -> None:
    """What a server would have left in ./out, with each node's state; empty: never heard of."""
    Path("out/serve").mkdir(parents=True, exist_ok=True)
    ledger = Ledger(Path("out/serve/ledger.sqlite"))
    ledger.enter_nodes({name: "compute" for name in states})
    for name, state in states.items():
        if state:
            ledger.record({"node": name, "state": state, "step": "disk", "detail": "no disk fits", "steps": []})
    ledger.close()
