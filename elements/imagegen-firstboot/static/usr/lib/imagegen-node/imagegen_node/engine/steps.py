"""Steps, and the engine that runs them until each is done."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

from imagegen_node.engine.errors import CommandFailed, LeaseLost, Refused, Waiting
from imagegen_node.engine.status import Status

Sleep = Callable[[float], object]  # true: cut short, because somebody wants another try now

FIRST_PAUSE = 1.0  # seconds between two tries of a step that waits
PAUSE_GROWTH = 1.25  # so a step notices what it waits for at most a quarter of the waiting time late
LONGEST_PAUSE = 10.0
FAILED_PAUSE = 30.0  # seconds until a failed step is tried again
TRIES = 4  # of a command that fails, before the node says failed


@dataclass(frozen=True)
class Step:
    """A reconciler: reads the real state, changes only what differs, raises Waiting until it is done."""

    name: str
    run: Callable[[], str | None]


def run_step(step: Step, status: Status, sleep: Sleep = time.sleep) -> None:
    """Runs one step until it is done; the status shows what it waits for or why it failed. Passes LeaseLost on."""
    status.begin(step.name)
    pause, failures = FIRST_PAUSE, 0

    def rest(seconds: float) -> None:
        if sleep(seconds):
            status.begin(step.name)

    while True:
        try:
            detail = step.run()
        except Waiting as waiting:
            failures = 0
            status.wait(str(waiting))
            rest(pause)
            pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE)
        except LeaseLost as lost:
            status.give_up(str(lost))
            raise
        except Refused as refused:
            failures = 0
            status.fail(str(refused), None)
            rest(FAILED_PAUSE)
        except Exception as error:  # a step must never end the agent: the node says what happened and tries again
            failures += 1
            rc = getattr(error, "rc", None)
            text = str(error) if isinstance(error, CommandFailed) else f"{type(error).__name__}: {error}"
            if failures < TRIES:
                status.wait("trying again after: " + text, rc)
                rest(min(2.0**failures, LONGEST_PAUSE))
            else:
                status.fail(text, rc)
                rest(FAILED_PAUSE)
        else:
            status.done(detail or "")
            return


def run_steps(steps: Iterable[Step], status: Status, sleep: Sleep = time.sleep) -> None:
    """Runs the steps in order, each until it is done."""
    for step in steps:
        run_step(step, status, sleep)
