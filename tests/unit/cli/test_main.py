"""The start of the command line: its front page at once, everything else when it is asked for."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence

import pytest
from fakes.command_line import Output
from repository import find_imports, read_modules

from imagegen.base.errors import ExitCode
from imagegen.base.streams import OutputLost
from imagegen.cli import main
from imagegen.cli.front import front_page


def start(argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of the process that such a command line would be."""
    monkeypatch.setattr(sys, "argv", ["imagegen", *argv])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code


def test_exit_codes_are_processes_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`imagegen` ends with the number."""
    assert start(["generate"], monkeypatch) == 2
    assert main.INTERRUPTED == ExitCode.INTERRUPTED


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_front_page(word: str, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the terminal."""
    monkeypatch.setenv("COLUMNS", "60")
    assert start([word], monkeypatch) == 0
    assert output() == (front_page(58), "")


@pytest.mark.parametrize(("closed", "code"), [(True, ExitCode.OUTPUT_CLOSED), (False, ExitCode.MACHINE_LACKS)])
def test_help_that_nobody_reads_says_so(
    closed: bool, code: ExitCode, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same exit codes as every other output."""

    def lose(*_: object, **__: object) -> None:
        lost = OutputLost(OSError(28, "No space left on device"))
        lost.closed = closed
        raise lost

    monkeypatch.setattr("imagegen.cli.main.print_data", lose)
    monkeypatch.setattr("imagegen.cli.run.print_data", lose)
    assert start(["--help"], monkeypatch) == code
    assert ("stdout cannot be written" in output()[1]) is not closed


def test_help_imports_nothing_of_others() -> None:
    """What the start imports, and what that imports, costs every start."""
    modules = read_modules()
    seen, left, foreign = set(), ["cli.main"], set()
    while left:
        seen.add(module := left.pop())
        for _, name in find_imports(ast.parse(modules[module])):
            package, _, rest = name.partition(".")
            if package == "imagegen":
                left += {one for one in (rest, rest.rpartition(".")[0]) if one in modules} - seen
            else:
                foreign.add(package)
    assert seen == {"cli.front", "cli.main", "base.streams"}
    assert foreign <= sys.stdlib_module_names - {"dataclasses", "json", "pathlib", "traceback"}
