"""The linters are tests: ruff, mypy, shellcheck and dib-lint find nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import AGENT, ELEMENTS, NETWORK_BOOT, ROOT, find_scripts, walk_files

# The environment's own tools before the machine's.
TOOL_PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
PACKAGES = {"shellcheck": "shellcheck", "git": "git", "file": "file"}


def require_linter(name: str) -> str:
    """The linter's path. Skips the test, which CI does not allow, when it is missing."""
    found = shutil.which(name, path=TOOL_PATH)
    if found is None:
        origin = f"the Debian package {PACKAGES[name]}" if name in PACKAGES else "requirements.lock"
        pytest.skip(f"{name} is missing: it comes with {origin}, `make lint` installs it")
    return found


def find_complaints(*argv: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """What a linter prints when it is not content, else nothing."""
    done = subprocess.run(
        [os.fspath(word) for word in argv],
        cwd=cwd,
        env={**os.environ, "PATH": TOOL_PATH, "NO_COLOR": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}"


def expect_clean(complaints: str) -> None:
    """Fails with the whole of what a linter said."""
    if complaints:
        pytest.fail(complaints, pytrace=False)


def find_python_scripts(below: Path) -> list[Path]:
    """Python without a suffix, which ruff does not find by itself."""
    return [path for path in find_scripts("python", "python3", below=below) if path.suffix != ".py"]


def lint_ruff(below: Path = ROOT) -> str:
    check = [require_linter("ruff"), "check", "--no-cache"]
    complaints = find_complaints(*check, below, cwd=below)
    if scripts := find_python_scripts(below):
        # dib-lint has flake8 read these too, which wants noqa marks that ruff has no need of (RUF100).
        complaints += find_complaints(*check, "--extend-ignore=RUF100", *scripts, cwd=below)
    return complaints


def lint_format(below: Path = ROOT) -> str:
    scripts = find_python_scripts(below)
    return find_complaints(
        require_linter("ruff"), "format", "--no-cache", "--check", "--diff", below, *scripts, cwd=below
    )


def lint_mypy(*arguments: str | Path, cwd: Path = ROOT) -> str:
    # No cache: it would lie in the agent's directory, and so in images.
    return find_complaints(require_linter("mypy"), "--strict", "--cache-dir=/dev/null", *arguments, cwd=cwd)


def lint_shell(scripts: list[Path], sourced: list[Path]) -> str:
    shellcheck = require_linter("shellcheck")
    found = find_complaints(shellcheck, "--color=never", *scripts)
    if sourced:  # they have no shebang, and set variables for others
        found += find_complaints(shellcheck, "--color=never", "--shell=bash", "--exclude=SC2034", *sourced)
    return found


def lint_dib(elements: Path) -> str:
    for tool in ("git", "file", "flake8"):
        require_linter(tool)
    name = elements.name
    return find_complaints(require_linter("dib-lint"), cwd=elements.parent, ELEMENTS_DIR=name, LIB_DIR=name)


@pytest.mark.allow_process("ruff")
def test_ruff_finds_nothing() -> None:
    """Python files keep the rules of pyproject.toml, scripts without a suffix too."""
    expect_clean(lint_ruff())


@pytest.mark.allow_process("ruff")
def test_ruff_would_format_nothing() -> None:
    """There is one format, and the files have it."""
    expect_clean(lint_format())


@pytest.mark.allow_process("mypy")
def test_mypy_finds_nothing() -> None:
    """The package is typed strictly."""
    expect_clean(lint_mypy())


@pytest.mark.allow_process("mypy")
def test_mypy_finds_nothing_in_the_agent() -> None:
    """The agent is typed strictly as well; what comes with the image's packages is not there to be read."""
    assert list(AGENT.glob("*/*.py"))
    expect_clean(lint_mypy("--ignore-missing-imports", "--package", "imagegen_node", cwd=AGENT))


@pytest.mark.allow_process("mypy")
def test_mypy_finds_nothing_in_the_network_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(AGENT))
    expect_clean(lint_mypy("--ignore-missing-imports", "--package", "imagegen_deploy", cwd=NETWORK_BOOT))


@pytest.mark.allow_process("shellcheck")
def test_shellcheck_finds_nothing() -> None:
    """Hooks, environment files and the scripts of CI are clean."""
    scripts = find_scripts("bash", "sh", "dash")
    assert len([script for script in scripts if script.is_relative_to(ELEMENTS)]) > 3
    sourced = [path for path in walk_files() if path.suffix == ".bash" and path not in scripts]
    expect_clean(lint_shell(scripts, sourced))


@pytest.mark.allow_process("dib-lint")
def test_dib_lint_finds_nothing() -> None:
    """The elements keep diskimage-builder's own rules."""
    expect_clean(lint_dib(ELEMENTS))


@pytest.mark.allow_process("ruff", "mypy", "shellcheck", "dib-lint")
def test_planted_faults_are_found(tmp_path: Path) -> None:
    """Each linter runs for real: a file that is wrong is complained about."""
    (tmp_path / "a.py").write_text("import os\nx=  1\ndef f(a): return a\n")
    (tmp_path / "tool").write_text("#!/usr/bin/python3\nimport os\n")
    assert "F401" in lint_ruff(tmp_path)
    assert "x = 1" in lint_format(tmp_path)
    assert "no-untyped-def" in lint_mypy("a.py", cwd=tmp_path)
    hook = tmp_path / "elements/one/install.d/50-one"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/bash\nrm -rf $1\n")
    assert "SC2086" in lint_shell([hook], [])
    assert "SC2086" in lint_shell([], [hook])
    complaints = lint_dib(tmp_path / "elements")
    assert "lacks a README.rst" in complaints
    assert "is not executable" in complaints


def test_a_missing_linter_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason that CI shows when it turns the skip into a failure."""
    monkeypatch.setitem(globals(), "TOOL_PATH", "/nowhere")
    with pytest.raises(pytest.skip.Exception, match=r"shellcheck is missing: .* Debian package shellcheck"):
        require_linter("shellcheck")
