"""The wheel holds what imagegen needs: it is built, installed into an environment of its own, and used from there."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository import ROOT, walk_files

from imagegen.images.elements import FOR_THIS_MACHINE

pytestmark = pytest.mark.allow_process("python", "imagegen")

SHIPPED = ("elements", "pxe_templates")


def run_checked(words: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    argv = [os.fspath(word) for word in words]
    done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """An environment that has the wheel and the dependencies, and nothing of the checkout."""

    bin: Path
    package: Path

    def call(self, *argv: str, cwd: Path) -> str:
        """Standard output of a command of that environment."""
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"}
        return run_checked([self.bin / argv[0], *argv[1:]], cwd, env)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Builds the wheel from a copy of the sources, installs it, and removes the copy. Asks no package index."""
    work = tmp_path_factory.mktemp("wheel")
    for path in walk_files():
        target = work / "source" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    python, venv = Path(sys.executable).with_name("python"), work / "venv"
    build: list[str | Path] = [
        python,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        work / "dist",
        work / "source",
    ]
    run_checked(build, work)
    shutil.rmtree(work / "source")
    run_checked([python, "-m", "venv", "--without-pip", venv], work)
    (wheel,) = (work / "dist").glob("*.whl")
    pip: list[str | Path] = [python, "-m", "pip", "--python", venv / "bin/python"]
    run_checked([*pip, "install", "--no-index", "--no-deps", wheel], work)
    (site,) = venv.glob("lib/python*/site-packages")
    # Our own packages serve as its dependencies. A .pth file's directory is searched, but its .pth files are not read,
    # so an editable install of the checkout stays out.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return Installed(venv / "bin", site / "imagegen")


def list_shipped(directory: Path) -> dict[str, tuple[bytes, bool]]:
    """Path -> content and whether it may be run, of every file below."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_installed_package_is_not_the_checkout(installed: Installed, tmp_path: Path) -> None:
    """What the other tests here use is the wheel's code: the checkout is on no path."""
    seen = json.loads(
        installed.call(
            "python",
            "-c",
            "import imagegen, json, sys; print(json.dumps([imagegen.__file__, *sys.path]))",
            cwd=tmp_path,
        )
    )
    assert seen[0] == str(installed.package / "__init__.py")
    assert str(ROOT) not in seen


@pytest.mark.parametrize("name", SHIPPED)
def test_data_directories_are_shipped_with_their_run_bits(installed: Installed, name: str) -> None:
    """Every file of the directory is there, unchanged, and hooks can be run."""
    committed = list_shipped(ROOT / name)
    assert committed
    assert list_shipped(installed.package / "_data" / name) == committed
    assert name != "elements" or any(runs for _, runs in committed.values())


def test_data_modules_are_shipped(installed: Installed) -> None:
    """The package's own data, such as releases.yaml and the default cluster, is there."""
    committed = list_shipped(ROOT / "imagegen/data")
    assert "releases.yaml" in committed
    assert list_shipped(installed.package / "data") == committed


def test_the_installed_command_works(installed: Installed, tmp_path: Path) -> None:
    """From nothing to elements and seeds, in an empty directory."""
    schema = json.loads(installed.call("imagegen", "schema", cwd=tmp_path))
    assert schema["type"] == "object"
    installed.call("imagegen", "init", cwd=tmp_path)
    installed.call("imagegen", "validate", cwd=tmp_path)
    installed.call("imagegen", "generate", cwd=tmp_path)
    generated = list_shipped(tmp_path / "out/elements")
    assert not [path for path in generated if path.split("/")[1:2] in [[name] for name in FOR_THIS_MACHINE]]
    for path, (content, runs) in list_shipped(ROOT / "elements").items():
        if path.split("/")[1] not in FOR_THIS_MACHINE:
            assert generated[path] == (content, runs)
    for node in ("linux-node1", "linux-node2"):
        names = sorted(path.name for path in (tmp_path / "out/seeds" / node).iterdir())
        assert names == ["meta-data", "network-config", "user-data"]
