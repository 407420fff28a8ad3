"""Seed ISOs: a tree of cloud-init files as the bytes of an ISO 9660 image labelled cidata."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path, PurePosixPath

import pycdlib

from imagegen.base.tree import File, Tree, write_file

LABEL = "cidata"  # what cloud-init's NoCloud datasource looks for
NAMES = ("meta-data", "network-config", "user-data", "vendor-data")
ENTRY_MODE = 0o100400  # a regular file, readable by root alone, when the node mounts it
DIRECTORY_MODE = 0o040500

SECTOR = 2048
DESCRIPTORS = 16  # the first sector of the volume descriptors
LAST_DESCRIPTOR = 255
ROOT = 156  # in a descriptor: the record of its root directory (ECMA-119, 8.4.18)
VOLUME_DATES = (813, 830, 864)  # in a descriptor: creation, modification, effective (ECMA-119, 8.4.26 to 8.4.29)
# 1980-01-01T00:00:00Z, the date of everything, in the forms of a descriptor (8.4.26.1) and of a record (9.1.5).
VOLUME_DATE = b"1980010100000000\0"
RECORD_DATE = bytes((80, 1, 1, 0, 0, 0, 0))


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
    image = BytesIO()
    iso.write_fp(image)
    iso.close()
    with image.getbuffer() as data:
        _date_volumes(data)
    return image.getvalue()


def list_directories(tree: Tree) -> list[str]:
    """Every directory of the tree's paths, parents first."""
    found = {str(parent) for path in tree for parent in PurePosixPath(path).parents if str(parent) != "."}
    return sorted(found)


def _date_volumes(image: memoryview) -> None:
    """Replaces every date: pycdlib writes this machine's time and zone, and has no way to set another."""
    place = DESCRIPTORS * SECTOR
    while image[place] != LAST_DESCRIPTOR:
        for offset in VOLUME_DATES:
            image[place + offset : place + offset + len(VOLUME_DATE)] = VOLUME_DATE
        _date_record(image, place + ROOT)
        _date_directory(image, place + ROOT)
        place += SECTOR


def _date_directory(image: memoryview, record: int) -> None:
    """Dates the records in the directory of that record, and those below it (ECMA-119, 9.1)."""
    place = _number(image, record + 2) * SECTOR
    end = place + _number(image, record + 10)
    while place < end:
        length = image[place]
        if not length:  # no record crosses the end of a sector
            place += SECTOR - place % SECTOR
            continue
        _date_record(image, place)
        is_itself_or_parent = image[place + 32] == 1 and image[place + 33] in (0, 1)
        if image[place + 25] & 2 and not is_itself_or_parent:
            _date_directory(image, place)
        place += length


def _date_record(image: memoryview, place: int) -> None:
    image[place + 18 : place + 25] = RECORD_DATE
    name_end = place + 33 + image[place + 32]
    _date_rock_ridge(image, name_end + name_end % 2, place + image[place])


def _date_rock_ridge(image: memoryview, place: int, end: int) -> None:
    """Dates the time stamps among the system use entries there (IEEE P1281, 5.1; IEEE P1282, 4.1.6).

    Entries that do not fit go on elsewhere, but names are too short for that: Joliet's have at most 64 characters.
    """
    while place + 4 <= end:
        if bytes(image[place : place + 2]) == b"TF":
            for date in range(place + 5, place + image[place + 2], len(RECORD_DATE)):
                image[date : date + len(RECORD_DATE)] = RECORD_DATE
        place += image[place + 2]


def _number(image: memoryview, place: int) -> int:
    """The number there, which is written in both byte orders."""
    return int.from_bytes(image[place : place + 4], "little")
