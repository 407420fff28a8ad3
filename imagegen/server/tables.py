"""The ledger's tables in SQLite: how they are made and taken over from earlier versions, and what in them is damage."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from imagegen.base.errors import MachineLacks
from imagegen.server.evidence import SCHEMA, take_over
from imagegen.server.statuses import STATES

VERSION = 3  # of the tables, as PRAGMA user_version; before version 2, that was 0 or 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL DEFAULT '', step TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '', steps TEXT NOT NULL DEFAULT '[]', began REAL, ended REAL, changed REAL,
    revision INTEGER NOT NULL DEFAULT 0, boot INTEGER NOT NULL DEFAULT 0, heard REAL);
CREATE INDEX IF NOT EXISTS node_revision ON node (revision);
CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, node TEXT NOT NULL, at REAL NOT NULL, state TEXT NOT NULL,
    step TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS event_node ON event (node, id);
CREATE TABLE IF NOT EXISTS window (node TEXT PRIMARY KEY, closes REAL NOT NULL, claims INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0, armed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS used (digest TEXT PRIMARY KEY, node TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS settled (node TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS listening (id INTEGER PRIMARY KEY CHECK (id = 1), since REAL NOT NULL, until REAL NOT NULL);
"""
_ADDED = ("boot INTEGER NOT NULL DEFAULT 0", "heard REAL")  # columns of node that version 1 has not
# Likewise of window, and version 2. Whether somebody armed a node by name was not written down: nobody did.
_ARMED = "armed INTEGER NOT NULL DEFAULT 0"
# Of a ledger of version 1, what says that a node claimed its seed or was ready.
_SETTLED_BEFORE = """
SELECT name FROM node WHERE state = 'ready' OR ended IS NOT NULL UNION SELECT node FROM event WHERE state = 'ready'
UNION SELECT node FROM window WHERE used > 0 UNION SELECT node FROM token WHERE fate = 'used'
"""


Unusable = sqlite3.Error
"""The file cannot be used: it belongs to another user, its disk is full, or it is damaged; see explain_unusable()."""


class _Newer(Unusable):
    """A newer imagegen made it."""


class _Damaged(Unusable):
    """A value is none that imagegen wrote."""


# What the columns of that name hold, in every table. SQLite itself lets any column have any value.
_TIMES = frozenset(("at", "since", "until", "first", "closes", "began", "ended", "changed", "heard"))
_TEXTS = frozenset(("name", "role", "state", "step", "detail", "node", "address", "newest", "text"))
_NUMBERS = frozenset(("revision", "boot", "claims", "used", "times", "value", "armed"))
_UNSET = frozenset(("began", "ended", "changed", "heard"))  # may be NULL
_LAST = 1e11  # seconds since 1970 that a date can show


def _read_row(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> sqlite3.Row:
    """A row whose values are of their columns' kinds. Raises Unusable."""
    for (name, *_), value in zip(cursor.description, values, strict=True):
        if name in _TEXTS:
            good = type(value) is str and (name != "state" or not value or value in STATES)
        elif name in _TIMES:
            good = (value is None and name in _UNSET) or (type(value) is float and 0 <= value < _LAST)
        else:
            good = name not in _NUMBERS or type(value) is int
        if not good:
            raise _Damaged(f"it has no such {name}: {str(value)[:40]!r}")
    return sqlite3.Row(cursor, values)


def read_list(text: object) -> list[Any]:
    """The steps of a node. Raises Unusable."""
    try:
        found = json.loads(text)  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as error:
        raise _Damaged("the steps of a node are no JSON") from error
    if not isinstance(found, list):
        raise _Damaged("the steps of a node are no list")
    return found


_NO_ACCESS = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH)


def explain_unusable(path: Path, error: Exception) -> MachineLacks:
    """What is wrong with the ledger at that path, and the cure."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # of an extended code: the primary one
    if isinstance(error, _Newer):
        return MachineLacks(f"{path} was written by a newer imagegen", "use the newer one, or move the file away")
    if isinstance(error, OSError) or code in _NO_ACCESS:
        return MachineLacks(f"{path} cannot be opened ({error})", "run this as the user who runs `imagegen serve`")
    if code == sqlite3.SQLITE_FULL:
        return MachineLacks(f"{path} cannot be written: its disk is full", "free some space there")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MachineLacks(f"{path} is held by another process", "stop that process, then run this again")
    if code == sqlite3.SQLITE_IOERR:
        return MachineLacks(f"{path} cannot be read or written ({error})", "see the kernel's log: dmesg")
    # Broken pages, missing tables or columns, values of another kind.
    return MachineLacks(
        f"{path} is damaged ({error})",
        f"stop `imagegen serve`, move {path} and its -wal and -shm files away, and run "
        "`imagegen serve --arm NODE`: without its ledger it does not know who has claimed a seed",
    )


def open_tables(path: Path, now: float) -> sqlite3.Connection:
    """The tables of that file, made if there are none. `now` is seconds since 1970. Raises Unusable."""
    db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    db.row_factory = _read_row
    try:
        # Survives the process at any moment. Only claims must survive the machine too: see Ledger.claim().
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        _make_tables(db, now)
    except Unusable:
        db.close()
        raise
    return db


def _make_tables(db: sqlite3.Connection, now: float) -> None:
    """Makes the tables, or takes over those of an earlier version."""
    if (version := _read_version(db)) >= VERSION:
        if version > VERSION:
            raise _Newer(f"version {version}")
        return
    with db:
        db.execute("BEGIN IMMEDIATE")
        if (version := _read_version(db)) >= VERSION:  # another process was quicker
            return
        old = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'report'").fetchone()
        if old:
            for column in _ADDED:
                db.execute(f"ALTER TABLE node ADD COLUMN {column}")
        if old or version == 2:
            db.execute(f"ALTER TABLE window ADD COLUMN {_ARMED}")
        for statement in f"{_SCHEMA};{SCHEMA}".split(";"):
            db.execute(statement)
        if old:
            db.execute(f"INSERT INTO settled SELECT name, ? FROM ({_SETTLED_BEFORE})", (now,))  # noqa: S608
            db.execute("UPDATE node SET heard = changed")
            take_over(db, db.execute("SELECT * FROM report ORDER BY at").fetchall())
            db.execute("DROP TABLE report")
            db.execute("DROP TABLE token")
            db.execute("INSERT INTO setting VALUES ('gives_seeds', ?)", (version,))
        db.execute(f"PRAGMA user_version = {VERSION}")


def _read_version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version
