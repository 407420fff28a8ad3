"""What `imagegen serve` must not forget: each node's status and timeline, who may claim a seed, and who tried to.

One SQLite file; a restart goes on with it, and a second process may open windows in it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

STATES = ("waiting", "working", "ready", "failed")
MOST_EVENTS = 300  # of one node's boot; a boot that goes well has about 50
MOST_REPORTS = 1000

_SCHEMA = """
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
CREATE TABLE IF NOT EXISTS report (id INTEGER PRIMARY KEY, at REAL NOT NULL, node TEXT NOT NULL, address TEXT NOT NULL,
    text TEXT NOT NULL);
"""
_NEXT = "(SELECT coalesce(max(revision), 0) + 1 FROM node)"


Unusable = sqlite3.OperationalError
"""The file cannot be opened or written: it is another user's, or its disk is full."""


class Unclaimable(Exception):
    """The seed is not given out; the text says why, to the node and to the operator."""


class Ledger:
    """The file. Times are seconds since 1970 by this machine's clock. Every method raises Unusable."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        # Survives the process at any moment. Only claims must survive the machine too: see claim().
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def enter_nodes(self, roles: Mapping[str, str]) -> None:
        """Makes the ledger's nodes these, by name and role; of those that it had, it keeps what it knows."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for row in self._db.execute("SELECT name FROM node").fetchall():
                if row["name"] not in roles:
                    for table, column in (("node", "name"), ("event", "node"), ("window", "node"), ("token", "node")):
                        self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (row["name"],))  # noqa: S608
            for name, role in roles.items():
                self._db.execute(
                    f"INSERT INTO node (name, role, revision) VALUES (?, ?, {_NEXT})"  # noqa: S608
                    " ON CONFLICT (name) DO UPDATE SET role = excluded.role",
                    (name, role),
                )

    # who may claim a seed

    def open_windows(self, names: Iterable[str], seconds: float, claims: int, *, closed_only: bool = False) -> None:
        """Each of these nodes may claim its seed so often, for so many seconds from now; what was before is void.

        With `closed_only` a window that is open stays as it is, claims that were used included.
        """
        now = self._now()
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for name in names:
                row = self._db.execute("SELECT closes FROM window WHERE node = ?", (name,)).fetchone()
                if closed_only and row and row["closes"] > now:
                    continue
                self._db.execute(
                    "INSERT INTO window (node, closes, claims) VALUES (?, ?, ?) ON CONFLICT (node)"
                    " DO UPDATE SET closes = excluded.closes, claims = excluded.claims, used = 0",
                    (name, now + seconds, claims),
                )
                self._touch(name)

    def close_windows(self) -> None:
        """From now on no seed is given out."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for row in self._db.execute("SELECT node FROM window").fetchall():
                self._touch(row["node"])
            self._db.execute("DELETE FROM window")

    def make_token(self, name: str) -> str:
        """A new token for one claim of the node's seed; those before it are void. claim() asks whether it may."""
        token = secrets.token_urlsafe(24)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("UPDATE token SET fate = 'superseded' WHERE node = ? AND fate = 'new'", (name,))
            # The refusals of old tokens need not be told apart for ever.
            self._db.execute(
                "DELETE FROM token WHERE node = ? AND rowid NOT IN"
                " (SELECT rowid FROM token WHERE node = ? ORDER BY rowid DESC LIMIT 20)",
                (name, name),
            )
            self._db.execute("INSERT INTO token (digest, node) VALUES (?, ?)", (_digest(token), name))
        return token

    def claim(self, name: str, token: str) -> None:
        """Uses the token and one claim of the node's window, on the disk for certain. Raises Unclaimable."""
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                found = self._db.execute(
                    "SELECT fate FROM token WHERE digest = ? AND node = ?", (_digest(token), name)
                ).fetchone()
                if found is None:
                    raise Unclaimable(f"this token was never given out for {name}")
                if found["fate"] == "used":
                    raise Unclaimable(f"the seed of {name} was given out for this token already")
                if found["fate"] == "superseded":
                    raise Unclaimable(f"{name} fetched its script again since, which made this token void")
                window = self._db.execute("SELECT * FROM window WHERE node = ?", (name,)).fetchone()
                if window is None:
                    raise Unclaimable(f"no window is open for {name}")
                if window["closes"] <= self._now():
                    raise Unclaimable(f"the window of {name} closed {self._now() - window['closes']:.0f} seconds ago")
                if window["used"] >= window["claims"]:
                    raise Unclaimable(f"{name} has claimed its seed as often as it may ({window['claims']})")
                self._db.execute("UPDATE token SET fate = 'used' WHERE digest = ?", (_digest(token),))
                self._db.execute("UPDATE window SET used = used + 1 WHERE node = ?", (name,))
                self._touch(name)
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    # what happens

    def begin_boot(self, name: str, step: str, detail: str) -> None:
        """A machine booted as that node: its timeline begins anew."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._restart(name)
            self._enter(name, "working", step, detail, [])

    def record(self, document: Mapping[str, Any]) -> bool:
        """Takes a checked status document of a known node; whether something changed."""
        name, state, step = document["node"], document["state"], document["step"]
        steps = document["steps"]
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._db.execute("SELECT * FROM node WHERE name = ?", (name,)).fetchone()
            if (row["state"], row["step"], row["detail"]) == (state, step, document["detail"]):
                return False
            # A node that was ready and goes through its steps once more has booted again.
            again = row["state"] == "ready" and state != "ready" and len(steps) < len(json.loads(row["steps"]))
            if row["began"] is None or again:
                self._restart(name)
            self._enter(name, state, step, document["detail"], steps)
        return True

    def report(self, name: str, address: str, text: str) -> None:
        """Writes down what was refused."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO report (at, node, address, text) VALUES (?, ?, ?, ?)", (self._now(), name, address, text)
            )
            self._db.execute(
                "DELETE FROM report WHERE id <= (SELECT max(id) FROM report) - ?",
                (MOST_REPORTS,),
            )

    def _restart(self, name: str) -> None:
        self._db.execute("DELETE FROM event WHERE node = ?", (name,))
        self._db.execute("UPDATE node SET began = ?, ended = NULL WHERE name = ?", (self._now(), name))

    def _enter(self, name: str, state: str, step: str, detail: str, steps: Sequence[Any]) -> None:
        now = self._now()
        last = self._db.execute(
            "SELECT state, step FROM event WHERE node = ? ORDER BY id DESC LIMIT 1", (name,)
        ).fetchone()
        if last is None or (last["state"], last["step"]) != (state, step):
            self._db.execute("INSERT INTO event (node, at, state, step) VALUES (?, ?, ?, ?)", (name, now, state, step))
            self._db.execute(
                "DELETE FROM event WHERE node = ? AND id NOT IN"
                " (SELECT id FROM event WHERE node = ? ORDER BY id DESC LIMIT ?)",
                (name, name, MOST_EVENTS),
            )
        self._db.execute(
            "UPDATE node SET state = ?, step = ?, detail = ?, steps = ?, changed = ?,"
            " ended = CASE WHEN ? = 'ready' THEN coalesce(ended, ?) END WHERE name = ?",
            (state, step, detail, json.dumps(steps), now, state, now, name),
        )
        self._touch(name)

    def _touch(self, name: str) -> None:
        self._db.execute(f"UPDATE node SET revision = {_NEXT} WHERE name = ?", (name,))  # noqa: S608

    # what is told

    def find_document(self, name: str) -> dict[str, Any] | None:
        """`{state, step, detail, steps}` of a node's newest status document; None: it said nothing yet."""
        row = self._db.execute("SELECT state, step, detail, steps FROM node WHERE name = ?", (name,)).fetchone()
        return {**dict(row), "steps": json.loads(row["steps"])} if row and row["state"] else None

    def read(self, since: int = 0) -> dict[str, Any]:
        """`{now, revision, nodes, reports}`: nodes that changed after that revision, and the newest reports."""
        rows = self._db.execute("SELECT * FROM node WHERE revision > ? ORDER BY name", (since,)).fetchall()
        revision = self._db.execute("SELECT coalesce(max(revision), 0) FROM node").fetchone()[0]
        reports = self._db.execute("SELECT at, node, address, text FROM report ORDER BY id DESC LIMIT 20").fetchall()
        return {
            "now": self._now(),
            "revision": revision,
            "nodes": [self._describe(row) for row in rows],
            "reports": [dict(row) for row in reports],
        }

    def _describe(self, row: sqlite3.Row) -> dict[str, Any]:
        name = row["name"]
        events = self._db.execute("SELECT at, state, step FROM event WHERE node = ? ORDER BY id", (name,))
        window = self._db.execute("SELECT closes, claims, used FROM window WHERE node = ?", (name,)).fetchone()
        keys = ("name", "role", "state", "step", "detail", "began", "ended", "changed")
        return {
            **{key: row[key] for key in keys},
            "timeline": [dict(event) for event in events],
            "seed": dict(window) if window else None,
        }


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


MOST_STEPS = 200
LONGEST = {"node": 63, "role": 63, "step": 100, "detail": 1000}  # characters


def check_document(data: bytes, roles: Mapping[str, str]) -> dict[str, Any]:
    """The status document (version 1 of the design) in a POST's body. Raises ValueError that says what is wrong."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.get("version") != 1:
        raise ValueError("no status document of version 1")
    for key, longest in LONGEST.items():
        if not isinstance(document.get(key), str) or len(document[key]) > longest:
            raise ValueError(f"{key} must be a text of at most {longest} characters")
        document[key].encode()  # half a surrogate pair is no text
    if document.get("state") not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}")
    steps: Sequence[Any] = document.get("steps", ())
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        raise ValueError(f"steps must be a list of at most {MOST_STEPS}")
    if document["node"] not in roles:
        raise ValueError("no node of this cluster")
    if document["role"] not in ("", roles[document["node"]]):
        raise ValueError("not the node's role")
    return document
