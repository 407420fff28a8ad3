"""Options that every command takes, and the types of others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import wraps
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeVar, cast

import click

from imagegen.base.errors import Problem
from imagegen.base.owners import find_place
from imagegen.cli.front import OPTIONS

DEFAULT_CLUSTER = Path("cluster.yaml")


Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Settings:
    """The options that every command takes, before or after the command's name."""

    command: str = ""
    cluster: Path | None = None
    given_out: Path = Path("out")
    output: str = "text"
    verbose: int = 0
    quiet: bool = False
    debug: bool = False
    warnings: list[Problem] = field(default_factory=list)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def out(self) -> Path:
        """Where results go, once it is a place that no other user can change. Raises BadUsage."""
        return find_place(self.given_out)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if context.parent:
        context.obj.command = context.info_name
    if value and parameter.name:
        setattr(context.obj, parameter.name, value)


def common_options(function: Function) -> Function:
    """Adds the common options; what they say lands in Settings."""
    path = click.Path(path_type=Path)

    @wraps(function)
    def run(*args: Any, **given: Any) -> Any:
        with redirect_stdout(click.get_current_context().obj.stdout):  # see run_command()
            return function(*args, **given)

    for names, attributes in (
        (("--debug",), {"is_flag": True, "help": OPTIONS["--debug"]}),
        (("-q", "--quiet"), {"is_flag": True, "help": OPTIONS["-q, --quiet"]}),
        (("-v", "--verbose"), {"count": True, "help": OPTIONS["-v, --verbose"]}),
        (("--output",), {"type": click.Choice(["text", "json"]), "help": OPTIONS["--output [text|json]"]}),
        (
            ("-o", "--out", "given_out"),
            {"type": Directory(path_type=Path), "metavar": "DIR", "help": OPTIONS["-o, --out DIR"]},
        ),
        (
            ("-c", "--cluster"),
            {"type": path, "metavar": "FILE", "help": OPTIONS["-c, --cluster FILE"]},
        ),
    ):
        run = click.option(*names, expose_value=False, callback=_keep, **attributes)(run)  # type: ignore[arg-type]
    return cast(Function, run)


class Directory(click.Path):
    """A directory's path. Empty, as from a variable that is not set, it would be this directory."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            self.fail("must not be empty; use `.` for the current directory", parameter, context)
        return super().convert(value, parameter, context)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, from a number with s, m, h or d."""

    name = "DURATION"
    units: ClassVar = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        digits, unit = value[:-1], value[-1:]
        if unit not in self.units or not digits.isdecimal() or not 0 < int(digits) <= 10_000:
            self.fail(f"{value!r} is not a valid duration; write one such as 15m, 2h or 1d", parameter, context)
        return int(digits) * self.units[unit]


class Address(click.ParamType):  # type: ignore[type-arg]
    """An IPv4 address, as text."""

    name = "ADDRESS"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        try:
            return str(IPv4Address(value))
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 address; write one such as 192.168.56.1", parameter, context)
