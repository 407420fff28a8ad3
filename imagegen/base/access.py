"""Whether another account of this machine can read what imagegen writes."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
from pathlib import Path

READERS = ("dnsmasq", "nobody")
"""The accounts that dnsmasq may run as: the first that exists (dnsmasq(8), --user; Debian makes the first)."""


def explain_closed(directory: Path) -> str:
    """A warning if dnsmasq, once it is not root any more, cannot enter the directory or one above it; else empty."""
    for name in READERS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        groups = {account.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
        if closed := find_closed(directory, account.pw_uid, groups):
            names = " ".join(shlex.quote(str(place)) for place in closed)
            return (
                f"dnsmasq serves {directory} as the user {name}, which cannot enter {names}:"
                f" run `chmod a+x {names}`, or choose another directory with -o"
            )
        return ""
    return ""


def find_closed(directory: Path, uid: int, groups: set[int]) -> list[Path]:
    """Those among the directory and its parents that the account may not enter, topmost first."""
    real = directory.resolve()
    return [place for place in (*reversed(real.parents), real) if not _may_enter(place.stat(), uid, groups)]


def _may_enter(status: os.stat_result, uid: int, groups: set[int]) -> bool:
    shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
    return bool(status.st_mode >> shift & 1)
