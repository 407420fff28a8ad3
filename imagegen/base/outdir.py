"""The out directory: one command at a time writes there, and what it makes belongs to the caller."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagegen.base.errors import BadUsage, ImagegenError, MachineLacks
from imagegen.base.handles import (
    DIRECTORY,
    Owner,
    adopt,
    is_file,
    list_names,
    make_directory,
    name_beside,
    open_directory,
    owner_of,
    put_file,
    remove,
)
from imagegen.base.lock import Held, hold_lock
from imagegen.base.marks import EARLIER, KEPT, LEFTOVER, MARK, MARK_TEXT, find_foreign, find_foreign_in_seed
from imagegen.base.owners import find_caller, find_place, user_name
from imagegen.base.streams import Say

MOST_NAMES = 10  # of what is foreign, in one message
WAIT_SECONDS = 600.0  # more than any command holds the lock: the longest copies the images of two roles


@contextmanager
def work_in(
    out: Path,
    names: Collection[str],
    command: str,
    say: Say,
    *,
    seeds: Collection[str] = (),
    seconds: float | None = None,
) -> Iterator[None]:
    """Keeps other commands out of OUT while this one writes `names` there, and `seeds` in OUT/seeds, if imagegen may.

    Calls `say` with whom it waits for.

    Makes OUT, and those of `names` that are in KEPT. Raises BadUsage for what imagegen did not make and for a place
    that others can change, MachineLacks for what is another user's, ImagegenError if another command takes too long.
    """
    seconds = WAIT_SECONDS if seconds is None else seconds
    find_place(out)
    if out.exists():
        with open_directory(out) as handle:
            check_names(out, handle, names, seeds)
    with open_directory(out, make=True, owner=find_caller()) as handle:
        take_over(out, handle)
        check_owner(handle, out)

    def waiting(holder: str) -> None:
        say(f"{holder} is working in {out}; waiting for it")

    try:
        with hold_lock(out / MARK, command, seconds=seconds, waiting=waiting), open_directory(out) as handle:
            check_names(out, handle, names, seeds)
            for name in names:
                prepare_name(out, handle, name)
            try:
                yield
            finally:
                give_to_caller(handle, [MARK, *names])
    except Held as held:
        raise ImagegenError(
            f"{held} is still working in {out} after {seconds / 60:.0f} minutes",
            "stop it, or use another -o",
        ) from None


def take_over(out: Path, handle: int) -> None:
    """Gives an OUT that root made to the user who called sudo, if it has only what imagegen makes."""
    owner, own = find_caller(), {*KEPT, *EARLIER, "images.yaml", MARK}
    if owner_of(handle)[0] == 0 != owner[0] and all(
        name in own and (name == MARK or not find_foreign(out, handle, name)) for name in list_names(handle)
    ):
        adopt(handle, owner)


def check_owner(handle: int, place: Path) -> None:
    """Raises MachineLacks if the open file is another user's and this process is not root."""
    uid = owner_of(handle)[0]
    if os.geteuid() in (0, uid):
        return
    # Kept nodes run in boot/ and need their files' owners.
    how = f"take it over with `sudo chown -R {os.geteuid()} {place}`" if place.name != "boot" else "run this as root"
    raise MachineLacks(f"{place} belongs to another user, {user_name(uid)}", f"{how}, or use another -o")


def check_names(out: Path, handle: int, names: Collection[str], seeds: Collection[str] = ()) -> None:
    """Raises BadUsage, which names everything that imagegen did not make but would replace or write in."""
    foreign = [place for name in names for place in find_foreign(out, handle, name)]
    if out / "seeds" not in foreign:
        foreign += [place for name in seeds for place in find_foreign_in_seed(out / "seeds" / name)]
    if foreign:
        more = f" and {len(foreign) - MOST_NAMES} more" if len(foreign) > MOST_NAMES else ""
        shown = " and ".join(os.fspath(place) for place in foreign[:MOST_NAMES])
        raise BadUsage(
            f"imagegen did not make {shown}{more}, and leaves what others made alone",
            "move it away, or choose another directory with -o",
        )


def prepare_name(out: Path, handle: int, name: str) -> None:
    """Makes a directory that is kept, marks it, gives it to OUT's owner, and removes what a killed run left."""
    for left in (name_beside(name), name_beside(name, "old")):
        remove(handle, left)
    if name in KEPT:
        make_directory(handle, name, out / name, KEPT[name], owner=find_caller())
        with open_directory(out / name) as inner:
            check_owner(inner, out / name)
            if KEPT[name] == 0o700:
                os.fchmod(inner, 0o700)
            if not is_file(out / name / MARK):
                put_file(inner, MARK, MARK_TEXT.encode(), 0o644, out / name / MARK)
            if name == "seeds":
                remove_leftovers(out / name)
    give_to_caller(handle, [name])


def give_to_caller(handle: int, names: Collection[str]) -> None:
    """Gives what root made in OUT to the user who called sudo; kept nodes in boot/ need their files' owners."""
    if os.geteuid() == 0:
        for name in names:
            if name != "boot":
                give_back(handle, name, find_caller())


def give_back(handle: int, name: str, owner: Owner) -> None:
    """Gives what has that name, and everything below it, to the directory's owner, except files with a second name,
    which may be anywhere.
    """
    with suppress(FileNotFoundError):
        facts = os.lstat(name, dir_fd=handle)
        if facts.st_uid == owner[0]:
            return
        if not stat.S_ISDIR(facts.st_mode):
            _give(handle, [name], owner)
            return
        for _, directories, files, inner in os.fwalk(name, dir_fd=handle):
            adopt(inner, owner)
            _give(inner, [*directories, *files], owner)


def _give(handle: int, names: Collection[str], owner: Owner) -> None:
    for name in names:
        facts = os.lstat(name, dir_fd=handle)
        if not stat.S_ISDIR(facts.st_mode) and facts.st_nlink == 1:
            os.chown(name, *owner, dir_fd=handle, follow_symlinks=False)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed run left half-written, since it may hold secrets. Only the lock's holder may call it."""
    with open_directory(directory) as handle:
        for name in list_names(handle):
            if LEFTOVER.fullmatch(name):
                remove(handle, name)


@contextmanager
def keep_closed(directory: Path, in_use: Callable[[], bool]) -> Iterator[None]:
    """Keeps everybody else out of a directory of OUT while root works in it, then gives it to OUT's owner, unless it is
    still `in_use`. Does nothing for other users.
    """
    if os.geteuid() != 0:
        yield
        return
    with open_directory(directory.parent) as handle:
        owner = owner_of(handle)
        with open_directory(directory) as inner:
            _close_off(inner)
            for name in list_names(inner):
                if stat.S_ISLNK(os.lstat(name, dir_fd=inner).st_mode):
                    remove(inner, name)
                elif stat.S_ISDIR(os.lstat(name, dir_fd=inner).st_mode):
                    below = os.open(name, DIRECTORY, dir_fd=inner)
                    try:
                        _close_off(below)
                    finally:
                        os.close(below)
        try:
            yield
        finally:
            if not in_use():
                give_back(handle, directory.name, owner)


def _close_off(handle: int) -> None:
    os.fchmod(handle, 0o700)
    os.fchown(handle, 0, 0)
