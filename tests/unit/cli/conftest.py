"""Every test of the command line is in a directory of its own."""

from __future__ import annotations

from fakes.command_line import fixed_directory, output

__all__ = ["fixed_directory", "output"]
