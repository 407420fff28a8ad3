"""evidence.py: what a flood from many forged addresses can do to what is written down. Nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagegen.server.evidence import MALFORMED, MOST_ADDRESSES, MOST_MALFORMED, Reason
from imagegen.server.ledger import MOST_REPORTS, Ledger

OWN = "10.0.0.1"


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger(Path(":memory:"), lambda: 1000.0)
    made.enter_nodes({f"c-{number}": "compute" for number in range(3)})
    return made


def told(ledger: Ledger) -> list[tuple[str, str, str]]:
    return [(row["node"], row["address"], row["text"]) for row in ledger.read()["reports"]]


def count(ledger: Ledger, table: str) -> int:
    number: int = ledger._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return number


def test_a_flood_of_malformed_statuses_hides_no_claim(ledger: Ledger) -> None:
    """From ever so many addresses: one row each up to a bound, then one for all others, below the refused claims."""
    ledger.refuse("c-1", Reason.GIVEN, "10.9.9.9", "a second claim", OWN)
    for number in range(3 * MOST_MALFORMED):
        ledger.refuse_malformed(f"10.1.{number // 250}.{number % 250}")
    assert told(ledger)[0] == ("c-1", "10.9.9.9", "a second claim")
    assert count(ledger, "malformed") == MOST_MALFORMED + 1
    rows = ledger.read()
    assert len(rows["reports"]) == MOST_REPORTS and rows["more"] == MOST_MALFORMED + 2 - MOST_REPORTS
    assert {row["text"].partition(" (")[0] for row in rows["reports"][1:]} == {MALFORMED}


@pytest.mark.parametrize("reason", list(Reason))
def test_a_flood_of_refusals_leaves_what_was_there(ledger: Ledger, reason: Reason) -> None:
    """Of the same reason and node: the rows before stay, the node's own address gets one, the others are counted."""
    ledger.refuse("c-1", reason, "10.9.9.9", "the first", OWN)
    for number in range(5 * MOST_ADDRESSES):
        ledger.refuse("c-1", reason, f"10.1.0.{number}", f"forged {number}", OWN)
    ledger.refuse("c-1", reason, OWN, "from the node's own address", OWN)
    ledger.refuse("c-1", reason, "10.9.9.9", "the first", OWN)
    rows = told(ledger)
    assert ("c-1", "10.9.9.9", "the first (2 times)") in rows
    assert ("c-1", OWN, "from the node's own address") in rows
    last = 5 * MOST_ADDRESSES - 1
    rest = last + 1 - (MOST_ADDRESSES - 1)
    assert ("c-1", f"10.1.0.{last} and others", f"forged {last} ({rest} times)") in rows
    assert count(ledger, "refused") == MOST_ADDRESSES + 2


def test_one_reason_takes_no_room_from_another(ledger: Ledger) -> None:
    """False statuses and false scripts fill their own rows; a refused claim gets one, and stands above them."""
    for reason in (Reason.STATUS_ADDRESS, Reason.SCRIPT_MAC, Reason.CLAIM_ADDRESS):
        for number in range(200):
            ledger.refuse("c-1", reason, f"10.1.0.{number}", "forged", OWN)
    ledger.refuse("c-1", Reason.GIVEN, "10.9.9.9", "a second claim", OWN)
    ledger.refuse("c-2", Reason.CLAIM_ADDRESS, "10.9.9.8", "another node's", "10.0.0.2")
    rows = told(ledger)
    assert rows[0] == ("c-1", "10.9.9.9", "a second claim") and ("c-2", "10.9.9.8", "another node's") in rows


def test_no_refusal_hides_who_got_a_seed(ledger: Ledger) -> None:
    """Granted claims have a table of their own, which nothing but a claim writes."""
    ledger.open_windows(["c-1"], 60, 1)
    ledger.claim("c-1", "10.66.0.1", "t", ledger.find_boot("c-1"))
    for number in range(500):
        ledger.refuse("c-1", Reason.GIVEN, f"10.1.{number // 250}.{number % 250}", "again", OWN)
        ledger.refuse_malformed(f"10.1.{number // 250}.{number % 250}")
    ledger.enter_nodes({"c-2": "compute"})  # nor does the node's leaving
    assert ledger.read()["grants"] == [{"node": "c-1", "address": "10.66.0.1", "at": 1000.0, "times": 1}]


def test_what_is_refused_names_no_more_than_it_may(ledger: Ledger) -> None:
    """Whatever a stranger chooses, a cluster has a bounded number of rows."""
    strangers = [f"10.{a}.{b}.1" for a in range(20) for b in range(20)]
    reasons: list[Any] = list(Reason)
    for number, address in enumerate(strangers):
        for node in ("", "c-0", "c-1", "c-2"):
            ledger.refuse(node, reasons[number % len(reasons)], address, f"text {number}", OWN)
    assert count(ledger, "refused") <= 4 * len(reasons) * (MOST_ADDRESSES + 2)
