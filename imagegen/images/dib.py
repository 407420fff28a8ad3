"""Running diskimage-builder: its environment, its namespace, and what its log tells."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from imagegen.base import commands
from imagegen.base.errors import CommandFailed
from imagegen.base.handles import create_file, open_directory, whole
from imagegen.images.elements import dib_elements, dib_environment
from imagegen.images.mirrors import Mirrors, read_lines
from imagegen.model.releases import Distro
from imagegen.model.roles import Role

# dib ends the namespace's init too early for its own output filter: what it wrote last is why it failed.
INIT = """\
umask 022
"$@"
code=$?
for _ in {1..30}; do
    processes=(/proc/[0-9]*)
    [ ${#processes[@]} -le 1 ] && break
    sleep 0.1
done
exit $code
"""

# disk-image-create as its console script starts it, but surely from this Python environment.
DISK_IMAGE_CREATE = (
    "import sys; from diskimage_builder.disk_image_create import main; sys.argv[0] = 'disk-image-create'; main()"
)

# dib calls sudo for every step. We are root already, and a minimal machine has no sudo.
SUDO = """\
#!/bin/sh
while :; do
    case "$1" in
        -E|-n|-H|--) shift ;;
        *) exec "$@" ;;
    esac
done
"""

# dib flushes all disks before it unmounts. Nothing of this tree outlives a failure: there is nothing to flush for.
SYNC = "#!/bin/sh\nexit 0\n"

PROGRAMS = {"sudo": SUDO, "sync": SYNC}
"""What dib finds before this machine's programs of the same names."""


@dataclass(frozen=True)
class DibBuild:
    """One run of dib: WORK/NAME.tar comes out. `cache` is kept between runs, everything else is below `work`."""

    role: Role
    distro: Distro
    name: str
    elements: Path
    work: Path
    cache: Path
    mirrors: Mirrors
    proxies: Mapping[str, str] = field(default_factory=dict)
    reuse_base: bool = False

    @property
    def tar(self) -> Path:
        return self.work / f"{self.name}.tar"

    def argv(self) -> list[str]:
        """The whole command: dib alone in a mount and a PID namespace, which end with imagegen however it ends."""
        namespace = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
        ]
        dib = [
            *(sys.executable, "-c", DISK_IMAGE_CREATE),
            *("-a", self.distro.arch, "-t", "tar", "-n", "-o", os.fspath(self.work / self.name)),
            *dib_elements(self.role, self.distro),
        ]
        return [*namespace, "--", "/bin/bash", "-c", INIT, "imagegen-dib", *dib]

    def environment(self) -> dict[str, str]:
        """dib's whole environment, built here: nothing of the caller's reaches dib or the image."""
        base = {"DIB_DEBIAN_USE_DEBOOTSTRAP_CACHE": "1"} if self.reuse_base else {}
        return {
            **self.proxies,
            **dib_environment(self.distro),
            **base,
            "PATH": f"{self.work}/bin:{commands.PATH}",
            "HOME": "/root",
            "USER": "root",
            "TMP_DIR": os.fspath(self.work),
            # No names of this machine's users, and nothing of its /dev, which dib leaves mounted, with /dev/shm.
            "TAR_OPTIONS": "--numeric-owner --one-file-system",
            # As SYNC: a tree that a power cut spoils is never used (dpkg(1), --force-unsafe-io).
            "DPKG_FORCE": "unsafe-io",
            "ELEMENTS_PATH": os.fspath(self.elements),
            "DIB_IMAGE_CACHE": os.fspath(self.cache),
            "DIB_LOCKFILES": os.fspath(self.cache / "locks"),
            "DIB_DEBOOTSTRAP_CACHE": "1",
            "DIB_APT_LOCAL_CACHE": "0",
            "DIB_IMAGEGEN_PACKAGE_CACHE": os.fspath(self.cache / "packages"),
            "DIB_DISTRIBUTION_MIRROR": self.mirrors.main,
            "DIB_APT_SOURCES_CONF": self.mirrors.sources(self.distro),
        }

    def inputs(self) -> dict[str, Any]:
        """All input to dib that decides what it makes: arguments, environment, programs, as JSON.

        Sources and destinations appear as names in capitals; whether a base is reused is left out.
        """
        same = replace(
            self,
            name="NAME",
            elements=Path("/ELEMENTS"),
            work=Path("/WORK"),
            cache=Path("/CACHE"),
            mirrors=Mirrors("MIRROR", updates=False),
            proxies={},
            reuse_base=False,
        )
        return {
            "argv": ["PYTHON" if word == sys.executable else word for word in same.argv()],
            "environment": commands.environment(same.environment()),
            "programs": PROGRAMS,
        }


PHASES = (
    *("root", "extra-data", "pre-install", "install", "post-install", "post-root", "block-device", "pre-finalise"),
    *("finalise", "cleanup", "tar"),
)
"""dib's phases in their order, and `tar`, which comes after the last of them."""

_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \| ?")
_HOOK = re.compile(r"(?:^|\s)Running (?:hooks from )?/\S*/([a-z-]+)\.d(?:/(\S+))?$")
_PACKAGES = re.compile(r"\b(\d+) newly installed,")
_NOISE = re.compile(
    r"^(?:\++ |dib-run-parts |Unmount |\*\*\* |rm: |Get:\d|Hit:\d|\(Reading database|Selecting previously)"
)
_TELLING = re.compile(
    r"^> ?[EW]: |^(?:E|W|Err): |\b(?:error|ERROR|Error|fatal)\b|Traceback|No such file|not found|No space left"
    r"|Unable to|[Ff]ailed to|exit status [1-9]"
)


@dataclass
class DibLog:
    """Follows dib's log line by line: the phase it is in, how long each took, and what matters when it fails."""

    report: Callable[[str, str], None]  # phase, detail
    clock: Callable[[], float] = monotonic
    phase: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = 0.0
    _wanted: int = 0
    _done: int = 0
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    _telling: deque[str] = field(default_factory=lambda: deque(maxlen=10))
    _ended: bool = False

    def feed(self, line: str) -> None:
        """Takes one line as dib printed it."""
        line = _STAMP.sub("", line.rstrip())
        if match := _HOOK.search(line):
            self._enter(match[1], match[2] or "")
        elif "Target: cleanup.d" in line:
            self._enter("tar", "")
        elif match := _PACKAGES.search(line):
            self._wanted, self._done = int(match[1]), 0
        elif "Setting up " in line and self._done < self._wanted:
            self._done += 1
            if self._done % 10 == 0 or self._done == self._wanted:
                self.report(self.phase, f"{self._done} of {self._wanted} packages set up")
        self._remember(line)

    def end(self) -> None:
        """Counts the last phase's seconds; `phase` stays what it was."""
        if self.phase:
            self.seconds[self.phase] = round(self.seconds.get(self.phase, 0.0) + self.clock() - self._since, 1)

    def matters(self) -> list[str]:
        """The lines that say why dib failed: what its last hook complained of, then what that said last."""
        last = list(self._last)[-12:]
        return [line for line in self._telling if line not in last] + last

    def _enter(self, phase: str, detail: str) -> None:
        if phase not in PHASES:
            return
        if phase != self.phase:
            self.end()
            self.phase, self._since = phase, self.clock()
            self._wanted = self._done = 0
        self.report(phase, detail)

    def _remember(self, line: str) -> None:
        if _HOOK.search(line):
            self._ended = False
            self._last.clear()
            self._telling.clear()
            return
        # dib's own clean-up, after a failure too: it unmounts and removes, at length.
        self._ended = self._ended or line.startswith("Unmount ")
        if self._ended or not line.strip() or _NOISE.search(line):
            return
        self._last.append(line)
        if _TELLING.search(line):
            self._telling.append(line)


def run_dib(build: DibBuild, log: Path, follow: DibLog) -> None:
    """Runs dib to its end; its output goes to `log` as it comes. Raises CommandFailed with the lines that matter.

    However this ends, nothing that dib started or mounted is left: with a namespace's first process all others go.
    """
    binaries = build.work / "bin"
    binaries.mkdir(exist_ok=True)
    for name, script in PROGRAMS.items():
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    for directory in (build.cache / "packages", build.cache / "locks"):
        directory.mkdir(parents=True, exist_ok=True)
    with open_directory(log.parent, make=True):
        pass
    process = commands.start(build.argv(), env=build.environment(), cwd=build.work)
    try:
        with create_file(log) as stream, whole(log):
            assert process.stdout is not None  # noqa: S101 # commands.start makes the pipe
            for line in process.stdout:
                stream.write(line)
                stream.flush()
                follow.feed(line.decode(errors="replace"))
        code = process.wait()
    finally:
        end_namespace(process)
        follow.end()
    if code or not build.tar.is_file():
        phase = follow.phase or "start"
        raise CommandFailed(
            f"diskimage-builder failed in the phase `{phase}` ({code})", log=log, last_lines=follow.matters()
        )


def end_namespace(process: commands.Process) -> None:
    """Kills a namespace that `unshare --pid --fork` made, if it still runs, and returns when all in it are gone."""
    if process.poll() is not None:
        return
    children = " ".join(read_lines(Path(f"/proc/{process.pid}/task/{process.pid}/children"))).split()
    for child in children:
        # Its end is complete only when the kernel has ended everything in the namespace; unshare waits for that.
        os.kill(int(child), signal.SIGKILL)
    if not children:
        process.kill()
    process.wait()
