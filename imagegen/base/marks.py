"""Recognises what imagegen made in OUT, and so may replace or remove, by a mark or by its contents."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from imagegen.base.errors import BadUsage
from imagegen.base.handles import is_file, list_names, open_directory, read_file, remove, remove_empty, remove_place
from imagegen.base.tree import Tree, text

KEPT: Mapping[str, int] = {"seeds": 0o700, "images": 0o755, "logs": 0o755, "boot": 0o700, "serve": 0o700}
"""Directories of OUT that stay, and their modes; the others are replaced as a whole."""

MARK = ".imagegen"
"""A file in each directory that imagegen made. Where the directory is replaced as a whole, it lists what imagegen made
in it; in OUT it is the lock, too.
"""
MARK_TEXT = "imagegen made this directory.\n"
LIST_HEAD = "imagegen made this directory, and replaces it as long as it holds no more than this:"
SEED_FILES = frozenset({"meta-data", "user-data", "network-config"})
CREDENTIALS_HEAD = b"# Made by `imagegen credentials`, which replaces this file.\n"
HEADS: Mapping[str, bytes] = {
    "images.yaml": b"# Built with: ELEMENTS_PATH=elements diskimage-builder images.yaml\n",
    "clouds.yaml": CREDENTIALS_HEAD,
    "openrc": CREDENTIALS_HEAD,
}
"""Files of OUT, and by what they begin with: their mark."""

OF_A_NODE: Mapping[str, str] = {
    "ironic": r"(?P<place>configdrive/(?P<node>[a-z0-9-]+)(\.iso|\.b64)?)(/.+)?",
    "metal3": r"(?P<place>(?P<node>[a-z0-9-]+)\.yaml)",
}
"""Files with a node's secrets in directories that are otherwise replaced as a whole: `place` is what is removed."""

# How the directories of versions that listed nothing in a mark are known: nothing else may be in them, these files are
# there, and each of them has these bytes.
EARLIER: Mapping[str, tuple[str, str, bytes]] = {
    "elements": (
        r"imagegen-(base|deploy|firstboot|role-[a-z]+)|glance-api|keystone|mariadb-server|memcached|neutron-[a-z]+"
        r"|nova-[a-z]+|openstack-daemon|ovn-[a-z]+|placement-api|rabbitmq-server",
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
MOST_OF_ISO = 16 << 20  # bytes; seeds are smaller
MOST_TELLING = 1 << 16  # bytes of a file in which what tells imagegen's from others is looked for
LEFTOVER = re.compile(r"\..+\.imagegen-(new|old)")  # see name_beside()


def find_foreign(out: Path, handle: int, name: str) -> list[Path]:
    """What is not imagegen's of what has that name in OUT: all of it, or what else is in a directory of imagegen's.

    Nothing, when it is missing, empty, made by imagegen or by a version that listed nothing in its marks.
    """
    place = out / name
    try:
        mode = os.lstat(name, dir_fd=handle).st_mode
    except FileNotFoundError:
        return []
    if name in HEADS:
        return [] if stat.S_ISREG(mode) and read_file(place).startswith(HEADS[name]) else [place]
    if not stat.S_ISDIR(mode):
        return [place]
    if name in KEPT:
        return [] if is_file(place / MARK) or is_of_earlier_version(place) else [place]
    listed = read_list(place)
    if listed is None:
        return [] if is_of_earlier_version(place) else [place]
    parents = {os.fspath(parent) for path in listed for parent in PurePosixPath(path).parents}
    return list(_find_unlisted(place, {*listed, MARK}, parents))


def read_list(directory: Path) -> Collection[str] | None:
    """The paths of the files that imagegen made in that directory, by its mark; None: there is no such list."""
    if not is_file(directory / MARK):
        return None
    head, *paths = read_file(directory / MARK).decode(errors="replace").split("\n")
    return frozenset(filter(None, paths)) if head == LIST_HEAD else None


def _find_unlisted(place: Path, listed: Collection[str], parents: Collection[str], below: str = "") -> Iterator[Path]:
    with open_directory(place) as handle:
        kinds = {name: os.lstat(name, dir_fd=handle).st_mode for name in sorted(list_names(handle))}
    for name, mode in kinds.items():
        path = below + name
        if stat.S_ISDIR(mode) and path in parents:
            yield from _find_unlisted(place / name, listed, parents, f"{path}/")
        elif not stat.S_ISREG(mode) or path not in listed:
            yield place / name


def find_foreign_in_seed(place: Path) -> list[Path]:
    """What is not imagegen's where the seed of a node is to be replaced, a directory or an ISO."""
    if not os.path.lexists(place) or is_seed(place):
        return []
    if place.is_symlink() or not place.is_dir():
        return [place]
    with open_directory(place) as handle:
        names = sorted(list_names(handle))
    return [place / name for name in names if name not in SEED_FILES] or [place][: len(names)]


def is_of_earlier_version(directory: Path) -> bool:
    """Whether the directory is empty, or made by a version of imagegen that wrote no marks, or no lists in them."""
    with open_directory(directory) as handle:
        names = [name for name in list_names(handle) if name != MARK and not LEFTOVER.fullmatch(name)]
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
        data = read_file(place, MOST_OF_ISO) if is_file(place) else b""
        return data[32808:32816] == b"cidata  " and b"imagegen:" in data
    try:
        with open_directory(place) as handle:
            names = set(list_names(handle))
        return names <= SEED_FILES and b"imagegen:" in read_file(place / "meta-data", MOST_TELLING)
    except (OSError, BadUsage):
        return False


def mark_tree(tree: Tree, links: Collection[str] = ()) -> Tree:
    """The tree with its mark, by which imagegen knows the directory again, and what it and `links` put there."""
    return {**tree, MARK: text("".join(f"{line}\n" for line in (LIST_HEAD, *sorted({*tree, *links}))))}


def remove_old_files(out: Path, nodes: Collection[str]) -> list[Path]:
    """Removes what holds secrets of nodes that are not among `nodes`: seeds, config drives, Metal3's manifests.

    Returns what it removed, and leaves alone what imagegen did not make, and what is closed to this user.
    """
    removed = []
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError, BadUsage):
        removed += remove_old_seeds(out / "seeds", nodes)
    for name, pattern in OF_A_NODE.items():
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError, BadUsage):
            removed += _remove_old_of_tree(out / name, re.compile(pattern), nodes)
    return removed


def _remove_old_of_tree(directory: Path, pattern: re.Pattern[str], nodes: Collection[str]) -> list[Path]:
    paths = read_list(directory)
    if paths is None:
        if not is_of_earlier_version(directory):
            return []
        paths = [path.relative_to(directory).as_posix() for path in directory.rglob("*")]
    removed = set()
    for path in paths:
        found = pattern.fullmatch(path)
        if found and found["node"] not in nodes and is_file(directory / path):
            remove_place(directory / path)
            for parent in PurePosixPath(path).parents[:-2]:
                remove_empty(directory / parent)
            removed.add(directory / found["place"])
    return sorted(removed)


def remove_old_seeds(seeds: Path, nodes: Collection[str]) -> list[Path]:
    """Removes the seeds of nodes that are not in `nodes`, and returns them; leaves everything else alone."""
    old = [
        place for place in sorted(seeds.iterdir()) if place.name.removesuffix(".iso") not in nodes and is_seed(place)
    ]
    with open_directory(seeds) as handle:
        for place in old:
            remove(handle, place.name)
    return old
