"""fleet.py: what `imagegen status` makes of the ledger: states, totals, groups, names, and what fits a terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.server.fleet import (
    Screen,
    describe_age,
    describe_totals,
    find_changes,
    find_faults,
    fold_names,
    is_settled,
    natural,
    node_rows,
    render,
    select,
)

NOW = 1_000_000.0
HEARD = "1970-01-12T13:46:28Z"  # 12 seconds before


def row(name: str, state: str, step: str = "", detail: str = "", role: str = "compute") -> dict[str, Any]:
    heard = HEARD if state else None
    return {
        "name": name, "role": role, "state": state, "step": step, "detail": detail, "seconds": 5.0, "heard": heard,
        "image": "",
    }  # fmt: skip


def told(**changes: Any) -> dict[str, Any]:
    """A node as Ledger.read() has it."""
    node = {
        "name": "c-1", "role": "compute", "state": "working", "step": "image", "detail": "", "began": NOW - 100,
        "ended": None, "heard": NOW - 30, "due": NOW + 150,
    }  # fmt: skip
    return {**node, **changes}


def show(*nodes: dict[str, Any], listened: float = NOW) -> list[dict[str, Any]]:
    return node_rows({"nodes": nodes, "listened": listened, "now": NOW}, Path("nowhere"))


def test_rows_are_sorted_as_people_do() -> None:
    """Failed ones first, node2 before node10."""
    states = {"n10": "ready", "n2": "ready", "n3": "failed", "n4": "", "n5": "waiting"}
    rows = show(*(told(name=name, state=state, due=None) for name, state in states.items()))
    assert [row["name"] for row in rows] == ["n3", "n5", "n4", "n2", "n10"]


def test_a_node_that_fell_silent_is_lost_with_its_last_step() -> None:
    """Its clock ends when it was last heard."""
    (lost,) = show(told(heard=NOW - 500, due=NOW - 320, began=NOW - 600))
    assert (lost["state"], lost["step"], lost["seconds"]) == ("lost", "image", 100.0)
    assert lost["heard"] == "1970-01-12T13:38:20Z"


def test_nobody_is_lost_while_nobody_listens() -> None:
    """The server ended a day ago: what is shown is of then."""
    day = 86400.0
    (row,) = show(told(heard=NOW - day - 30, due=NOW - day + 150, began=NOW - day - 90), listened=NOW - day)
    assert (row["state"], row["seconds"]) == ("working", 90.0)


def test_a_degraded_node_is_shown_as_such_and_counts_as_ready_for_who_waits() -> None:
    rows = show(told(state="ready", detail="degraded: deaf", step=""))
    assert rows[0]["state"] == "degraded" and is_settled(rows)
    assert find_faults(rows) == ["c-1 is degraded: deaf"]


def test_a_failed_node_that_fell_silent_has_failed() -> None:
    """Somebody has to go there anyway, and who watches comes to an end."""
    rows = show(told(state="failed", detail="no disk", due=NOW - 1000))
    assert rows[0]["state"] == "failed" and is_settled(rows)


@pytest.mark.parametrize("state", ["", "waiting", "working", "lost"])
def test_what_may_still_become_ready_is_not_settled(state: str) -> None:
    assert not is_settled([row("a", "ready"), row("b", state)])


def test_faults_are_sentences() -> None:
    rows = [row("a", "failed", "disk", "no disk"), row("b", "lost", "image"), row("c", ""), row("d", "waiting", "x")]
    assert find_faults(rows) == [
        "a failed in disk: no disk", f"b was last heard from in image at {HEARD}", "2 node(s) are not ready yet",
    ]  # fmt: skip


def test_totals_are_one_line() -> None:
    assert (
        describe_totals([row("a", "failed"), row("b", ""), row("c", "ready")]) == "3 nodes: 1 failed, 1 silent, 1 ready"
    )
    assert describe_totals([row("a", "ready")]) == "1 node: 1 ready"
    assert describe_totals([]) == "0 nodes"


def test_nodes_and_states_choose() -> None:
    rows = [row("a", "failed"), row("b", ""), row("c", "ready")]
    assert [r["name"] for r in select(rows, ["a", "c"])] == ["a", "c"]
    assert [r["name"] for r in select(rows, states=["silent", "failed"])] == ["a", "b"]
    assert select(rows) == rows


def test_equal_reasons_are_one_line() -> None:
    """500 nodes that wait for the same thing, each with its own name in the reason."""
    rows = [row(f"c-{n}", "waiting", "mapped", f"a reader of compute.c-{n} on c-{n}") for n in range(1, 501)]
    rows.append(row("c-501", "waiting", "mapped", "another"))
    totals, head, first, second = render(rows, NOW, None)
    assert totals == "501 nodes: 501 waiting"
    assert first.split("  ")[0] == "c-[1-500] (500)" and first.endswith("a reader of compute.NODE on NODE")
    assert second.split("  ")[0] == "c-501" and " 12 s " in second
    assert head.split() == ["NODES", "ROLE", "STATE", "STEP", "SECONDS", "HEARD", "DETAIL"]


def test_how_far_a_working_node_is_is_no_reason() -> None:
    """500 nodes that stream their image are one line; one alone shows how far it is."""
    rows = [row(f"c-{n}", "working", "image", f"{n} of 462 MiB") for n in (1, 2)]
    assert render(rows, NOW, None)[2].endswith("-")
    assert render(rows[:1], NOW, None)[2].endswith("1 of 462 MiB")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [8, 23])
def test_whatever_happens_fits_the_screen(width: int, height: int) -> None:
    """500 nodes, each with a long reason of its own."""
    rows = [row(f"a-rather-long-name-{n}", "failed", "disk", f"{n} " + "word " * 60) for n in range(500)]
    lines = render(rows, NOW, Screen(width, height, False))
    assert len(lines) <= height and max(map(len, lines)) <= max(width, 60)
    assert "more lines" in lines[-1]
    few = render(rows[:2], NOW, Screen(80, 23, False))
    assert len(few) <= 23 and "more lines" not in few[-1]


@pytest.mark.parametrize("length", [10, 18, 40, 100])
@pytest.mark.parametrize("count", [1, 500])
def test_a_long_step_leaves_the_other_columns_on_the_screen(length: int, count: int) -> None:
    """A node may send 100 characters. Names have room as well; what is short is shown whole."""
    rows = [row(f"name{number * 7}-of-rack", "working", "s" * length) for number in range(count)]
    head, first, second = render([row("c-1", "failed", "disk"), *rows], NOW, Screen(80, 24, False))[1:]
    assert head.split() == ["NODES", "ROLE", "STATE", "STEP", "SECONDS", "HEARD"]
    for line in (head, first, second):
        assert len(line) <= 80 and line[head.index("SECONDS") :].split() in (["SECONDS", "HEARD"], ["5", "12", "s"])
    assert first.split()[:4] == ["c-1", "compute", "failed", "disk"]
    assert second.startswith("name0-of-rack") and ("s" * length in second) == (length <= 18)


def test_a_choice_of_nodes_is_shown_whole() -> None:
    rows = [row(f"c-{n}", "failed", "disk", f"reason {n}") for n in range(100)]
    lines = render(rows, NOW, Screen(80, 0, False))
    assert [line for line in lines if "reason 99" in line]


def test_the_state_alone_is_coloured() -> None:
    """And the lines are as wide as without."""
    rows = [row("failed-node", "failed", "disk", "x"), row("b", "ready")]
    plain, coloured = (render(rows, NOW, Screen(80, 24, colour)) for colour in (False, True))
    assert "\x1b[31mfailed\x1b[0m" in coloured[2] and coloured[2].count("\x1b") == 2
    assert [line.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "") for line in coloured] == plain


def test_changes_are_lines() -> None:
    """Equal ones are one; a download that goes on is none."""
    before = [row("c-1", "working", "image", "1 MiB"), row("c-2", "working", "image"), row("c-3", "ready")]
    after = [row("c-1", "working", "image", "2 MiB"), row("c-2", "waiting", "x", "y"), row("c-3", "lost")]
    lines = [line[9:] for line in find_changes(before, after, NOW)]
    assert [line.split() for line in lines] == [["c-2", "waiting", "x", "y"], ["c-3", "lost", "-"]]
    assert find_changes(after, after, NOW) == []
    assert find_changes([], before, NOW)[0].split()[1:3] == ["c-[1-2]", "(2)"]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["n1"], "n1"),
        (["n1", "n2", "n3", "n7", "n10"], "n[1-3,7,10]"),
        (["n01", "n02", "n1"], "n1,n[01-02]"),
        (["ctl", "n1", "a2"], "a2,n1,ctl"),
        (["n1", "n2"], "n[1-2]"),
        (["rack1-n2", "rack1-n3", "rack2-n2"], "rack1-n[2-3],rack2-n2"),
    ],
)
def test_names_are_folded(names: list[str], folded: str) -> None:
    assert fold_names(names) == folded


def unfold(text: str) -> set[str]:
    """The names of a folded list."""
    found = set()
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        prefix, _, inner = part.partition("[")
        if not inner:
            found.add(prefix)
        for bit in filter(None, inner.rstrip("]").split(",")):
            first, _, last = bit.partition("-")
            found |= {
                prefix + str(n).zfill(len(first) if first[0] == "0" else 0)
                for n in range(int(first), int(last or first) + 1)
            }
    return found


@given(st.sets(st.from_regex(r"[a-z]{1,2}(-?[0-9]{1,4})?", fullmatch=True), min_size=1, max_size=30))
def test_folded_names_are_the_same_names(names: set[str]) -> None:
    assert unfold(fold_names(sorted(names))) == names


@given(st.lists(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True)))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    """Whatever they begin with: numbers meet numbers only."""
    assert sorted(sorted(names, key=natural)) == sorted(names)


def test_ages_are_short() -> None:
    assert [describe_age(n) for n in (-1, 0, 59, 60, 3599, 3600, 90000)] == [
        "0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "1 d",
    ]  # fmt: skip
