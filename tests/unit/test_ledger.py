"""ledger.py: windows and tokens, timelines, what survives a restart, and what a status document may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.ledger import (
    BEAT,
    MOST_EVENTS,
    MOST_REPORTS,
    READY_BEAT,
    Ledger,
    Unclaimable,
    check_document,
    show_state,
)

ROLES = {"ctl": "controller", "c-1": "compute", "c-2": "compute"}


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite", clock)
    made.enter_nodes(ROLES)
    return made


def document(node: str, state: str, step: str, count: int = 1, detail: str = "") -> dict[str, Any]:
    """A status document as a node posts it, in its `count`-th step."""
    steps = [{"name": f"step{n}", "state": "done", "seconds": 0.1, "rc": 0} for n in range(count)]
    return {
        "version": 1, "node": node, "role": ROLES[node], "state": state, "step": step, "detail": detail,
        "since": "2026-01-01T00:00:00Z", "steps": steps,
    }  # fmt: skip


def find(ledger: Ledger, name: str) -> dict[str, Any]:
    return next(node for node in ledger.read()["nodes"] if node["name"] == name)


def test_a_seed_is_claimed_once(ledger: Ledger) -> None:
    """By its token, within the window; the same token again, and another one after it, are refused with the reason."""
    ledger.open_windows(["c-1"], 60, 1)
    token = ledger.make_token("c-1")
    ledger.claim("c-1", token)
    with pytest.raises(Unclaimable, match="was already given out for this token"):
        ledger.claim("c-1", token)
    with pytest.raises(Unclaimable, match="as often as it may"):
        ledger.claim("c-1", ledger.make_token("c-1"))
    assert find(ledger, "c-1")["seed"] == {"closes": 1060.0, "claims": 1, "used": 1}


def test_a_live_node_claims_as_often_as_it_was_armed_for(ledger: Ledger) -> None:
    """Each boot takes a token of its own."""
    ledger.open_windows(["c-1"], 60, 3)
    for _ in range(3):
        ledger.claim("c-1", ledger.make_token("c-1"))
    with pytest.raises(Unclaimable):
        ledger.claim("c-1", ledger.make_token("c-1"))


def test_a_window_closes(ledger: Ledger, clock: Clock) -> None:
    """A token made in time is worth nothing afterwards; a new window makes it good again, as the machine waits."""
    ledger.open_windows(["c-1"], 60, 1)
    token = ledger.make_token("c-1")
    clock.time += 61
    with pytest.raises(Unclaimable, match="closed 1 seconds ago"):
        ledger.claim("c-1", token)
    ledger.open_windows(["c-1"], 60, 1)
    ledger.claim("c-1", token)


def test_without_a_window_nothing_is_claimed(ledger: Ledger) -> None:
    """Also after all were closed."""
    with pytest.raises(Unclaimable, match="no window is open"):
        ledger.claim("c-1", ledger.make_token("c-1"))
    ledger.open_windows(ROLES, 60, 1)
    ledger.close_windows()
    with pytest.raises(Unclaimable, match="no window is open"):
        ledger.claim("c-1", ledger.make_token("c-1"))


def test_only_the_newest_token_of_that_node_counts(ledger: Ledger) -> None:
    """An older one is void, another node's and an invented one are unknown; none of them uses a claim up."""
    ledger.open_windows(ROLES, 60, 1)
    old, new, other = ledger.make_token("c-1"), ledger.make_token("c-1"), ledger.make_token("c-2")
    for token, reason in (
        (old, "has fetched its script again"),
        (other, "never given out"),
        ("x" * 32, "never given out"),
    ):
        with pytest.raises(Unclaimable, match=reason):
            ledger.claim("c-1", token)
    ledger.claim("c-1", new)
    assert len({old, new, other}) == 3 and all(len(token) == 32 for token in (old, new, other))


def test_a_restart_gives_no_second_claim(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """What was claimed in an open window stays claimed; a window that has closed is opened anew."""
    ledger.open_windows(ROLES, 60, 1)
    ledger.claim("c-1", ledger.make_token("c-1"))
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite", clock)
    again.enter_nodes(ROLES)
    again.open_windows(ROLES, 60, 1, closed_only=True)
    with pytest.raises(Unclaimable, match="as often as it may"):
        again.claim("c-1", again.make_token("c-1"))
    clock.time += 61
    again.open_windows(ROLES, 60, 1, closed_only=True)
    again.claim("c-1", again.make_token("c-1"))


def test_a_window_opened_by_another_process_counts_at_once(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    """`imagegen serve --arm` beside the server that is at work; whoever watches sees it."""
    before = ledger.read()["revision"]
    other = Ledger(tmp_path / "ledger.sqlite", clock)
    other.open_windows(["c-2"], 60, 1)
    assert [node["name"] for node in ledger.read(before)["nodes"]] == ["c-2"]
    ledger.claim("c-2", ledger.make_token("c-2"))


def test_tokens_do_not_pile_up_and_are_not_kept(tmp_path: Path, ledger: Ledger) -> None:
    """The file holds their digests only, and not for ever."""
    tokens = [ledger.make_token("c-1") for _ in range(100)]
    ledger.close()
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [token for token in tokens if token.encode() in data]


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


def test_a_ledger_of_before_is_taken_over(tmp_path: Path, clock: Clock) -> None:
    """Its nodes were last heard when they last changed."""
    old = Ledger(tmp_path / "old.sqlite", clock)
    old.enter_nodes(ROLES)
    old.record(document("c-1", "working", "role"))
    old._db.execute("ALTER TABLE node DROP COLUMN heard")
    old._db.execute("DROP TABLE listening")
    old.close()
    clock.time += 1000
    new = Ledger(tmp_path / "old.sqlite", clock)
    assert find(new, "c-1")["heard"] == 1000.0 and find(new, "c-2")["heard"] is None
    assert shown(new, "c-1") == "lost"
    new.close()
    Ledger(tmp_path / "old.sqlite", clock).record(document("c-2", "working", "role"))


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
    ledger.report("c-1", "192.0.2.1", "a second claim")
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
    for number in range(MOST_REPORTS + 5):
        clock.time += 1
        ledger.report("", "192.0.2.1", f"r{number}")
    kept = ledger._db.execute("SELECT count(*) FROM report").fetchone()[0]
    assert kept == MOST_REPORTS and ledger.read()["reports"][0]["text"] == f"r{MOST_REPORTS + 4}"


def test_the_same_refusal_is_counted(ledger: Ledger, clock: Clock) -> None:
    """Who is refused a hundred times does not push others out of sight."""
    ledger.report("c-1", "192.0.2.1", "a second claim")
    for _ in range(100):
        clock.time += 1
        ledger.report("c-2", "192.0.2.2", "a false status")
    assert [report["text"] for report in ledger.read()["reports"]] == ["a false status (100 times)", "a second claim"]


def test_whether_seeds_are_given_is_known_beside_the_server(tmp_path: Path, ledger: Ledger) -> None:
    """And which nodes the server knows."""
    ledger.set_gives_seeds(True)
    other = ledger.reopen()
    assert other.gives_seeds and other.find_unknown(["c-1", "c-9"]) == ["c-9"]
    ledger.set_gives_seeds(False)
    assert not other.gives_seeds


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 1"),
        ({"node": "c-9"}, "not a node"),
        ({"node": None}, "node must be"),
        ({"role": "controller"}, "not the node's role"),
        ({"state": "happy"}, "state must be"),
        ({"state": ["ready"]}, "state must be"),
        ({"step": "s" * 101}, "step must be"),
        ({"detail": "d" * 1001}, "detail must be"),
        ({"detail": "\ud800"}, "surrogates"),
        ({"steps": {}}, "steps must be"),
        ({"steps": [{}] * 201}, "steps must be"),
    ],
)
def test_a_document_that_is_none_is_refused(change: dict[str, Any], words: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(ValueError, match=words):
        check_document(json.dumps({**document("c-1", "working", "role"), **change}).encode(), ROLES)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b'"x"'])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    """As a ValueError, whatever they are."""
    with pytest.raises(ValueError):
        check_document(data, ROLES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KEYS = st.sampled_from(["version", "node", "role", "state", "step", "detail", "steps"])


@given(st.dictionaries(KEYS, JSON))
def test_what_is_taken_can_be_recorded(changes: dict[str, Any]) -> None:
    """Any JSON under any key is refused or recorded; nothing else happens."""
    data = json.dumps({**document("c-1", "working", "role"), **changes}).encode()
    try:
        taken = check_document(data, ROLES)
    except ValueError:
        return
    memory = Ledger(Path(":memory:"))
    memory.enter_nodes(ROLES)
    memory.record(taken)
    assert memory.find_document(taken["node"]) is not None
