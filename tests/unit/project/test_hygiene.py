"""The files of the project name no mirror, no registry and no path of the machine that they were written on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from repository import ROOT, walk_files

# Mirrors come from the build host's apt, packages from the index that pip is configured for.
# Written with blanks for dots, so that this file names none itself.
HOSTS = (
    r"(deb|security|archive|ftp[\w.]*|snapshot|incoming) debian org",
    r"(archive|security|ports|cloud-archive) ubuntu com",
    r"ubuntu-cloud archive canonical com",
    r"osbpo debian net",
    r"(mirror|mirrors|download) (centos|fedoraproject|rockylinux) org",
    r"(trunk |www )?rdoproject org",
    r"(test )?pypi org",
    r"pythonhosted org",
)
PATHS = (r"(?<![\w./})-])/work/", r"(?<![\w./-])/home/[a-z]", r"\.pyenv")
FORBIDDEN = re.compile("|".join((*(host.replace(" ", r"\.") for host in HOSTS), *PATHS)))

LOCK = ROOT / "requirements.lock"


def find_forbidden(text: str) -> list[str]:
    """`LINE: what` for every host and path that does not belong into a file."""
    return [f"{n}: {m[0]}" for n, line in enumerate(text.splitlines(), 1) for m in FORBIDDEN.finditer(line)]


def read_names(requirements: list[str]) -> set[str]:
    """The normalised names of requirements (PEP 503)."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[ <>=!~;\[]", line)[0]).lower() for line in requirements}


def test_no_file_names_a_mirror_or_this_machine() -> None:
    """A clone works with whatever mirrors its machine has, at any path."""
    files = [path for path in walk_files() if path != Path(__file__)]  # the planted paths stand here
    assert len(files) > 30
    found = {}
    for path in files:
        try:
            if faults := find_forbidden(path.read_text()):
                found[str(path.relative_to(ROOT))] = faults
        except UnicodeDecodeError:
            continue  # not a text
    assert not found, found


@pytest.mark.parametrize(
    "address",
    [
        "http://deb debian org/debian",
        "https://security debian org",
        "https://pypi org/simple",
        "files pythonhosted org/x",
    ],
)
def test_a_planted_host_is_found(address: str) -> None:
    """Each pattern of a host bites."""
    assert len(find_forbidden(f"first\nfrom {address.replace(' ', '.')} and on\n")) == 1


@pytest.mark.parametrize("line", ["cd /work/elsewhere", "PATH=/home/someone/bin", "/root/.pyenv/shims/python3"])
def test_a_planted_path_is_found(line: str) -> None:
    """Each pattern of a path bites."""
    assert len(find_forbidden(f"first\n{line}\n")) == 1


def test_a_lawful_line_is_let_be() -> None:
    """Documentation may name projects and paths that every node has."""
    assert find_forbidden("https://docs.openstack.org/nova /var/lib/nova/work/ /root/.ssh") == []


def test_no_link_leaves_the_checkout() -> None:
    """A symlink to somewhere else works on one machine only."""
    assert [path for path in walk_files() if path.is_symlink() and not path.resolve().is_relative_to(ROOT)] == []


def test_the_lock_holds_only_pinned_versions_with_hashes() -> None:
    """Each line is a version or a hash, so no index address and no unpinned package can be among them."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    pins = [line for line in lines if not line.startswith(" ")]
    assert len(pins) > 20
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.+]* \\", line)] == []
    assert [
        line for line in lines if line not in pins and not re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?", line)
    ] == []
    for index, line in enumerate(lines):
        assert line not in pins or lines[index + 1].startswith("    --hash"), f"{line} has no hash"


def test_the_lock_covers_what_pyproject_asks_for() -> None:
    """Every dependency, development tool and build backend is pinned; `make lock` writes the lock anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = read_names(
        [
            *project["project"]["dependencies"],
            *project["dependency-groups"]["dev"],
            *project["build-system"]["requires"],
            "editables",
        ]
    )
    assert wanted - read_names([line for line in LOCK.read_text().splitlines() if "==" in line]) == set()


def test_the_license_is_the_one_that_pyproject_names() -> None:
    """LICENSE is the whole text of Apache-2.0."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_every_make_target_is_explained() -> None:
    """`make help` is the list of targets: each has a ## comment, is phony and says it in one line."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    targets = [line for line in lines if re.match(r"[a-z][a-z-]*:(?!=)", line)]
    assert len(targets) > 10
    assert [line for line in targets if not re.search(r"## \S", line)] == []
    phony = {name for line in lines if line.startswith(".PHONY:") for name in line.split()[1:]}
    assert {line.split(":")[0] for line in targets} == phony


def test_make_calls_only_scripts_that_exist() -> None:
    """No target leads nowhere."""
    named = set(re.findall(r"(?<![\w/])(?:\.ci|tests)/[\w./-]*\w", (ROOT / "Makefile").read_text()))
    assert len(named) > 5
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
