"""Where checks of a cluster run: on this machine, which reaches its APIs, or as root on one of its nodes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence

from imagegen.base.commands import Completed, follow, run
from imagegen.model.cluster import Node

ANY = range(-64, 256)  # all return codes
CONNECT_SECONDS = 10


class Here:
    """This machine. Its python3 is imagegen's own."""

    def execute(self, argv: Sequence[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        """Runs a command, with any return code. Raises CommandFailed, MachineLacks."""
        return run(_with_own_python(argv), input=input, ok=ANY, timeout=timeout)

    def follow(
        self, argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float
    ) -> Completed:
        return follow(_with_own_python(argv), each_line, input=input, timeout=timeout)


class Login:
    """root on a node, by ssh with the caller's own keys; it never asks for anything."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def execute(self, argv: Sequence[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        """Runs a command, with any return code; 255 is ssh's own. Raises CommandFailed, MachineLacks."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        return run(
            ["ssh", *options, f"root@{self.node.address}", shlex.join(argv)], input=input, ok=ANY, timeout=timeout
        )


def _with_own_python(argv: Sequence[str]) -> list[str]:
    return [sys.executable if word == "python3" and not number else word for number, word in enumerate(argv)]
