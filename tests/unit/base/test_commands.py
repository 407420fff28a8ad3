"""follow(): with real processes, since what is at stake is how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from imagegen.base import commands
from imagegen.base.commands import follow
from imagegen.base.errors import CommandFailed, MachineLacks

pytestmark = pytest.mark.allow_process("sh", "no-such-command")
SECRET = b"Canary-p@ss"


def lives(pid: int) -> bool:
    """Whether the process runs: one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_lines_come_as_they_are_printed() -> None:
    """Each at once and not at the end, the last one also without an end of line."""
    times: list[tuple[bytes, float]] = []
    done = follow(
        ["sh", "-c", "echo one; sleep 0.7; printf two; exit 3"],
        lambda line: times.append((line, time.monotonic())),
        input=b"",
        timeout=60,
    )
    assert [line for line, _ in times] == [b"one\n", b"two"]
    assert times[1][1] - times[0][1] > 0.4
    assert done.returncode == 3


def test_input_goes_in_and_errors_come_out_apart() -> None:
    """Input of any size: nobody reads while it is written."""
    lines: list[bytes] = []
    given = SECRET + bytes(300_000)
    done = follow(["sh", "-c", "wc -c; head -c 200000 /dev/zero >&2"], lines.append, input=given, timeout=60)
    assert lines == [b"%d\n" % len(given)]
    assert (done.returncode, len(done.stderr)) == (0, 200_000)


def test_what_takes_too_long_is_ended() -> None:
    """With all that it started; the command's words are in the message and its input is not."""
    pids: list[int] = []
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"`sh -c .*` did not end within 1 seconds") as raised:
        follow(["sh", "-c", "sleep 300 & echo $!; wait"], lambda line: pids.append(int(line)), input=SECRET, timeout=1)
    assert time.monotonic() - begun < 30
    assert SECRET.decode() not in raised.value.message
    while lives(pids[0]):
        assert time.monotonic() - begun < 30
        time.sleep(0.05)


def test_what_a_signal_ended_was_not_late() -> None:
    """As when memory is short: it is no success and no lack of time."""
    done = follow(["sh", "-c", "echo last words >&2; kill -9 $$"], lambda line: None, input=b"", timeout=60)
    assert (done.returncode, done.stderr) == (-9, b"last words\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_waits_for_the_commands_clean_up(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever is raised meanwhile: the command gets SIGINT, and its clean-up its time."""

    def fail(line: bytes) -> None:
        raise error

    script = f"trap 'sleep 0.5; echo done >{tmp_path}/clean; exit 130' INT; echo ready; while :; do sleep 0.1; done"
    with pytest.raises(error):
        follow(["sh", "-c", script], fail, input=b"", timeout=60)
    assert (tmp_path / "clean").read_text() == "done\n"


def test_a_clean_up_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CLEAN_UP_SECONDS", 0.5)
    pids: list[int] = []

    def fail(line: bytes) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(["sh", "-c", "trap '' INT; echo $$; while :; do sleep 0.1; done"], fail, input=b"", timeout=60)
    assert not lives(pids[0])


def test_a_terminals_interrupt_reaches_the_clean_up_once(tmp_path: Path) -> None:
    """The command is in a session of its own, so Ctrl-C reaches it by its parent alone."""
    groups: list[int] = []
    follow(["sh", "-c", "echo $$"], lambda line: groups.append(os.getsid(int(line))), input=b"", timeout=60)
    assert groups[0] != os.getsid(0)


def test_nothing_is_left_of_a_command_that_ended() -> None:
    """No thread that waits for its time, which would keep the whole program from ending."""
    before = threading.active_count()
    follow(["sh", "-c", "true"], lambda line: None, input=b"", timeout=3600)
    begun = time.monotonic()
    while threading.active_count() > before:
        assert time.monotonic() - begun < 10
        time.sleep(0.05)


def test_a_missing_command_is_named() -> None:
    with pytest.raises(MachineLacks, match="no-such-command is missing"):
        follow(["no-such-command"], lambda line: None, input=b"", timeout=1)


def test_signals_are_as_before() -> None:
    """It handles none by itself: end_on_signals() does."""
    before = signal.getsignal(signal.SIGINT)
    follow(["sh", "-c", "true"], lambda line: None, input=b"", timeout=60)
    assert signal.getsignal(signal.SIGINT) is before
