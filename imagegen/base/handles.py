"""Reaches files and directories by handle: no link on the way is followed, and new files belong to the owner of the
directory that they are in. So root can work safely in a user's directory, and everything there stays the user's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from imagegen.base.errors import BadUsage, MachineLacks

NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # the last for a FIFO, whose open would wait for a peer
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | NO_LINK
FICLONE = 0x40049409  # linux/fs.h

Owner = tuple[int, int]
"""uid and gid."""


@contextmanager
def open_directory(path: Path, *, make: bool = False, owner: Owner | None = None) -> Iterator[int]:
    """A handle of the directory. `make` makes missing ones, owned by `owner` or else by their parent's owner.

    Raises BadUsage for a link or a file on the way, FileNotFoundError, MachineLacks for a full disk.
    """
    handle = os.open("/" if path.is_absolute() else ".", DIRECTORY)
    try:
        for number, part in enumerate(path.parts):
            if part == "/":
                continue
            if make:
                make_directory(handle, part, path, owner=owner)
            inner = _open_inner(handle, part, Path(*path.parts[: number + 1]))
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _open_inner(handle: int, name: str, place: Path) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=handle)
    except OSError as error:
        error.filename = os.fspath(place)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            kind = "a link" if stat.S_ISLNK(os.lstat(name, dir_fd=handle).st_mode) else "not a directory"
            raise refuse(place, kind) from error
        raise


def refuse(place: Path, kind: str) -> BadUsage:
    """The error for something in imagegen's way that imagegen did not make."""
    return BadUsage(f"{place} is {kind}: imagegen leaves it alone", "move it away, or choose another directory with -o")


def list_names(handle: int) -> list[str]:
    """The names in an open directory."""
    return os.listdir(handle)


def make_directory(handle: int, name: str, place: Path, mode: int | None = None, *, owner: Owner | None = None) -> bool:
    """Makes a directory in that directory, if it is missing; whether it was. Raises MachineLacks."""
    with whole(place):
        try:
            os.mkdir(name, 0o755 if mode is None else mode, dir_fd=handle)
        except FileExistsError:
            return False
    inner = os.open(name, DIRECTORY, dir_fd=handle)
    try:
        if mode is not None:
            os.fchmod(inner, mode)
        adopt(inner, owner or owner_of(handle))
    finally:
        os.close(inner)
    return True


def owner_of(handle: int) -> Owner:
    """The owner of an open file or directory."""
    facts = os.fstat(handle)
    return facts.st_uid, facts.st_gid


def adopt(handle: int, owner: Owner) -> None:
    """Gives something just made to its owner, if this process is root; other users own what they make."""
    if os.geteuid() == 0 and owner_of(handle) != owner:
        os.fchown(handle, *owner)


@contextmanager
def whole(place: Path, size: int = 0) -> Iterator[None]:
    """Turns a full disk or quota into MachineLacks with the file's name and size."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = "quota is used up" if error.errno == errno.EDQUOT else "disk is full"
        needed = f", and {size:,} bytes are needed" if size else ""
        raise MachineLacks(f"cannot write {place}: the {what}{needed}", "free some space, then run it again") from error


def name_beside(name: str, kind: str = "new") -> str:
    """What a file or directory is called while it is `new`, not whole yet, or `old`, replaced and not removed yet.

    The name says whose it is: what a run that was killed left so is imagegen's to remove.
    """
    return f".{name}.imagegen-{kind}"


def put_file(directory: int, name: str, data: bytes, mode: int, place: Path, *, owner: Owner | None = None) -> None:
    """Writes a file under a temporary name in that directory, never readable beyond its mode, then renames it.

    It belongs to `owner`, else to the directory's owner. Raises MachineLacks for a full disk; nothing is left then.
    """
    beside = name_beside(name)
    remove(directory, beside)
    with whole(place, len(data)):
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, mode & 0o700, dir_fd=directory)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                os.fchmod(handle, mode)
                adopt(handle, owner or owner_of(directory))
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            remove(directory, beside)
            raise


def create_file(place: Path, mode: int = 0o644) -> BinaryIO:
    """A new file, open for writing, instead of whatever had its name. Raises as open_directory()."""
    with open_directory(place.parent) as directory, whole(place):
        remove(directory, place.name)
        handle = os.open(place.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, mode, dir_fd=directory)
        adopt(handle, owner_of(directory))
    return os.fdopen(handle, "wb")


def append_file(place: Path, mode: int = 0o644) -> BinaryIO:
    """A log, open for appending, made when it is missing. Raises as keep_file()."""
    handle = keep_file(place, mode)
    fcntl.fcntl(handle, fcntl.F_SETFL, os.O_APPEND)
    return os.fdopen(handle, "wb")


def keep_file(place: Path, mode: int = 0o600) -> int:
    """A handle to read and write a file that stays, made if it is missing. Raises BadUsage if it is not a file.

    It must have no other name, so that nothing else is overwritten through it.
    """
    with open_directory(place.parent) as directory, whole(place):
        flags = os.O_RDWR | NO_LINK
        try:
            handle = os.open(place.name, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=directory)
            adopt(handle, owner_of(directory))
        except FileExistsError:
            handle = _open_regular(directory, place, flags)
    facts = os.fstat(handle)
    if facts.st_nlink > 1:
        os.close(handle)
        raise refuse(place, "a file with a second hard link")
    return handle


def read_file(place: Path, most: int = -1) -> bytes:
    """The bytes of a regular file, or so many at most. Raises BadUsage for another kind, FileNotFoundError."""
    with (
        open_directory(place.parent) as directory,
        os.fdopen(_open_regular(directory, place, os.O_RDONLY), "rb") as file,
    ):
        return file.read(most)


def _open_regular(directory: int, place: Path, flags: int) -> int:
    try:
        handle = os.open(place.name, flags | NO_LINK, dir_fd=directory)
    except OSError as error:
        error.filename = os.fspath(place)
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise refuse(place, "a link" if error.errno == errno.ELOOP else "not a file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise refuse(place, "not a file")
    return handle


def is_file(place: Path) -> bool:
    """Whether a regular file is there, and no link leads to it."""
    try:
        with open_directory(place.parent) as directory:
            return stat.S_ISREG(os.lstat(place.name, dir_fd=directory).st_mode)
    except (OSError, BadUsage):
        return False


def remove(directory: int, name: str) -> None:
    """Removes what has that name in the directory, whole trees too; a link, not what it leads to."""
    try:
        mode = os.lstat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(name, dir_fd=directory)
    else:
        os.unlink(name, dir_fd=directory)


def remove_place(place: Path) -> None:
    """As remove(), by path."""
    with suppress(FileNotFoundError), open_directory(place.parent) as directory:
        remove(directory, place.name)


def remove_empty(place: Path) -> None:
    """Removes a directory with nothing in it; leaves any other."""
    with suppress(OSError, BadUsage), open_directory(place.parent) as directory:
        os.rmdir(place.name, dir_fd=directory)


def link_file(source: Path, target: Path) -> None:
    """As link_into(), by path."""
    with open_directory(target.parent) as directory:
        link_into(source, directory, target.name, target)


def link_into(source: Path, directory: int, name: str, place: Path) -> None:
    """Makes `name` a hard link to `source` if owner and file system are the same, else a sparse copy.

    Another user's file is copied, because a link would still belong to that user.
    Raises MachineLacks for a full disk, BadUsage for a source that is a link; `place` is then unchanged.
    """
    with open_directory(source.parent) as origin:
        handle = _open_regular(origin, source, os.O_RDONLY)
        try:
            facts, owner = os.fstat(handle), owner_of(directory)
            if is_same(facts, directory, name):
                return
            beside = name_beside(name)
            remove(directory, beside)
            try:
                with whole(place, facts.st_size):
                    if facts.st_uid != owner[0] or not _link(origin, source.name, directory, beside):
                        _copy(handle, directory, beside, owner)
                    os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                remove(directory, beside)
                raise
        finally:
            os.close(handle)


def make_fresh(place: Path, mode: int = 0o755) -> None:
    """Makes an empty directory instead of whatever has its name. Raises as open_directory()."""
    with open_directory(place.parent) as directory:
        remove(directory, place.name)
        make_directory(directory, place.name, place, mode)


def is_same(source: os.stat_result, directory: int, name: str) -> bool:
    """Whether that name is the source, or its copy by link_into(), and belongs to the directory's owner."""
    try:
        facts = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    alike = (facts.st_size, facts.st_mtime_ns) == (source.st_size, source.st_mtime_ns) or os.path.samestat(
        facts, source
    )
    return alike and stat.S_ISREG(facts.st_mode) and facts.st_uid == owner_of(directory)[0]


def _link(origin: int, name: str, directory: int, beside: str) -> bool:
    try:
        os.link(name, beside, src_dir_fd=origin, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP):
            raise
        return False
    return True


def _copy(source: int, directory: int, name: str, owner: Owner) -> None:
    """Copies an open file by sharing its blocks where the file system can, else its data without its holes."""
    facts = os.fstat(source)
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o600, dir_fd=directory)
    try:
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError:
            _copy_data(source, target, facts.st_size)
        os.fchmod(target, stat.S_IMODE(facts.st_mode))
        adopt(target, owner)
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    finally:
        os.close(target)


def _copy_data(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            begin = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return
            raise
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(target, begin, os.SEEK_SET)
        while begin < end:
            sent = os.sendfile(target, source, begin, min(end - begin, 1 << 30))
            if not sent:
                return  # became shorter meanwhile
            begin += sent
