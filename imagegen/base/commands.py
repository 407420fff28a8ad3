"""Running commands: the only module that starts processes."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from imagegen.base.errors import CommandFailed, MachineLacks

Process = subprocess.Popen[bytes]
Completed = subprocess.CompletedProcess[bytes]

CLEAN_UP_SECONDS = 180.0  # that a command which was interrupted may take to tidy up

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


def follow(
    argv: Sequence[str | os.PathLike[str]],
    each_line: Callable[[bytes], None],
    *,
    input: bytes,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end, with any return code, and hands each line of its stdout over as it comes.

    Interrupted, it interrupts the command as well, and waits for the end of its clean-up. Raises CommandFailed after
    `timeout` seconds.
    """
    # In memory: a password may be in it.
    with os.fdopen(os.memfd_create("input"), "w+b") as given, TemporaryFile() as errors:
        given.write(input)
        given.seek(0)
        process = start(argv, env=env, cwd=cwd, stdin=given.fileno(), stderr=errors.fileno())
        assert process.stdout  # noqa: S101 - a pipe
        late = threading.Event()

        def end() -> None:
            late.set()
            _signal(process, signal.SIGKILL)

        timer = threading.Timer(timeout, end)
        timer.daemon = True  # who does not wait for the command's end does not wait for this
        timer.start()
        try:
            for line in process.stdout:
                each_line(line)
        except BaseException:
            _signal(process, signal.SIGINT)
            raise
        finally:
            _wait(process)
            timer.cancel()
        errors.seek(0)
        said = errors.read()
    if late.is_set() and process.returncode < 0:
        raise CommandFailed(
            f"`{shlex.join([os.fspath(word) for word in argv])}` did not end within {timeout:g} seconds"
        )
    return subprocess.CompletedProcess(argv, process.returncode, b"", said)


def _signal(process: Process, number: int) -> None:
    """Sends a signal to a command that start() made, and to all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait(process: Process) -> None:
    """Waits for a command that was asked to end; ends it when that takes too long."""
    try:
        process.wait(timeout=CLEAN_UP_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()


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
