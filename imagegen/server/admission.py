"""Limits on connections, and on the memory in which answers wait.

A connection counts from accept until its descriptor is closed, so a TLS handshake that never ends counts too.
"""

from __future__ import annotations

import resource
import socket
from collections import Counter
from typing import Any

MOST_CONNECTIONS = 4096
MOST_CONNECTIONS_EACH = 64  # per address
FILES_EACH = 2  # per connection: its socket, and the image being sent
RESERVED_FILES = 64  # for everything else that this process opens
MOST_TURNED_AWAY = 100  # in a row, before the admitted ones are served

MOST_WAITING = 64 << 20  # bytes of answers not taken yet
MOST_WAITING_EACH = 16 << 20  # of them per address; the page's data for 1,000 nodes has about 5 MiB


class Admission:
    """How many connections each address holds."""

    def __init__(self, most: int = MOST_CONNECTIONS, most_each: int = MOST_CONNECTIONS_EACH) -> None:
        self._most, self._most_each = most, most_each
        self._held: Counter[str] = Counter()

    def count(self, address: str) -> int:
        """How many connections that address has open."""
        return self._held[address]

    def admit(self, address: str) -> bool:
        """Counts one more connection of that address, unless that is one too many; whether it was counted."""
        if self._held.total() >= self._most or self._held[address] >= self._most_each:
            return False
        self._held[address] += 1
        return True

    def release(self, address: str) -> None:
        """Uncounts a connection that has been closed."""
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]


class Entrance(socket.socket):
    """A listening socket whose accept() immediately closes connections that are not admitted."""

    def __init__(self, listener: socket.socket, admission: Admission) -> None:
        """Takes over the listener, which is closed afterwards."""
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        self.setblocking(False)
        self._admission = admission

    def accept(self) -> tuple[socket.socket, Any]:
        """The next admitted connection. Raises BlockingIOError if none is waiting, or after turning many away."""
        for _ in range(MOST_TURNED_AWAY):
            accepted, peer = super().accept()
            if self._admission.admit(peer[0]):
                return _Admitted(accepted, self._admission, peer[0]), peer
            accepted.close()
        raise BlockingIOError


class _Admitted(socket.socket):
    """A connection that counts until it is closed."""

    def __init__(self, accepted: socket.socket, admission: Admission, address: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._release: tuple[Admission, str] | None = (admission, address)

    def close(self) -> None:
        super().close()
        released, self._release = self._release, None
        if released:
            released[0].release(released[1])


class Backlog:
    """The bytes that are waiting in this process for clients to take them."""

    def __init__(self, most: int = MOST_WAITING, most_each: int = MOST_WAITING_EACH) -> None:
        self._most, self._most_each = most, most_each
        self._held: dict[object, tuple[str, int]] = {}

    def hold(self, owner: object, address: str, size: int) -> bool:
        """Records how much is waiting for one connection; whether that is within the limits."""
        self._held[owner] = (address, size)
        total = sum(held for _, held in self._held.values())
        own = sum(held for whose, held in self._held.values() if whose == address)
        return total <= self._most and own <= self._most_each

    def free(self, owner: object) -> None:
        """Forgets what was taken, or whose connection is closed."""
        self._held.pop(owner, None)


def raise_file_limit() -> int:
    """Lets this process open as many files as it may; returns how many connections that is enough for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, (most - RESERVED_FILES) // FILES_EACH))
