"""Who got a seed, and who was refused what: tables of the ledger from which no flood can push out a row.

An attacker can choose addresses, MAC addresses, paths and bodies. So no row is ever deleted for a new one, and the
number of rows is limited: per node and reason there is always room for the node's own address, there is room for some
others, and one more row counts the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

MOST_ADDRESSES = 16  # per node and reason, each with its own row
MOST_MALFORMED = 256  # addresses that sent an invalid status
MALFORMED = "sent something that is not a status of a node in this cluster"
OTHERS = "others"  # instead of an address: those for which there was no room

SCHEMA = """
CREATE TABLE IF NOT EXISTS granted (node TEXT NOT NULL, address TEXT NOT NULL, at REAL NOT NULL,
    times INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (node, address));
CREATE TABLE IF NOT EXISTS refused (node TEXT NOT NULL, reason TEXT NOT NULL, address TEXT NOT NULL,
    rank INTEGER NOT NULL, newest TEXT NOT NULL, text TEXT NOT NULL, first REAL NOT NULL, at REAL NOT NULL,
    times INTEGER NOT NULL, PRIMARY KEY (node, reason, address));
CREATE INDEX IF NOT EXISTS refused_rank ON refused (rank, at DESC);
CREATE TABLE IF NOT EXISTS malformed (address TEXT PRIMARY KEY, newest TEXT NOT NULL, first REAL NOT NULL,
    at REAL NOT NULL, times INTEGER NOT NULL);
"""


class Reason(StrEnum):
    """Why something was refused. Claims come before scripts and statuses, and what is hardest to forge comes first."""

    GIVEN = "given"  # a second claim with the same token
    USED_UP = "used-up"  # the window has no claim left
    VOID = "void"  # a token of an earlier boot
    CLOSED = "closed"  # no window is open
    NO_SEEDS = "no-seeds"
    CLAIM_MAC = "claim-mac"
    CLAIM_ADDRESS = "claim-address"
    NO_TOKEN = "no-token"  # noqa: S105 - a token that was never made
    UNKNOWN = "unknown"  # no such node
    SCRIPT_MAC = "script-mac"
    STATUS_ADDRESS = "status-address"
    EARLIER = "earlier"  # from an older imagegen, whose ledger did not tell reasons apart


RANK = {reason: number for number, reason in enumerate(Reason)}


def note_grant(db: Any, node: str, address: str, now: float) -> None:
    """Records that a seed was given out. There are at most as many rows as armed claims."""
    db.execute(
        "INSERT INTO granted (node, address, at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET at = excluded.at, times = times + 1",
        (node, address, now),
    )


def note_refusal(
    db: Any, node: str, reason: Reason, address: str, text: str, now: float, own: str = "", times: int = 1
) -> None:
    """Records a refusal, and counts repetitions. `own` is the node's address, which always has a row."""
    held, known = db.execute(
        "SELECT count(*), coalesce(max(address = ?), 0) FROM refused WHERE node = ? AND reason = ?"
        " AND address NOT IN (?, ?)",
        (address, node, reason, OTHERS, own),
    ).fetchone()
    room = address == own or known or held < MOST_ADDRESSES
    db.execute(
        "INSERT INTO refused (node, reason, rank, address, newest, text, first, at, times)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET newest = excluded.newest, text = excluded.text,"
        " at = excluded.at, times = times + excluded.times",
        (node, reason, RANK[reason], address if room else OTHERS, address, text, now, now, times),
    )


def note_malformed(db: Any, address: str, now: float, times: int = 1) -> None:
    """Records an invalid status."""
    known = db.execute("SELECT 1 FROM malformed WHERE address = ?", (address,)).fetchone()
    room = known or db.execute("SELECT count(*) FROM malformed").fetchone()[0] < MOST_MALFORMED
    db.execute(
        "INSERT INTO malformed (address, newest, first, at, times) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET newest = excluded.newest, at = excluded.at, times = times + excluded.times",
        (address if room else OTHERS, address, now, now, times),
    )


def read_grants(db: Any) -> list[dict[str, Any]]:
    """`{node, address, at, times}` of every seed that was given out, newest first."""
    rows = db.execute("SELECT node, address, at, times FROM granted ORDER BY at DESC, node").fetchall()
    return [dict(row) for row in rows]


def read_refusals(db: Any, most: int) -> tuple[list[dict[str, Any]], int]:
    """The rows `{node, address, text, first, at, times}` that matter most, and how many more there are."""
    rows = db.execute("SELECT * FROM refused ORDER BY rank, at DESC LIMIT ?", (most,)).fetchall()
    rows += db.execute(
        "SELECT *, '' AS node, ? AS text FROM malformed ORDER BY at DESC LIMIT ?", (MALFORMED, most - len(rows))
    ).fetchall()
    total = db.execute("SELECT (SELECT count(*) FROM refused) + (SELECT count(*) FROM malformed)").fetchone()[0]
    return [_describe(row) for row in rows], total - len(rows)


def _describe(row: Any) -> dict[str, Any]:
    address = f"{row['newest']} and others" if row["address"] == OTHERS else row["address"]
    text = row["text"] + (f" ({row['times']} times)" if row["times"] > 1 else "")
    return {"address": address, "text": text, **{key: row[key] for key in ("node", "first", "at", "times")}}


def take_over(db: Any, reports: Iterable[Any]) -> None:
    """Converts the rows `{at, node, address, text, times}` of a ledger that had one table for everything."""
    for row in reports:
        if row["text"].startswith("a status was refused"):
            note_malformed(db, row["address"], row["at"], row["times"])
        else:
            told = (row["node"], Reason.EARLIER, row["address"], row["text"], row["at"])
            note_refusal(db, *told, times=row["times"])
