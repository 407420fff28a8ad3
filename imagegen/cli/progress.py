"""Progress on a terminal and elsewhere, and tables that live."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from imagegen.base.streams import tell, visible
from imagegen.cli.options import Settings

Report = Callable[..., None]


@contextmanager
def progress(settings: Settings, *, every_line: bool = False) -> Iterator[Report]:
    """Gives report(phase, detail): a live line on a terminal, else a line a phase; with `every_line` always lines."""
    if settings.quiet:
        yield lambda phase, detail="": None
    elif sys.stderr.isatty() and not every_line:
        with _live_progress() as report:
            yield report
    else:
        last = ""

        def report(phase: str, detail: str = "") -> None:
            nonlocal last
            if phase != last or every_line or settings.verbose:
                tell(f"{phase}: {detail}" if detail else phase)
            last = phase

        yield report


@contextmanager
def _live_progress() -> Iterator[Report]:
    """The phase at work is a line that lives; each phase that is over stays above it, with its last detail."""
    console = Console(stderr=True, highlight=False)
    phases: list[tuple[str, str]] = []

    def line() -> Text:
        return Text(visible(": ".join(filter(None, phases[-1]))))

    with console.status("") as status:

        def report(phase: str, detail: str = "") -> None:
            if phases and phases[-1][0] != phase:
                console.print(line())
            phases.append((phase, detail))
            status.update(line())

        try:
            yield report
        finally:
            if phases:
                console.print(line())


@contextmanager
def live_table(settings: Settings) -> Iterator[Callable[[Sequence[str]], None] | None]:
    """Gives show(lines) that redraws a table on a terminal; None elsewhere."""
    if settings.quiet or settings.output != "text" or not sys.stdout.isatty():
        yield None
        return

    with Live(console=Console(highlight=False), auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield lambda lines: live.update(
            Text.from_ansi(visible("\n".join(lines), colours=True), no_wrap=True), refresh=True
        )
