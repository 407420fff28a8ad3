"""Downloads that resume where they broke off, and are checked while they stream."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from imagegen_node.engine.direct import OPENER
from imagegen_node.engine.errors import Refused
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import Sleep

BLOCK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
FIRST_PAUSE = 1.0  # seconds between two tries
LONGEST_PAUSE = 15.0
PROGRESS = 10.0  # seconds between two progress reports


class Changed(Exception):
    """The file at the URL changed while it was read."""


class Download:
    """The bytes of one URL. The status shows how far it is, and what it waits for when it broke off."""

    def __init__(self, url: str, sha256: str, status: Status, sleep: Sleep) -> None:
        self.url = url
        self.sha256 = sha256
        self.done = 0  # bytes
        self.total = 0  # bytes; 0: not known yet
        self._status = status
        self._sleep = sleep
        self._told = time.monotonic()
        self._digest = hashlib.sha256()

    def blocks(self) -> Iterator[bytes]:
        """Every block, in order; they are the right ones only if this ends without an exception.

        Raises Refused when their sha256 differs, or when the file changed on the way.
        """
        pause = FIRST_PAUSE
        while not self.total or self.done < self.total:
            before = self.done
            try:
                with self._open() as answer:
                    yield from self._read(answer)
                reason = "the server closed the connection"
            except Changed as error:
                raise Refused(f"{self.url} changed while it was read: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            if self.total and self.done >= self.total:
                break
            pause = FIRST_PAUSE if self.done > before else min(2 * pause, LONGEST_PAUSE)
            self._status.wait(f"{self.url}: {reason}; {self.describe()}")
            self._sleep(pause)
        found = self._digest.hexdigest()
        if found != self.sha256:
            raise Refused(
                f"{self.url} has the sha256 {found}, but the node's script says {self.sha256}: it is damaged, or from "
                "another build than the script. Run `imagegen pxe` again"
            )

    def describe(self) -> str:
        """How far it is."""
        if not self.total:
            return "nothing read yet"
        return f"{self.done >> 20} of {self.total >> 20} MiB ({100 * self.done // self.total} %)"

    def _open(self) -> Any:
        """The answer, from where we are."""
        headers = {"Range": f"bytes={self.done}-"} if self.done else {}
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - the URL is the node script's
        answer = OPENER.open(request, timeout=TIMEOUT)
        total, skip = self._place(answer)
        if self.total not in (0, total):
            answer.close()
            raise Changed(f"it had {self.total} bytes, now it has {total}")
        self.total = total
        while skip:  # a server that does not support ranges
            got = answer.read(min(skip, BLOCK))
            if not got:
                raise OSError("the server closed the connection")
            skip -= len(got)
        return answer

    def _place(self, answer: Any) -> tuple[int, int]:
        """(size of the whole, bytes before those that we want). Raises OSError when the answer does not say."""
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if found and int(found.group(1)) == self.done:
                return int(found.group(2)), 0
            raise OSError("the server sent another range than was requested")
        length = answer.headers.get("Content-Length")
        if length is None:
            raise OSError("the server does not say how large the file is")
        return int(length), self.done

    def _read(self, answer: Any) -> Iterator[bytes]:
        while True:
            try:
                block = answer.read(BLOCK)
            except http.client.IncompleteRead as error:
                block = error.partial
            if not block:
                return
            self._digest.update(block)
            self.done += len(block)
            yield block
            if time.monotonic() >= self._told + PROGRESS:
                self._told = time.monotonic()
                self._status.tell(self.describe())
