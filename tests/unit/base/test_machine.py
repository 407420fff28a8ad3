"""What this machine has to spare, and how it is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from imagegen.base import machine
from imagegen.base.machine import MIB, available_memory, describe, find_lacks


def test_memory_is_what_programs_can_get(tmp_path: Path) -> None:
    """MemAvailable, in bytes; a kernel without it has none to give."""
    place = tmp_path / "meminfo"
    place.write_text("MemTotal:       8000 kB\nMemAvailable:   2048 kB\n")
    assert available_memory(place) == 2 * MIB
    place.write_text("MemTotal:       8000 kB\n")
    assert available_memory(place) == 0


def test_everything_that_is_short_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what is needed and what is there; nothing is said of what suffices."""
    monkeypatch.setattr(machine, "available_memory", lambda: 512 * MIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(free=3 * 1024 * MIB))
    assert find_lacks("the nodes need", 2048 * MIB, {tmp_path: 4096 * MIB}) == [
        "the nodes need 2.0 GiB of memory, but only 512 MiB are free",
        f"the nodes need 4.0 GiB on the disk of {tmp_path}, but only 3.0 GiB are free",
    ]
    assert find_lacks("the nodes need", 512 * MIB, {tmp_path: 3 * 1024 * MIB}) == []


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 MiB"), (MIB, "1 MiB"), (1023 * MIB, "1023 MiB"), (1536 * MIB, "1.5 GiB")]
)
def test_sizes_are_read_by_people(size: int, said: str) -> None:
    assert describe(size) == said
