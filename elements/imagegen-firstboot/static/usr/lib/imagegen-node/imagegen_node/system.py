"""What the agent does to its machine: commands, units, files, ports."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from imagegen_node.status import write_atomically
from imagegen_node.steps import CommandFailed, Waiting


def run(
    argv: Sequence[str],
    *,
    user: str | None = None,
    input: str | None = None,
    env: dict[str, str] | None = None,
    ok: Sequence[int] = (0,),
) -> str:
    """Runs a command, as that user, and returns its stdout. Raises CommandFailed for a return code not in `ok`."""
    home = pwd.getpwnam(user).pw_dir if user else "/root"
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": home, **(env or {})}
    identity = (
        {"user": user, "group": user, "extra_groups": os.getgrouplist(user, pwd.getpwnam(user).pw_gid)} if user else {}
    )
    done = subprocess.run(
        list(argv),
        input=input,
        stdin=None if input is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        cwd=home if user else "/",
        **identity,
    )
    if done.returncode not in ok:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CommandFailed(shlex.join(argv), done.returncode, " | ".join(lines[-3:]))
    return done.stdout


def read_unit(unit: str) -> dict[str, str]:
    """ActiveState, SubState and Result of a unit."""
    text = run(["systemctl", "show", unit, "--property=ActiveState,SubState,Result"])
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def start_unit(unit: str) -> None:
    """Queues the start of a unit that is not up. Whether it works is asked at its port or the API, not here."""
    state = read_unit(unit)["ActiveState"]
    if state == "failed":
        run(["systemctl", "reset-failed", unit])
    if state not in ("active", "activating", "reloading"):
        run(["systemctl", "start", "--no-block", unit])


def restart_unit(unit: str) -> None:
    """Restarts a unit that is up, starts one that is not, and does not wait for it."""
    run(["systemctl", "reset-failed", unit], ok=(0, 1))
    run(["systemctl", "restart", "--no-block", unit])


def check_port(host: str, port: int, what: str) -> None:
    """Raises Waiting until something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise Waiting(f"{what} at {host}:{port}: {error.strerror or error}") from error


def put_file(path: str, text: str, mode: int = 0o644, owner: str = "root", group: str = "root") -> bool:
    """Makes the file hold that text; True when it had to change."""
    place = Path(path)
    if place.is_file() and place.read_text() == text:
        return False
    write_atomically(place, text, mode)
    import shutil

    shutil.chown(path, owner, group)
    return True


def read_cpu_flags() -> list[str]:
    """The words of the flags lines of /proc/cpuinfo."""
    return [
        flag
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("flags", "Features"))
        for flag in line.split(":", 1)[1].split()
    ]
