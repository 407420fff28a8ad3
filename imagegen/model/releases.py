"""Each release of OpenStack on each distro: names and features (data/releases.yaml), packages and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import yaml

from imagegen.base.resources import PACKAGE
from imagegen.model.declarations import declarations

DISTROS_WORD = "all"


class UnknownRelease(ValueError):
    """The release or distro is not known; `key` is the cluster file's key that names it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


@dataclass(frozen=True)
class Distro:
    name: str = "debian"
    suite: str = "trixie"
    arch: str = "amd64"


@dataclass(frozen=True)
class Release:
    """One release on one distro."""

    id: str  # "2025.1"; before 2023.1 the name: "zed"
    distro: Distro
    booted: bool  # imagegen built it and booted it there
    lock_path: str  # [oslo_concurrency] lock_path
    features: frozenset[str]  # ask with knows()
    packages: Mapping[str, tuple[str, ...]]  # element -> the distro's packages, sorted
    services: Mapping[str, str]  # service in Debian's words -> the distro's systemd unit

    def knows(self, feature: str) -> bool:
        """Whether this release has the feature. Raises KeyError for a feature that releases.yaml does not list."""
        if feature not in _data()["features"]:
            raise KeyError(feature)
        return feature in self.features


@cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((PACKAGE / "data/releases.yaml").read_bytes(), Loader=yaml.CSafeLoader)
    return loaded


def _declared(key: str) -> dict[str, dict[str, Any]]:
    """Element -> what it declares under that key."""
    return {element: declared[key] for element, declared in declarations().items() if key in declared}


@cache
def release_ids() -> tuple[str, ...]:
    """Every release's id, oldest first."""
    return tuple(row["id"] for row in _data()["releases"])


def normalise_release(name: str) -> str:
    """The id of a release given by name or number, in any case. Raises UnknownRelease."""
    wanted = name.strip().lower()
    rows = _data()["releases"]
    for row in rows:
        if wanted in (row["id"], row["name"]):
            return str(row["id"])
    known = [word for row in rows for word in (row["id"], row["name"])]
    raise UnknownRelease("release", f"there is no release `{name[:40]}`{_suggest(wanted, known, release_ids())}")


def default_release(distro: Distro) -> str:
    """The id of the release that the distro's suite ships. Raises UnknownRelease."""
    return str(_suite(distro)["ships"])


def default_suite(name: str) -> str:
    """The distro's suite if the cluster file names none. Raises UnknownRelease."""
    return str(_distro(name)["default_suite"])


def element_names() -> tuple[str, ...]:
    """The elements that have packages here."""
    return tuple(declarations())


@cache
def find_release(name: str, distro: Distro) -> Release:
    """The release on that distro. Raises UnknownRelease when either is unknown, or the distro has no packages of it."""
    release = normalise_release(name)
    row, suite = _distro(distro.name), _suite(distro)
    offered = [suite["ships"], *suite.get("releases", [])]
    if release not in offered:
        raise UnknownRelease(
            "release", f"{distro.name} {distro.suite} has no packages of {release}; it has {', '.join(offered)}"
        )
    return Release(
        id=release,
        distro=distro,
        booted=release in suite.get("booted", []),
        lock_path=row["lock_path"],
        features=frozenset(word for word, span in _data()["features"].items() if _in_span(release, span)),
        packages={
            element: tuple(sorted(_names(rows, release, distro.name).values()))
            for element, rows in _declared("packages").items()
        },
        services={
            service: unit
            for rows in _declared("units").values()
            for service, unit in _names(rows, release, distro.name).items()
        },
    )


def package_installs(element: str, release: Release) -> tuple[str, ...]:
    """The names for the element's package-installs.yaml in that release; pkg-map turns them into the distro's."""
    return tuple(_names(_declared("packages").get(element, {}), release.id, release.distro.name))


def package_map(element: str) -> dict[str, Any]:
    """The element's pkg-map as dib reads it: {"default": {name: package}, "distro": {distro: {...}}}; "" means none."""
    default: dict[str, str] = {}
    distros: dict[str, dict[str, str]] = {}
    for name, row in _declared("packages").get(element, {}).items():
        default[name] = row[DISTROS_WORD] or ""
        for distro in _data()["distros"]:
            if distro in row:
                distros.setdefault(distro, {})[name] = row[distro] or ""
    return {"default": default, "distro": distros} if distros else {"default": default}


def service_map(element: str) -> dict[str, dict[str, str]]:
    """The element's svc-map as dib reads it: {service: {"default": unit, distro: unit}}; no unit means the default."""
    return {
        service: {
            "default": row[DISTROS_WORD],
            **{distro: row[distro] for distro in _data()["distros"] if row.get(distro)},
        }
        for service, row in _declared("units").get(element, {}).items()
    }


def _names(rows: Mapping[str, Any], release: str, distro: str) -> dict[str, str]:
    named = {name: row.get(distro, row[DISTROS_WORD]) for name, row in rows.items() if _in_span(release, row)}
    return {name: there for name, there in named.items() if there}


def _in_span(release: str, span: Mapping[str, str]) -> bool:
    order = release_ids().index
    return order(span.get("since", release)) <= order(release) <= order(span.get("until", release))


def _distro(name: str) -> dict[str, Any]:
    distros = _data()["distros"]
    if name not in distros:
        raise UnknownRelease(
            "distro.name", f"there is no distro `{name[:40]}`{_suggest(name, distros, tuple(distros))}"
        )
    found: dict[str, Any] = distros[name]
    return found


def _suite(distro: Distro) -> dict[str, Any]:
    row = _distro(distro.name)
    if distro.suite not in row["suites"]:
        suites = tuple(row["suites"])
        raise UnknownRelease(
            "distro.suite", f"{distro.name} has no suite `{distro.suite[:40]}`{_suggest(distro.suite, suites, suites)}"
        )
    if distro.arch not in row["architectures"]:
        raise UnknownRelease(
            "distro.arch",
            f"{distro.name} is built for {', '.join(row['architectures'])} only, not `{distro.arch[:40]}`",
        )
    found: dict[str, Any] = row["suites"][distro.suite]
    return found


def _suggest(word: str, known: Any, listed: tuple[str, ...]) -> str:
    close = get_close_matches(word, list(known), 1)
    return f"; did you mean `{close[0]}`?" if close else f"; choose one of {', '.join(listed)}"
