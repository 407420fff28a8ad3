"""The switch between virtual machines: who gets which frame, and QEMU's framing."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imagegen.local.switch import BACKLOG, LONGEST, Switch, serve_port

A, B, C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
EVERYBODY = b"\xff" * 6


def frame(target: bytes, sender: bytes) -> bytes:
    return target + sender + b"\x08\x00payload"


def three_ports() -> Switch[str]:
    lan: Switch[str] = Switch()
    lan.ports += ["a", "b", "c"]
    return lan


def test_broadcasts_go_to_all_others() -> None:
    """ARP must reach every node, and not come back."""
    assert three_ports().forward(frame(EVERYBODY, A), "a") == ["b", "c"]


def test_a_known_node_gets_its_frames_alone() -> None:
    """Once a node has said anything, frames for it reach nobody else, above all not the gateway."""
    lan = three_ports()
    assert lan.forward(frame(C, A), "a") == ["b", "c"]
    lan.forward(frame(EVERYBODY, C), "c")
    assert lan.forward(frame(C, A), "a") == ["c"]
    assert lan.forward(frame(A, C), "c") == ["a"]


def test_nothing_goes_back_to_its_own_port() -> None:
    """Two addresses behind one port are not the switch's business."""
    lan = three_ports()
    lan.forward(frame(EVERYBODY, A), "a")
    assert lan.forward(frame(A, B), "a") == []


def test_a_node_that_was_switched_off_is_found_again() -> None:
    """Its old place is forgotten with its port; another node's stays."""
    lan = three_ports()
    lan.forward(frame(EVERYBODY, A), "a")
    lan.forward(frame(EVERYBODY, B), "b")
    lan.leave("a")
    assert lan.forward(frame(A, B), "b") == ["c"]
    lan.ports.append("again")
    lan.forward(frame(EVERYBODY, A), "again")
    assert lan.forward(frame(A, B), "b") == ["again"]
    assert lan.forward(frame(B, A), "again") == ["b"]


def test_a_broadcast_sender_is_not_learnt() -> None:
    """No frame may claim everybody's address for its own port."""
    lan = three_ports()
    lan.forward(frame(B, EVERYBODY), "a")
    assert lan.forward(frame(EVERYBODY, C), "c") == ["a", "b"]


@given(st.binary(max_size=11))
def test_half_a_header_goes_nowhere(data: bytes) -> None:
    """A frame without both addresses is none."""
    assert three_ports().forward(data, "a") == []


class FakePort:
    """The writer of a port: what was sent, and how much waits."""

    def __init__(self, waiting: int = 0) -> None:
        self.sent = b""
        self.closed = False
        self.transport: Any = self
        self.waiting = waiting

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True


def serve(data: bytes, lan: Switch[Any]) -> FakePort:
    """Feeds one port to its end."""
    port = FakePort()

    async def feed() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await serve_port(lan, reader, port)  # type: ignore[arg-type]

    asyncio.new_event_loop().run_until_complete(feed())
    return port


def packed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(each)) + each for each in frames)


@given(st.lists(st.binary(min_size=12, max_size=60)), st.binary(max_size=3))
def test_frames_are_forwarded_whole_and_in_order(payloads: list[bytes], rest: bytes) -> None:
    """QEMU's framing survives whatever the frames hold; half a frame at the end is dropped."""
    frames = [EVERYBODY + A + payload for payload in payloads]
    lan: Switch[Any] = Switch()
    other = FakePort()
    lan.ports.append(other)
    port = serve(packed(*frames) + rest, lan)
    assert other.sent == packed(*frames)
    assert port.closed and port.sent == b""
    assert lan.ports == [other]


def test_a_port_that_does_not_read_loses_frames() -> None:
    """A paused node must not fill the memory, nor hold up the others."""
    lan: Switch[Any] = Switch()
    stuck, other = FakePort(waiting=BACKLOG), FakePort()
    lan.ports += [stuck, other]
    serve(packed(frame(EVERYBODY, A)), lan)
    assert stuck.sent == b""
    assert other.sent == packed(frame(EVERYBODY, A))


def test_a_length_that_no_frame_has_ends_the_port() -> None:
    """What does not speak the protocol is cut off before it makes the switch wait for 4 GiB."""
    lan: Switch[Any] = Switch()
    other = FakePort()
    lan.ports.append(other)
    port = serve(struct.pack("!I", LONGEST + 1) + frame(EVERYBODY, A) + packed(frame(EVERYBODY, A)), lan)
    assert other.sent == b""
    assert port.closed
