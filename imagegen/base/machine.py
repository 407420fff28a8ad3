"""What this machine has to spare: memory, and room on its disks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that programs can get without swapping (proc(5), MemAvailable)."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def find_lacks(who: str, memory: int, room: Mapping[Path, int]) -> list[str]:
    """What this machine has too little of for `who` (`the build needs`), a sentence each; all sizes are bytes."""
    lacks = []
    if (free := available_memory()) < memory:
        lacks.append(f"{who} {describe(memory)} of memory, but only {describe(free)} are free")
    for place, size in room.items():
        if (free := shutil.disk_usage(place).free) < size:
            lacks.append(f"{who} {describe(size)} on the disk of {place}, but only {describe(free)} are free")
    return lacks


def describe(size: int) -> str:
    """A number of bytes, to be read."""
    return f"{size / MIB / 1024:.1f} GiB" if size >= 1024 * MIB else f"{size / MIB:.0f} MiB"
