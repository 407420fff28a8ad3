"""The one way in which root reads and writes files where somebody else may have laid a trap.

A service's account owns some directories. Whatever it plants there - a link in the place of a file or of a directory, a
second name of somebody else's file, a pipe - root neither follows it nor changes what is behind it.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from imagegen_node.engine.errors import Refused

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
# A pipe that somebody planted must not make the agent wait for its other end.
EXISTING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
MOST_BYTES = 8 << 20  # of a file that is read; no file of a node is larger


@contextmanager
def opened_directory(path: Path, make: bool = False) -> Iterator[int]:
    """A handle of an absolute path's directory, until this ends. Every part of the path is a directory, none a link.

    `make`: what is missing is made, owned by root and readable by all. Raises Refused for a link or a file on the way,
    and FileNotFoundError.
    """
    handle = os.open("/", DIRECTORY)
    try:
        for part in path.parts[1:]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=handle)
            try:
                inner = os.open(part, DIRECTORY, dir_fd=handle)
            except NotADirectoryError as error:  # what Linux says of a link as well, with O_DIRECTORY
                raise Refused(
                    f"{part} in the path {path} is a link or a file where a directory should be: nothing is read or "
                    "written there. Remove it, and find out who put it there"
                ) from error
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


@contextmanager
def replaced_file(path: Path, mode: int = 0o644, owner: tuple[int, int] | None = None) -> Iterator[BinaryIO]:
    """A stream for the file's new content. When this ends well the file is there, whole and on the disk; otherwise it
    is as it was.

    `owner` is (uid, gid). A link that has the file's name is replaced, not followed.
    """
    with opened_directory(path.parent, make=True) as directory:
        beside = f".{path.name}.{os.urandom(8).hex()}"
        handle = os.open(beside, NEW, 0o600, dir_fd=directory)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                if owner is not None:
                    os.fchown(handle, *owner)
                os.fchmod(handle, mode)
                os.fsync(handle)
            os.rename(beside, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside, dir_fd=directory)
            raise
        os.fsync(directory)


def write_atomically(path: Path, text: str, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Writes the whole file, with its mode and (uid, gid), as replaced_file() does."""
    with replaced_file(path, mode, owner) as stream:
        stream.write(text.encode())


def put_file(path: Path, text: str, mode: int = 0o644, owner: str = "root", group: str = "root") -> bool:
    """Makes the file hold that text, with that mode and owner; True when something had to change."""
    ids = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    found = read_file(path)
    if found is not None:
        status, content = found
        if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), content) == (*ids, mode, text.encode()):
            return False
    write_atomically(path, text, mode, ids)
    return True


def remove_file(path: Path) -> None:
    """Removes a file, or a link itself, unless it is gone already."""
    with suppress(FileNotFoundError), opened_directory(path.parent) as directory:
        os.unlink(path.name, dir_fd=directory)


def read_file(path: Path) -> tuple[os.stat_result, bytes] | None:
    """Status and content of one regular file; None when there is none. What is beyond MOST_BYTES is left out.

    Also None for a link, a pipe and anything else that is not a file. Raises Refused for a link on the way to it,
    and PermissionError.
    """
    try:
        with opened_directory(path.parent) as directory:
            handle = os.open(path.name, EXISTING, dir_fd=directory)
    except FileNotFoundError:
        return None
    except PermissionError:  # who is not root is told so
        raise
    except OSError:  # a link (ELOOP), a socket, a device without a driver (ENXIO)
        return None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None
        with os.fdopen(handle, "rb", closefd=False) as stream:
            return status, stream.read(MOST_BYTES)
    finally:
        os.close(handle)


def read_text(path: Path) -> str | None:
    """The content of a regular file; None when there is none, as read_file() says."""
    found = read_file(path)
    return None if found is None else found[1].decode(errors="replace")


def own_tree(directory: Path, owner: str) -> None:
    """Gives the directory and all in it to that account, unless it has it. The directory itself comes last.

    Links are left alone. Raises Refused for a file with a second name, which could be somebody else's file.
    """
    account = pwd.getpwnam(owner)
    with opened_directory(directory) as handle:
        if os.fstat(handle).st_uid != account.pw_uid:
            _own(handle, directory, (account.pw_uid, account.pw_gid))


def _own(directory: int, path: Path, ids: tuple[int, int]) -> None:
    """Contents first: a tree that was cut off in the middle is begun again."""
    for name in os.listdir(directory):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, DIRECTORY, dir_fd=directory)
        elif stat.S_ISREG(status.st_mode):
            inner = os.open(name, EXISTING, dir_fd=directory)
        else:
            continue  # sockets and pipes are made again by whoever needs them
        try:
            # Asked of what is open: the name may mean something else by now.
            status = os.fstat(inner)
            if stat.S_ISDIR(status.st_mode):
                _own(inner, path / name, ids)
            elif status.st_nlink > 1:
                raise Refused(
                    f"{path / name} has a second name somewhere, so it is not given to another account: find it (find "
                    f"/ -xdev -inum {status.st_ino}), remove the one that does not belong there, and reboot"
                )
            else:
                os.fchown(inner, *ids)
        finally:
            os.close(inner)
    os.fchown(directory, *ids)
