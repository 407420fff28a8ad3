"""The node's status: one JSON document per change, in a file, on the console, the virtio-serial port, and by POST."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

from imagegen_node.engine.files import write_atomically
from imagegen_node.engine.mask import mask
from imagegen_node.engine.post import BEAT, READY_BEAT, Poster

STATUS_FILE = Path("/run/imagegen/status.json")
PORT = Path("/dev/virtio-ports/org.imagegen.status")
CONSOLE = Path("/dev/console")
LONGEST_DETAIL = 1000  # characters
DEGRADED = "degraded: "  # how the detail of a ready node that does not do all its work begins (decision 35)
DRAIN_SECONDS = 10.0  # for the last words of an agent that ends


class Outlet:
    """A device that takes lines but may be absent or full. Writing never waits for it, and its newest line is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = b""  # what is left of a line of which the device may have taken a part
        self._newest = b""

    def send(self, line: str) -> None:
        self._newest = line.encode()
        self.flush()

    def flush(self) -> bool:
        """Gives the device what it takes now; True when nothing is left."""
        if not (self._begun or self._newest):
            return True
        try:
            handle = os.open(str(self._path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return False
        try:
            while self._begun or self._newest:
                if not self._begun:
                    self._begun, self._newest = self._newest, b""
                self._begun = self._begun[os.write(handle, self._begun) :]
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    def drain(self, sleep: Callable[[float], object]) -> None:
        """Before the agent ends: gives a device that is there ten seconds to take what is left."""
        for _ in range(50):
            if self.flush() or not self._path.exists():
                return
            sleep(0.2)


class Status:
    """Says where the node is. Every change goes out at once; a repetition does not."""

    def __init__(self, node: str, role: str) -> None:
        self.node = node
        self.role = role
        self.secrets: Sequence[str] = ()
        self.state = "working"
        self.step = ""
        self.detail = ""
        self.since = self._now()
        self.steps: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._console = Outlet(CONSOLE)
        self._port = Outlet(PORT)
        self._poster: Poster | None = None

    @staticmethod
    def _now() -> str:
        return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def post_to(self, url: str) -> None:
        """From now on every change goes there as well, the present state first."""
        self._poster = Poster(url)
        self._post(json.dumps(self.document(), sort_keys=True))

    def document(self) -> dict[str, Any]:
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

    def tell(self, detail: str) -> None:
        """How far the step is."""
        self._say("working", self.step, detail)

    def wait(self, detail: str, rc: int | None = None) -> None:
        self._mark("waiting", rc)
        self._say("waiting", self.step, detail)

    def fail(self, detail: str, rc: int | None) -> None:
        self._mark("failed", rc)
        self._say("failed", self.step, detail)

    def done(self, detail: str) -> None:
        self._mark("done", 0)
        self._say("working", self.step, detail)

    def give_up(self, detail: str) -> None:
        """The step that was begun is no longer this node's."""
        self.steps.pop()
        self._say("waiting", self.step, detail)

    def ready(self, detail: str) -> None:
        self._say("ready", "", detail)

    def degraded(self, why: str) -> None:
        """Still ready, as it was; and what it no longer does."""
        self._say("ready", "", DEGRADED + why)

    def flush(self) -> None:
        """Gives devices that were not there, or full, what they have not taken yet."""
        self._console.flush()
        self._port.flush()

    def close(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Lets the devices take what they have not taken yet; for an agent that ends."""
        for outlet in (self._console, self._port):
            outlet.drain(sleep)
        if self._poster:
            self._poster.drain(DRAIN_SECONDS)

    def _mark(self, state: str, rc: int | None) -> None:
        self.steps[-1].update(state=state, seconds=round(time.monotonic() - self._started, 1), rc=rc)

    def _say(self, state: str, step: str, detail: str) -> None:
        detail = " ".join(mask(detail, self.secrets).split())[:LONGEST_DETAIL]
        if (state, step, detail) == (self.state, self.step, self.detail):
            self.flush()
            return
        if state != self.state:
            self.since = self._now()
        self.state, self.step, self.detail = state, step, detail
        text = json.dumps(self.document(), sort_keys=True)
        write_atomically(STATUS_FILE, text + "\n")
        said = " ".join(filter(None, (state, step)))
        line = "imagegen: {} ({}) {}{}".format(self.node, self.role or "no role yet", said, detail and ": " + detail)
        print(line, flush=True)
        self._console.send(line + "\r\n")
        self._port.send(text + "\n")
        self._post(text)

    def _post(self, text: str) -> None:
        if self._poster:
            self._poster.send(text, READY_BEAT if self.state == "ready" else BEAT)
