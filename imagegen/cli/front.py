"""What `imagegen --help` shows. It needs no click, whose import alone takes 2.6 times as long as Python's start."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator

WIDEST = 100  # columns
NARROWEST = 50

TEXT = """\
Turn one cluster file into OpenStack Nova nodes that configure themselves.

Data goes to stdout, progress and problems to stderr. NO_COLOR is honoured.

\b
From nothing to a verified cluster on this machine:
  imagegen init                           write cluster.yaml and secrets.yaml
  imagegen validate                       check cluster.yaml
  sudo "$(command -v imagegen)" build     build one image per role
  imagegen boot                           boot the nodes here and wait until they are ready

\b
Exit codes:
  0 done   1 failed   2 bad usage or bad input   3 this machine lacks something
  4 a command failed   5 a node did not become ready
  130 interrupted   141 stdout was closed early
"""

OPTIONS = {
    "--version": "Show the version and exit.",
    "-c, --cluster FILE": "The cluster file; - is stdin. Default: ./cluster.yaml.",
    "-o, --out DIR": "Where results go. Default: ./out.",
    "--output [text|json]": "Output format. Default: text.",
    "-v, --verbose": "Print more.",
    "-q, --quiet": "Print only what went wrong.",
    "--debug": "Show tracebacks.",
    "-h, --help": "Show this message and exit.",
}

# In the order of their use: the command, which is the file beside this one, and what it does.
COMMANDS = {
    "init": "Write a first cluster.yaml and secrets.yaml.",
    "validate": "Check the cluster file; print every problem at once.",
    "generate": "Write elements, image definitions and seeds as text.",
    "build": "Build one image per role (root).",
    "seed": "Make one seed ISO per node.",
    "boot": "Boot the nodes on this machine and verify them.",
    "verify": "Check a running cluster from outside; boot a guest on every compute.",
    "credentials": "Write clouds.yaml and openrc for OpenStack's clients.",
    "pxe": "Make the files for booting the nodes over the network.",
    "serve": "Serve the network boot, seeds and a status page while machines are provisioned.",
    "status": "Show the nodes that `imagegen serve` provisions.",
    "baremetal": "Write the files for Ironic and Metal3.",
    "schema": "Print the cluster file's JSON schema, for editors.",
    "help": "Show this help, or the help of a command.",
}


def front_page(width: int) -> str:
    """The help of imagegen itself, in lines of at most that many columns where they can be wrapped."""
    lines = ["Usage: imagegen [OPTIONS] COMMAND [ARGS]..."]
    for paragraph in TEXT.split("\n\n"):
        kept = paragraph.strip("\n").split("\n")
        as_it_is = kept[0] == "\b"  # click's mark, as in the help of commands
        lines += ["", *(f"  {line}" for line in (kept[1:] if as_it_is else textwrap.wrap(paragraph, width - 2)))]
    for name, rows in (("Options", OPTIONS), ("Commands", COMMANDS)):
        lines += ["", f"{name}:", *_table(rows.items(), width)]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Two columns, the second of them wrapped."""
    rows = list(rows)
    first = max(len(word) for word, _ in rows) + 2
    for word, text in rows:
        for number, line in enumerate(textwrap.wrap(text, max(width - first - 2, 10))):
            yield f"  {'' if number else word:<{first}}{line}"


def find_width() -> int:
    """The columns of the terminal that stdout is, or $COLUMNS, or 80; within what reads well."""
    given = os.environ.get("COLUMNS", "")
    try:
        columns = int(given) if given.isdecimal() and int(given) else os.get_terminal_size(1).columns
    except OSError:
        columns = 80
    return max(min(columns or 80, WIDEST) - 2, NARROWEST)
