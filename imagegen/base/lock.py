"""A lock for working in a directory. The kernel drops it with the process, so none is ever left behind."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imagegen.base.handles import keep_file, whole
from imagegen.base.streams import Say

POLL = 0.1  # seconds between two tries


class Held(Exception):
    """Another process has the lock; the text says which, if it is known."""


@contextmanager
def hold_lock(
    place: Path,
    command: str = "",
    *,
    seconds: float = 0.0,
    waiting: Say = lambda holder: None,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Holds the exclusive flock of that file, which is made if it is missing, and stays.

    Waits at most that many seconds; calls `waiting` once with the holder: `another imagegen (pid 7, `seed`)`.
    Then raises Held; BadUsage for a link in the file's place, MachineLacks for a full disk.
    """
    handle = keep_file(place)
    try:
        end, told = now() + seconds, False
        while not _try_lock(handle):
            holder = _describe_holder(handle)
            if now() >= end:
                raise Held(holder)
            if not told:
                waiting(holder)
                told = True
            pause(POLL)
        line = f"{os.getpid()} {command}\n".encode()
        with whole(place, len(line)):
            os.ftruncate(handle, 0)
            os.pwrite(handle, line, 0)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _describe_holder(handle: int) -> str:
    written = re.fullmatch(rb"([0-9]{1,10}) ([a-z]{0,20})\n", os.pread(handle, 64, 0))
    if not written:
        return "another imagegen"
    command = f", `{written[2].decode()}`" if written[2] else ""
    return f"another imagegen (pid {written[1].decode()}{command})"
