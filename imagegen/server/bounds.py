"""Keeps from the applications of `imagegen serve` requests that are too large, too many, or not meant for it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from imagegen.server.callers import find_foreign
from imagegen.server.listener import MOST_HEAD

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 64 << 10  # bytes; a status document has about 4 KiB
MOST_HEADERS = 40
LONGEST_PATH = 1024  # characters
RATE = 20.0  # requests a second per address, in the long run
BURST = 100.0
MOST_ADDRESSES = 10_000  # whose rates are remembered


class Rates:
    """A token bucket per address."""

    def __init__(self, rate: float = RATE, burst: float = BURST, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, when)

    def allow(self, address: str) -> bool:
        """Whether one more request is within the address's rate; counts it."""
        now = self._now()
        left, when = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - when) * self._rate)
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return left >= 1


class Bounds:
    """Refuses what is too large, too frequent or foreign before an application sees it."""

    def __init__(self, app: App, announced: frozenset[tuple[str, int]], rates: Rates | None = None) -> None:
        """`announced`: the hosts and ports that nodes and people are given."""
        self._app = app
        self._announced = announced
        self._rates = rates or Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if refusal := self._refuse(scope):
            code, text = refusal[0], f"{refusal[1]}\n".encode()
            headers = {b"content-type": b"text/plain; charset=utf-8", b"content-length": str(len(text)).encode()}
            pairs = [*headers.items(), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": code, "headers": pairs})
            await send({"type": "http.response.body", "body": text})
            return
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the text of a refusal."""
        if not self._rates.allow(scope["client"][0] if scope.get("client") else ""):
            return 429, f"more than {RATE:.0f} requests a second from this address"
        if len(scope["headers"]) > MOST_HEADERS or sum(len(b"".join(pair)) for pair in scope["headers"]) > MOST_HEAD:
            return 431, f"more than {MOST_HEADERS} headers, or {MOST_HEAD} bytes of them"
        if len(scope["path"]) + len(scope["query_string"]) > LONGEST_PATH:
            return 414, f"a path of more than {LONGEST_PATH} characters"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > MOST_BODY:
            return 413, f"a body of more than {MOST_BODY} bytes"
        if foreign := find_foreign(scope["headers"], scope["scheme"], tuple(scope["server"]), self._announced):
            return 403, foreign
        return None
