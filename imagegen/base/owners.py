"""Who called a command, and whether anybody else can change what is at a path."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from imagegen.base.errors import BadUsage
from imagegen.base.handles import Owner

NO_ID = 2**32 - 1  # chown(2): -1 changes nothing; all below are ids, and those of a directory service are large
ACL = "system.posix_acl_access"
# Of its entries, acl(5): tags, and the bit for writing.
ACL_USER, ACL_GROUP_OBJ, ACL_GROUP = 0x02, 0x04, 0x08
ACL_WRITE = 0o2


def find_caller(environment: Mapping[str, str] | None = None) -> Owner:
    """uid and gid of the caller: with sudo, of the user who called it (sudo(8), SUDO_UID)."""
    given = os.environ if environment is None else environment
    names = [given.get("SUDO_UID", ""), given.get("SUDO_GID", "")]
    if os.geteuid() == 0 and all(re.fullmatch(r"[0-9]{1,10}", name) and int(name) < NO_ID for name in names):
        return int(names[0]), int(names[1])
    return os.geteuid(), os.getegid()


def find_place(path: Path, owner: int | None = None, hint: str = "choose another directory with -o") -> Path:
    """The path with links resolved, after checking that only root and `owner` can change it.

    `owner` is a uid, by default the caller's. Raises BadUsage, which names the directory and who can write there.
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
                raise BadUsage(f"{inner} is a link owned by {user_name(facts.st_uid)}, who can point it anywhere")
            target = inner.readlink()
            place = Path("/") if target.is_absolute() else place
            todo += [part for part in reversed(target.parts) if part != "/"]
            continue
        check_directory(inner, trusted, last=not todo)
        place = inner
    return place if links else path


def check_directory(place: Path, trusted: Collection[int], *, last: bool) -> None:
    """Raises BadUsage if an untrusted user can replace what is in a directory.

    With the sticky bit, as in /tmp, only owners can; `last`: adding something counts, too.
    """
    facts = place.stat()
    sticky = facts.st_mode & stat.S_ISVTX and not last
    if not stat.S_ISDIR(facts.st_mode):
        raise BadUsage(f"{place} is not a directory")
    if facts.st_uid not in trusted:
        who, cure = f"user {user_name(facts.st_uid)}", "work as that user, with sudo where root is needed"
    elif facts.st_mode & stat.S_IWOTH and not sticky:
        who, cure = "every user", f"run `chmod o-w {place}`"
    elif facts.st_mode & stat.S_IWGRP and not sticky:
        who, cure = next(_find_group_writers(place, facts.st_gid, trusted), ("", ""))
    else:
        return
    if who:
        raise BadUsage(f"{who} can write in {place}, and so change what imagegen writes there", cure)


def _find_group_writers(place: Path, gid: int, trusted: Collection[int]) -> Iterator[tuple[str, str]]:
    """Who can write in a directory whose group may, besides who is trusted, and the cure for it.

    Where there is an ACL, the mode's bits for the group are its mask: they allow what its entries say.
    """
    for tag, permissions, number in read_acl(place) or [(ACL_GROUP_OBJ, ACL_WRITE, gid)]:
        if not permissions & ACL_WRITE:
            continue
        if tag == ACL_USER and number not in trusted:
            yield f"user {user_name(number)}, by an ACL,", f"run `setfacl -b {place}`"
        elif tag == ACL_GROUP and (members := find_members(number, trusted)):
            yield f"{members}, by an ACL,", f"run `setfacl -b {place}`"
        elif tag == ACL_GROUP_OBJ and (members := find_members(gid, trusted)):
            yield members, f"run `chmod g-w {place}`"


def read_acl(place: Path) -> list[tuple[int, int, int]]:
    """Tag, permissions and uid or gid of each entry of a file's POSIX ACL; empty when it has none."""
    try:
        value = os.getxattr(place, ACL)
    except OSError:  # none, or a file system without
        return []
    return list(struct.iter_unpack("<HHI", value[4:]))  # after the version (linux/posix_acl_xattr.h)


def find_members(gid: int, trusted: Collection[int]) -> str:
    """The group's untrusted members, in words; empty for a user's own group."""
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return f"group {gid}"
    users = {user.pw_name: user for user in pwd.getpwall()}
    members = {*group.gr_mem, *(user.pw_name for user in users.values() if user.pw_gid == gid)}
    others = [name for name in members if name not in users or users[name].pw_uid not in trusted]
    return f"group {group.gr_name} ({', '.join(sorted(others)[:3])})" if others else ""


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
