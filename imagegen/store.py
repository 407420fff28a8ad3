"""The cache of built images: its locks, its entries, and the links from it into OUT."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from imagegen import run
from imagegen.errors import CommandFailed
from imagegen.manifest import read_manifest


def cache_directory() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/imagegen."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "imagegen"


@contextmanager
def lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds an exclusive flock; the kernel drops it with the process, so that none is ever left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def remove_work(cache: Path) -> None:
    """Removes what builds left behind. Only the holder of the cache's lock may call it.

    Raises CommandFailed rather than remove through a mount: that would be a directory of this machine.
    """
    work = cache / "work"
    if not work.exists():
        return
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if inside := [place for place in mounted if place.startswith(f"{work}/")]:
        raise CommandFailed(f"something is mounted below {work}: unmount {', '.join(inside)} and start again")
    run.run(["rm", "-rf", "--one-file-system", work])


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


def link_file(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`; on another file system a copy, as sparse as can be."""
    if target.exists() and target.samefile(source):
        return
    beside = target.with_name(f".{target.name}.new")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP):
            raise
        run.run(["cp", "--reflink=auto", "--sparse=always", "--preserve=mode,timestamps", source, beside])
    beside.replace(target)


def existing_parent(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that programs can get without swapping (proc(5), MemAvailable)."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
