"""Trees of files as values, and the functions that write them: whole or not at all, and through no link."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from imagegen.base.handles import DIRECTORY, link_into, make_directory, name_beside, open_directory, put_file, remove


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


def write_tree(
    tree: Tree, target: Path, *, directory_mode: int = 0o755, links: Mapping[str, Path] = MappingProxyType({})
) -> None:
    """Replaces the directory `target` with the tree, by writing next to it and renaming: nobody sees half of it.

    `links`, by path in the tree, are files that link_into() puts there.
    Raises BadUsage for a link on the way, MachineLacks for a full disk; nothing of the tree is left then.
    """
    beside = name_beside(target.name)
    with open_directory(target.parent, make=True) as parent:
        remove(parent, beside)
        try:
            fill_directory({**tree, **links}, parent, beside, target, directory_mode)
            _exchange(parent, beside, target.name)
        except BaseException:
            remove(parent, beside)
            raise


def fill_directory(tree: Mapping[str, File | Path], parent: int, name: str, place: Path, directory_mode: int) -> None:
    """Makes the directory `name` in `parent` with the tree's files; errors call it `place`."""
    make_directory(parent, name, place, directory_mode)
    handle = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        for first, paths in groupby(sorted(tree), key=lambda path: check_path(path).parts[0]):
            inner = {path.removeprefix(f"{first}/"): tree[path] for path in paths}
            file = tree.get(first)
            if isinstance(file, Path):
                link_into(file, handle, first, place / first)
            elif file:
                put_file(handle, first, file.data, file.mode, place / first)
            else:
                fill_directory(inner, handle, first, place / first, directory_mode)
    finally:
        os.close(handle)


def _exchange(parent: int, new: str, name: str) -> None:
    old = name_beside(name, "old")
    remove(parent, old)
    try:
        os.rename(name, old, src_dir_fd=parent, dst_dir_fd=parent)
    except FileNotFoundError:
        old = ""
    os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
    if old:
        remove(parent, old)


def write_file(place: Path, file: File) -> None:
    """Writes one file under a temporary name, never readable beyond its mode, then renames it.

    Raises BadUsage for a link on the way, MachineLacks for a full disk; nothing of the file is left then.
    """
    with open_directory(place.parent) as directory:
        put_file(directory, place.name, file.data, file.mode, place)
