"""Laws for elements/ that diskimage-builder does not enforce: what breaks them is silently left out or overwritten."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import diskimage_builder.paths
import pytest
import yaml
from repository import ELEMENTS

from imagegen.base.tree import read_tree, write_tree
from imagegen.images.elements import elements_tree
from imagegen.model.releases import Distro, default_release, find_release
from imagegen.model.roles import Role, roles

# The phases of diskimage-builder 3, whose files are run (its developer's guide, "Phase Subdirectories").
PHASES = {
    "root.d",
    "extra-data.d",
    "pre-install.d",
    "install.d",
    "post-install.d",
    "post-root.d",
    "block-device.d",
    "pre-finalise.d",
    "finalise.d",
    "cleanup.d",
}
IN_IMAGE = {"pre-install.d", "install.d", "post-install.d", "finalise.d"}
PACKAGE_KEYS = {"phase", "uninstall", "build-only", "installtype", "arch", "not-arch", "dib_python_version", "when"}
PKG_MAP_KEYS = {"release", "distro", "family", "default"}
UNIT_DIRECTORIES = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
UNIT_SUFFIXES = (".service", ".socket", ".timer", ".target", ".path", ".mount")

# What dib-run-parts runs (its allowed_regex), and what it sources.
HOOK_NAME = re.compile(r"^[0-9]{2}-[0-9A-Za-z_-]+$")
ENVIRONMENT_NAME = re.compile(r"^[0-9]{2}-[0-9A-Za-z_-]+\.bash$")


def list_elements(elements: Path) -> list[Path]:
    return sorted(path for path in elements.iterdir() if path.is_dir())


def list_files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def read_lines(path: Path) -> list[str]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]


def check_names(element: Path) -> Iterator[str]:
    """An element has a plain name, a README.rst with its name as title, and only known directories of hooks."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", element.name):
        yield f"{element.name}: not a name for an element"
    readme = element / "README.rst"
    if not readme.is_file() or element.name not in readme.read_text().splitlines()[:3]:
        yield f"{element.name}: README.rst is missing or does not begin with the element's name"
    for directory in element.glob("*.d"):
        if directory.name not in PHASES | {"environment.d"}:
            yield f"{element.name}: {directory.name} is no phase of diskimage-builder, so nothing in it runs"


def check_hooks(element: Path) -> Iterator[str]:
    """A hook runs: it is an executable file with a shebang, with a name that dib-run-parts takes."""
    for phase in sorted(PHASES):
        for hook in sorted((element / phase).glob("*")):
            place = f"{element.name}/{phase}/{hook.name}"
            if not HOOK_NAME.fullmatch(hook.name):
                yield f"{place}: dib-run-parts ignores this name"
            if not hook.is_file() or not os.access(hook, os.X_OK):
                yield f"{place}: not executable, so dib-run-parts ignores it"
            elif not hook.read_text().startswith("#!"):
                yield f"{place}: no shebang"
    for file in sorted((element / "environment.d").glob("*")):
        place = f"{element.name}/environment.d/{file.name}"
        if not ENVIRONMENT_NAME.fullmatch(file.name):
            yield f"{place}: not named NN-name.bash"
        if os.access(file, os.X_OK):
            yield f"{place}: sourced, so it must not be executable"


def check_dependencies(element: Path) -> Iterator[str]:
    """element-deps is sorted, without doubles, and every name is an element of ours or of diskimage-builder."""
    dependencies = read_lines(element / "element-deps")
    if dependencies != sorted(set(dependencies)):
        yield f"{element.name}: element-deps is not sorted or names an element twice"
    places = (element.parent, Path(diskimage_builder.paths.get_path("elements")))
    for name in dependencies:
        if not any((place / name).is_dir() for place in places):
            yield f"{element.name}: element-deps names {name}, which is no element"


def check_packages(element: Path) -> Iterator[str]:
    """package-installs.yaml and the maps have the shape that diskimage-builder reads."""
    installs = element / "package-installs.yaml"
    if installs.is_file():
        packages = yaml.safe_load(installs.read_text())
        if not isinstance(packages, dict) or not all(isinstance(name, str) for name in packages):
            yield f"{element.name}: package-installs.yaml is no map of package names"
            packages = {}
        for name, given in packages.items():
            for options in given if isinstance(given, list) else [given or {}]:
                if not isinstance(options, dict) or options.keys() - PACKAGE_KEYS:
                    yield f"{element.name}: package-installs.yaml: {name}: unknown options {options}"
                elif options.get("phase", "install.d") not in IN_IMAGE:
                    yield f"{element.name}: package-installs.yaml: {name}: {options['phase']} is no phase in the image"
        if "package-installs" not in read_lines(element / "element-deps"):
            yield f"{element.name}: package-installs.yaml is read only with the element package-installs"
    for name, parse in (("pkg-map", json.loads), ("svc-map", yaml.safe_load)):
        if (element / name).is_file():
            mapped = parse((element / name).read_text())
            if not isinstance(mapped, dict) or not mapped or (name == "pkg-map" and mapped.keys() - PKG_MAP_KEYS):
                yield f"{element.name}: {name} has not the shape that diskimage-builder reads"
            if name not in read_lines(element / "element-deps"):
                yield f"{element.name}: {name} is read only with the element {name}"


def check_units(element: Path) -> Iterator[str]:
    """A service of ours runs in the sandbox of OpenStack's daemons, or has limits of its own."""
    for unit in list_files(element / "static"):
        if unit.suffix != ".service":
            continue
        lines = read_lines(unit)
        if "X-Sandbox=openstack-daemon" in lines:
            if "openstack-daemon" not in read_lines(element / "element-deps"):
                yield f"{element.name}: {unit.name} gets its sandbox only with the element openstack-daemon"
        elif not any(line.startswith("CapabilityBoundingSet=") for line in lines):
            yield f"{element.name}: {unit.name} has neither X-Sandbox=openstack-daemon nor limits of its own"


def list_owned(element: Path) -> Iterator[tuple[str, str]]:
    """Kind and name of everything of which an image can hold one only: files of static/, units, hooks of a phase."""
    for file in list_files(element / "static"):
        path = file.relative_to(element / "static")
        yield "file", f"/{path}"
        if str(path.parent) in UNIT_DIRECTORIES and path.suffix in UNIT_SUFFIXES:
            yield "unit", path.name
    for file in list_files(element / "init-scripts/systemd"):
        yield "unit", file.name
    for phase in sorted(PHASES | {"environment.d"}):
        yield from (("hook", f"{phase}/{hook.name}") for hook in sorted((element / phase).glob("*")))


def check_owners(elements: Path) -> Iterator[str]:
    """No file, unit or hook belongs to two elements: the later one would overwrite it, or abort the build."""
    owners = defaultdict(list)
    for element in list_elements(elements):
        for owned in sorted(set(list_owned(element))):
            owners[owned].append(element.name)
    for (kind, name), names in sorted(owners.items()):
        if len(names) > 1:
            yield f"{kind} {name} belongs to {' and '.join(names)}"


CHECKS: tuple[Callable[[Path], Iterator[str]], ...] = (
    check_names,
    check_hooks,
    check_dependencies,
    check_packages,
    check_units,
)


def find_faults(elements: Path) -> list[str]:
    """Every law that is broken below `elements`, one sentence each."""
    faults = [fault for element in list_elements(elements) for check in CHECKS for fault in check(element)]
    return faults + list(check_owners(elements))


def test_the_elements_keep_the_laws() -> None:
    """Hooks run, maps are read, and nothing is overwritten."""
    elements = list_elements(ELEMENTS)
    assert len(elements) >= 10
    assert len([hook for element in elements for phase in PHASES for hook in (element / phase).glob("*")]) > 3
    assert len([file for element in elements for file in list_files(element / "static")]) > 10
    faults = find_faults(ELEMENTS)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("role", roles(), ids=str)
def test_the_generated_tree_keeps_the_laws(tmp_path: Path, role: Role) -> None:
    """With the generated element of a role added, as a build has it, the laws hold as well."""
    release = find_release(default_release(Distro()), Distro())
    write_tree(elements_tree(read_tree(ELEMENTS), [role], release, {}), tmp_path / "elements")
    assert len(list_elements(tmp_path / "elements")) == len(list_elements(ELEMENTS)) + 1
    faults = find_faults(tmp_path / "elements")
    assert not faults, "\n".join(faults)


def plant(elements: Path, files: dict[str, tuple[int, str]]) -> None:
    """Writes files below elements/, path -> (mode, text)."""
    for path, (mode, text) in files.items():
        place = elements / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)


LAWFUL = {
    "one/README.rst": (0o644, "===\none\n===\n"),
    "one/element-deps": (0o644, "# both\npackage-installs\npkg-map\ntwo\n"),
    "one/package-installs.yaml": (0o644, "nova-api:\nlinux:\n  - arch: amd64\n  - phase: pre-install.d\n"),
    "one/pkg-map": (0o644, '{"family": {"debian": {"nova-api": "nova-api"}}}'),
    "one/install.d/50-one": (0o755, "#!/bin/bash\n"),
    "one/environment.d/50-one.bash": (0o644, "export DIB_ONE=1\n"),
    "one/static/etc/systemd/system/one.service": (0o644, "[Service]\nCapabilityBoundingSet=\n"),
    "two/README.rst": (0o644, "===\ntwo\n===\n"),
}

FAULTS: dict[str, tuple[str, dict[str, tuple[int, str]]]] = {
    "a hook with a suffix": ("ignores this name", {"one/install.d/51-one.sh": (0o755, "#!/bin/bash\n")}),
    "a hook without a number": ("ignores this name", {"one/install.d/one": (0o755, "#!/bin/bash\n")}),
    "a hook that is not executable": ("not executable", {"one/install.d/51-one": (0o644, "#!/bin/bash\n")}),
    "a hook without a shebang": ("no shebang", {"one/install.d/51-one": (0o755, "true\n")}),
    "a misspelt phase": ("is no phase", {"one/finalize.d/51-one": (0o755, "#!/bin/bash\n")}),
    "an executable environment file": ("must not be exec", {"one/environment.d/51-one.bash": (0o755, "A=1\n")}),
    "an environment file without .bash": ("not named NN-", {"one/environment.d/51-one": (0o644, "A=1\n")}),
    "a README that is missing": ("README.rst", {"three/element-deps": (0o644, "")}),
    "a README of another element": ("README.rst", {"two/README.rst": (0o644, "===\none\n===\n")}),
    "a bad name": ("not a name", {"Three/README.rst": (0o644, "Three\n")}),
    "unsorted dependencies": ("not sorted", {"two/element-deps": (0o644, "vm\ndpkg\n")}),
    "doubled dependencies": ("names an element twice", {"two/element-deps": (0o644, "dpkg\ndpkg\n")}),
    "a dependency that is no element": ("no element", {"two/element-deps": (0o644, "no-such-element\n")}),
    "a list of packages": ("no map", {"one/package-installs.yaml": (0o644, "- nova-api\n")}),
    "a misspelt package option": ("unknown options", {"one/package-installs.yaml": (0o644, "a: {phases: x}\n")}),
    "a package phase outside": ("no phase in", {"one/package-installs.yaml": (0o644, "a: {phase: root.d}\n")}),
    "packages without their element": ("with the element", {"two/package-installs.yaml": (0o644, "a:\n")}),
    "a pkg-map with a wrong key": ("the shape", {"one/pkg-map": (0o644, '{"families": {}}')}),
    "a svc-map without its element": ("with the element", {"two/svc-map": (0o644, "nova:\n  default: nova\n")}),
    "a file of two elements": (
        "file /etc/a belongs to one and two",
        {"one/static/etc/a": (0o644, ""), "two/static/etc/a": (0o644, "")},
    ),
    "a unit of two elements": (
        "unit one.service belongs to one and two",
        {"two/static/usr/lib/systemd/system/one.service": (0o644, "CapabilityBoundingSet=\n")},
    ),
    "a unit in init-scripts": (
        "unit one.service belongs to one and two",
        {"two/init-scripts/systemd/one.service": (0o644, "")},
    ),
    "a unit without limits": ("nor limits", {"two/static/etc/systemd/system/two.service": (0o644, "[Service]\n")}),
    "a sandbox without its element": (
        "only with the element openstack-daemon",
        {"two/static/etc/systemd/system/two.service": (0o644, "X-Sandbox=openstack-daemon\n")},
    ),
    "a hook of two elements": ("hook install.d/50-one", {"two/install.d/50-one": (0o755, "#!/bin/bash\n")}),
}


def test_a_lawful_tree_has_no_faults(tmp_path: Path) -> None:
    """The laws allow what diskimage-builder's guide shows."""
    plant(tmp_path, LAWFUL)
    assert find_faults(tmp_path) == []


@pytest.mark.parametrize(("message", "files"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, message: str, files: dict[str, tuple[int, str]]) -> None:
    """Each law bites, once."""
    plant(tmp_path, LAWFUL | files)
    faults = find_faults(tmp_path)
    assert len(faults) == 1
    assert message in faults[0]
