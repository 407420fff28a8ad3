"""The out directory: whose it is, what in it is imagegen's, and that one command at a time writes there."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from imagegen.errors import BadUsage, ImagegenError, MachineLacks
from imagegen.handles import (
    DIRECTORY,
    Owner,
    adopt,
    is_file,
    list_names,
    make_directory,
    open_directory,
    owner_of,
    put_file,
    read_file,
    remove,
)
from imagegen.lock import Held, hold_lock
from imagegen.tree import Tree, text

MARK = ".imagegen"
"""A file in each directory that imagegen made and therefore may replace or remove; in OUT it is the lock, too."""
MARK_TEXT = "imagegen made this directory and replaces what is in it.\n"
IMAGES_HEAD = b"# Built with: ELEMENTS_PATH=elements diskimage-builder images.yaml\n"  # of images.yaml: its mark

KEPT: Mapping[str, int] = {"seeds": 0o700, "images": 0o755, "logs": 0o755, "boot": 0o700, "serve": 0o700}
"""Directories of OUT that stay, and their modes; the others are replaced as a whole."""

# How the directories of versions that wrote no mark are known: nothing else may be in them, these files are there, and
# each of them has these bytes.
EARLIER: Mapping[str, tuple[str, str, bytes]] = {
    "elements": (
        r"imagegen-(base|deploy|firstboot|role-[a-z]+)|keystone|mariadb-server|memcached|nova-[a-z]+|placement-api"
        r"|rabbitmq-server",
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
MOST_TELLING = 1 << 16  # bytes of a file in which what tells imagegen's from others is looked for
LEFTOVER = re.compile(r"\..+\.(new|old)")
WAIT_SECONDS = 600.0  # more than any command holds the lock: the longest copies the images of two roles

Say = Callable[[str], None]


def find_caller(environment: Mapping[str, str] | None = None) -> Owner:
    """uid and gid of who gave the command: behind sudo those of the user who called it (sudo(8), SUDO_UID)."""
    given = os.environ if environment is None else environment
    names = [given.get("SUDO_UID", ""), given.get("SUDO_GID", "")]
    if os.geteuid() == 0 and all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return int(names[0]), int(names[1])
    return os.geteuid(), os.getegid()


def find_place(path: Path, owner: int | None = None, hint: str = "give another -o") -> Path:
    """The path, or where it leads when there are links on it, once nobody but root and `owner` can change that.

    `owner` is a uid, by default the caller's. Raises BadUsage that names the directory and who can write there.
    """
    try:
        return _follow_path(path, {0, find_caller()[0] if owner is None else owner})
    except BadUsage as error:
        raise BadUsage(error.message, ", or ".join(filter(None, (error.hint, hint)))) from None


def _follow_path(path: Path, trusted: Collection[int]) -> Path:
    todo = list(reversed((Path.cwd() / path).parts[1:]))
    place, links = Path("/"), 0
    check_directory(place, trusted, last=not todo)
    while todo:
        part = todo.pop()
        inner = place.parent if part == ".." else place / part
        try:
            facts = inner.lstat()
        except FileNotFoundError:
            place = Path(os.path.normpath(inner.joinpath(*reversed(todo))))
            break
        if stat.S_ISLNK(facts.st_mode):
            links += 1
            if facts.st_uid not in trusted or links > 40:
                raise BadUsage(f"{inner} is a link of user {_user(facts.st_uid)}, who can lead imagegen anywhere")
            target = inner.readlink()
            place = Path("/") if target.is_absolute() else place
            todo += [part for part in reversed(target.parts) if part != "/"]
            continue
        check_directory(inner, trusted, last=not todo)
        place = inner
    return place if links else path


def check_directory(place: Path, trusted: Collection[int], *, last: bool) -> None:
    """Raises BadUsage when somebody who is not trusted can put something else in the place of what is in a directory.

    Where the sticky bit is set, as in /tmp, that is only so for who owns it; `last`: what is new counts as well.
    """
    facts = place.stat()
    sticky = facts.st_mode & stat.S_ISVTX and not last
    if not stat.S_ISDIR(facts.st_mode):
        raise BadUsage(f"{place} is no directory")
    if facts.st_uid not in trusted:
        who, cure = f"user {_user(facts.st_uid)}", "work as that user, by sudo where it takes root"
    elif facts.st_mode & stat.S_IWOTH and not sticky:
        who, cure = "every user", f"run `chmod o-w {place}`"
    elif facts.st_mode & stat.S_IWGRP and not sticky:
        who, cure = find_members(facts.st_gid, trusted), f"run `chmod g-w {place}`"
    else:
        return
    if who:
        raise BadUsage(f"{who} can write in {place}, and so change what imagegen writes there", cure)


def find_members(gid: int, trusted: Collection[int]) -> str:
    """Who is in the group besides who is trusted, as words; empty for a user's own group."""
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return f"group {gid}"
    users = {user.pw_name: user for user in pwd.getpwall()}
    members = {*group.gr_mem, *(user.pw_name for user in users.values() if user.pw_gid == gid)}
    others = [name for name in members if name not in users or users[name].pw_uid not in trusted]
    return f"group {group.gr_name} ({', '.join(sorted(others)[:3])})" if others else ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@contextmanager
def work_in(
    out: Path, names: Collection[str], command: str, say: Say = lambda line: None, *, seconds: float | None = None
) -> Iterator[None]:
    """Keeps other commands out of OUT while this one writes `names` there, once all of them are imagegen's to write.

    Makes OUT and, of `names`, what KEPT has. Raises BadUsage for what imagegen did not make and for a place that others
    can change, MachineLacks for what is another user's, ImagegenError when another command does not end in time.
    """
    seconds = WAIT_SECONDS if seconds is None else seconds
    find_place(out)
    if out.exists():
        with open_directory(out) as handle:
            check_names(out, handle, names)
    with open_directory(out, make=True, owner=find_caller()) as handle:
        take_over(out, handle)
        check_owner(handle, out)

    def waiting(holder: str) -> None:
        say(f"{holder} works in {out}; waiting for it")

    try:
        with hold_lock(out / MARK, command, seconds=seconds, waiting=waiting), open_directory(out) as handle:
            check_names(out, handle, names)
            for name in names:
                prepare_name(out, handle, name)
            try:
                yield
            finally:
                give_to_caller(handle, [MARK, *names])
    except Held as held:
        raise ImagegenError(
            f"{held} still works in {out} after {seconds / 60:.0f} minutes", "end it, or give this one its own -o"
        ) from None


def take_over(out: Path, handle: int) -> None:
    """Gives an OUT that root made to the user behind sudo, when nothing is in it but what imagegen makes."""
    owner, own = find_caller(), {*KEPT, *EARLIER, "images.yaml", MARK}
    if owner_of(handle)[0] == 0 != owner[0] and all(
        name in own and (name == MARK or is_ours(out, handle, name)) for name in list_names(handle)
    ):
        adopt(handle, owner)


def check_owner(handle: int, place: Path) -> None:
    """Raises MachineLacks when what is open is another user's and this process is not root."""
    uid = owner_of(handle)[0]
    if os.geteuid() in (0, uid):
        return
    # Kept nodes run in boot/ and need their files' owners.
    how = f"take it over by `sudo chown -R {os.geteuid()} {place}`" if place.name != "boot" else "run this with sudo"
    raise MachineLacks(f"{place} belongs to another user, {_user(uid)}", f"{how}, or give another -o")


def check_names(out: Path, handle: int, names: Collection[str]) -> None:
    """Raises BadUsage that names everything in OUT that imagegen did not make and would replace or write in."""
    foreign = [name for name in names if not is_ours(out, handle, name)]
    if foreign:
        raise BadUsage(
            f"imagegen did not make {' and '.join(os.fspath(out / name) for name in foreign)}, and replaces only what it made",
            "move that away, or give another -o",
        )


def is_ours(out: Path, handle: int, name: str) -> bool:
    """Whether what has that name in OUT is imagegen's: missing, empty, marked, or made by a version without marks."""
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
    """Whether imagegen made that directory or ISO: a seed's files and no others, of a node of imagegen's."""
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


def prepare_name(out: Path, handle: int, name: str) -> None:
    """Makes a directory that stays, marks it, gives it to OUT's owner, and removes what a run that was killed left."""
    for left in (f".{name}.new", f".{name}.old"):
        remove(handle, left)
    if name in KEPT:
        make_directory(handle, name, out / name, KEPT[name], owner=find_caller())
        with open_directory(out / name) as inner:
            check_owner(inner, out / name)
            if not is_file(out / name / MARK):
                put_file(inner, MARK, MARK_TEXT.encode(), 0o644, out / name / MARK)
            if name == "seeds":
                remove_leftovers(out / name)
    give_to_caller(handle, [name])


def give_to_caller(handle: int, names: Collection[str]) -> None:
    """Gives what root made in OUT to the user behind sudo; nodes that are kept in boot/ need their files' owners."""
    if os.geteuid() == 0:
        for name in names:
            if name != "boot":
                give_back(handle, name, find_caller())


def give_back(handle: int, name: str, owner: Owner) -> None:
    """Gives what has that name in the directory to its owner, with all below it; files with a second name stay whose
    they are, because that may be anywhere.
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
    """Removes what a run that was killed left half-written: it may hold secrets. Only who has the lock may call it."""
    with open_directory(directory) as handle:
        for name in list_names(handle):
            if LEFTOVER.fullmatch(name):
                remove(handle, name)


def mark_tree(tree: Tree) -> Tree:
    """The tree with the mark by which imagegen knows its directory again."""
    return {**tree, MARK: text(MARK_TEXT)}


def remove_old_seeds(seeds: Path, nodes: Collection[str]) -> list[Path]:
    """Removes the seeds of nodes that are none of `nodes`, and returns them; leaves alone what is no seed."""
    old = [
        place for place in sorted(seeds.iterdir()) if place.name.removesuffix(".iso") not in nodes and is_seed(place)
    ]
    with open_directory(seeds) as handle:
        for place in old:
            remove(handle, place.name)
    return old


@contextmanager
def keep_closed(directory: Path, in_use: Callable[[], bool]) -> Iterator[None]:
    """While root works in a directory of OUT, nobody else can change what is in it; afterwards it is OUT's owner's,
    unless it is `in_use` still. For other users nothing changes.
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
