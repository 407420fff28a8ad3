"""Running diskimage-builder: where its packages come from, its environment, its namespace, and what its log tells."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from imagegen import run
from imagegen.elements import dib_elements, dib_environment
from imagegen.errors import BadUsage, CommandFailed, MachineLacks
from imagegen.model import Distro, Role

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

# dib flushes all disks before it unmounts. Here nothing of the tree outlives a failure, so there is nothing to flush for.
SYNC = "#!/bin/sh\nexit 0\n"

PROXIES = ("http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True)
class Mirrors:
    """Where packages come from. A URL without a user: what is in it would be seen in process lists and logs."""

    main: str
    security: str | None = None
    updates: bool = True  # whether the main mirror has the suite SUITE-updates

    def sources(self, distro: Distro) -> str:
        """The value of DIB_APT_SOURCES_CONF: `NAME:LINE` for each source."""
        lines = [f"default:deb {self.main} {distro.suite} main"]
        if self.updates:
            lines.append(f"updates:deb {self.main} {distro.suite}-updates main")
        if self.security:
            lines.append(f"security:deb {self.security} {distro.suite}-security main")
        return "\n".join(lines) + "\n"


def read_apt_sources(etc_apt: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The enabled `deb` sources below an /etc/apt: (URI, suite, components). Both formats of sources.list(5)."""
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            yield from _one_line_sources(path.read_text(errors="replace"))
        elif path.suffix == ".sources" and path.is_file():
            yield from _deb822_sources(path.read_text(errors="replace"))


def _one_line_sources(content: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for line in content.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield words[1], words[2], tuple(words[3:])


def _deb822_sources(content: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    lines = [line for line in content.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[key] = fields.get(key, "") + " " + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    yield uri, suite, tuple(fields.get("components", "").split())


def find_mirrors(distro: Distro, root: Path = Path("/")) -> Mirrors:
    """The distro's archive and its security archive, as this machine's own apt sources name them, whatever their suite.

    Raises MachineLacks when this machine's sources name no archive of that distro.
    """
    release: dict[str, str] = {}
    for line in _read(root / "etc/os-release").splitlines():
        key, _, value = line.partition("=")
        release[key] = value.strip().strip('"')
    own = {release.get("VERSION_CODENAME", ""), distro.suite} if release.get("ID") == distro.name else {distro.suite}
    suites: dict[str, str] = {}
    updated: set[str] = set()
    for uri, suite, components in read_apt_sources(root / "etc/apt"):
        base, _, kind = suite.replace("/", "-").partition("-")
        if base not in own or "main" not in components or urlsplit(uri).scheme not in ("http", "https"):
            continue
        if kind == "updates" and urlsplit(uri).path.rstrip("/").endswith("security"):
            kind = "security"  # before Debian 11 that suite was SUITE/updates
        if kind == "updates":
            updated.add(uri)
        elif kind == "" and "main" in suites:
            # A third party's archive can have the same suite name: the distro's own is the one that has its name.
            if distro.name in urlsplit(uri).path and distro.name not in urlsplit(suites["main"]).path:
                suites["main"] = uri
        else:
            suites.setdefault(kind or "main", uri)
    if "main" not in suites:
        raise MachineLacks(
            f"this machine's apt sources name no archive of {distro.name}", "name a mirror of it with --mirror URL"
        )
    return Mirrors(suites["main"], suites.get("security"), suites["main"] in updated)


def check_urls(mirrors: Mirrors, proxies: Mapping[str, str]) -> None:
    """Raises BadUsage for a URL that carries a password."""
    for url in (mirrors.main, mirrors.security or "", *proxies.values()):
        if "@" in urlsplit(url).netloc:
            raise BadUsage(
                "the URL of a mirror or proxy holds a password, which dib would show in its log and in process lists",
                "use a mirror or proxy that asks for none, on this machine if need be",
            )


def find_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables of this machine, the only ones of the caller's environment that reach dib."""
    found = {name: environ[name] for name in PROXIES if environ.get(name)}
    if "http_proxy" not in found and not run.missing_tools(["apt-config"]):
        asked = run.run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"], ok=(0, 100)).stdout.decode()
        value = asked.partition("=")[2].strip().strip("'")
        if "://" in value:
            found["http_proxy"] = value
    return found


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
        """The whole command: dib as the only tenant of a mount and a PID namespace, which end with imagegen however it ends."""
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
            "PATH": f"{self.work}/bin:{run.PATH}",
            "HOME": "/root",
            "USER": "root",
            "TMP_DIR": os.fspath(self.work),
            # A tar must not name this machine's users.
            "TAR_OPTIONS": "--numeric-owner",
            "ELEMENTS_PATH": os.fspath(self.elements),
            "DIB_IMAGE_CACHE": os.fspath(self.cache),
            "DIB_LOCKFILES": os.fspath(self.cache / "locks"),
            "DIB_DEBOOTSTRAP_CACHE": "1",
            "DIB_APT_LOCAL_CACHE": "0",
            "DIB_IMAGEGEN_PACKAGE_CACHE": os.fspath(self.cache / "packages"),
            "DIB_DISTRIBUTION_MIRROR": self.mirrors.main,
            "DIB_APT_SOURCES_CONF": self.mirrors.sources(self.distro),
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
    r"^> ?(?:E|W): |^(?:E|W|Err): |\berror\b|\bERROR\b|\bError\b|\bfatal\b|Traceback|No such file|not found|No space left|Unable to|"
    r"Failed to|failed to|returned error exit status|exit status [1-9]"
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
    _frozen: bool = False

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
        """The lines that say why dib failed: what it complained of, then what it said last before its own clean-up."""
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
        # After the failure dib unmounts and removes, at length.
        self._frozen = self._frozen or (self.phase != "" and line.startswith("Unmount ") and self.phase != "post-root")
        if "Running hooks from" in line:
            self._frozen = False
            self._telling.clear()
        if self._frozen or not line.strip() or _NOISE.search(line):
            return
        self._last.append(line)
        if _TELLING.search(line):
            self._telling.append(line)


def run_dib(build: DibBuild, log: Path, follow: DibLog) -> None:
    """Runs dib to its end; its output goes to `log` as it comes. Raises CommandFailed with the lines that matter.

    However this ends, nothing that dib started or mounted is left: its namespace's first process is gone, with it all others.
    """
    binaries = build.work / "bin"
    binaries.mkdir(exist_ok=True)
    for name, script in (("sudo", SUDO), ("sync", SYNC)):
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    for directory in (build.cache / "packages", build.cache / "locks", log.parent):
        directory.mkdir(parents=True, exist_ok=True)
    process = run.start(build.argv(), env=build.environment(), cwd=build.work)
    try:
        with log.open("wb") as stream:
            assert process.stdout is not None  # noqa: S101 # run.start makes the pipe
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
            f"diskimage-builder failed in its phase `{phase}` ({code})", log=log, last_lines=follow.matters()
        )


def end_namespace(process: run.Process) -> None:
    """Kills a namespace that `unshare --pid --fork` made, if it still runs, and returns when all in it are gone."""
    if process.poll() is not None:
        return
    children = _read(Path(f"/proc/{process.pid}/task/{process.pid}/children")).split()
    for child in children:
        # Its end is complete only when the kernel has ended everything in the namespace; unshare waits for that.
        os.kill(int(child), signal.SIGKILL)
    if not children:
        process.kill()
    process.wait()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
