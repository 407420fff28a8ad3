"""stdout and stderr: the only way for text to leave imagegen, without anything that could steer a terminal.

Text may come from anywhere: a file, a node, another machine's answer. So control characters are escaped here.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress

RED, YELLOW, PLAIN = "\x1b[1;31m", "\x1b[1;33m", "\x1b[0m"
COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")  # ECMA-48, SGR


Say = Callable[[str], None]
"""What tells somebody a line."""


class OutputLost(Exception):
    """stdout cannot be written; `closed`: because its reader is gone."""

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

    Never fails: work must not end because nobody can read about it.
    """
    with suppress(OSError):
        colored = label and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        sys.stderr.write((f"{color}{label}{PLAIN} " if colored else label and f"{label} ") + visible(text) + "\n")
        sys.stderr.flush()


def open_streams() -> None:
    """Prepares the standard streams for any text; opens a closed one to /dev/null.

    Otherwise the next file that is opened would get its number, and the command's output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # Python's stream of a descriptor that was closed
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")
