"""The front page says what click would say of the same commands and options."""

from __future__ import annotations

import os

import click
import pytest

from imagegen.cli.front import COMMANDS, OPTIONS, TEXT, find_width, front_page
from imagegen.cli.run import cli

WIDTHS = (50, 58, 78, 98)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_front_page_is_what_click_would_print(width: int) -> None:
    """The same options, and the same lines at any width."""
    rows = [param.get_help_record(context()) for param in cli.get_params(context())]
    assert list(OPTIONS.items()) == rows
    formatter = click.HelpFormatter(width=width)
    cli.format_usage(context(), formatter)
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(TEXT)
    for name, table in (("Options", OPTIONS), ("Commands", COMMANDS)):
        with formatter.section(name):
            formatter.write_dl(list(table.items()))
    assert front_page(width) == formatter.getvalue()
    assert cli.get_help(click.Context(cli, info_name="imagegen", terminal_width=width)) == front_page(width).rstrip()


def context() -> click.Context:
    """That of the command imagegen."""
    return click.Context(cli, info_name="imagegen", help_option_names=["-h", "--help"])


@pytest.mark.parametrize(
    ("given", "terminal", "width"),
    [("", 80, 78), ("", 0, 78), ("", 200, 98), ("", 20, 50), ("64", 80, 62), ("0", 90, 88), ("many", 90, 88)],
)
def test_the_page_is_as_wide_as_the_terminal(
    given: str, terminal: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what reads well."""
    monkeypatch.setenv("COLUMNS", given)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((terminal, 24)))
    assert find_width() == width


def test_without_a_terminal_the_page_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it goes to a file."""

    def refuse(number: int) -> os.terminal_size:
        raise OSError

    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", refuse)
    assert find_width() == 78
