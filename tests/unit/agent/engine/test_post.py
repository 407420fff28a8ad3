"""The status by POST: what arrives, that nobody who listens badly holds up the boot, and how often it is tried."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import pytest
from imagegen_node.engine import post
from imagegen_node.engine.post import LONGEST_PAUSE, Poster

from imagegen.server.ledger import BEAT, READY_BEAT

URL = "http://192.0.2.1:8080/status"
SECONDS = 10.0  # until a thread must have done its part


class Listener:
    """Takes what is posted; `answers` holds what the next tries get instead."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.tries = 0
        self.faults: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def open(self, request: Any, timeout: float) -> Any:
        assert 0 < timeout <= 30
        assert (request.get_method(), request.full_url) == ("POST", URL)
        assert request.get_header("Content-type") == "application/json"
        self.gate.wait(SECONDS)
        self.tries += 1
        if self.faults:
            raise self.faults.pop(0)
        self.got.append(json.loads(request.data))
        return self

    def close(self) -> None:
        pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    made = Listener()
    monkeypatch.setattr(post, "OPENER", made)
    yield made
    for poster in STARTED:  # their threads live on, and would speak to the next test's listener
        poster.send("{}", 3600.0)
        poster.drain(SECONDS)
    STARTED.clear()


STARTED: list[Poster] = []


def start(sleep: Callable[[float], object]) -> Poster:
    STARTED.append(Poster(URL, sleep))
    return STARTED[-1]


def wait_for(seen: Callable[[], bool]) -> None:
    """Until that is so; fails after ten seconds."""
    end = time.monotonic() + SECONDS
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_document_arrives(listener: Listener) -> None:
    """Whole, once, as JSON."""
    pauses: list[float] = []
    poster = start(pauses.append)
    poster.send('{"state": "working"}')
    poster.drain(SECONDS)
    assert listener.got == [{"state": "working"}] and pauses == []


def test_a_listener_that_comes_later_gets_it(listener: Listener) -> None:
    """Tried again with growing pauses."""
    listener.faults = [ConnectionRefusedError(), TimeoutError(), ValueError()]
    pauses: list[float] = []
    poster = start(pauses.append)
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 1}] and pauses == [1.0, 2.0, 4.0]


def test_a_listener_that_comes_much_later_gets_it_too(listener: Listener) -> None:
    """The interval is bounded, not the waiting: a server that was away for an hour learns where the node is."""
    listener.faults = [urllib.error.HTTPError("", 503, "", Message(), None), *[ConnectionRefusedError()] * 50]
    pauses: list[float] = []
    poster = start(pauses.append)
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 1}] and len(pauses) == 51
    assert pauses[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0] and max(pauses) == LONGEST_PAUSE


def test_a_refusal_is_taken_for_an_answer(listener: Listener) -> None:
    """Who does not want this document is not asked again; the next one is sent."""
    listener.faults = [urllib.error.HTTPError("", 403, "", Message(), None)]
    poster = start([].append)
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.tries == 1 and listener.got == []
    poster.send('{"n": 2}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 2}]


def test_sending_never_waits_and_the_newest_counts(listener: Listener) -> None:
    """A listener that hangs costs the boot nothing; what a newer status overtook is not sent."""
    listener.gate.clear()
    poster = start([].append)
    for number in range(100):
        poster.send(json.dumps({"n": number}))
    listener.gate.set()
    poster.drain(SECONDS)
    assert listener.got[-1] == {"n": 99}
    assert len(listener.got) <= 2


def test_a_document_that_fails_gives_way_to_a_newer_one(listener: Listener) -> None:
    """Old news is not repeated while there is newer."""
    listener.faults = [ConnectionRefusedError()]
    poster = start(lambda seconds: poster.send('{"n": 2}'))
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 2}]


def test_a_document_is_sent_again_and_again(listener: Listener) -> None:
    """Whoever listens must not take a node that waits for one that died; it is the newest document each time."""
    poster = start([].append)
    poster.send('{"n": 1}', 0.01)
    wait_for(lambda: len(listener.got) >= 3)
    poster.send('{"n": 2}', 0.01)
    wait_for(lambda: listener.got[-2:] == [{"n": 2}] * 2)
    assert listener.got.index({"n": 2}) == listener.got.count({"n": 1})


def test_a_node_reports_within_a_minute_and_within_five_when_ready(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """imagegen/server/ledger.py calls it lost after three reports that did not come: the two agree."""
    pauses: list[float | None] = []
    wait = threading.Condition.wait_for

    def note(self: threading.Condition, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        if threading.current_thread() is not threading.main_thread():
            pauses.append(timeout)
        return wait(self, predicate, timeout)

    monkeypatch.setattr(threading.Condition, "wait_for", note)
    poster = start([].append)
    for beat in (post.BEAT, post.READY_BEAT):
        poster.send(json.dumps({"n": beat}), beat)
        wait_for(lambda beat=beat: bool(pauses) and pauses[-1] is not None and 0.7 * beat <= pauses[-1] <= beat)
    assert pauses[0] is None and (post.BEAT, post.READY_BEAT) == (BEAT, READY_BEAT)


def test_what_was_refused_is_sent_again_seldom(listener: Listener) -> None:
    """It may be taken when the server knows the node; meanwhile each refusal is a line there."""
    listener.faults = [urllib.error.HTTPError("", 403, "", Message(), None)]
    poster = start([].append)
    poster.send('{"n": 1}', 0.01)
    poster.drain(SECONDS)
    assert listener.tries == 1 and poster._beat == post.READY_BEAT


def test_draining_is_bounded(listener: Listener) -> None:
    """An agent that ends does not wait for a listener that hangs."""
    listener.gate.clear()
    poster = start([].append)
    poster.send("{}")
    poster.drain(0.05)
    assert listener.got == []
    listener.gate.set()
    poster.drain(SECONDS)
