"""Ends a run by SIGTERM or SIGHUP as Ctrl-C does: by an exception, through every clean-up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def end_on_signals() -> Generator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once; a second signal does not stop the clean-up.

    Outside the main thread, where Python hands no signal over, nothing changes.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
