"""The agent's status: what goes out where, that it never waits for a device, and that no password is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from fakes.status import STATUS_SCHEMA
from hypothesis import given
from hypothesis import strategies as st
from imagegen_node import cli
from imagegen_node.engine import retry
from imagegen_node.engine import status as module
from imagegen_node.engine.errors import CommandFailed, LeaseLost, Refused, Waiting
from imagegen_node.engine.mask import SHORTEST, find_secrets, mask
from imagegen_node.engine.status import Outlet, Status
from imagegen_node.engine.steps import Step, run_step

# what is said


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Status file, console and port in a directory; the devices are files, so that the last line is in them."""
    for name in ("STATUS_FILE", "CONSOLE", "PORT"):
        monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(retry, "STATUS_FILE", tmp_path / "STATUS_FILE")
    for name in ("CONSOLE", "PORT"):
        (tmp_path / name).touch()
    return tmp_path


def read_status(said: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((said / "STATUS_FILE").read_text())
    jsonschema.validate(document, STATUS_SCHEMA)
    return document


def test_a_change_goes_out_at_once_everywhere(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file and the port have the document, the console and the journal a readable line."""
    status = Status("node1", "compute")
    status.begin("libvirt")
    status.wait("libvirt's socket")
    document = read_status(said)
    assert (document["state"], document["step"], document["detail"]) == ("waiting", "libvirt", "libvirt's socket")
    assert json.loads((said / "PORT").read_text().splitlines()[0]) == document
    assert (said / "CONSOLE").read_bytes() == b"imagegen: node1 (compute) waiting libvirt: libvirt's socket\r\n"
    assert capsys.readouterr().out.splitlines()[-1] == "imagegen: node1 (compute) waiting libvirt: libvirt's socket"


def test_the_status_file_can_be_read_by_anybody_and_is_never_half_there(said: Path) -> None:
    """It is renamed into its place; nothing else is left beside it."""
    Status("node1", "compute").begin("libvirt")
    assert (said / "STATUS_FILE").stat().st_mode & 0o777 == 0o644
    assert {path.name for path in said.iterdir()} == {"STATUS_FILE", "CONSOLE", "PORT"}


def test_the_same_again_is_said_once(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that waits for the same thing a hundred times is one line."""
    status = Status("node1", "compute")
    status.begin("libvirt")
    for _ in range(100):
        status.wait("libvirt's socket")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_text_of_many_lines_is_one_line(said: Path) -> None:
    """On the console every change is one line, and no text is endless."""
    status = Status("node1", "compute")
    status.begin("libvirt")
    status.wait("one\n two\r\n" + "x" * 5000)
    assert read_status(said)["detail"].startswith("one two xxx")
    assert len(read_status(said)["detail"]) == module.LONGEST_DETAIL


def test_a_step_that_waited_is_done_later(said: Path) -> None:
    """steps keeps one entry a step, with its last state and return code."""
    status = Status("node1", "compute")
    outcomes: list[Any] = [Waiting("x"), CommandFailed("virsh", 3, "no"), Refused("y"), None]
    seen = []

    def run() -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    run_step(Step("libvirt", run), status, lambda _: seen.append(dict(read_status(said)["steps"][-1])))
    status.ready("")
    assert [(step["state"], step["rc"]) for step in seen] == [("waiting", None), ("waiting", 3), ("failed", None)]
    assert [(step["name"], step["state"], step["rc"]) for step in read_status(said)["steps"]] == [
        ("libvirt", "done", 0)
    ]


def test_since_is_when_the_state_began(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another detail of the same state does not move it."""
    times = iter(f"2026-01-01T00:00:0{second}Z" for second in range(9))
    monkeypatch.setattr(Status, "_now", staticmethod(lambda: next(times)))
    status = Status("node1", "compute")
    status.begin("libvirt")
    status.wait("one")
    first = read_status(said)["since"]
    status.wait("two")
    assert read_status(said)["since"] == first
    status.ready("")
    assert read_status(said)["since"] > first


# the engine


def run_outcomes(outcomes: list[BaseException | None], status: Status) -> list[float]:
    """The pauses that a step takes which ends so each time."""
    pauses: list[float] = []

    def run() -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    run_step(Step("step", run), status, pauses.append)
    return pauses


def test_waiting_pauses_grow_and_stay_bounded(said: Path) -> None:
    """A second at first, ten at most: a step that waits for days still notices soon."""
    pauses = run_outcomes([*[Waiting("x")] * 30, None], Status("node1", "compute"))
    assert pauses[0] == 1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 10


def test_a_step_says_failed_after_four_failures_in_a_row(said: Path) -> None:
    """Waiting in between starts the count anew."""
    states = []
    status = Status("node1", "compute")
    outcomes: list[Any] = [*[OSError("x")] * 3, Waiting("y"), *[OSError("x")] * 4, None]

    def run() -> None:
        states.append(status.state)
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    run_step(Step("step", run), status, lambda _: None)
    assert states == ["working", *["waiting"] * 7, "failed"]
    assert status.state == "working"


def test_an_error_of_the_agents_own_does_not_end_it(said: Path) -> None:
    """Whatever a step raises, the node says what happened and tries again."""
    status = Status("node1", "compute")
    details = []
    outcomes: list[Any] = [KeyError("hosts"), None]

    def run() -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    run_step(Step("step", run), status, lambda _: details.append(status.detail))
    assert details == ["trying again after: KeyError: 'hosts'"]


def test_a_lost_lease_ends_the_step_and_takes_it_out_of_the_list(said: Path) -> None:
    """The step may be another node's by now: it is not done here, and nobody waits for it here."""
    status = Status("node1", "controller")
    with pytest.raises(LeaseLost):
        run_outcomes([LeaseLost("the lease, which this node has lost")], status)
    assert read_status(said)["steps"] == []
    assert read_status(said)["state"] == "waiting"


# devices


@contextmanager
def open_pipe(path: Path) -> Iterator[int]:
    """The reading end of a pipe with a name; it stands in for the virtio-serial port."""
    os.mkfifo(path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield handle
    finally:
        os.close(handle)


def read_all(handle: int) -> bytes:
    found = b""
    try:
        while data := os.read(handle, 1 << 16):
            found += data
    except BlockingIOError:
        pass
    return found


def fill(path: Path) -> int:
    """Fills a pipe to the brim; how many bytes that took."""
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    size = 0
    try:
        while True:
            size += os.write(handle, b"x")
    except BlockingIOError:
        return size
    finally:
        os.close(handle)


def test_a_line_goes_to_the_device(tmp_path: Path) -> None:
    """Nothing is left to be sent."""
    with open_pipe(tmp_path / "port") as port:
        outlet = Outlet(tmp_path / "port")
        outlet.send("one\n")
        outlet.send("two\n")
        assert read_all(port) == b"one\ntwo\n"
        assert outlet.flush()


def test_a_full_device_gets_the_newest_line_later(tmp_path: Path) -> None:
    """Lines that were overtaken are left out, the newest is not lost, and nobody waited."""
    with open_pipe(tmp_path / "port") as port:
        size = fill(tmp_path / "port")
        outlet = Outlet(tmp_path / "port")
        for number in range(100):
            outlet.send(f"line {number}\n")
        assert not outlet.flush()
        read_all(port)
        assert outlet.flush()
        assert size > 0
        assert read_all(port).splitlines()[-1] == b"line 99"


def test_a_line_that_was_taken_in_part_is_finished_first(tmp_path: Path) -> None:
    """The reader sees whole lines: the rest of the old one comes before the newest."""
    with open_pipe(tmp_path / "port") as port:
        outlet = Outlet(tmp_path / "port")
        long = "a" * (fill(tmp_path / "port") + 1000)
        read_all(port)
        outlet.send(long + "\n")
        outlet.send("old\n")
        outlet.send("new\n")
        found = read_all(port)
        while not outlet.flush():
            found += read_all(port)
        found += read_all(port)
        assert found == f"{long}\nnew\n".encode()


@pytest.mark.parametrize("listening", [True, False])
def test_a_device_that_is_absent_costs_nothing(tmp_path: Path, listening: bool) -> None:
    """No virtio port, or one that nobody has opened on the other side: the line is kept for when there is."""
    outlet = Outlet(tmp_path / "port")
    if not listening:
        os.mkfifo(tmp_path / "port")
    outlet.send("one\n")
    assert not outlet.flush()
    (tmp_path / "port").unlink(missing_ok=True)
    with open_pipe(tmp_path / "port") as port:
        assert outlet.flush()
        assert read_all(port) == b"one\n"


def test_an_agent_that_ends_gives_its_last_line_time(tmp_path: Path) -> None:
    """A full device is given ten seconds; an absent one none."""
    slept: list[float] = []
    with open_pipe(tmp_path / "port") as port:
        fill(tmp_path / "port")
        outlet = Outlet(tmp_path / "port")
        outlet.send("ready\n")

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                read_all(port)

        outlet.drain(sleep)
        assert read_all(port) == b"ready\n"
    assert len(slept) == 3
    fill_again = Outlet(tmp_path / "absent")
    fill_again.send("ready\n")
    fill_again.drain(sleep)
    assert len(slept) == 3


def test_a_device_that_stays_full_does_not_hold_the_agent(tmp_path: Path) -> None:
    """After ten seconds it ends without."""
    slept: list[float] = []
    with open_pipe(tmp_path / "port"):
        fill(tmp_path / "port")
        outlet = Outlet(tmp_path / "port")
        outlet.send("ready\n")
        outlet.drain(slept.append)
    assert sum(slept) == pytest.approx(10)


# passwords

passwords = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=40)


@given(passwords)
def test_no_spelling_of_a_secret_comes_through(password: str) -> None:
    """As it is, in a URL, in JSON and in a repr: none of it is in the text."""
    secrets = find_secrets({"identity": {"users": [{"name": "nova", "password": password}]}})
    for spelling in (password, quote(password, safe=""), json.dumps(password), repr(password)):
        assert spelling.strip("'\"") not in mask(f"it said {spelling} at the end", secrets)


@given(passwords)
def test_a_password_in_a_url_is_masked_without_being_known(password: str) -> None:
    """What a library prints of a connection URL, percent-encoded or not."""
    for word in (quote(password, safe=""), password):
        text = mask(f"(mysql+pymysql://nova:{word}@10.0.0.5:3306/nova) refused", ())
        assert text == "(mysql+pymysql://nova:***@10.0.0.5:3306/nova) refused"


def test_every_secret_of_a_node_is_known() -> None:
    """Passwords at any depth, the administrator's, and the key of the file digests."""
    node = {
        "files_key": "f" * 64,
        "messaging": {"password": "broker-password"},
        "database": {"schemas": [{"name": "nova", "password": "schema-password"}]},
        "identity": {"admin_password": "admin-password", "users": [{"password": "user-password"}]},
        "region": "RegionOne",
    }
    secrets = find_secrets(node)
    for word in ("f" * 64, "broker-password", "schema-password", "admin-password", "user-password"):
        assert word in secrets
    assert "RegionOne" not in secrets


def test_a_password_too_short_to_hide_does_not_garble_texts() -> None:
    """Masking every `a` would only make texts unreadable."""
    assert find_secrets({"password": "a" * (SHORTEST - 1)}) == []


def test_an_external_identity_without_a_password_is_no_secret() -> None:
    """admin_password is null then."""
    assert find_secrets({"identity": {"admin_password": None}}) == []


plain = st.characters(exclude_categories=["C", "Z"], exclude_characters=":@") | st.sampled_from(" \n\t")


@given(st.text(plain, max_size=100))
def test_other_texts_come_through_unchanged(text: str) -> None:
    """Masking touches secrets, and what is no text, and nothing else."""
    assert mask(text, find_secrets({"password": "a-password-that-is-not-there"})) == text


def test_what_services_answer_steers_no_terminal(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, C1 controls and bidirectional overrides arrive as text in every place."""
    status = Status("node1", "controller")
    status.begin("identity")
    status.wait("Keystone said \x1b]0;x\x07 \x9b2J \u202e \u2028 \x85 end")
    shown = json.loads((said / "PORT").read_text().splitlines()[-1])["detail"]
    assert shown == read_status(said)["detail"]
    assert shown == r"Keystone said \x1b]0;x\x07 \x9b2J \u202e \u2028 \x85 end"
    assert all(c.isprintable() or c in "\r\n" for c in capsys.readouterr().out + (said / "CONSOLE").read_text())


def test_what_a_failing_command_prints_is_masked_in_every_place(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File, port, console and journal."""
    status = Status("node1", "controller")
    status.secrets = find_secrets({"password": "s3cret word"})
    outcomes: list[Any] = [CommandFailed("nova-manage", 1, "x s3cret word y rabbit://a:b%2Fc@h"), None]

    def run() -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    texts: list[str] = []
    run_step(Step("step", run), status, lambda _: texts.extend(path.read_text() for path in said.iterdir()))
    everything = "".join(texts) + capsys.readouterr().out
    assert "x *** y rabbit://a:***@h" in everything
    assert "s3cret" not in everything
    assert "b%2Fc" not in everything


# the command


@pytest.mark.parametrize(("state", "code"), [("ready", 0), ("waiting", 1), ("working", 1), ("failed", 2)])
def test_status_is_an_exit_code_and_a_text(
    said: Path, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    """For a person and for a script."""
    status = Status("node1", "compute")
    status.begin("libvirt")
    {
        "ready": lambda: status.ready(""),
        "waiting": lambda: status.wait("libvirt's socket"),
        "working": lambda: status.done("x"),
        "failed": lambda: status.fail("no", 3),
    }[state]()
    capsys.readouterr()
    assert cli.main(["status"]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"node1 (compute) is {state} since ")
    assert "libvirt" in out
    assert cli.main(["status", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == read_status(said)


def test_a_degraded_node_has_an_exit_code_of_its_own(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is ready, for whoever waits for that, and not well, for whoever watches."""
    Status("node1", "compute").degraded("nova-compute is deaf")
    assert read_status(said)["state"] == "ready"
    assert cli.main(["status"]) == 4
    out = capsys.readouterr().out
    assert "node1 (compute) is ready since " in out and "\ndegraded: nova-compute is deaf\n" in out


def test_no_status_yet_is_said(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The agent has not begun: 3, and where to look."""
    assert cli.main(["status"]) == 3
    assert "journalctl -u imagegen-node" in capsys.readouterr().err


def test_the_help_is_enough_for_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    """States, files, log, what to do after a new seed, and the exit codes."""
    for arguments in (["--help"], ["status", "--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    for word in (
        "waiting",
        "failed",
        "/run/imagegen/status.json",
        "journalctl",
        "cloud-init.log",
        "reboot",
        "exit codes",
    ):
        assert word in out
