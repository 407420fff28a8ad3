"""The state of the nodes, as `imagegen status` shows it: rows, totals, equal reasons as one line, changes."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagegen.base.streams import visible
from imagegen.outputs.pxe import read_image
from imagegen.server.ledger import DEGRADED, show_state

SILENT = "silent"  # a node that has never reported
ORDER = ("failed", "lost", "degraded", "waiting", "working", SILENT, "ready")  # of the rows
# ECMA-48, SGR
COLOURS = {"failed": 31, "lost": 35, "degraded": 33, "waiting": 33, "working": 34, SILENT: 2, "ready": 32}
COLUMNS = ("nodes", "role", "state", "step", "seconds", "heard", "detail")
LEAST_NODES = 12  # columns of a terminal, for names
LEAST_STEP = 18  # likewise, for a step, as long as there is one so long
MOST_DETAIL = 4  # lines of a terminal, for one group's reason

Row = dict[str, Any]


def node_rows(told: Mapping[str, Any], out: Path) -> list[Row]:
    """The nodes of Ledger.read() as `--output json` has them, failed ones first; an empty state: never reported."""
    at, rows = told["listened"], []
    for node in told["nodes"]:
        state = show_state(node, at)
        end = node["ended"] or (node["heard"] if state == "lost" else at)
        seconds = 0.0 if node["began"] is None else round(max(0.0, end - node["began"]), 1)
        heard = node["heard"] and f"{datetime.fromtimestamp(node['heard'], UTC):%Y-%m-%dT%H:%M:%SZ}"
        row = {key: node[key] for key in ("name", "role", "step", "detail")}
        image = read_image(out / "pxe", node["name"])
        rows.append({**row, "state": state, "seconds": seconds, "heard": heard, "image": image})
    return sorted(rows, key=lambda row: (ORDER.index(row["state"] or SILENT), natural(row["name"])))


def natural(name: str) -> list[Any]:
    """A key by which node2 comes before node10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def select(rows: Iterable[Row], names: Sequence[str] = (), states: Sequence[str] = ()) -> list[Row]:
    """The rows of these nodes in these states; without any, all."""
    return [
        row
        for row in rows
        if (not names or row["name"] in names) and (not states or (row["state"] or SILENT) in states)
    ]


def is_settled(rows: Iterable[Row]) -> bool:
    """Whether every node is ready or has failed, so that nothing more will happen by itself."""
    return all(row["state"] in ("ready", "degraded", "failed") for row in rows)


def find_faults(rows: Sequence[Row]) -> list[str]:
    """A sentence for each node that failed, is lost or degraded, and one for those on their way."""
    faults = []
    for row in rows:
        if row["state"] == "failed":
            faults.append(f"{row['name']} failed in {row['step']}: {row['detail']}")
        elif row["state"] == "lost":
            where = f" in {row['step']}" if row["step"] else ""
            faults.append(f"{row['name']} was last heard from{where} at {row['heard']}")
        elif row["state"] == "degraded":
            faults.append(f"{row['name']} is {row['detail']}")
    if late := sum(row["state"] in ("", "waiting", "working") for row in rows):
        faults.append(f"{late} node(s) are not ready yet")
    return faults


def describe_totals(rows: Sequence[Row]) -> str:
    """`12 nodes: 1 failed, 11 ready`."""
    counts = {state: sum((row["state"] or SILENT) == state for row in rows) for state in ORDER}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{len(rows)} node{'' if len(rows) == 1 else 's'}" + (f": {said}" if said else "")


# equal reasons


def group_rows(rows: Sequence[Row], now: float) -> list[Row]:
    """One row for all nodes in the same state for the same reason, with the longest of their times.

    Reasons that differ only in the node's own name are the same. What a working node is doing, and what a lost one said
    last, differs all the time and is not a reason.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        reason = unname(row) if row["state"] in ("failed", "degraded", "waiting") else ""
        groups.setdefault((row["state"], row["role"], row["step"], reason), []).append(row)
    return [merge_rows(members, now) for members in groups.values()]


def unname(row: Row) -> str:
    """The row's detail with NODE for its own name."""
    return re.sub(rf"(?<![\w-]){re.escape(row['name'])}(?![\w-])", "NODE", row["detail"])


def merge_rows(members: Sequence[Row], now: float) -> Row:
    details = {(row["detail"] if len(members) == 1 else unname(row)).removeprefix(DEGRADED) for row in members}
    heard = [datetime.fromisoformat(row["heard"]).timestamp() for row in members if row["heard"]]
    count = f" ({len(members)})" if len(members) > 1 else ""
    merged = {
        "nodes": fold_names([row["name"] for row in members]) + count,
        "role": members[0]["role"],
        "state": members[0]["state"] or SILENT,
        "step": members[0]["step"],
        "seconds": f"{max(row['seconds'] for row in members):.0f}",
        "heard": describe_age(now - min(heard)) if heard else "never",
        "detail": details.pop() if len(details) == 1 else "",
    }
    return {key: visible(text) for key, text in merged.items()}


def describe_age(seconds: float) -> str:
    """`12 s`, `4 min`, `3 h` or `2 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def fold_names(names: Iterable[str]) -> str:
    """`node[1-3,7],other`, as ClusterShell and Slurm write sets of nodes."""
    parts: dict[tuple[str, int], list[int]] = {}
    plain = []
    for name in names:
        found = re.fullmatch(r"(.*?)(\d{1,9})", name)
        if not found:
            plain.append(name)
            continue
        digits = found[2]
        width = len(digits) if digits[0] == "0" else 0  # 08 and 8 are two names
        parts.setdefault((found[1], width), []).append(int(digits))
    folded = [
        prefix + fold_numbers(sorted(numbers), width)
        for (prefix, width), numbers in sorted(parts.items(), key=lambda part: (natural(part[0][0]), part[0][1]))
    ]
    return ",".join([*folded, *sorted(plain, key=natural)])


def fold_numbers(numbers: Sequence[int], width: int) -> str:
    """`[1-3,7]` for several, `7` for one; with leading zeros up to that width."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    text = ",".join("-".join(f"{number:0{width}d}" for number in ends) for ends in ranges)
    return text if len(numbers) == 1 else f"[{text}]"


# lines


@dataclass(frozen=True)
class Screen:
    """A terminal's size, in characters; height 0: it may scroll."""

    width: int
    height: int
    colour: bool


def render(rows: Sequence[Row], now: float, screen: Screen | None) -> list[str]:
    """The totals and a table of these rows, equal reasons as one line; fitted to the terminal, if there is one."""
    totals, groups = describe_totals(rows), group_rows(rows, now)
    if screen is None:
        return [totals, *align([{key: key.upper() for key in COLUMNS}, *groups], COLUMNS)]
    columns = COLUMNS[:-1]
    lines = fit_columns([{key: key.upper() for key in columns}, *groups], columns, screen.width)
    heads = [paint(line, group["state"], screen.colour) for line, group in zip(lines[1:], groups, strict=True)]
    top = [*textwrap.wrap(totals, screen.width), *lines[: len(groups[:1])]]
    height = screen.height or sys.maxsize
    for most in (MOST_DETAIL, 2, 1, 0):
        pairs = zip(heads, groups, strict=True)
        body = [line for head, group in pairs for line in (head, *wrap(group, screen.width, most))]
        if len(top) + len(body) <= height:
            return [*top, *body]
    room = max(1, height - len(top) - 1)
    more = f"and {len(body) - room} more lines: select with NODE or --state, or pipe this to `less`"
    return [*top, *body[:room], more[: screen.width]]


def align(table: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[str]:
    """Lines of columns; `-` for an empty cell."""
    widths = [max(len(line[key] or "-") for line in table) for key in columns]
    return [
        "  ".join((line[key] or "-").ljust(n) for key, n in zip(columns, widths, strict=True)).rstrip()
        for line in table
    ]


def fit_columns(table: Sequence[Mapping[str, str]], columns: Sequence[str], width: int) -> list[str]:
    """Likewise, with names and steps, which alone may be long, cut until the lines are no wider than that."""
    widths = {key: max(len(line[key] or "-") for line in table) for key in columns}
    room = width - sum(n for key, n in widths.items() if key not in ("nodes", "step")) - 2 * (len(columns) - 1)
    names = max(LEAST_NODES, min(widths["nodes"], room - min(LEAST_STEP, widths["step"])))
    step = max(LEAST_STEP, room - names)
    lines = align(
        [{**line, "nodes": cut(line["nodes"], names), "step": cut(line["step"], step)} for line in table], columns
    )
    return [cut(line, width) for line in lines]


def cut(text: str, width: int) -> str:
    """The text, cut off with `...` if it is wider; a count in brackets at the end stays."""
    if len(text) <= width:
        return text
    found = re.search(r" \(\d+\)$", text)
    end = "..." + (found[0] if found else "")
    return text[: max(0, width - len(end))] + end


def wrap(group: Mapping[str, str], width: int, most: int) -> list[str]:
    """The group's reason in at most so many lines."""
    if not most or not group["detail"]:
        return []
    return textwrap.wrap(
        group["detail"], width, initial_indent="  ", subsequent_indent="  ", max_lines=most, placeholder=" ..."
    )


def paint(line: str, state: str, colour: bool) -> str:
    """The line with its state in its colour."""
    if not colour:
        return line
    return re.sub(rf"(?<=  ){state}(?=  )", f"\x1b[{COLOURS[state]}m{state}\x1b[0m", line, count=1)


def find_changes(before: Sequence[Row], after: Sequence[Row], now: float) -> list[str]:
    """A line for each change of state, step or reason, equal ones as one; a step's progress is not a change."""

    def sum_up(row: Row) -> tuple[str, ...]:
        return (row["state"], row["step"], "" if row["state"] == "working" else row["detail"])

    known = {row["name"]: sum_up(row) for row in before}
    changed = [row for row in after if known.get(row["name"]) != sum_up(row)]
    clock = f"{datetime.fromtimestamp(now):%H:%M:%S}"
    return [
        f"{clock} {group['nodes']:<16} {group['state']:<8} {group['step'] or '-':<18} {group['detail']}".rstrip()
        for group in group_rows(changed, now)
    ]
