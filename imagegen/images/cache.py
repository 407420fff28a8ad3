"""The cache of built images: its lock, its entries, and the room that a build needs."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from imagegen.base import commands
from imagegen.base.errors import CommandFailed, ImagegenError, MachineLacks
from imagegen.base.handles import open_directory
from imagegen.base.lock import Held, hold_lock
from imagegen.base.machine import find_lacks
from imagegen.base.owners import find_caller, find_place
from imagegen.base.streams import Say
from imagegen.images.manifest import read_manifest

TOOLS = (
    "qemu-img",
    "mcopy",
    "mformat",
    "sfdisk",
    "mksquashfs",
    "zstd",
    "debootstrap",
    "mmdebstrap",  # dib uses it if it is installed; required, because otherwise machines would make different images
    "unshare",
    "setpriv",
    "tar",
    "findmnt",
    "lsattr",
    "ps",
)

GIB = 1 << 30
# Measured for the controller: 1.6 GiB of tree, as much of tar, raw 1.5, qcow2 0.6, two more of 0.5, packages 0.4.
WORK_BYTES = 9 * GIB  # in the cache, while a role is built
IMAGE_BYTES = (
    5 * GIB
)  # for each further role, and for each role in OUT when that is another file system and gets copies
MEMORY_BYTES = GIB
LONGEST_WAIT = 2 * 3600.0  # seconds, for a build of both roles on a slow machine


def cache_directory() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/imagegen. With sudo, ~ is root's: root's builds are in no user's directory."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    behind_sudo = os.geteuid() != find_caller()[0]
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir) if behind_sudo else Path.home()
    return (Path(given) if given.startswith("/") else home / ".cache") / "imagegen"


def find_cache(cache: Path) -> Path:
    """The cache, after checking that only root and this process's user can change it. Raises BadUsage.

    A build runs programs from the tree that it makes there.
    """
    return find_place(cache, os.geteuid(), "set XDG_CACHE_HOME to choose another cache")


@contextmanager
def hold_cache(cache: Path, waiting: Say) -> Iterator[None]:
    """Keeps other builds out of the cache; first waits for a running one, and tells `waiting`.

    Raises ImagegenError if that takes longer than builds do.
    """
    with open_directory(cache, make=True):
        pass
    try:
        with hold_lock(cache / "build.lock", "build", seconds=LONGEST_WAIT, waiting=waiting):
            yield
    except Held as held:
        raise ImagegenError(
            f"{held} is still building in {cache} after {LONGEST_WAIT / 3600:.0f} hours",
            "check whether it hangs, and stop it",
        ) from None


def remove_work(cache: Path) -> None:
    """Removes what builds left behind. Only the holder of the cache's lock may call it.

    Raises CommandFailed if something is mounted there, because that would be a directory of this machine.
    """
    work = cache / "work"
    if not work.exists():
        return
    if inside := [place for place in mount_points() if place.startswith(f"{work}/")]:
        raise CommandFailed(f"something is mounted below {work}: unmount {', '.join(inside)}, then run it again")
    commands.run(["rm", "-rf", "--one-file-system", work])


def mount_points() -> list[str]:
    """Where something is mounted in this process's namespace (proc(5), mountinfo)."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def forget_images(images: Path, role: str, keep: int) -> None:
    """Removes all but the `keep` newest images of the role from the cache; what OUT links to stays there."""
    for path in sorted(images.glob(f"{role}-*"), key=built_at, reverse=True)[keep:]:
        shutil.rmtree(path)


def built_at(entry: Path) -> float:
    """When an image was built, in seconds since 1970; 0 when its manifest does not say."""
    try:
        return datetime.fromisoformat(read_manifest(entry)["built"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def describe_age(seconds: float) -> str:
    """An age in words: `40 seconds`, `3 hours`, `12 days`."""
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count > 1 else ''}"
    return f"{max(0, int(seconds))} seconds"


def existing_parent(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def check_machine(out: Path, cache: Path, count: int) -> None:
    """Raises MachineLacks with everything that this machine lacks to build `count` images, one line each."""
    lacks = [] if os.geteuid() == 0 else ['building needs root: run `sudo "$(command -v imagegen)" build ...`']
    lacks += commands.missing_tools(TOOLS)
    cache_place, out_place = existing_parent(cache), existing_parent(out)
    wanted = {cache_place: WORK_BYTES + (count - 1) * IMAGE_BYTES}
    # Another file system or owner: copies, see handles.link_into().
    if out_place.stat().st_dev != cache_place.stat().st_dev or find_caller()[0] != os.geteuid():
        wanted[out_place] = wanted.get(out_place, 0) + IMAGE_BYTES * count
    lacks += find_lacks("building needs", MEMORY_BYTES, wanted)
    if lacks:
        raise MachineLacks("\n".join(lacks))
