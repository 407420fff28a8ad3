"""Where the command `imagegen` starts. Whatever `--help` does not need is imported after it was ruled out."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import NoReturn

from imagegen.base.streams import OutputLost, open_streams, print_data
from imagegen.cli.front import find_width, front_page

INTERRUPTED = 130  # errors.ExitCode


def main() -> NoReturn:
    """The command `imagegen`. SIGTERM ends it as SIGINT does: what was begun is cleaned up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    open_streams()
    try:
        code = _show_front_page() if sys.argv[1:] in (["--help"], ["-h"]) else _run_command()
    except KeyboardInterrupt:  # while it said how it ended
        code = INTERRUPTED
    sys.exit(code)


def _show_front_page() -> int:
    try:
        print_data(front_page(find_width()))
    except OutputLost:
        return _run_command()  # which says why
    return 0


def _run_command() -> int:
    code: int = import_module("imagegen.cli.run").run_command(sys.argv[1:])
    return code
