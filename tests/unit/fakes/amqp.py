"""Stand-in for the driver amqp; `broker` is that of the world that a test makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class AMQPError(Exception):
    """The base of all."""


class AccessRefused(AMQPError):
    """403: the login."""


class NotAllowed(AMQPError):
    """530: no such virtual host, or no permission there."""


class NotFound(AMQPError):
    """404: no such queue."""


exceptions = SimpleNamespace(AMQPError=AMQPError, AccessRefused=AccessRefused, NotAllowed=NotAllowed, NotFound=NotFound)
broker: Any = None


class Connection:
    """One connection of the fake broker."""

    def __init__(self, host: str, *, userid: str, password: str, virtual_host: str, **options: Any) -> None:
        self._login = (host, userid, password, virtual_host)

    def connect(self) -> None:
        broker.log_in(*self._login)

    def channel(self) -> Connection:
        return self

    def queue_declare(self, *, queue: str, passive: bool) -> SimpleNamespace:
        assert passive
        return SimpleNamespace(consumer_count=broker.count_consumers(self._login[-1], queue))

    def close(self) -> None:
        pass
