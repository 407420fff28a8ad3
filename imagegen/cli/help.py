"""imagegen help."""

from __future__ import annotations

import click

from imagegen.cli.options import common_options
from imagegen.cli.output import Outcome


def complete_commands(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """The names of commands, for a shell's completion."""
    root = context.find_root()
    return [name for name in find_group(root).list_commands(root) if name.startswith(begun)]


def find_group(root: click.Context) -> click.Group:
    """The command imagegen, with all the others."""
    assert isinstance(root.command, click.Group)  # noqa: S101 - see cli/run.py
    return root.command


@click.command()
@click.argument("name", metavar="[COMMAND]", required=False, shell_complete=complete_commands)
@common_options
@click.pass_context
def help(context: click.Context, name: str | None) -> Outcome:
    """Show the help of imagegen, or of one command, as --help does.

    \b
    Examples:
      imagegen help
      imagegen help serve
    """
    root = context.find_root()
    text = root.get_help()
    if name is not None:
        _, command, _ = find_group(root).resolve_command(root, [name])
        assert command is not None  # noqa: S101 - an unknown name is a UsageError
        text = command.get_help(click.Context(command, info_name=name, parent=root))
    return Outcome(text.splitlines(), more={"help": text})
