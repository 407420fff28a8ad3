"""Where an image's packages come from: by default this machine's own apt sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from imagegen.base import commands
from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.model.releases import Distro

MIRROR, SECURITY_MIRROR = "IMAGEGEN_MIRROR", "IMAGEGEN_SECURITY_MIRROR"
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True)
class Mirrors:
    """Where packages come from. URLs have no passwords, which would be seen in process lists and logs."""

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
    for line in read_lines(root / "etc/os-release"):
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
            f"this machine's apt sources name no archive of {distro.name}",
            f"set {MIRROR} to the URL of a mirror, and {SECURITY_MIRROR} to that of a mirror of the security archive",
        )
    return Mirrors(suites["main"], suites.get("security"), suites["main"] in updated)


def choose_mirrors(distro: Distro, environ: Mapping[str, str], root: Path = Path("/")) -> Mirrors:
    """The mirrors in IMAGEGEN_MIRROR and IMAGEGEN_SECURITY_MIRROR, or else in this machine's apt sources.

    Raises MachineLacks when neither names an archive of that distro.
    """
    main, security = environ.get(MIRROR), environ.get(SECURITY_MIRROR)
    try:
        own = find_mirrors(distro, root)
    except MachineLacks:
        if not main:
            raise
        return Mirrors(main, security)
    return Mirrors(main, security or own.security) if main else Mirrors(own.main, security or own.security, own.updates)


def check_urls(mirrors: Mirrors, proxies: Mapping[str, str]) -> None:
    """Raises BadUsage for a URL that carries a password."""
    for url in (mirrors.main, mirrors.security or "", *proxies.values()):
        if "@" in urlsplit(url).netloc:
            raise BadUsage(
                "the URL of a mirror or proxy contains a password, which dib would show in logs and process lists",
                "use a mirror or proxy without a password, on this machine if necessary",
            )


def find_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """This machine's proxies; no other variables of the caller's environment reach dib."""
    found = {name: environ[name] for name in PROXIES if environ.get(name)}
    if "http_proxy" not in found and not commands.missing_tools(["apt-config"]):
        asked = commands.run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"], ok=(0, 100)).stdout.decode()
        value = asked.partition("=")[2].strip().strip("'")
        if "://" in value:
            found["http_proxy"] = value
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, none when it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
