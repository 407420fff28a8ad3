"""How a step, and what it calls, does not go on."""

from __future__ import annotations


class Waiting(Exception):
    """The step cannot go on yet; the text says what it waits for."""


class CommandFailed(Exception):
    """A command ended with an unexpected return code. It is tried again."""

    def __init__(self, command: str, rc: int, last_lines: str) -> None:
        super().__init__(f"{command} ended with {rc}: {last_lines}")
        self.rc = rc


class Refused(Exception):
    """Going on would do harm; the text says why and what to do."""


class LeaseLost(Exception):
    """Another controller may be at work: start again."""
