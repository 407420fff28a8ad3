"""The lock of whoever works in a directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.base.lock import Held, hold_lock


class Clock:
    """Time that goes on only while somebody pauses; `then` is called at each pause."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds


def test_the_second_is_told_who_is_first(tmp_path: Path) -> None:
    """Its process and command, once; it gives up after its time and not before."""
    clock, told = Clock(), list[str]()
    with hold_lock(tmp_path / "lock", "build"), pytest.raises(Held, match="imagegen") as caught:
        with hold_lock(tmp_path / "lock", "seed", seconds=9, waiting=told.append, now=clock.now, pause=clock.pause):
            pass
    assert told == [str(caught.value)] == [f"another imagegen (pid {os.getpid()}, `build`)"]
    assert 9 <= clock.time < 10


def test_who_waits_goes_on_when_the_first_has_ended(tmp_path: Path) -> None:
    clock, first = Clock(), hold_lock(tmp_path / "lock", "build")
    first.__enter__()

    def pause(seconds: float) -> None:
        first.__exit__(None, None, None)

    with hold_lock(tmp_path / "lock", "seed", seconds=9, now=clock.now, pause=pause):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} seed\n"


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    """And the lock stays with who has it."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with hold_lock(tmp_path / "lock"):
        with pytest.raises(KeyboardInterrupt), hold_lock(tmp_path / "lock", seconds=9, pause=interrupt):
            pass
        with pytest.raises(Held), hold_lock(tmp_path / "lock"):
            pass


@pytest.mark.parametrize("written", [b"", b"\xff", b"7", b"7 \x1b[2J\n", b"7 build\nmore", b"9" * 60])
def test_what_a_lock_file_says_is_not_trusted(tmp_path: Path, written: bytes) -> None:
    """It may be cut off, or be somebody else's."""
    with hold_lock(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(written)
        with pytest.raises(Held, match=r"^another imagegen$"), hold_lock(tmp_path / "lock"):
            pass


def test_a_planted_link_is_no_lock(tmp_path: Path) -> None:
    """What it leads to is neither emptied nor written to."""
    (tmp_path / "passwd").write_text("root\n")
    (tmp_path / "lock").symlink_to("passwd")
    with pytest.raises(BadUsage, match="is a link"), hold_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "passwd").read_text() == "root\n"
    assert (tmp_path / "lock").readlink() == Path("passwd")


def test_a_lock_is_nobody_elses_to_take(tmp_path: Path) -> None:
    """flock(2) needs no more than an open file."""
    with hold_lock(tmp_path / "lock"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_named_with_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by every other write, and the lock is free again."""

    def full(handle: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        needed = len(f"{os.getpid()} seed\n")
        said = f"{tmp_path / 'lock'}: the disk is full, and {needed} bytes are needed"
        with pytest.raises(MachineLacks, match=said), hold_lock(tmp_path / "lock", "seed"):
            pass
    with hold_lock(tmp_path / "lock"):
        pass
