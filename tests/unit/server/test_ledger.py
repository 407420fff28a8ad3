"""ledger.py: windows and tokens, timelines, and what survives a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.reports import ROLES, Clock, claim, document, find

from imagegen.server.evidence import Reason
from imagegen.server.ledger import (
    BEAT,
    MOST_EVENTS,
    READY_BEAT,
    Ledger,
    Unclaimable,
    show_state,
)


def test_a_seed_is_claimed_once(ledger: Ledger) -> None:
    """By its token, within the window; the same token again, and another one after it, are refused with the reason."""
    ledger.open_windows(["c-1"], 60, 1)
    claim(ledger, "c-1", "t")
    with pytest.raises(Unclaimable, match="was already given out for this token"):
        claim(ledger, "c-1", "t")
    with pytest.raises(Unclaimable, match="as often as it may"):
        claim(ledger, "c-1", "u")
    assert find(ledger, "c-1")["seed"] == {"closes": 1060.0, "claims": 1, "used": 1}
    assert find(ledger, "c-1")["claimed"] == [{"address": "10.0.0.1", "at": 1000.0, "times": 1}]


def test_a_live_node_claims_as_often_as_it_was_armed_for(ledger: Ledger) -> None:
    """Each boot takes a token of its own."""
    ledger.open_windows(["c-1"], 60, 3)
    for token in "abc":
        claim(ledger, "c-1", token)
    with pytest.raises(Unclaimable):
        claim(ledger, "c-1", "d")
    assert ledger.read()["grants"] == [{"node": "c-1", "address": "10.0.0.1", "at": 1000.0, "times": 3}]


def test_a_window_closes(ledger: Ledger, clock: Clock) -> None:
    """A token made in time is worth nothing afterwards; a new window makes it good again, as the machine waits."""
    ledger.open_windows(["c-1"], 60, 1)
    clock.time += 61
    with pytest.raises(Unclaimable, match="closed 1 seconds ago"):
        claim(ledger, "c-1")
    ledger.open_windows(["c-1"], 60, 1)
    claim(ledger, "c-1")


def test_without_a_window_nothing_is_claimed(ledger: Ledger) -> None:
    """Also after all were closed."""
    with pytest.raises(Unclaimable, match="no window is open"):
        claim(ledger, "c-1")
    ledger.open_windows(ROLES, 60, 1)
    ledger.close_windows()
    with pytest.raises(Unclaimable, match="no window is open"):
        claim(ledger, "c-1")


def test_a_token_ends_with_its_boot(ledger: Ledger) -> None:
    """The node's agent reports: what was made before is void, and uses no claim up."""
    ledger.open_windows(ROLES, 60, 1)
    boot = ledger.find_boot("c-1")
    ledger.record(document("c-1", "working", "role"))
    with pytest.raises(Unclaimable, match="c-1 has booted since"):
        ledger.claim("c-1", "10.0.0.1", "t", boot)
    claim(ledger, "c-1", "t")


def test_a_restart_gives_no_second_claim(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """What was claimed stays claimed, within the window and after it: only who is armed by name claims again."""
    ledger.open_windows(ROLES, 60, 1)
    claim(ledger, "c-1", "a")
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite", clock)
    again.enter_nodes(ROLES)
    assert again.open_windows(ROLES, 60, 1, new_only=True) == ["c-1"]
    with pytest.raises(Unclaimable, match="as often as it may"):
        claim(again, "c-1", "b")
    clock.time += 61
    assert again.open_windows(ROLES, 60, 1, new_only=True) == ["c-1"]
    with pytest.raises(Unclaimable, match="closed 1 seconds ago"):
        claim(again, "c-1", "b")
    claim(again, "c-2", "c")  # it never claimed
    assert again.open_windows(["c-1"], 60, 1) == []
    claim(again, "c-1", "b")


@pytest.mark.parametrize("later", ["working", "failed", "waiting"])
def test_a_node_that_was_ready_gets_no_window_unasked(tmp_path: Path, ledger: Ledger, clock: Clock, later: str) -> None:
    """Nor after it left the cluster file for a while, whatever it says today."""
    ledger.record(document("c-1", "ready", ""))
    ledger.record(document("c-1", later, "role"))
    ledger.enter_nodes({"ctl": "controller"})
    ledger.enter_nodes(ROLES)
    assert ledger.open_windows(ROLES, 60, 1, new_only=True) == ["c-1"]
    assert find(ledger, "c-1")["seed"] is None and find(ledger, "c-2")["seed"]


@pytest.mark.parametrize("claims", [1, 5])
def test_a_window_that_nobody_armed_ends_when_its_node_is_ready(ledger: Ledger, claims: int) -> None:
    """Its seed came on a medium, or by one of several claims: what is left is of use to somebody else only."""
    assert ledger.open_windows(ROLES, 3600, claims, new_only=True) == []
    revision = ledger.read()["revision"]
    if claims > 1:
        claim(ledger, "c-1", "a")
    ledger.record(document("c-1", "ready", ""))
    assert "c-1" in [node["name"] for node in ledger.read(revision)["nodes"]]
    with pytest.raises(Unclaimable, match="the window of c-1 closed"):
        claim(ledger, "c-1", "b")
    assert ledger.open_windows(ROLES, 3600, claims, new_only=True) == ["c-1"]
    with pytest.raises(Unclaimable, match="the window of c-1 closed"):
        claim(ledger, "c-1", "b")
    claim(ledger, "c-2", "c")


def test_claims_that_are_left_end_with_the_server(ledger: Ledger) -> None:
    """A node that has claimed gets no window at a start, and keeps none that nobody armed."""
    ledger.open_windows(ROLES, 30 * 86400, 5, new_only=True)
    claim(ledger, "c-1", "a")
    claim(ledger, "c-1", "b")
    assert ledger.open_windows(ROLES, 3600, 1, new_only=True) == ["c-1"]
    with pytest.raises(Unclaimable, match="the window of c-1 closed"):
        claim(ledger, "c-1", "c")
    assert find(ledger, "c-2")["seed"] == {"closes": 1000.0 + 30 * 86400, "claims": 5, "used": 0}


def test_a_window_without_a_claim_left_says_so_after_a_restart(ledger: Ledger) -> None:
    """That is why it gives nothing; when it closes no longer matters."""
    ledger.open_windows(ROLES, 60, 1, new_only=True)
    claim(ledger, "c-1", "a")
    ledger.record(document("c-1", "ready", ""))
    assert ledger.open_windows(ROLES, 60, 1, new_only=True) == ["c-1"]
    with pytest.raises(Unclaimable, match="as often as it may"):
        claim(ledger, "c-1", "b")


def test_a_live_node_keeps_the_window_that_it_was_armed_for(ledger: Ledger) -> None:
    """It is ready after each boot, and claims at the next one; also after a restart of the server."""
    ledger.open_windows(["c-1"], 60, 9)
    for token in "abc":
        claim(ledger, "c-1", token)
        ledger.record(document("c-1", "working", "role"))
        ledger.record(document("c-1", "ready", "", 7))
        assert ledger.open_windows(ROLES, 60, 1, new_only=True) == []
    assert find(ledger, "c-1")["seed"] == {"closes": 1060.0, "claims": 9, "used": 3}


def test_a_window_that_was_armed_for_more_stays_open(ledger: Ledger) -> None:
    """A live node claims at each boot; a restart of the server takes nothing from it."""
    ledger.open_windows(["c-1"], 60, 9)
    claim(ledger, "c-1", "a")
    assert ledger.open_windows(ROLES, 60, 1, new_only=True) == []
    assert find(ledger, "c-1")["seed"] == {"closes": 1060.0, "claims": 9, "used": 1}


def test_a_window_opened_by_another_process_counts_at_once(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """`imagegen serve --arm` beside the server that is at work; whoever watches sees it."""
    before = ledger.read()["revision"]
    other = Ledger(tmp_path / "ledger.sqlite", clock)
    other.open_windows(["c-2"], 60, 1)
    assert [node["name"] for node in ledger.read(before)["nodes"]] == ["c-2"]
    claim(ledger, "c-2")


def test_a_used_token_is_kept_as_its_digest(tmp_path: Path, ledger: Ledger) -> None:
    ledger.open_windows(["c-1"], 60, 1)
    claim(ledger, "c-1", "a-token-that-was-used")
    ledger.close()
    assert b"a-token-that-was-used" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_boot_has_a_timeline(ledger: Ledger, clock: Clock) -> None:
    """From the script on, through both programs that report, until ready; then its time stands still."""
    ledger.begin_boot("c-1", "script", "fetched")
    for count, (state, step) in enumerate([("working", "disk"), ("working", "image"), ("waiting", "image")]):
        clock.time += 1
        ledger.record(document("c-1", state, step, count))
    clock.time += 1
    ledger.record(document("c-1", "working", "role"))  # the agent begins with its own list of steps
    clock.time += 5
    ledger.record(document("c-1", "ready", "", 7))
    clock.time += 100
    node = find(ledger, "c-1")
    assert [(event["at"], event["state"], event["step"]) for event in node["timeline"]] == [
        (1000.0, "working", "script"),
        (1001.0, "working", "disk"),
        (1002.0, "working", "image"),
        (1003.0, "waiting", "image"),
        (1004.0, "working", "role"),
        (1009.0, "ready", ""),
    ]
    assert (node["state"], node["began"], node["ended"]) == ("ready", 1000.0, 1009.0)


def test_a_reboot_begins_a_timeline_anew(ledger: Ledger, clock: Clock) -> None:
    """A ready node that goes through its steps again has booted; one that only lost a service has not."""
    ledger.record(document("c-1", "working", "role"))
    ledger.record(document("c-1", "ready", "", 7))
    clock.time += 10
    ledger.record(document("c-1", "waiting", "services", 7))
    assert find(ledger, "c-1")["began"] == 1000.0 and find(ledger, "c-1")["ended"] is None
    ledger.record(document("c-1", "ready", "", 7))
    ledger.record(document("c-1", "working", "role", 1))
    assert find(ledger, "c-1")["began"] == 1010.0 and len(find(ledger, "c-1")["timeline"]) == 1


def test_the_same_again_is_no_change(ledger: Ledger) -> None:
    """A document that came twice moves no revision."""
    assert ledger.record(document("c-1", "working", "role"))
    before = ledger.read()["revision"]
    assert not ledger.record(document("c-1", "working", "role"))
    assert ledger.read()["revision"] == before


def shown(ledger: Ledger, name: str) -> str:
    told = ledger.read()
    return show_state(next(node for node in told["nodes"] if node["name"] == name), told["listened"])


@pytest.mark.parametrize(("state", "beat"), [("working", BEAT), ("waiting", BEAT), ("ready", READY_BEAT)])
def test_a_node_that_says_nothing_is_lost(ledger: Ledger, clock: Clock, state: str, beat: float) -> None:
    """After three reports that did not come; its last step stays, and what it says next brings it back."""
    ledger.record(document("c-1", state, "role"))
    clock.time += 3 * beat
    assert shown(ledger, "c-1") == state
    clock.time += 1
    assert shown(ledger, "c-1") == "lost"
    assert (find(ledger, "c-1")["state"], find(ledger, "c-1")["step"]) == (state, "role")
    ledger.record(document("c-1", state, "role"))
    assert shown(ledger, "c-1") == state and find(ledger, "c-1")["heard"] == clock.time


def test_the_same_again_is_heard(ledger: Ledger, clock: Clock) -> None:
    """Without a revision: who reads only what changed finds it in `heard`."""
    ledger.record(document("c-1", "working", "role"))
    revision = ledger.read()["revision"]
    clock.time += 50
    assert not ledger.record(document("c-1", "working", "role"))
    told = ledger.read(revision)
    assert told["nodes"] == [] and told["heard"] == {"c-1": {"heard": 1050.0, "due": 1050.0 + 3 * BEAT}}


def test_a_script_that_was_fetched_counts_as_a_word(ledger: Ledger, clock: Clock) -> None:
    """A machine that dies before its first report is lost; one that reports to another server is not expected here."""
    ledger.begin_boot("c-1", "script", "fetched")
    ledger.begin_boot("c-2", "script", "fetched", reports_here=False)
    clock.time += 1000
    assert (shown(ledger, "c-1"), shown(ledger, "c-2"), shown(ledger, "ctl")) == ("lost", "working", "")


def test_nobody_is_lost_because_nobody_listened(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """Neither while the server is away, nor when it comes back: then nodes have their time anew."""
    ledger.begin_listening()
    ledger.record(document("c-1", "working", "role"))
    clock.time += 60
    ledger.keep_listening()
    clock.time += 86400
    assert shown(ledger, "c-1") == "working"
    ledger.begin_listening()
    clock.time += 3 * BEAT
    ledger.keep_listening()
    assert shown(ledger, "c-1") == "working"
    clock.time += 1
    assert shown(ledger, "c-1") == "lost"


def test_what_died_before_the_server_ended_is_lost(ledger: Ledger, clock: Clock) -> None:
    ledger.begin_listening()
    ledger.record(document("c-1", "working", "role"))
    clock.time += 600
    ledger.keep_listening()
    clock.time += 86400
    assert shown(ledger, "c-1") == "lost"


def test_the_clock_of_a_node_that_failed_stops(ledger: Ledger, clock: Clock) -> None:
    """At its first word of that; when it goes on after all, and is ready, then there."""
    ledger.record(document("c-1", "working", "role"))
    clock.time += 5
    ledger.record(document("c-1", "failed", "disk", 2, "no disk"))
    clock.time += 100
    ledger.record(document("c-1", "failed", "disk", 2, "another reason"))
    assert find(ledger, "c-1")["ended"] == 1005.0
    ledger.record(document("c-1", "working", "image", 3))
    assert find(ledger, "c-1")["ended"] is None
    ledger.record(document("c-1", "failed", "image", 3))
    clock.time += 1
    ledger.record(document("c-1", "ready", "", 4))
    assert find(ledger, "c-1")["ended"] == 1106.0


def test_only_what_changed_is_read(ledger: Ledger) -> None:
    """By revision, which only grows."""
    told = ledger.read()
    assert len(told["nodes"]) == 3
    ledger.record(document("c-2", "working", "role"))
    later = ledger.read(told["revision"])
    assert [node["name"] for node in later["nodes"]] == ["c-2"] and later["revision"] > told["revision"]
    assert ledger.read(later["revision"])["nodes"] == []


def test_status_and_reports_survive_a_restart(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """Of nodes that are still in the cluster file."""
    ledger.record(document("c-1", "failed", "disk", detail="no disk"))
    ledger.record(document("c-2", "ready", ""))
    ledger.refuse("c-1", Reason.GIVEN, "192.0.2.1", "a second claim")
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite", clock)
    again.enter_nodes({"ctl": "controller", "c-1": "compute", "c-9": "compute"})
    assert {node["name"]: node["state"] for node in again.read()["nodes"]} == {"ctl": "", "c-1": "failed", "c-9": ""}
    assert again.find_document("c-1") == {
        "state": "failed", "step": "disk", "detail": "no disk", "steps": document("c-1", "failed", "disk")["steps"]
    }  # fmt: skip
    assert again.find_document("c-9") is None
    assert [report["text"] for report in again.read()["reports"]] == ["a second claim"]


def test_nothing_grows_without_end(ledger: Ledger, clock: Clock) -> None:
    """Neither a node's timeline nor the reports."""
    for number in range(MOST_EVENTS + 50):
        ledger.record(document("c-1", "working", f"s{number}"))
    assert len(find(ledger, "c-1")["timeline"]) == MOST_EVENTS


def test_whether_seeds_are_given_is_known_beside_the_server(tmp_path: Path, ledger: Ledger) -> None:
    """And which nodes the server knows."""
    ledger.set_gives_seeds(True)
    other = ledger.reopen()
    assert other.gives_seeds and other.find_unknown(["c-1", "c-9"]) == ["c-9"]
    ledger.set_gives_seeds(False)
    assert not other.gives_seeds
