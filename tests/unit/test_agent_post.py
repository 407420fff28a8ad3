"""The status by POST: what arrives, that nobody who listens badly holds up the boot, and that tries end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from imagegen_node import post
from imagegen_node.post import TRIES, Poster

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


def test_tries_end_and_the_next_document_begins_anew(listener: Listener) -> None:
    """Nobody listens: after some tries the document is let go."""
    listener.faults = [ConnectionRefusedError()] * TRIES
    poster = start([])
    poster.send('{"n": 1}')
    poster.drain(SECONDS)
    assert listener.tries == TRIES and listener.got == []
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
