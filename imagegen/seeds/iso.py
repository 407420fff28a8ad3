"""Seed ISOs: a tree of cloud-init files as the bytes of an ISO 9660 image labelled cidata."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from threading import Lock
from types import SimpleNamespace

import pycdlib

from imagegen.base.tree import File, Tree, write_file

LABEL = "cidata"  # what cloud-init's NoCloud datasource looks for
NAMES = ("meta-data", "network-config", "user-data", "vendor-data")
ENTRY_MODE = 0o100400  # a regular file, readable by root alone, when the node mounts it
DIRECTORY_MODE = 0o040500
EPOCH = 315532800.0  # 1980-01-01T00:00:00Z, the date of every entry

_CLOCK_LOCK = Lock()


def write_seed_iso(tree: Tree, path: Path) -> None:
    """Writes the seed ISO (0600) under a temporary name, then renames it. Raises ValueError as seed_iso_bytes does."""
    write_file(path, File(seed_iso_bytes(tree), 0o600))


def seed_iso_bytes(tree: Tree) -> bytes:
    """The ISO of a seed, as iso_bytes() makes it.

    Raises ValueError when user-data or meta-data is missing (cloud-init would ignore the disk) or a name is unknown.
    """
    if missing := {"meta-data", "user-data"} - tree.keys():
        raise ValueError(f"a seed needs {' and '.join(sorted(missing))}")
    if unknown := tree.keys() - set(NAMES):
        raise ValueError(f"not a file of a seed: {', '.join(sorted(unknown))}")
    return iso_bytes(tree, LABEL)


def iso_bytes(tree: Tree, label: str) -> bytes:
    """The ISO of a tree: Joliet and Rock Ridge names, the same bytes for the same tree at any time in any zone."""
    image = BytesIO()
    with _pinned_clock():
        iso = pycdlib.PyCdlib()
        # Interchange level 4: the others refuse names such as user-data.
        iso.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident=label)
        for directory in list_directories(tree):
            name = directory.rpartition("/")[2]
            iso.add_directory(f"/{directory}", rr_name=name, joliet_path=f"/{directory}", file_mode=DIRECTORY_MODE)
        for path, file in sorted(tree.items()):
            iso.add_fp(
                BytesIO(file.data),
                len(file.data),
                f"/{path}",
                rr_name=path.rpartition("/")[2],
                joliet_path=f"/{path}",
                file_mode=ENTRY_MODE,
            )
        iso.write_fp(image)
        iso.close()
    return image.getvalue()


def list_directories(tree: Tree) -> list[str]:
    """Every directory of the tree's paths, parents first."""
    found = {str(parent) for path in tree for parent in PurePosixPath(path).parents if str(parent) != "."}
    return sorted(found)


@contextmanager
def _pinned_clock() -> Iterator[None]:
    """Gives pycdlib, which ignores SOURCE_DATE_EPOCH, a fixed time in UTC."""
    still = SimpleNamespace(**vars(time))
    still.time = lambda: EPOCH
    still.localtime = time.gmtime
    with _CLOCK_LOCK:
        modules = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("pycdlib.") and getattr(module, "time", None) is time
        ]
        for module in modules:
            module.time = still  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module in modules:
                module.time = time  # type: ignore[attr-defined]
