"""The status by HTTP POST, where the seed names a URL: alongside the boot, never in its way.

The newest document is sent again from time to time, because a listener cannot tell a quiet node from a dead one.
"""

from __future__ import annotations

import random
import threading
import time
import urllib.error
import urllib.request
from typing import Callable

from imagegen_node.engine.direct import OPENER

FIRST_PAUSE = 1.0  # seconds, doubled after each try
LONGEST_PAUSE = 30.0
REFUSALS = (400, 401, 403, 404, 405, 410, 413)  # sending the same again would not help
TIMEOUT = 10.0  # seconds for one try
BEAT = 60.0  # seconds within which a document is sent again
READY_BEAT = 300.0  # the same for a node that is ready; imagegen/server/ledger.py calls it lost after three of them


class Poster:
    """Sends the newest document to a URL from its own thread. A document that a newer one replaced is never sent."""

    def __init__(self, url: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self._url = url
        self._sleep = sleep
        self._newest = ""
        self._said = ""  # the document that went out last
        self._beat = BEAT
        self._idle = True
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def send(self, text: str, beat: float = BEAT) -> None:
        """Hands the document over and returns at once; it is sent again at least every `beat` seconds."""
        with self._changed:
            self._newest, self._beat, self._idle = text, beat, False
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Waits up to that long for what was handed over to arrive; for an agent that ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, timeout=seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                # A thousand nodes that were switched on at once do not report at once for ever.
                pause = self._beat * random.uniform(0.7, 0.95) if self._said else None  # noqa: S311
                self._changed.wait_for(lambda: bool(self._newest), timeout=pause)
                text, self._newest = self._newest or self._said, ""
                self._said = text
            taken = self._post(text)
            with self._changed:
                if not taken and not self._newest:
                    self._beat = READY_BEAT
                self._idle = not self._newest
                self._changed.notify_all()

    def _post(self, text: str) -> bool:
        """Tries until it arrives; gives up on a document when a newer one is there. False: it was refused."""
        pause = FIRST_PAUSE
        while True:
            request = urllib.request.Request(  # noqa: S310 - the URL comes from the seed
                self._url, data=text.encode(), headers={"Content-Type": "application/json"}, method="POST"
            )
            try:
                OPENER.open(request, timeout=TIMEOUT).close()
                return True
            except urllib.error.HTTPError as error:
                if error.code in REFUSALS:
                    return False
            except Exception:  # noqa: S110 - nobody listens: the console and the file have the status too
                pass
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with self._changed:
                if self._newest:
                    return True
