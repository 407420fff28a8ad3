"""provisioning.py: whatever became of the ledger's file is one sentence with its cure, to whoever uses it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.cli.run import run_command
from imagegen.server.ledger import Ledger
from imagegen.server.provisioning import LEDGER, use_ledger
from imagegen.server.tables import VERSION

PAGE = 4096


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """out/serve after a server has ended there, in the current directory."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "out/serve"
    place.mkdir(parents=True)
    ledger = Ledger(place / LEDGER)
    ledger.enter_nodes({f"node{number}": "compute" for number in range(200)})
    for number in range(200):
        step = {"name": "disk", "state": "done", "seconds": 1.0, "rc": 0}
        word = {"state": "working", "step": "disk", "detail": "", "steps": [step]}
        ledger.record({"node": f"node{number}", **word})
    ledger.close()
    return place


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:PAGE])


def overwrite(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:PAGE] + b"\xff" * (len(data) - PAGE))


def replace_whole(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def put_another(version: int) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        execute(f"CREATE TABLE songs (title TEXT); PRAGMA user_version = {version}")(path)

    return put


def execute(statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        other = sqlite3.connect(path)
        other.executescript(statements)
        other.close()

    return change


DAMAGES = {
    "cut off": cut_off,
    "overwritten": overwrite,
    "no database": replace_whole,
    "another database": put_another(VERSION),
    "another database of version 2": put_another(2),
    "a table is missing": execute("DROP TABLE refused"),
    "a column is missing": execute("ALTER TABLE node RENAME COLUMN heard TO seen"),
    "a time is text": execute("UPDATE node SET heard = 'abc'"),
    "a time is no date": execute("UPDATE node SET began = 9e99"),
    "an event has no time": execute("UPDATE event SET at = x'00'"),
    "a state is none": execute("UPDATE node SET state = 'happy'"),
    "a text is bytes": execute("UPDATE node SET detail = x'80'"),
    "a text is not in UTF-8": execute("UPDATE node SET step = CAST(x'80' AS TEXT)"),
    "a count is text": execute("INSERT INTO window (node, closes, claims) VALUES ('node1', 5, 'many')"),
    "a refusal is a number": execute("INSERT INTO malformed VALUES (x'00', x'00', 1, 1, 1)"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("watch", [[], ["--watch"], ["--timeout", "1s", "--output", "json"]])
def test_status_names_a_damaged_ledger_with_its_cure(
    damage: Callable[[Path], None], watch: list[str], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(directory / LEDGER)
    assert run_command(["status", *watch]) == 3
    said = capsys.readouterr().err
    assert f"out/serve/{LEDGER} is damaged" in said and "`imagegen serve --arm NODE`" in said


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_so_does_a_server(damage: Callable[[Path], None], directory: Path) -> None:
    """At its start, or when it comes to the place."""
    damage(directory / LEDGER)
    with pytest.raises(MachineLacks, match="is damaged") as caught:
        with use_ledger(directory, make=True) as ledger:
            ledger.enter_nodes({"node1": "compute"})
            ledger.read()
    assert "`imagegen serve --arm NODE`" in caught.value.hint


@pytest.mark.parametrize("steps", ["'{'", "'{}'", "NULL", "x'00'", "5"])
def test_steps_that_are_none_are_damage(steps: str, directory: Path) -> None:
    """A node that is ready and speaks again is compared with them."""
    execute(
        "CREATE TABLE free AS SELECT * FROM node; DROP TABLE node; ALTER TABLE free RENAME TO node;"
        f"UPDATE node SET state = 'ready', steps = {steps}"
    )(directory / LEDGER)
    with pytest.raises(MachineLacks, match="is damaged"), use_ledger(directory) as ledger:
        ledger.find_document("node1")
    with pytest.raises(MachineLacks, match="is damaged"), use_ledger(directory) as ledger:
        ledger.record({"node": "node1", "state": "working", "step": "", "detail": "", "steps": []})


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_ledger_is_none(there: bool, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A code of 0 would mean that every node is ready."""
    for path in directory.iterdir():
        path.unlink()
    if there:
        (directory / LEDGER).touch()
    assert run_command(["status"]) == 2
    assert "nothing has been served from out yet" in capsys.readouterr().err
    with pytest.raises(BadUsage), use_ledger(directory):
        pass
    with use_ledger(directory, make=True) as ledger:
        ledger.enter_nodes({"node1": "compute"})
    with use_ledger(directory) as ledger:
        assert ledger.has_nodes


def test_what_is_no_fault_of_the_ledger_stays_as_it_is(directory: Path) -> None:
    with pytest.raises(ValueError, match="mine"), use_ledger(directory):
        raise ValueError("mine")
