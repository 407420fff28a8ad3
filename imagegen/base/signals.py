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

    A signal that is ignored, as nohup does with SIGHUP, stays ignored.
    Outside the main thread, where Python hands no signal over, nothing changes.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    given = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in given.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
