"""The status by HTTP POST, where the seed names a URL: beside the boot, never in its way."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from typing import Callable

from imagegen_node.api import OPENER

FIRST_PAUSE = 1.0  # seconds, doubled after each try
LONGEST_PAUSE = 30.0
REFUSALS = (400, 401, 403, 404, 405, 410, 413)  # the same again would be refused again
TIMEOUT = 10.0  # seconds for one try


class Poster:
    """Sends the newest document to a URL from a thread of its own. What a newer one overtook is never sent."""

    def __init__(self, url: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self._url = url
        self._sleep = sleep
        self._newest = ""
        self._idle = True
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def send(self, text: str) -> None:
        """Hands the document over and returns at once."""
        with self._changed:
            self._newest, self._idle = text, False
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Gives what was handed over so long to arrive, for an agent that ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, timeout=seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._newest))
                text, self._newest = self._newest, ""
            self._post(text)
            with self._changed:
                self._idle = not self._newest
                self._changed.notify_all()

    def _post(self, text: str) -> None:
        """Tries until it arrives or is refused for good; gives up on a document when a newer one is there."""
        pause = FIRST_PAUSE
        while True:
            request = urllib.request.Request(  # noqa: S310 - the URL comes from the seed
                self._url, data=text.encode(), headers={"Content-Type": "application/json"}, method="POST"
            )
            try:
                OPENER.open(request, timeout=TIMEOUT).close()
                return
            except urllib.error.HTTPError as error:
                if error.code in REFUSALS:
                    return
            except Exception:  # noqa: S110 - nobody listens: the console and the file have the status too
                pass
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with self._changed:
                if self._newest:
                    return
