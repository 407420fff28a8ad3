"""Recognises what imagegen made in OUT, and so may replace or remove, by a mark or by its contents."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from imagegen.base.errors import BadUsage
from imagegen.base.handles import is_file, list_names, open_directory, read_file, remove
from imagegen.base.tree import Tree, text

MARK = ".imagegen"
"""A file in each directory that imagegen made and so may replace or remove; in OUT it is also the lock."""
MARK_TEXT = "imagegen made this directory and replaces what is in it.\n"
IMAGES_HEAD = b"# Built with: ELEMENTS_PATH=elements diskimage-builder images.yaml\n"  # of images.yaml: its mark

# How to recognise directories of versions that wrote no mark: (names that may be in them, files that must be there,
# bytes in each of these files).
EARLIER: Mapping[str, tuple[str, str, bytes]] = {
    "elements": (
        r"imagegen-(base|deploy|firstboot|role-[a-z]+)|keystone|mariadb-server|memcached|nova-[a-z]+|openstack-daemon"
        r"|placement-api|rabbitmq-server",
        "imagegen-role-*/static/etc/imagegen/image.json",
        b'"content_id"',
    ),
    "images": (r"controller|compute", "*/manifest.json", b'"content_id"'),
    "logs": (r"(controller|compute)-[0-9a-f]{12}\.log", "*.log", b""),
    "pxe": (
        r"boot\.ipxe|dnsmasq(-proxy)?\.conf|nginx\.conf|images|ipxe|mac|nodes|serial",
        "boot.ipxe",
        b"Every machine starts here: by its MAC address",
    ),
    "ironic": (r"nodes\.yaml|instance-info|configdrive", "nodes.yaml", b"# openstack baremetal create nodes.yaml"),
    "metal3": (r"[a-z0-9-]+\.yaml", "*.yaml", b"imagegen-cluster:"),
    "boot": (r"[a-z0-9-]+|\.serve|[a-z]+\.(json|log)|ssh_key(\.pub)?", "lock", b""),
    "serve": (r"lock|ledger\.sqlite(-wal|-shm)?|server\.(pem|key)", "ledger.sqlite", b"SQLite"),
}
MOST_TELLING = 1 << 16  # bytes of a file that are searched
LEFTOVER = re.compile(r"\..+\.(new|old)")


def is_ours(out: Path, handle: int, name: str) -> bool:
    """Whether imagegen may use that name in OUT: missing, empty, marked, or made by a version without marks."""
    try:
        mode = os.lstat(name, dir_fd=handle).st_mode
    except FileNotFoundError:
        return True
    if name == "images.yaml":
        return stat.S_ISREG(mode) and read_file(out / name).startswith(IMAGES_HEAD)
    if not stat.S_ISDIR(mode):
        return False
    return is_file(out / name / MARK) or is_of_earlier_version(out / name)


def is_of_earlier_version(directory: Path) -> bool:
    """Whether the directory is empty, or made by a version of imagegen that wrote no marks."""
    with open_directory(directory) as handle:
        names = [name for name in list_names(handle) if not LEFTOVER.fullmatch(name)]
    if directory.name == "seeds":
        return all(is_seed(directory / name) for name in names)
    allowed, pattern, telling = EARLIER[directory.name]
    if not all(re.fullmatch(allowed, name) for name in names):
        return False
    try:
        found = [telling in read_file(place, MOST_TELLING) for place in directory.glob(pattern)]
    except (OSError, BadUsage):
        return False
    return all(found) and bool(found or not names)


def is_seed(place: Path) -> bool:
    """Whether imagegen made that directory or ISO: it has a seed's files and no others."""
    if place.suffix == ".iso":
        # ISO 9660: the volume's identifier, 40 bytes into the sector after the 16 of the system.
        return is_file(place) and read_file(place, 32816)[32808:] == b"cidata  "
    try:
        with open_directory(place) as handle:
            names = set(list_names(handle))
        return names <= {"meta-data", "user-data", "network-config"} and b"imagegen:" in read_file(
            place / "meta-data", MOST_TELLING
        )
    except (OSError, BadUsage):
        return False


def mark_tree(tree: Tree) -> Tree:
    """The tree with the mark by which imagegen recognises its directory."""
    return {**tree, MARK: text(MARK_TEXT)}


def remove_old_seeds(seeds: Path, nodes: Collection[str]) -> list[Path]:
    """Removes the seeds of nodes that are not in `nodes`, and returns them; leaves everything else alone."""
    old = [
        place for place in sorted(seeds.iterdir()) if place.name.removesuffix(".iso") not in nodes and is_seed(place)
    ]
    with open_directory(seeds) as handle:
        for place in old:
            remove(handle, place.name)
    return old
