"""What a command says: lines and a document for stdout, words on stderr."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imagegen.base.errors import ExitCode, Problem
from imagegen.base.streams import RED, YELLOW, tell
from imagegen.cli.options import Settings


@dataclass(frozen=True)
class Outcome:
    """What a command has for stdout: lines of text, and the keys of the JSON document that apply."""

    lines: Sequence[str] = ()
    images: list[dict[str, Any]] | None = None
    nodes: list[dict[str, Any]] | None = None
    claims: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    code: ExitCode = ExitCode.DONE
    colours: bool = False  # whether the lines are coloured
    paths: list[str] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def document(self, settings: Settings) -> dict[str, Any]:
        """What `--output json` prints (data/output.schema.json)."""
        rows = {"images": self.images, "nodes": self.nodes, "claims": self.claims, "paths": self.paths}
        return {
            "version": 1,
            "command": settings.command,
            "ok": self.code is ExitCode.DONE,
            "problems": [_describe_problem(problem) for problem in self.problems],
            "warnings": [_describe_problem(warning) for warning in settings.warnings],
            **{key: value for key, value in rows.items() if value is not None},
            **self.more,
        }


def _describe_problem(problem: Problem) -> dict[str, Any]:
    return {key: value for key, value in asdict(problem).items() if key != "hint" or value}


def print_paths(*paths: Path) -> Outcome:
    """The outcome of a command that wrote these."""
    named = [os.fspath(path) for path in paths]
    return Outcome(named, paths=named)


def say(settings: Settings, line: str) -> None:
    if not settings.quiet:
        tell(line)


def complain(message: str, hint: str = "") -> None:
    tell(message + (f"\n{hint}" if hint else ""), "Error:", RED)


def warn(settings: Settings, message: str) -> None:
    """A warning that is about no line of the cluster file."""
    settings.warnings.append(Problem("", 0, "", message))
    tell(message, "Warning:", YELLOW)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Aligned columns under a head line."""
    cells = [[column.upper() for column in columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else f"{value:.0f}" if isinstance(value, float) else str(value)
