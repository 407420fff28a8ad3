"""reach.py: which command runs where."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from imagegen.base.commands import Completed
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import reach

NODE = load_cluster(None).nodes[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The commands that would run; each ends with 7."""
    asked: list[Any] = []

    def run(argv: Sequence[str], *, input: bytes | None, ok: Sequence[int], timeout: float | None) -> Completed:
        asked.append((list(argv), input, timeout))
        assert {0, 1, 255, -9} <= set(ok)
        return Completed(argv, 7, b"", b"")

    def follow(argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float) -> Completed:
        asked.append((list(argv), input, timeout))
        each_line(b"line\n")
        return Completed(argv, 7, b"", b"")

    monkeypatch.setattr(reach, "run", run)
    monkeypatch.setattr(reach, "follow", follow)
    return asked


def test_here_is_imagegens_own_python(asked: list[Any]) -> None:
    """This machine may have no other; a later word is an argument and stays."""
    lines: list[bytes] = []
    assert reach.Here().execute(["python3", "-", "python3"], b"text", 5).returncode == 7
    assert reach.Here().follow(["python3", "-c", "x"], lines.append, input=b"text", timeout=9).returncode == 7
    assert reach.Here().execute(["true"]).returncode == 7
    assert asked == [
        ([sys.executable, "-", "python3"], b"text", 5),
        ([sys.executable, "-c", "x"], b"text", 9),
        (["true"], None, None),
    ]
    assert lines == [b"line\n"]


def test_there_is_root_by_ssh_that_asks_nothing(asked: list[Any]) -> None:
    """A password would be asked for behind the progress; words come through the shell as they are."""
    words = ["runuser", "-u", "nova", "--", "a b", "$HOME", "it's"]
    assert reach.Login(NODE).execute(words, timeout=30).returncode == 7
    ((argv, given, seconds),) = asked
    assert (argv[0], argv[-2], given, seconds) == ("ssh", "root@192.168.56.11", None, 30)
    assert "BatchMode=yes" in argv and any(word.startswith("ConnectTimeout=") for word in argv)
    assert shlex.split(argv[-1]) == words
