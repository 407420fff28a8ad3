"""What ends a run, and that its clean-up is left in peace."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from imagegen.base.signals import end_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_stop_the_clean_up(first: signal.Signals, second: signal.Signals) -> None:
    """The first one raises, wherever the run is; whoever is impatient then does not leave half a clean-up behind."""
    before = [signal.getsignal(each) for each in SIGNALS]
    cleaned = False
    with pytest.raises(KeyboardInterrupt):
        with end_on_signals():
            try:
                os.kill(os.getpid(), first)
            finally:
                os.kill(os.getpid(), second)
                cleaned = True
    assert cleaned
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_another_thread_changes_nothing() -> None:
    """A library that builds in a thread keeps its own handlers."""
    seen = []

    def run() -> None:
        with end_on_signals():
            seen.append([signal.getsignal(each) for each in SIGNALS])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [[signal.getsignal(each) for each in SIGNALS]]
