"""The node's status: one JSON document a change, in a file, on the console and on the virtio-serial port."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path

STATUS_FILE = Path("/run/imagegen/status.json")
PORT = Path("/dev/virtio-ports/org.imagegen.status")
CONSOLE = Path("/dev/console")


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes the file beside its place and renames it over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name("." + path.name + ".new")
    handle = os.open(str(beside), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
        os.fchmod(stream.fileno(), mode)
    beside.replace(path)


def send_line(path: Path, line: str) -> None:
    """Writes one line to a device if it is there and takes it; a boot never waits for it."""
    try:
        handle = os.open(str(path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    try:
        os.write(handle, (line + "\n").encode())
    except OSError:
        pass
    finally:
        os.close(handle)


class Status:
    """Says where the node is. Every change goes out at once; the same again goes out once."""

    def __init__(self, node: str, role: str) -> None:
        self.node = node
        self.role = role
        self.state = "working"
        self.step = ""
        self.detail = ""
        self.since = self._now()
        self.steps: list[dict[str, object]] = []
        self._started = time.monotonic()

    @staticmethod
    def _now() -> str:
        return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def document(self) -> dict[str, object]:
        """The status document of the design, version 1."""
        return {
            "version": 1,
            "node": self.node,
            "role": self.role,
            "state": self.state,
            "step": self.step,
            "detail": self.detail,
            "since": self.since,
            "steps": self.steps,
        }

    def begin(self, step: str) -> None:
        self._started = time.monotonic()
        self.steps = [entry for entry in self.steps if entry["name"] != step]
        self.steps.append({"name": step, "state": "working", "seconds": 0.0, "rc": None})
        self._say("working", step, "")

    def wait(self, detail: str) -> None:
        self._mark("waiting", None)
        self._say("waiting", self.step, detail)

    def fail(self, detail: str, rc: int | None) -> None:
        self._mark("failed", rc)
        self._say("failed", self.step, detail)

    def done(self, detail: str) -> None:
        self._mark("done", 0)
        self._say("working", self.step, detail)

    def ready(self, detail: str) -> None:
        self._say("ready", "", detail)

    def _mark(self, state: str, rc: int | None) -> None:
        self.steps[-1].update(state=state, seconds=round(time.monotonic() - self._started, 1), rc=rc)

    def _say(self, state: str, step: str, detail: str) -> None:
        if (state, step, detail) == (self.state, self.step, self.detail):
            return
        if state != self.state:
            self.since = self._now()
        self.state, self.step, self.detail = state, step, detail
        text = json.dumps(self.document(), sort_keys=True)
        write_atomically(STATUS_FILE, text + "\n")
        line = "imagegen: {} ({}) {} {}{}".format(self.node, self.role, state, step, ": " + detail if detail else "")
        print(line, flush=True)
        send_line(CONSOLE, line + "\r")
        send_line(PORT, text)
