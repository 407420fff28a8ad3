"""The end of a node's log, as lines and as its newest status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base import console
from imagegen.base.console import newest_document, plain_lines, read_steps, read_tail

documents = st.dictionaries(st.text(), st.integers() | st.text(), max_size=3)


@given(st.lists(documents, min_size=1), st.binary().filter(lambda data: b"\n" not in data))
def test_the_newest_whole_document_counts(said: list[dict[str, object]], half: bytes) -> None:
    """A line that is still being written, or was cut by a reboot, does not hide the one before."""
    lines = b"".join(json.dumps(document).encode() + b"\n" for document in said)
    assert newest_document(lines + half) == said[-1]
    assert newest_document(lines + b'{"state": "rea\n' + half) == said[-1]


@pytest.mark.parametrize("data", [b"", b"\n", b'{"a": 1}', b"[1]\n2\nnull\n", b"\xff\xfe\n"])
def test_no_whole_document_is_none(data: bytes) -> None:
    """Nothing, half a line and what is no object are no status."""
    assert newest_document(data) is None


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that logs for days stays cheap to watch."""
    monkeypatch.setattr(console, "TAIL", 6)
    (tmp_path / "log").write_bytes(b"first\nlast\n")
    assert read_tail(tmp_path / "log") == b"\nlast\n"
    (tmp_path / "log").write_bytes(b"ab\n")
    assert read_tail(tmp_path / "log") == b"ab\n"
    assert read_tail(tmp_path / "none") == b""


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mssh\x1b[0m.\r\n\r\n", ["[  OK  ] Started ssh."]),
        (b"\x1b]0;title\x07a\x1b]3008;start=1\x1b\\b\n", ["ab"]),
        (b"\x1bc\x1b[?25l\x1b[2Jlogin: ", ["login:"]),
        (b"\xc2\x9b2Jc1\xc2\x85\n", ["2Jc1"]),
        (b"caf\xc3\xa9 \xff\tx", ["café \ufffd\tx"]),
        (b"", []),
    ],
)
def test_a_console_is_read_without_control_sequences(data: bytes, lines: list[str]) -> None:
    """Colours, titles and cursor movements of a boot are no part of its lines."""
    assert plain_lines(data) == lines


@given(st.binary())
def test_no_console_can_steer_the_terminal(data: bytes) -> None:
    """Whatever a node writes, no escape reaches the operator's screen."""
    assert not any(c in line for line in plain_lines(data) for c in "\x1b\r\n\x07\x00\x08")


@pytest.mark.parametrize("steps", [None, "x", 7, {"name": "x"}, [1, None, "x", [], {}, {"name": 7}, {"state": "done"}]])
def test_steps_that_are_none_are_left_out(steps: object) -> None:
    """Whatever a node wrote in their place."""
    assert read_steps({"steps": steps}) == [] and read_steps({}) == []


def test_a_step_is_what_its_readers_expect() -> None:
    """Text without control characters, seconds that are a number, a return code or none."""
    wild = {"name": "a\x1bb", "state": ["x"], "seconds": "long", "rc": "1", "more": 1}
    assert read_steps({"steps": [wild, {"name": "c", "state": "done", "seconds": 2, "rc": 3}]}) == [
        {"name": "a b", "state": "['x']", "seconds": 0.0, "rc": None},
        {"name": "c", "state": "done", "seconds": 2.0, "rc": 3},
    ]
