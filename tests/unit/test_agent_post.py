"""The status by POST: what arrives, that nobody who listens badly holds up the boot, and how often it is tried."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Callable
from email.message import Message
from typing import Any

import pytest
from imagegen_node import post
from imagegen_node.post import LONGEST_PAUSE, Poster

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
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    made = Listener()
    monkeypatch.setattr(post, "OPENER", made)
    return made


def start(pauses: list[float]) -> Poster:
    sleep: Callable[[float], None] = pauses.append
    return Poster(URL, sleep)


def test_a_document_arrives(listener: Listener) -> None:
    """Whole, once, as JSON."""
    pauses: list[float] = []
    poster = start(pauses)
    poster.send('{"state": "working"}')
    poster.drain(SECONDS)
    assert listener.got == [{"state": "working"}] and pauses == []


def test_a_listener_that_comes_later_gets_it(listener: Listener) -> None:
    """Tried again with growing pauses."""
    listener.faults = [ConnectionRefusedError(), TimeoutError(), ValueError()]
    pauses: list[float] = []
    poster = start(pauses)
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 1}] and pauses == [1.0, 2.0, 4.0]


def test_a_listener_that_comes_much_later_gets_it_too(listener: Listener) -> None:
    """The interval is bounded, not the waiting: a server that was away for an hour learns where the node is."""
    listener.faults = [urllib.error.HTTPError("", 503, "", Message(), None), *[ConnectionRefusedError()] * 50]
    pauses: list[float] = []
    poster = start(pauses)
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 1}] and len(pauses) == 51
    assert pauses[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0] and max(pauses) == LONGEST_PAUSE


def test_a_refusal_is_taken_for_an_answer(listener: Listener) -> None:
    """Who does not want this document is not asked again; the next one is sent."""
    listener.faults = [urllib.error.HTTPError("", 403, "", Message(), None)]
    poster = start([])
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.tries == 1 and listener.got == []
    poster.send('{"n": 2}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 2}]


def test_sending_never_waits_and_the_newest_counts(listener: Listener) -> None:
    """A listener that hangs costs the boot nothing; what a newer status overtook is not sent."""
    listener.gate.clear()
    poster = start([])
    for number in range(100):
        poster.send(json.dumps({"n": number}))
    listener.gate.set()
    poster.drain(SECONDS)
    assert listener.got[-1] == {"n": 99}
    assert len(listener.got) <= 2


def test_a_document_that_fails_gives_way_to_a_newer_one(listener: Listener) -> None:
    """Old news is not repeated while there is newer."""
    listener.faults = [ConnectionRefusedError()]
    sent: list[Poster] = []
    poster = Poster(URL, lambda seconds: sent[0].send('{"n": 2}'))
    sent.append(poster)
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.got == [{"n": 2}]


def test_draining_is_bounded(listener: Listener) -> None:
    """An agent that ends does not wait for a listener that hangs."""
    listener.gate.clear()
    poster = start([])
    poster.send("{}")
    poster.drain(0.05)
    assert listener.got == []
    listener.gate.set()
    poster.drain(SECONDS)
