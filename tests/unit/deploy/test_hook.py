"""The hook that puts the network boot into an initramfs, with stand-ins for Python and for initramfs-tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from repository import ELEMENTS

HOOK = ELEMENTS / "imagegen-deploy/static/etc/initramfs-tools/hooks/imagegen-deploy"
FUNCTIONS = """\
copy_exec() { echo "exec $*"; }
copy_file() { echo "file $*"; }
manual_add_modules() { echo "modules $*"; }
command() { echo "/bin/$2"; }
"""
PYTHON = """\
#!/bin/sh
case "$*" in
*compileall*) echo compiled ;;
*) printf '/usr/lib/a.py\\n/usr/lib/b c.so\\n'; exit {rc} ;;
esac
"""


def run_hook(place: Path, rc: int) -> subprocess.CompletedProcess[str]:
    """The hook as mkinitramfs runs it, where Python ends with that return code after it named two modules."""
    python, functions, hook = place / "python3", place / "hook-functions", place / "hook"
    python.write_text(PYTHON.format(rc=rc))
    python.chmod(0o755)
    functions.write_text(FUNCTIONS)
    text = HOOK.read_text()
    for name, stand_in in (
        ("/usr/share/initramfs-tools/hook-functions", functions),
        ("/usr/bin/python3)", f"{python})"),
    ):
        assert name in text
        text = text.replace(name, str(stand_in))
    hook.write_text(text)
    for name in ("python3.13", "imagegen-deploy", "imagegen-node"):
        (place / "initramfs/usr/lib" / name).mkdir(parents=True)
    environment = {"PATH": "/usr/bin:/bin", "DESTDIR": str(place / "initramfs")}
    return subprocess.run(["sh", hook], env=environment, capture_output=True, text=True)


@pytest.mark.allow_process("sh")
def test_every_module_that_python_names_is_copied(tmp_path: Path) -> None:
    """Shared objects with what they need, sources as they are, then all is compiled."""
    done = run_hook(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["file module /usr/lib/a.py", "exec /usr/lib/b c.so", "compiled"]


@pytest.mark.allow_process("sh")
def test_a_python_that_fails_ends_the_hook(tmp_path: Path) -> None:
    """An initramfs without the modules would be made, and found out at a node's boot."""
    done = run_hook(tmp_path, 1)
    assert done.returncode == 1
    assert "file" not in done.stdout and "compiled" not in done.stdout
