"""Trees of files as values, and the one function that writes them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class File:
    """A file's bytes and its permission bits."""

    data: bytes
    mode: int = 0o644


Tree = dict[str, File]
"""Relative POSIX path -> File. Directories are implied."""


def text(value: str, mode: int = 0o644) -> File:
    """A File from text, in UTF-8."""
    return File(value.encode(), mode)


def check_path(path: str) -> PurePosixPath:
    """The path, when it is relative, normal and stays below the tree. Raises ValueError."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise ValueError(f"not a path inside a tree: {path!r}")
    return pure


def read_tree(root: Path) -> Tree:
    """Every regular file below root, sorted by path."""
    return {
        path.relative_to(root).as_posix(): File(path.read_bytes(), path.stat().st_mode & 0o777)
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def write_tree(tree: Tree, target: Path, *, directory_mode: int = 0o755) -> None:
    """Replaces the directory `target` by the tree: written beside it, then renamed; nobody sees half of it."""
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside.mkdir(mode=directory_mode)
    beside.chmod(directory_mode)
    for path, file in sorted(tree.items()):
        place = beside / check_path(path)
        for parent in reversed(place.relative_to(beside).parents[:-1]):
            directory = beside / parent
            if not directory.is_dir():
                directory.mkdir()
                directory.chmod(directory_mode)
        write_file(place, file)
    replace_directory(beside, target)


def replace_directory(new: Path, target: Path) -> None:
    """Puts a directory in the place of another on the same file system, which is removed."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_file(place: Path, file: File) -> None:
    """Writes one file beside its place, never readable beyond its mode, then renames it over."""
    beside = place.with_name(f".{place.name}.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode & 0o700)
    with os.fdopen(handle, "wb") as stream:
        stream.write(file.data)
        os.fchmod(stream.fileno(), file.mode)
    beside.replace(place)
