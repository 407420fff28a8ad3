"""tables.py: ledgers of other versions, and damaged ones."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fakes.reports import ROLES, Clock, claim, document, find

from imagegen.server.evidence import MALFORMED, Reason
from imagegen.server.ledger import Ledger, Unclaimable
from imagegen.server.tables import VERSION, Unusable, explain_unusable

# The tables of version 1, and what a ledger of it may hold.
VERSION_1 = """
CREATE TABLE IF NOT EXISTS node (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL DEFAULT '', step TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '', steps TEXT NOT NULL DEFAULT '[]', began REAL, ended REAL, changed REAL,
    revision INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS node_revision ON node (revision);
CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, node TEXT NOT NULL, at REAL NOT NULL, state TEXT NOT NULL,
    step TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS event_node ON event (node, id);
CREATE TABLE IF NOT EXISTS window (node TEXT PRIMARY KEY, closes REAL NOT NULL, claims INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS token (digest TEXT PRIMARY KEY, node TEXT NOT NULL, fate TEXT NOT NULL DEFAULT 'new');
CREATE TABLE IF NOT EXISTS report (at REAL NOT NULL, node TEXT NOT NULL, address TEXT NOT NULL, text TEXT NOT NULL,
    times INTEGER NOT NULL DEFAULT 1, UNIQUE (node, address, text));

INSERT INTO node (name, role, state, changed) VALUES ('ctl', 'controller', 'ready', 500), ('c-1', 'compute', '', NULL),
    ('c-2', 'compute', '', NULL);
INSERT INTO node (name, role, state, steps) VALUES ('c-3', 'compute', 'waiting', '[1, "x"]');
UPDATE node SET revision = 1;
INSERT INTO window VALUES ('c-1', 2000, 3, 1), ('c-2', 2000, 1, 0);
INSERT INTO token VALUES ('d', 'c-3', 'used'), ('e', 'c-2', 'new');
INSERT INTO report VALUES (900, 'c-1', '10.0.0.9', 'a second claim', 4),
    (901, '', '10.0.0.8', 'a status was refused: x', 7);
PRAGMA user_version = 1;
"""


def test_a_ledger_of_version_1_is_taken_over(tmp_path: Path, clock: Clock) -> None:
    """States, windows, refusals, and who has claimed or was ready; its tokens are void."""
    old = sqlite3.connect(tmp_path / "ledger.sqlite")
    old.executescript(VERSION_1)
    old.close()
    for _ in range(2):
        taken = Ledger(tmp_path / "ledger.sqlite", clock)
        taken.enter_nodes({**ROLES, "c-3": "compute"})
        assert taken.gives_seeds and find(taken, "ctl")["state"] == "ready"
        assert find(taken, "ctl")["heard"] == 500
        assert find(taken, "c-3")["heard"] is None
        assert find(taken, "c-1")["seed"] == {"closes": 2000.0, "claims": 3, "used": 1}
        told = [(row["node"], row["address"], row["text"], row["times"]) for row in taken.read()["reports"]]
        assert told == [
            ("c-1", "10.0.0.9", "a second claim (4 times)", 4), ("", "10.0.0.8", f"{MALFORMED} (7 times)", 7)
        ]  # fmt: skip
        taken.close()
    taken = Ledger(tmp_path / "ledger.sqlite", clock)
    assert taken.open_windows(["ctl", "c-1", "c-2", "c-3"], 60, 1, new_only=True) == ["ctl", "c-1", "c-3"]


# The tables of version 2 that differ from today's.
VERSION_2 = """
CREATE TABLE former (node TEXT PRIMARY KEY, closes REAL NOT NULL, claims INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0);
INSERT INTO former SELECT node, closes, claims, used FROM window;
DROP TABLE window;
ALTER TABLE former RENAME TO window;
PRAGMA user_version = 2;
"""


def test_a_ledger_of_version_2_is_taken_over(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """With all that it knows. Nobody wrote down who armed a window: none of a node that has a seed outlives a start."""
    ledger.set_gives_seeds(True)
    ledger.open_windows(ROLES, 60, 3)
    claim(ledger, "c-1")
    ledger.record(document("c-1", "working", "role"))
    ledger.refuse("c-2", Reason.GIVEN, "192.0.2.1", "a second claim")
    before = ledger.read()
    ledger._db.executescript(VERSION_2)
    ledger.close()
    for _ in range(2):
        taken = Ledger(tmp_path / "ledger.sqlite", clock)
        assert taken.read() == before and taken.gives_seeds
        taken.close()
    taken = Ledger(tmp_path / "ledger.sqlite", clock)
    assert taken.open_windows(ROLES, 60, 1, new_only=True) == ["c-1"]
    with pytest.raises(Unclaimable, match="the window of c-1 closed"):
        claim(taken, "c-1", "again")
    assert find(taken, "c-2")["seed"] == {"closes": 1060.0, "claims": 3, "used": 0}


def test_a_ledger_of_a_later_version_is_let_be(tmp_path: Path, ledger: Ledger) -> None:
    """It may hold what this version would lose."""
    ledger._db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(Unusable) as caught:
        ledger.reopen()
    told = explain_unusable(ledger.path, caught.value)
    assert str(ledger.path) in told.message and "newer imagegen" in told.message


@pytest.mark.parametrize("where", [0, 4096])
def test_a_damaged_ledger_is_named_with_its_cure(tmp_path: Path, where: int) -> None:
    """A file that is none, and one whose pages are garbage; not with a traceback."""
    made = Ledger(tmp_path / "ledger.sqlite")
    made.enter_nodes(ROLES)
    made.close()
    data = bytearray(made.path.read_bytes())
    data[where:] = b"\xa5" * (len(data) - where)
    made.path.write_bytes(data)
    with pytest.raises(Unusable) as caught:
        Ledger(made.path).enter_nodes(ROLES)
    told = explain_unusable(made.path, caught.value)
    assert f"{made.path} is damaged" in told.message
    assert "move" in told.hint and "imagegen serve --arm NODE" in told.hint
