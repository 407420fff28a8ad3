"""Watching processes from outside: what they are given while they run, and which programs start at all."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

IN_OPEN = 0x20  # inotify(7)


def spell_secret(value: str) -> set[str]:
    """A secret as it may stand in a file: plain, percent-encoded, in base64 wherever it begins, escaped by a format."""
    spelled = {
        value,
        quote(value, safe=""),
        quote(value),
        quote(value, safe="!$&'()*+,;="),
        quote_plus(value),
        json.dumps(value)[1:-1],
        value.replace("$", "\\$"),
        value.replace("$", "$$"),
        value.replace("'", "''"),
        value.replace("\\", "\\\\").replace("'", "\\'"),
    }
    for prefix in range(3):  # base64 reads groups of three bytes: inside a longer text the value may begin anywhere
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * prefix + value.encode() + b"\0" * (-(prefix + len(value)) % 3)).decode()
            # Only the characters that no neighbour has a part in.
            spelled.add(whole[(0, 2, 3)[prefix] : (8 * prefix + 8 * len(value)) // 6])
    return spelled


@dataclass(frozen=True)
class Given:
    """What one process had: whose it is, its arguments, and in which of them a secret stood."""

    uid: int
    argv: tuple[str, ...]
    in_argv: frozenset[str] = frozenset()  # names of secrets
    in_environment: frozenset[str] = frozenset()


class ProcessWatch:
    """Reads the arguments and the environment of all processes of this machine, again and again, in a thread.

    The nodes are containers, so their processes are among them. What lives shorter than a round may be missed.
    """

    PAUSE = 0.15  # seconds between two rounds

    def __init__(self, secrets: dict[str, str]) -> None:
        self.spellings = {name: [s.encode() for s in spell_secret(value)] for name, value in secrets.items()}
        self.seen: set[Given] = set()
        self.rounds = 0
        self._found: dict[bytes, frozenset[str]] = {}  # from one round to the next most processes are the same
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self.PAUSE)

    def look(self) -> None:
        """One round."""
        for process in os.scandir("/proc"):
            if not process.name.isdigit():
                continue
            try:
                argv = Path(process.path, "cmdline").read_bytes()
                environment = Path(process.path, "environ").read_bytes()
                uid = process.stat().st_uid
            except OSError:  # ended meanwhile
                continue
            if argv:
                words = tuple(word.decode(errors="replace") for word in argv.rstrip(b"\0").split(b"\0"))
                self.seen.add(Given(uid, words, self._find(argv), self._find(environment)))
        self.rounds += 1

    def _find(self, data: bytes) -> frozenset[str]:
        if data not in self._found:
            names = (name for name, spellings in self.spellings.items() if any(s in data for s in spellings))
            self._found[data] = frozenset(names)
        return self._found[data]


@contextmanager
def watch_opened(files: Sequence[Path]) -> Iterator[list[str]]:
    """Yields a list that, at the end, names those of the files that anybody opened meanwhile: what starts is opened.

    inotify sees the file and not the path, so it sees a container's processes too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert handle >= 0, os.strerror(ctypes.get_errno())
    opened: list[str] = []
    try:
        watched = {}
        for path in files:
            number = libc.inotify_add_watch(handle, os.fsencode(path), IN_OPEN)
            assert number >= 0, f"{path}: {os.strerror(ctypes.get_errno())}"
            watched[number] = os.fspath(path)
        yield opened
        while True:
            try:
                data = os.read(handle, 1 << 16)
            except BlockingIOError:
                break
            while data:
                number, _, _, length = struct.unpack_from("iIII", data)
                opened.append(watched.get(number, "too many events"))
                data = data[16 + length :]
    finally:
        os.close(handle)
