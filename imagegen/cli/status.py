"""imagegen status."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from imagegen.base.errors import BadUsage, ExitCode, Problem
from imagegen.base.streams import print_line, tell
from imagegen.cli.inputs import NodeName
from imagegen.cli.options import Duration, Settings, common_options
from imagegen.cli.output import Outcome, complain, say
from imagegen.cli.progress import live_table
from imagegen.server.fleet import ORDER, Screen, find_changes, find_faults, is_settled, node_rows, render, select
from imagegen.server.ledger import Ledger
from imagegen.server.provisioning import DIRECTORY, use_ledger


@click.command()
@click.argument("names", metavar="[NODE]...", nargs=-1, type=NodeName())
@click.option("--state", "states", multiple=True, type=click.Choice(ORDER), help="Show only these. Repeatable.")
@click.option("--watch", is_flag=True, help="Keep watching until every node is ready or has failed.")
@click.option("--timeout", type=Duration(), help="Watch, and give up after this long, such as 20m or 2h.")
@common_options
@click.pass_obj
def status(
    settings: Settings, names: tuple[str, ...], states: tuple[str, ...], watch: bool, timeout: float | None
) -> Outcome:
    """Print each node's state, step and what it waits for, as reported to `imagegen serve`; failed nodes come first.

    Nodes in the same state for the same reason share one line. Nodes report every minute, and every five minutes once
    they are ready: after three missed reports a node is lost, until it reports again. A ready node that does not do
    all its work is degraded. On a terminal everything fits on the screen; with NODE or --state, and in a pipe, nothing
    is left out.

    Exit code 0 means that every node is ready, 5 that one has failed or missed the timeout, 1 that some are on their
    way, lost or degraded. NODE limits which nodes count for that, --state only which are shown.

    \b
    Examples:
      imagegen status
      imagegen status --watch --timeout 30m
      imagegen status linux-node2 linux-node3
      imagegen status --state failed --state lost
      imagegen status --output json | jq '.nodes[] | select(.state == "failed")'
    """
    return _show_status(settings, names, states, watch or timeout is not None, timeout)


def _show_status(
    settings: Settings, names: Sequence[str], states: Sequence[str], watch: bool, timeout: float | None
) -> Outcome:
    with use_ledger(settings.out / DIRECTORY) as ledger:
        if unknown := ledger.find_unknown(names):
            raise BadUsage(f"there is no node {', '.join(unknown)}", "`imagegen status` lists all nodes")
        if watch:
            end = None if timeout is None else time.monotonic() + timeout
            _watch_ledger(settings, ledger, names, states, end)
        told = ledger.read()
    rows = select(node_rows(told, settings.out), names)
    faults = find_faults(rows)
    late = any(row["state"] not in ("ready", "degraded", "failed") for row in rows)
    if timeout is not None and late:
        faults.append(f"gave up after {timeout:.0f} seconds")
        complain(faults[-1])
    failed = any(row["state"] == "failed" for row in rows) or (timeout is not None and late)
    code = ExitCode.NODE_NOT_READY if failed else ExitCode.FAILED if faults else ExitCode.DONE
    screen = _measure_screen(settings)
    taken = _say_claims(settings, told, screen)
    if told["listened"] < told["now"]:
        say(
            settings,
            f"`imagegen serve` is not running: this is the state of {_clock(told['listened'], '%Y-%m-%d %H:%M:%S')}",
        )
        taken += 1
    if screen:
        screen = replace(screen, height=0 if names or states else max(4, screen.height - taken))
    shown = select(rows, states=states)
    problems = [Problem("", 0, "", fault) for fault in faults]
    lines = render(shown, told["now"], screen)
    claims = {"granted": told["grants"], "refused": told["reports"], "more": told["more"]}
    colours = bool(screen and screen.colour)
    return Outcome(lines, nodes=shown, claims=claims, problems=problems, code=code, colours=colours)


def _measure_screen(settings: Settings) -> Screen | None:
    """The terminal on which the answer goes, with a line to spare for the prompt; None: stdout is none."""
    if settings.output != "text" or not sys.stdout.isatty():
        return None
    size = shutil.get_terminal_size()
    return Screen(size.columns, size.lines - 1, not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")


def _say_claims(settings: Settings, told: dict[str, Any], screen: Screen | None) -> int:
    """Who got a seed and who was refused what, the weightiest first; returns how many lines that took.

    On a terminal only three refusals, unless -v asks for all.
    """
    whole = screen is None or bool(settings.verbose)
    refused = told["reports"] if whole else told["reports"][:3]
    lines = [f"refused {_clock(report['at'])} {report['address']}: {report['text']}" for report in refused]
    if hidden := len(told["reports"]) - len(refused):
        lines.append(f"{hidden} more refused requests: -v shows them")
    if whole:
        for grant in told["grants"]:
            times = f" ({grant['times']} times)" if grant["times"] > 1 else ""
            lines.append(f"claimed {_clock(grant['at'])} {grant['address']}: the seed of {grant['node']}{times}")
        if told["more"]:
            lines.append(f"the ledger has {told['more']} more refused requests of less importance")
    for line in lines:
        say(settings, line if screen is None else line[: screen.width])
    return 0 if settings.quiet else len(lines)


def _watch_ledger(
    settings: Settings, ledger: Ledger, names: Sequence[str], states: Sequence[str], end: float | None
) -> None:
    """Until every node is ready or failed, or the time is over: a table that lives, or a line a change."""
    before: list[dict[str, Any]] = []
    with live_table(settings) as show:
        while True:
            told = ledger.read()
            rows = select(node_rows(told, settings.out), names)
            shown = select(rows, states=states)
            if show:
                show(render(shown, told["now"], _measure_screen(settings)))
            elif not settings.quiet:
                for line in find_changes(before, shown, told["now"]):
                    (tell if settings.output == "json" else print_line)(line)
            before = shown
            if is_settled(rows) or (end is not None and time.monotonic() >= end):
                return
            time.sleep(1.0 if end is None else max(0.0, min(1.0, end - time.monotonic())))


def _clock(at: float, form: str = "%H:%M:%S") -> str:
    return time.strftime(form, time.localtime(at))
