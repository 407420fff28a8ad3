"""Running commands: the only module that starts processes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagegen.base.errors import CommandFailed, MachineLacks

Process = subprocess.Popen[bytes]
Completed = subprocess.CompletedProcess[bytes]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The Debian package that brings each tool.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mksquashfs": "squashfs-tools",
    "sfdisk": "fdisk",
    "debootstrap": "debootstrap",
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "findmnt": "util-linux",
    "lsattr": "e2fsprogs",
    "ps": "procps",
    "nsenter": "util-linux",
    "umount": "mount",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
    "zstd": "zstd",
}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that every command gets: built, not inherited."""
    return {"PATH": PATH, "LANG": "C.UTF-8", "TERM": "dumb", "HOME": os.environ.get("HOME", "/root"), **(extra or {})}


def missing_tools(tools: Sequence[str]) -> list[str]:
    """One sentence for each tool that is not on PATH: its name and the package that brings it."""
    return [
        f"{tool} is missing: install the package {PACKAGES.get(tool, tool)}"
        for tool in tools
        if shutil.which(tool, path=PATH) is None
    ]


def require_tools(*tools: str) -> None:
    """Raises MachineLacks with a line for every tool that is missing."""
    if missing := missing_tools(tools):
        raise MachineLacks("\n".join(missing))


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.STDOUT,
    new_session: bool = True,
) -> subprocess.Popen[bytes]:
    """Starts a command and returns it running. Raises MachineLacks if the tool is missing."""
    words = [os.fspath(word) for word in argv]
    try:
        return subprocess.Popen(
            words,
            env=environment(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
        )
    except FileNotFoundError as error:
        raise MachineLacks("\n".join(missing_tools(words[:1])) or f"{words[0]}: {error.strerror}") from error


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ok: Sequence[int] = (0,),
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end; stdout and stderr are captured, apart.

    Raises CommandFailed for a return code that is not in `ok`, MachineLacks for a tool that is missing.
    """
    words = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            env=environment(env),
            cwd=cwd,
            capture_output=True,
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise MachineLacks("\n".join(missing_tools(words[:1])) or f"{words[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"`{shlex.join(words)}` did not end within {timeout:g} seconds") from error
    if done.returncode not in ok:
        lines = (done.stderr or done.stdout).decode(errors="replace").splitlines()
        raise CommandFailed(f"`{shlex.join(words)}` ended with {done.returncode}", last_lines=lines[-10:])
    return done
