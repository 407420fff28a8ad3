"""The Ethernet switch between virtual machines: a process that connects the stream sockets of QEMU's netdevs."""

from __future__ import annotations

import asyncio
import struct
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Generic, TypeVar

LONGEST = 68 * 1024  # bytes of a frame: QEMU's own limit
BACKLOG = 4 << 20  # bytes waiting for a port of the switch; more is dropped, as in any switch

Port = TypeVar("Port")


class Switch(Generic[Port]):
    """A learning Ethernet switch: which ports a frame goes to.

    A hub would not do: QEMU's user network takes every frame as its own, whatever the destination MAC, and resets the
    connections between nodes.
    """

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self._places: dict[bytes, Port] = {}

    def forward(self, frame: bytes, source: Port) -> list[Port]:
        """The ports for a frame from `source`; remembers that its sender is there."""
        target, sender = frame[:6], frame[6:12]
        if len(sender) < 6:
            return []
        if not is_group(sender):
            self._places[sender] = source
        if not is_group(target) and target in self._places:
            place = self._places[target]
            return [] if place == source else [place]
        return [port for port in self.ports if port != source]

    def leave(self, port: Port) -> None:
        """Forgets a port and the addresses behind it."""
        self.ports.remove(port)
        self._places = {address: place for address, place in self._places.items() if place != port}


def is_group(address: bytes) -> bool:
    """Whether a MAC is a broadcast or multicast address (IEEE 802, the first byte's lowest bit)."""
    return bool(address[0] & 1)


async def serve_port(lan: Switch[StreamWriter], reader: StreamReader, writer: StreamWriter) -> None:
    """Forwards one port's frames until it leaves.

    QEMU's stream protocol: a frame's length in 32 bits, big-endian, then the frame.
    """
    lan.ports.append(writer)
    try:
        # Ends when the machine is switched off, or sends what cannot be a frame.
        with suppress(asyncio.IncompleteReadError, OSError):
            while (length := struct.unpack("!I", await reader.readexactly(4))[0]) <= LONGEST:
                frame = await reader.readexactly(length)
                for port in lan.forward(frame, writer):
                    if port.transport.get_write_buffer_size() < BACKLOG:
                        port.write(struct.pack("!I", length) + frame)
    finally:
        lan.leave(writer)
        writer.close()


async def serve_switch(path: Path) -> None:
    """Serves the socket for ever. It gets its name once it is listening, so that whoever sees it can connect."""
    lan: Switch[StreamWriter] = Switch()
    listener = socket(AF_UNIX)
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    listener.bind(str(beside))
    server = await asyncio.start_unix_server(lambda r, w: serve_port(lan, r, w), sock=listener)
    beside.replace(path)
    await server.serve_forever()


def run_switch(path: str) -> None:
    """Serves the switch's socket until the process is ended."""
    asyncio.run(serve_switch(Path(path)))
