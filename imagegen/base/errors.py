"""Exit codes, and the errors that end a command with one of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from pathlib import Path


@unique
class ExitCode(IntEnum):
    """How a command ended. The README's table is checked against this."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    MACHINE_LACKS = 3
    COMMAND_FAILED = 4
    NODE_NOT_READY = 5
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141  # as a shell counts what SIGPIPE ended


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in one input file, printed as `FILE:LINE: PATH: MESSAGE`."""

    file: str
    line: int
    path: str
    message: str
    hint: str = ""  # what to do, unless the message says it

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return where + (f"{self.path}: " if self.path else "") + self.message


class ImagegenError(Exception):
    """A command cannot go on. `message` says what is wrong, `hint` what to do."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(ImagegenError):
    """The input files are wrong; `problems` holds every problem found."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problem(s) in the input")
        self.problems = sorted(problems)


class BadUsage(ImagegenError):
    """The command was called in a way that cannot work."""

    exit_code = ExitCode.BAD_INPUT


class MachineLacks(ImagegenError):
    """This machine lacks a tool, root, disk space or memory."""

    exit_code = ExitCode.MACHINE_LACKS


class CommandFailed(ImagegenError):
    """A command that imagegen ran ended with an unexpected return code."""

    exit_code = ExitCode.COMMAND_FAILED

    def __init__(self, message: str, *, log: Path | None = None, last_lines: list[str] | None = None) -> None:
        super().__init__(message, f"the whole log is {log}" if log else "")
        self.log = log
        self.last_lines = last_lines or []


class NodeNotReady(ImagegenError):
    """A booted node failed or did not become ready in time."""

    exit_code = ExitCode.NODE_NOT_READY
