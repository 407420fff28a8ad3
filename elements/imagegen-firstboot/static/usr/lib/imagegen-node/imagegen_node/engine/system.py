"""What the agent does to its machine: commands, units, files, ports."""

from __future__ import annotations

import hashlib
import os
import pwd
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagegen_node.engine.errors import CommandFailed, Waiting
from imagegen_node.engine.files import put_file, read_file, read_text

# Unit -> what it reads when it starts: files, and directories with all that is below them.
Units = Mapping[str, Sequence[Path]]
# With what configuration each unit was started. It goes when the machine reboots, as the processes do.
STARTED = Path("/run/imagegen/started")


def run(
    argv: Sequence[str],
    *,
    user: str | None = None,
    input: str | None = None,
    env: dict[str, str] | None = None,
    ok: Sequence[int] = (0,),
    timeout: float | None = None,
) -> str:
    """Runs a command, as that user, and returns its stdout. Raises CommandFailed for a return code not in `ok`.

    After `timeout` seconds the command is killed, and CommandFailed says so.

    No secret may stand in argv, which every process can read: they go by `input` or `env`.
    """
    account = pwd.getpwnam(user) if user else None
    home = account.pw_dir if account else "/root"
    try:
        done = subprocess.run(
            list(argv),
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": home, **(env or {})},
            cwd=home if account else "/",
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(shlex.join(argv), -signal.SIGKILL, f"no answer within {timeout:.0f} seconds") from error
    if done.returncode not in ok:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CommandFailed(shlex.join(argv), done.returncode, " | ".join(lines[-3:]))
    return done.stdout


def read_units(units: Sequence[str]) -> dict[str, dict[str, str]]:
    """ActiveState and SubState of each unit, in one process."""
    text = run(["systemctl", "show", "--property=ActiveState,SubState", *units])
    blocks = (dict(line.split("=", 1) for line in block.splitlines()) for block in text.strip().split("\n\n"))
    return dict(zip(units, blocks))


def seconds_active(unit: str) -> float:
    """For how many seconds the unit has been active, by a clock that nobody sets."""
    since = run(["systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "--value", unit])
    return time.monotonic() - int(since) / 1e6


def digest_files(paths: Sequence[Path]) -> str:
    """One digest of the names and contents of these files, and of all files below those that are directories.

    Links are passed over: a service's account may have planted them.
    """
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if found := read_file(file):
                digest.update(hashlib.sha256(str(file).encode()).digest())
                digest.update(hashlib.sha256(found[1]).digest())
    return digest.hexdigest()


def queue_units(units: Units) -> str:
    """Starts units that are down, restarts those that were started with other contents of their configuration files.

    Returns which unit is not active, empty when all are. Contents are compared, not times: the clock is set while a
    node boots. A unit without such files is never restarted.
    """
    states = read_units(list(units))
    digests = {unit: digest_files(files) for unit, files in units.items()}
    down = [unit for unit in units if states[unit]["ActiveState"] in ("inactive", "failed")]
    old = [unit for unit, files in units.items() if files and unit not in down and not _ran_with(unit, digests[unit])]
    if failed := [unit for unit in down if states[unit]["ActiveState"] == "failed"]:
        run(["systemctl", "reset-failed", *failed])
    # Recorded before a start, but after a restart: an agent that dies in between restarts neither too much nor too
    # little.
    for unit in down:
        put_file(STARTED / unit, digests[unit], 0o600)
    if down:
        run(["systemctl", "start", "--no-block", *down])
    if old:
        run(["systemctl", "restart", "--no-block", *old])
    for unit in old:
        put_file(STARTED / unit, digests[unit], 0o600)
    pending = [unit for unit in units if unit in down or unit in old or states[unit]["ActiveState"] != "active"]
    return "{} to be up; it was {ActiveState} ({SubState})".format(pending[0], **states[pending[0]]) if pending else ""


def start_units(units: Units) -> None:
    """Raises Waiting until systemd calls all units active. Their ports and APIs say whether they work."""
    pending = queue_units(units)
    if pending:
        raise Waiting(pending)


def _ran_with(unit: str, digest: str) -> bool:
    return read_text(STARTED / unit) == digest


def check_port(host: str, port: int, what: str) -> None:
    """Raises Waiting until something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise Waiting(f"{what} at {host}:{port}: {error.strerror or error}") from error
