"""A guard for unit tests: no process is started by accident, and nothing reaches a network."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class NotAllowed(BaseException):
    """A unit test tried to start a process or to use the network. No `except Exception` hides it."""


# An audit hook sees every way there is (subprocess, asyncio, os.popen, multiprocessing, pty), under any name it was
# imported by, and cannot be taken out again: so it is put in once and asks these two.
_watching = False
_allowed: frozenset[str] = frozenset()


def _command(event: str, args: tuple[Any, ...]) -> str:
    """The command that an audit event is about to start, as the test sees it."""
    if event == "subprocess.Popen":
        return os.fsdecode(args[0] or args[1][0])
    if event in ("os.exec", "os.posix_spawn"):
        return os.fsdecode(args[0])
    if event == "os.system":
        return os.fsdecode(args[0]).split()[0]
    return event


_PROCESS_EVENTS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty", "os.spawn"}
_NAME_EVENTS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
_SOCKET_EVENTS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in _PROCESS_EVENTS:
        command = _command(event, args)
        if Path(command).name not in _allowed:
            raise NotAllowed(
                f"this unit test would start a process ({event}: {command}); "
                f"if it must, mark it with @pytest.mark.allow_process({Path(command).name!r})"
            )
    elif event in _NAME_EVENTS or (event in _SOCKET_EVENTS and args[0].family != socket.AF_UNIX):
        raise NotAllowed(f"this unit test would use the network ({event} {args[1:]!r}); no unit test may")


sys.addaudithook(_audit)


@contextmanager
def watch(allowed: frozenset[str]) -> Iterator[None]:
    """Forbids, inside, every process but those whose command has one of these names, and every network socket."""
    global _watching, _allowed
    before = _watching, _allowed
    _watching, _allowed = True, allowed
    try:
        yield
    finally:
        _watching, _allowed = before


def allowed_commands(item: pytest.Item) -> frozenset[str]:
    """The command names of an item's allow_process markers. Raises UsageError for a marker without a name."""
    markers = list(item.iter_markers("allow_process"))
    if not all(marker.args and all(isinstance(name, str) for name in marker.args) for marker in markers):
        raise pytest.UsageError(f"{item.nodeid}: allow_process must name the commands, as allow_process('git')")
    return frozenset(name for marker in markers for name in marker.args)


# The hooks: a conftest that imports them guards the tests below it.


def pytest_itemcollected(item: pytest.Item) -> None:
    allowed_commands(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with watch(allowed_commands(item)):
        return (yield)
