"""Whether another account of this machine can read what imagegen writes."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

READERS = ("dnsmasq", "nobody")
"""Who dnsmasq is once it has begun: the first that exists (dnsmasq(8), --user; Debian makes the first)."""


def explain_closed(directory: Path) -> str:
    """A sentence when dnsmasq, no longer root, cannot enter the directory or one above it; else nothing."""
    for name in READERS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        groups = {account.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
        if closed := find_closed(directory, account.pw_uid, groups):
            mode = closed.stat().st_mode & 0o7777
            return (
                f"{closed} (mode {mode:04o}) is closed to the user {name}, as whom dnsmasq gives out {directory}:"
                f" run `chmod o+x {closed}`, or give another directory by -o"
            )
        return ""
    return ""


def find_closed(directory: Path, uid: int, groups: set[int]) -> Path | None:
    """The topmost of the directory and those above it that the account may not enter; None: it may enter all."""
    real = directory.resolve()
    for place in (*reversed(real.parents), real):
        status = place.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
        if not status.st_mode >> shift & 1:
            return place
    return None
