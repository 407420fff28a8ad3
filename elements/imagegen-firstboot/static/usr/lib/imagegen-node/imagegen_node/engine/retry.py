"""Another try of a step, now: what `imagegen-node retry` asks of the agent, and how the agent hears it."""

from __future__ import annotations

import json
import signal
import time
from typing import Any, Callable

from imagegen_node.engine.status import STATUS_FILE
from imagegen_node.engine.system import run

WAKE = signal.SIGUSR1
UNIT = "imagegen-node.service"
POLL = 0.2  # seconds between two looks at the status
PATIENCE = 180.0  # seconds until the operator gets the prompt back
SETTLING = 20.0  # seconds a step may wait, say for a unit to come up, before that is the outcome


def listen() -> None:
    """Keeps the wake-up call for nap(). To be called before the agent starts a thread, since threads inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {WAKE})


def nap(seconds: float) -> bool:
    """Sleeps for that long; True when the wake-up call cut it short."""
    return signal.sigtimedwait({WAKE}, seconds) is not None


def read_document() -> dict[str, Any]:
    """The current status. Raises FileNotFoundError before the agent has written one."""
    return dict(json.loads(STATUS_FILE.read_text()))


def ask(step: str, document: dict[str, Any]) -> str:
    """Wakes an agent that is paused at this step, else restarts it, so that it checks every step; says which."""
    if document["step"] == step and document["state"] in ("waiting", "failed"):
        run(["systemctl", "kill", "--kill-whom=main", f"--signal={WAKE.name}", UNIT])
        return f"trying {step} again"
    run(["systemctl", "restart", UNIT])
    return f"the agent is checking every step again, including {step}"


def follow(step: str, before: dict[str, Any], sleep: Callable[[float], object] = time.sleep) -> dict[str, Any]:
    """The step's entry after the new try: done, waiting or failed; or as it is when PATIENCE is over."""
    end = time.monotonic() + PATIENCE
    entry: dict[str, Any] = {"name": step, "state": "not started"}
    waiting_since = end
    while time.monotonic() < end:
        sleep(POLL)
        document = read_document()
        if document == before:
            continue
        found = [item for item in document["steps"] if item["name"] == step]
        entry = found[0] if found else entry
        if document["state"] == "failed":
            entry = {**entry, "name": document["step"], "state": "failed"}
        waiting_since = min(waiting_since, time.monotonic()) if entry["state"] == "waiting" else end
        if entry["state"] in ("done", "failed") or time.monotonic() > waiting_since + SETTLING:
            # Once a step is over, the status already shows the next one's detail.
            return {**entry, "detail": document["detail"] if entry["name"] == document["step"] else ""}
    return entry
