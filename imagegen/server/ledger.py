"""What `imagegen serve` must remember: each node's status and timeline, who may claim a seed, and who tried to.

One SQLite file; a restart continues with it, and a second process may open windows in it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from imagegen.server.evidence import (
    Reason,
    note_grant,
    note_malformed,
    note_refusal,
    read_grants,
    read_refusals,
)
from imagegen.server.tables import Unusable, open_tables, read_list

BEAT = 60.0  # seconds within which a node reports again (the agent's post.py)
READY_BEAT = 300.0  # the same for one that is ready
MISSED = 3  # missed reports in a row that make a node lost
DEGRADED = "degraded: "  # how the detail of a ready node that does not do all its work begins (decision 35)
LISTENING = 10.0  # seconds; how exactly it is known until when the server listened
BOOTED = "role"  # the agent's first step: the node has what it needs, a token is worth nothing any more
MOST_EVENTS = 300  # of one node's boot; a boot that goes well has about 50
MOST_REPORTS = 100  # refusals to show; the ledger keeps them all
_NEXT = "(SELECT coalesce(max(revision), 0) + 1 FROM node)"


class Unclaimable(Exception):
    """The seed is not given out; the text says why, to the node and to the operator."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Ledger:
    """The file. Times are seconds since 1970 by this machine's clock. Every method raises Unusable."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path, self._now = path, now
        self._db = open_tables(path, now())

    def close(self) -> None:
        self._db.close()

    def reopen(self) -> Ledger:
        """The same file once more, for another thread."""
        return Ledger(self.path, self._now)

    def enter_nodes(self, roles: Mapping[str, str]) -> None:
        """Makes these the ledger's nodes, by name and role; keeps what it knows about those that it has already."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for row in self._db.execute("SELECT name FROM node").fetchall():
                if row["name"] not in roles:
                    for table, column in (("node", "name"), ("event", "node"), ("window", "node"), ("used", "node")):
                        self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (row["name"],))  # noqa: S608
            for name, role in roles.items():
                self._db.execute(
                    f"INSERT INTO node (name, role, boot, revision) VALUES (?, ?, ?, {_NEXT})"  # noqa: S608
                    " ON CONFLICT (name) DO UPDATE SET role = excluded.role",
                    # Random, so that no token from a lost ledger becomes valid again.
                    (name, role, secrets.randbits(31)),
                )

    # who may claim a seed

    def open_windows(self, names: Iterable[str], seconds: float, claims: int, *, new_only: bool = False) -> list[str]:
        """Each of these nodes may claim its seed this often, for this many seconds from now; earlier claims are void.

        The nodes are armed by name, unless `new_only`: then open windows stay as they are, used claims included, but of
        a node that has claimed or been ready only one that was armed by name stays, and none is opened. Returns the
        nodes that may not claim for that reason.
        """
        now, left_out = self._now(), []
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            settled = {row["node"] for row in self._db.execute("SELECT node FROM settled")}
            for name in names:
                row = self._db.execute("SELECT * FROM window WHERE node = ?", (name,)).fetchone()
                is_open = row and row["closes"] > now and row["used"] < row["claims"]
                if new_only and name in settled and not (is_open and row["armed"]):
                    self._close_unarmed(name)
                    left_out.append(name)
                    continue
                if new_only and is_open:
                    continue
                self._db.execute(
                    "INSERT INTO window (node, closes, claims, armed) VALUES (?, ?, ?, ?) ON CONFLICT (node)"
                    " DO UPDATE SET closes = excluded.closes, claims = excluded.claims, used = 0,"
                    " armed = excluded.armed",
                    (name, now + seconds, claims, not new_only),
                )
                self._touch(name)
        return left_out

    def _close_unarmed(self, name: str) -> None:
        """The node has what it needs: only a window that somebody armed by name stays, as a live node's does."""
        now = self._now()
        closed = self._db.execute(
            "UPDATE window SET closes = ? WHERE node = ? AND closes > ? AND used < claims AND NOT armed",
            (now, name, now),
        )
        if closed.rowcount:
            self._touch(name)

    def close_windows(self) -> None:
        """Closes all windows: no seed is given out any more."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for row in self._db.execute("SELECT node FROM window").fetchall():
                self._touch(row["node"])
            self._db.execute("DELETE FROM window")

    def find_boot(self, name: str) -> int:
        """The number of the node's boot, for which tokens are made."""
        boot: int = self._db.execute("SELECT boot FROM node WHERE name = ?", (name,)).fetchone()["boot"]
        return boot

    def claim(self, name: str, address: str, token: str, boot: int) -> None:
        """Uses up a genuine token of that boot and one claim of the node's window, and syncs that to the disk.

        Raises Unclaimable.
        """
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._check_claim(name, token, boot)
                self._db.execute("INSERT INTO used (digest, node) VALUES (?, ?)", (_digest(token), name))
                self._db.execute("UPDATE window SET used = used + 1 WHERE node = ?", (name,))
                note_grant(self._db, name, address, self._now())
                self._settle(name)
                self._touch(name)
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    def _check_claim(self, name: str, token: str, boot: int) -> None:
        if self._db.execute("SELECT 1 FROM used WHERE digest = ?", (_digest(token),)).fetchone():
            raise Unclaimable(Reason.GIVEN, f"the seed of {name} was already given out for this token")
        if boot != self.find_boot(name):
            raise Unclaimable(Reason.VOID, f"this token is void: {name} has booted since")
        window = self._db.execute("SELECT * FROM window WHERE node = ?", (name,)).fetchone()
        if window is None:
            raise Unclaimable(Reason.CLOSED, f"no window is open for {name}")
        if window["closes"] <= self._now():
            ago = self._now() - window["closes"]
            raise Unclaimable(Reason.CLOSED, f"the window of {name} closed {ago:.0f} seconds ago")
        if window["used"] >= window["claims"]:
            raise Unclaimable(Reason.USED_UP, f"{name} has claimed its seed as often as it may ({window['claims']})")

    def _settle(self, name: str) -> None:
        """Records that the node has had a seed: no server will open its window again without --arm."""
        self._db.execute("INSERT OR IGNORE INTO settled (node, at) VALUES (?, ?)", (name, self._now()))

    # what happens

    def begin_boot(self, name: str, step: str, detail: str, *, reports_here: bool = True) -> None:
        """A machine booted as that node: restarts its timeline. A node that reports elsewhere is not waited for."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._restart(name)
            self._enter(name, "working", step, detail, [])
            if not reports_here:
                self._db.execute("UPDATE node SET heard = NULL WHERE name = ?", (name,))

    def record(self, document: Mapping[str, Any]) -> bool:
        """Takes a checked status document of a known node; returns whether something changed."""
        name, state, step = document["node"], document["state"], document["step"]
        steps = document["steps"]
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._db.execute("SELECT * FROM node WHERE name = ?", (name,)).fetchone()
            if (row["state"], row["step"], row["detail"]) == (state, step, document["detail"]):
                # No new revision: whoever reads what changed would get the whole fleet once a minute.
                self._db.execute("UPDATE node SET heard = ? WHERE name = ?", (self._now(), name))
                return False
            # A node that was ready and goes through its steps once more has booted again.
            again = row["state"] == "ready" and state != "ready" and len(steps) < len(read_list(row["steps"]))
            if row["began"] is None or again:
                self._restart(name)
            self._enter(name, state, step, document["detail"], steps)
            if step == BOOTED or state == "ready":
                self._end_tokens(name)
            if state == "ready":
                self._settle(name)
                self._close_unarmed(name)
        return True

    def refuse(self, name: str, reason: Reason, address: str, text: str, own: str = "") -> None:
        """Records a refusal; `own` is the node's address, if there is such a node."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            note_refusal(self._db, name, reason, address, text, self._now(), own)

    def refuse_malformed(self, address: str) -> None:
        """Records an invalid status."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            note_malformed(self._db, address, self._now())

    def _end_tokens(self, name: str) -> None:
        """Those that were made until now are void."""
        self._db.execute("UPDATE node SET boot = boot + 1 WHERE name = ?", (name,))
        self._db.execute("DELETE FROM used WHERE node = ?", (name,))

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
            "UPDATE node SET step = :step, detail = :detail, steps = :steps, changed = :now, heard = :now,"
            # Its clock stops when it first reports that it is ready or has failed.
            " ended = CASE WHEN :state NOT IN ('ready', 'failed') THEN NULL"
            " WHEN state = :state THEN coalesce(ended, :now) ELSE :now END, state = :state WHERE name = :name",
            {"name": name, "state": state, "step": step, "detail": detail, "steps": json.dumps(steps), "now": now},
        )
        self._touch(name)

    def _touch(self, name: str) -> None:
        self._db.execute(f"UPDATE node SET revision = {_NEXT} WHERE name = ?", (name,))  # noqa: S608

    # whether a server is listening: only then can a report be missed

    def begin_listening(self) -> None:
        """Records that a server has begun to listen."""
        now = self._now()
        self._db.execute("INSERT OR REPLACE INTO listening (id, since, until) VALUES (1, ?, ?)", (now, now))

    def keep_listening(self) -> None:
        """Records that it is still listening, every LISTENING seconds; does nothing if the disk is full."""
        with suppress(Unusable):
            self._db.execute("UPDATE listening SET until = ?", (self._now(),))

    # queries

    def find_document(self, name: str) -> dict[str, Any] | None:
        """`{state, step, detail, steps}` of a node's newest status document; None: it has not reported yet."""
        row = self._db.execute("SELECT state, step, detail, steps FROM node WHERE name = ?", (name,)).fetchone()
        return {**dict(row), "steps": read_list(row["steps"])} if row and row["state"] else None

    def read(self, since: int = 0) -> dict[str, Any]:
        """`{now, listened, revision, nodes, heard, grants, reports, more}`: nodes that changed after that revision, who
        got a seed, who was refused what, and how many more rows of refusals there are.

        `listened` is when the server last listened: now, while it runs. `heard` has `{heard, due}` for every node that
        has ever reported: when it did so last, and after what time it is lost.
        """
        with self._db:
            self._db.execute("BEGIN")  # one state of the file for all that follows
            keys = ("name", "role", "state", "step", "detail", "began", "ended", "changed")
            rows = self._db.execute(
                f"SELECT {', '.join(keys)} FROM node WHERE revision > ? ORDER BY name",  # noqa: S608
                (since,),
            ).fetchall()
            changed = "WHERE node IN (SELECT name FROM node WHERE revision > ?)"
            events = self._db.execute(
                f"SELECT node, at, state, step FROM event {changed} ORDER BY id",  # noqa: S608
                (since,),
            ).fetchall()
            windows = self._db.execute(
                f"SELECT node, closes, claims, used FROM window {changed}",  # noqa: S608
                (since,),
            ).fetchall()
            revision = self._db.execute("SELECT coalesce(max(revision), 0) AS revision FROM node").fetchone()[0]
            grants = read_grants(self._db)
            reports, more = read_refusals(self._db, MOST_REPORTS)
            beats = self._db.execute("SELECT name, state, heard FROM node WHERE heard IS NOT NULL").fetchall()
            listening = self._db.execute("SELECT since, until FROM listening").fetchone()
        now = self._now()
        listens_since, listened = listening or (0.0, now)
        if now - listened < 2 * LISTENING:
            listened = now
        nodes = {
            row["name"]: {**{key: row[key] for key in keys}, "timeline": [], "seed": None, "claimed": []}
            for row in rows
        }
        for event in events:
            nodes[event["node"]]["timeline"].append({key: event[key] for key in ("at", "state", "step")})
        for window in windows:
            nodes[window["node"]]["seed"] = {key: window[key] for key in ("closes", "claims", "used")}
        heard = {
            row["name"]: {"heard": row["heard"], "due": find_due(row["state"], row["heard"], listens_since)}
            for row in beats
        }
        for name, node in nodes.items():
            node |= heard.get(name, {"heard": None, "due": None})
        for grant in grants:
            if grant["node"] in nodes:
                nodes[grant["node"]]["claimed"].append({key: grant[key] for key in ("address", "at", "times")})
        return {
            "now": now,
            "listened": listened,
            "heard": heard,
            "revision": revision,
            "nodes": list(nodes.values()),
            "grants": grants,
            "reports": reports,
            "more": more,
        }

    # whether the server gives out seeds at all, for a command that wants to open a window

    @property
    def gives_seeds(self) -> bool:
        row = self._db.execute("SELECT value FROM setting WHERE name = 'gives_seeds'").fetchone()
        return bool(row and row["value"])

    def set_gives_seeds(self, value: bool) -> None:
        self._db.execute("INSERT OR REPLACE INTO setting VALUES ('gives_seeds', ?)", (value,))

    @property
    def has_nodes(self) -> bool:
        """Whether a server ever worked with it: none has a cluster without nodes."""
        return self._db.execute("SELECT 1 FROM node").fetchone() is not None

    def find_unknown(self, names: Iterable[str]) -> list[str]:
        """The names that are not nodes of the ledger."""
        known = {row["name"] for row in self._db.execute("SELECT name FROM node")}
        return [name for name in names if name not in known]


def find_due(state: str, heard: float, since: float) -> float:
    """When a node in that state counts as lost, if it was last `heard` then by a server that listens `since` then."""
    return max(heard, since) + MISSED * (READY_BEAT if state == "ready" else BEAT)


def show_state(node: Mapping[str, Any], at: float) -> str:
    """The state of a node of Ledger.read() as shown at that time, which may be lost or degraded.

    A node that failed and then went silent stays failed: somebody has to look at it anyway.
    """
    if node["state"] != "failed" and node["due"] is not None and at > node["due"]:
        return "lost"
    if node["state"] == "ready" and node["detail"].startswith(DEGRADED):
        return "degraded"
    return str(node["state"])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
