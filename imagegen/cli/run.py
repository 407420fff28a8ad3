"""Runs a command line: imports the command's file, and says how it ended."""

from __future__ import annotations

import errno
import io
import json
import os
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from imagegen import __version__
from imagegen.base.errors import BadInput, CommandFailed, ExitCode, ImagegenError, Problem
from imagegen.base.streams import OutputLost, print_data, tell
from imagegen.cli.front import COMMANDS, OPTIONS, WIDEST, front_page
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, complain

MAX_PROBLEMS = 100
VERSION = f"imagegen {__version__}"


class Commands(click.Group):
    """The commands of the table. None is imported before it is asked for, so that `imagegen --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"imagegen.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(front_page(formatter.width))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST})
@click.version_option(message=VERSION, help=OPTIONS["--version"])
@common_options
def cli() -> None:
    """What front_page() says."""


def run_command(argv: Sequence[str]) -> ExitCode:
    """Runs one command line; what went wrong is on stderr, the outcome on stdout."""
    settings, taken = Settings(), io.BytesIO()
    try:
        # Where click's help goes, and a shell's completion.
        with redirect_stdout(io.TextIOWrapper(taken, "utf-8", write_through=True)):
            outcome = cli.main(args=list(argv), prog_name="imagegen", standalone_mode=False, obj=settings)
        if not isinstance(outcome, Outcome):  # --help, --version
            settings.output = "json" if _asks_for_json(argv) else "text"
            outcome = _wrap_text(settings, taken.getvalue().decode())
    except SystemExit as ended:  # of click's completion, whose form is the shell's
        settings.output = "text"
        code = ExitCode.DONE if ended.code in (0, None) else ExitCode.FAILED
        outcome = Outcome(taken.getvalue().decode().splitlines(), code=code)
    except OutputLost as lost:
        return _end_without_stdout(lost)
    except BaseException as error:
        settings.output = "json" if _asks_for_json(argv) else "text"
        outcome = _explain(settings, error)
    if settings.output == "text":
        text = "".join(f"{line}\n" for line in outcome.lines)
    else:
        text = json.dumps(outcome.document(settings), indent=2) + "\n"
    try:
        print_data(text, colours=outcome.colours)
    except OutputLost as lost:
        return outcome.code or _end_without_stdout(lost)
    return outcome.code


def _wrap_text(settings: Settings, text: str) -> Outcome:
    """The outcome of --help, which is that of `imagegen help`, or of --version."""
    if text.rstrip("\n") == VERSION:
        return Outcome([VERSION], more={"imagegen_version": __version__})
    settings.command = "help"
    return Outcome(text.splitlines(), more={"help": text.rstrip("\n")})


def _end_without_stdout(lost: OutputLost) -> ExitCode:
    """The exit code when nobody reads what was to be said, or its disk is full, which is said."""
    if lost.closed:
        return ExitCode.OUTPUT_CLOSED
    complain(f"stdout cannot be written: {lost}", "free some space there, then run it again")
    return ExitCode.MACHINE_LACKS


def _asks_for_json(argv: Sequence[str]) -> bool:
    """Whether a command line says `--output json`, though it may be one that click does not understand."""
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    return "--output=json" in words or ("--output", "json") in pairwise(words)


def _explain(settings: Settings, error: BaseException) -> Outcome:
    """Says why the command ended, and gives the same for JSON."""
    if settings.debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BadInput):
        for problem in error.problems[:MAX_PROBLEMS]:
            tell(str(problem))
        if len(error.problems) > MAX_PROBLEMS:
            tell(f"and {len(error.problems) - MAX_PROBLEMS} more")
        return Outcome(problems=error.problems, code=error.exit_code)
    if isinstance(error, click.UsageError) and error.ctx:
        settings.command = settings.command or (str(error.ctx.info_name) if error.ctx.parent else "")
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            tell(error.message)
            return Outcome(code=ExitCode.BAD_INPUT)
        tell(error.ctx.get_usage())
    message, hint, code = _describe(error)
    more: dict[str, Any] = {}
    if isinstance(error, CommandFailed):
        more = {"last_lines": error.last_lines} | ({"log": os.fspath(error.log)} if error.log else {})
        for line in error.last_lines:
            tell(f"  {line}")
    complain(message, hint)
    return Outcome(problems=[Problem("", 0, "", message, hint)], code=code, more=more)


def _describe(error: BaseException) -> tuple[str, str, ExitCode]:
    """Message, hint and exit code of an error that is no list of problems."""
    if isinstance(error, ImagegenError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", "", ExitCode.INTERRUPTED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error}", "free some space, then run it again", ExitCode.MACHINE_LACKS
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "imagegen"
        return error.format_message(), f"see `{path} --help`", ExitCode.BAD_INPUT
    if isinstance(error, OSError):
        where = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | Path) else ""
        return f"{where}{error.strerror or type(error).__name__}", "", ExitCode.FAILED
    # The text of an unforeseen error may quote any value, a secret too: it is shown on request only.
    return (
        f"imagegen itself failed ({type(error).__name__})",
        "run it again with --debug, and report what it prints",
        ExitCode.FAILED,
    )
