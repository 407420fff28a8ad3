"""`imagegen-node retry STEP`: the agent's rest is cut short, or the agent starts anew; the outcome is told."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.world import World
from imagegen_node import cli
from imagegen_node.engine import retry
from imagegen_node.engine.errors import CommandFailed, Refused, Waiting
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import Step, run_step


def entry(name: str, state: str) -> dict[str, Any]:
    return {"name": name, "state": state, "seconds": 1.0, "rc": None}


def document(state: str, step: str, detail: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"state": state, "step": step, "detail": detail, "steps": list(steps)}


class Agent:
    """The status file, and what becomes of it when the agent is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[list[str]] = []
        self.next: list[dict[str, Any]] = []
        self.clock = 0.0

    def write(self, said: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(said))

    def run(self, argv: list[str]) -> str:
        self.asked.append(argv)
        return ""

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if self.next:
            self.write(self.next.pop(0))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The node on which the command runs."""
    return World(tmp_path / "node", monkeypatch)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent(tmp_path / "status.json")
    monkeypatch.setattr(retry, "STATUS_FILE", made.path)
    monkeypatch.setattr(retry, "run", made.run)
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: made.clock))
    follow = retry.follow
    monkeypatch.setattr(retry, "follow", lambda step, before: follow(step, before, made.sleep))
    return made


@pytest.fixture
def listening() -> Iterator[None]:
    """The wake-up call is kept for nap(), as in the agent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    retry.listen()
    yield
    while retry.nap(0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_nap_is_cut_short_by_the_call(listening: None) -> None:
    """Also by one that came before: none is lost between two rests."""
    assert not retry.nap(0.01)
    signal.raise_signal(retry.WAKE)
    assert retry.nap(60)
    assert not retry.nap(0.01)


@pytest.mark.parametrize("trouble", [Waiting("a port"), Refused("a disk")])
def test_a_step_that_rests_says_that_it_is_tried_again(
    trouble: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken, it works, and then says anew what it waits for: the operator sees that the try was made."""
    monkeypatch.setattr("imagegen_node.engine.status.STATUS_FILE", tmp_path / "status.json")
    status, said, tries = Status("n", "compute"), [], []

    def run() -> str:
        tries.append(status.state)
        if len(tries) < 3:
            raise trouble
        return ""

    def sleep(seconds: float) -> bool:
        said.append(status.state)
        return len(said) == 1

    run_step(Step("s", run), status, sleep)
    assert tries == ["working", "working", said[1]]


def test_a_step_that_rests_is_woken(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """The agent goes on where it is; nothing else runs again."""
    agent.write(document("failed", "cells", "two rows", entry("files", "done"), entry("cells", "failed")))
    agent.next = [
        document("working", "cells", "", entry("files", "done"), entry("cells", "working")),
        document("working", "cells", "all mapped", entry("files", "done"), entry("cells", "done")),
    ]
    assert cli.main(["retry", "cells"]) == 0
    assert agent.asked == [["systemctl", "kill", "--kill-whom=main", "--signal=SIGUSR1", "imagegen-node.service"]]
    assert capsys.readouterr().out == "cells done: all mapped\n"


@pytest.mark.parametrize(("state", "code"), [("failed", 2), ("waiting", 1)])
def test_a_try_that_does_not_help_is_told(
    agent: Agent, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    """With the reason, and its own exit code."""
    agent.write(document("waiting", "cells", "the database", entry("cells", "waiting")))
    agent.next = [
        document("working", "cells", "", entry("cells", "working")),
        document(state, "cells", "two rows", entry("cells", state)),
    ]
    assert cli.main(["retry", "cells"]) == code
    assert capsys.readouterr().out == f"cells {state}: two rows\n"


def test_a_step_that_is_done_is_looked_at_with_all_others(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """A ready node's agent starts anew: every step reads the real state."""
    agent.write(document("ready", "", "", entry("files", "done"), entry("cells", "done")))
    agent.next = [
        document("working", "files", "", entry("files", "working")),
        document("working", "cells", "", entry("files", "done"), entry("cells", "working")),
        document("working", "cells", "updated", entry("files", "done"), entry("cells", "done")),
    ]
    assert cli.main(["retry", "cells"]) == 0
    assert agent.asked == [["systemctl", "restart", "imagegen-node.service"]]
    assert capsys.readouterr().out == "cells done: updated\n"


def test_an_earlier_step_that_fails_now_ends_the_waiting(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """The step is not reached: that is a failure, said at once and by the name of the step that failed."""
    agent.write(document("ready", "", "", entry("files", "done"), entry("cells", "done")))
    agent.next = [document("failed", "files", "x is missing", entry("files", "failed"))]
    assert cli.main(["retry", "cells"]) == 2
    assert capsys.readouterr().out == "files failed: x is missing\n"


def test_a_step_that_is_over_is_not_given_the_next_ones_detail(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status has one detail, that of the step at work."""
    agent.write(document("ready", "", "", entry("cells", "done"), entry("services", "done")))
    agent.next = [document("waiting", "services", "a port", entry("cells", "done"), entry("services", "waiting"))]
    assert cli.main(["retry", "cells"]) == 0
    assert capsys.readouterr().out == "cells done\n"


def test_an_unknown_step_is_named_with_the_known_ones(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked of the agent."""
    assert cli.main(["retry", "cells"]) == 3
    agent.write(document("ready", "", "", entry("files", "done")))
    assert cli.main(["retry", "cell"]) == 3
    assert "no step cell here; the steps are: files" in capsys.readouterr().err
    assert agent.asked == []


@pytest.mark.parametrize("role", ["controller", "compute"])
def test_every_step_of_the_role_may_be_named(role: str, world: World, agent: Agent) -> None:
    """Also one that is not begun, and one of the shared work that another controller has done."""
    world.make_node("linux-node1" if role == "controller" else "linux-node2")
    agent.write(document("waiting", "wait-database", "x", entry("wait-database", "waiting")))
    step = {"controller": "nova-schema", "compute": "mapped"}[role]
    agent.next = [document("working", step, "", entry(step, "working")), document("ready", "", "", entry(step, "done"))]
    assert cli.main(["retry", step]) == 0
    assert agent.asked == [["systemctl", "restart", "imagegen-node.service"]]


def test_who_may_not_ask_the_agent_is_told(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemctl's own words, no traceback."""

    def refuse(argv: list[str]) -> str:
        raise CommandFailed("systemctl restart imagegen-node.service", 4, "Access denied")

    monkeypatch.setattr(retry, "run", refuse)
    agent.write(document("ready", "", "", entry("cells", "done")))
    assert cli.main(["retry", "cells"]) == 3
    assert "systemctl restart imagegen-node.service ended with 4: Access denied" in capsys.readouterr().err


def test_a_step_that_waits_for_its_units_is_given_time(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit that was down comes up within seconds: that is the outcome, not the waiting for it."""
    agent.write(document("failed", "services", "x", entry("services", "failed")))
    waiting = document("waiting", "services", "a unit", entry("services", "waiting"))
    agent.next = [waiting] * 20 + [document("working", "services", "", entry("services", "done"))]
    assert cli.main(["retry", "services"]) == 0
    agent.write(document("failed", "services", "x", entry("services", "failed")))
    agent.next, agent.clock = [waiting], 0.0
    assert cli.main(["retry", "services"]) == 1
    assert retry.SETTLING < agent.clock < retry.SETTLING + 1
    assert capsys.readouterr().out == "services done\nservices waiting: a unit\n"


def test_patience_ends(agent: Agent) -> None:
    """An agent that does not answer gives the prompt back."""
    agent.write(document("waiting", "cells", "the database", entry("cells", "waiting")))
    assert cli.main(["retry", "cells"]) == 1
    assert agent.clock >= retry.PATIENCE
