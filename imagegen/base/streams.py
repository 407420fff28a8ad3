"""stdout and stderr: the one door through which text leaves imagegen, and nothing in it steers a terminal.

What is said may come from anywhere: a file, a node, another machine's answer. So it is made harmless here, not there.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

RED, YELLOW, PLAIN = "\x1b[1;31m", "\x1b[1;33m", "\x1b[0m"
COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")  # ECMA-48, SGR


class OutputLost(Exception):
    """stdout does not take what it should; `closed`: because whoever read it has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or type(error).__name__)
        self.closed = error.errno == errno.EPIPE


def visible(text: str, *, colours: bool = False) -> str:
    r"""The text with every character escaped (`\x1b`) that could steer a terminal, or show it in another order.

    These are Unicode's control, format, surrogate, private and unassigned characters and separators of lines; line
    feeds and tabs stay, and with `colours` the sequences that colour text: for lines whose other parts are visible().
    """
    if text.isprintable():
        return text
    if colours:
        return "".join(part if COLOUR.fullmatch(part) else visible(part) for part in COLOUR.split(text))
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"


def print_data(text: str, *, colours: bool = False) -> None:
    """Writes text to stdout, all of it, as visible() has it. Raises OutputLost."""
    try:
        sys.stdout.write(visible(text, colours=colours))
        sys.stdout.flush()
    except OSError as error:
        raise OutputLost(error) from error


def print_line(line: str) -> None:
    """Writes a line to stdout at once. Raises OutputLost."""
    print_data(line + "\n")


def tell(text: str, label: str = "", color: str = RED) -> None:
    """Writes a line to stderr, behind a label that is coloured on a terminal.

    Never fails: work does not end because nobody can hear of it.
    """
    with suppress(OSError):
        colored = label and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        sys.stderr.write((f"{color}{label}{PLAIN} " if colored else label and f"{label} ") + visible(text) + "\n")
        sys.stderr.flush()


def open_streams() -> None:
    """Makes the standard streams fit for whatever is said; one that was closed leads nowhere.

    Otherwise the next file that is opened would take its number, and get what a command says.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Python's stream of a descriptor that was closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        getattr(sys, name).reconfigure(errors="backslashreplace")
