"""Whether a ready node still does its work: when it looks, and what it says. It repairs nothing (decision 35)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable

from imagegen_node.engine.errors import Waiting
from imagegen_node.engine.system import read_units

LOOK = 300.0  # seconds between two looks at a healthy node
AGAIN = 30.0  # seconds until something that looked wrong is looked at again; doubled each time, up to LOOK
LEAST_FREE = 0.05  # of a file system's space, and of its inodes

Look = Callable[[], Iterable[str]]
"""Yields what is wrong, one phrase each. It may raise when it cannot find out."""


class Health:
    """One node's looks and when they are due. Trouble is reported once two looks in a row have seen some."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self._looks = looks
        self._bad = 0  # looks in a row that saw something wrong
        self._trouble = ""
        # Computes that became ready together do not ask the API together.
        self._next = time.monotonic() + _jitter(0.2, LOOK)

    def seconds_left(self) -> float:
        """Until the next look is due."""
        return max(0.0, self._next - time.monotonic())

    def examine(self) -> str:
        """What is wrong with the node, looked at again if it is time; empty when nothing is."""
        if self.seconds_left():
            return self._trouble
        found = "; ".join(find_troubles(self._looks))
        self._bad = self._bad + 1 if found else 0
        # A daemon that is restarted by hand is no trouble yet.
        self._trouble = found if self._bad > 1 else ""
        pause = min(AGAIN * 2.0 ** (self._bad - 1), LOOK) if found else LOOK
        self._next = time.monotonic() + _jitter(0.8, pause)
        return self._trouble


def _jitter(least: float, seconds: float) -> float:
    return seconds * random.uniform(least, 1.0)  # noqa: S311


def find_troubles(looks: Iterable[Look]) -> list[str]:
    """What these looks find wrong. A look that fails is trouble in itself, and the others still look."""
    troubles: list[str] = []
    for look in looks:
        try:
            troubles += look()
        except Waiting as waiting:
            troubles.append(f"waiting for {waiting}")
        except Exception as error:
            troubles.append(str(error) or type(error).__name__)
    return troubles


def require(check: Callable[[], object]) -> Look:
    """The look for what a check waits for; its exception is the trouble."""

    def look() -> tuple[str, ...]:
        check()
        return ()

    return look


def find_full(places: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """(place, what is wrong) for each file system of these places that has little space or few inodes left."""
    seen = set()
    for place in places:
        if not place.exists() or place.stat().st_dev in seen:
            continue
        seen.add(place.stat().st_dev)
        found = os.statvfs(place)
        if found.f_blocks and found.f_bavail / found.f_blocks < LEAST_FREE:
            free, size = (blocks * found.f_frsize // 2**20 for blocks in (found.f_bavail, found.f_blocks))
            yield place, f"{place} is nearly full: {free} of {size} MiB are free"
        if found.f_files and found.f_favail / found.f_files < LEAST_FREE:
            yield place, f"{place} has hardly any inodes left: {found.f_favail} of {found.f_files} are free"


def look_at_disks(places: Iterable[Path]) -> Iterator[str]:
    """Each of these file systems that is nearly full."""
    return (what for _, what in find_full(places))


def find_inactive(units: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(unit, what is wrong) for each of these units that is not active."""
    for unit, state in read_units(list(units)).items():
        if state["ActiveState"] != "active":
            yield unit, "{} is {ActiveState} ({SubState})".format(unit, **state)


def look_at_units(units: Iterable[str]) -> Iterator[str]:
    """Each of these units that is not active."""
    return (what for _, what in find_inactive(units))
