"""Ironic's root device hints, as the image defines them: its file in elements/imagegen-deploy is loaded here."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from imagegen.base.resources import data_directory

SOURCE = "imagegen-deploy/static/usr/lib/imagegen-deploy/imagegen_deploy/hints.py"


class Hint(Protocol):
    """One hint taken apart; see Hint in SOURCE."""

    @property
    def operator(self) -> str: ...
    @property
    def values(self) -> tuple[str, ...]: ...


@cache
def _definition() -> dict[str, Any]:
    return runpy.run_path(str(data_directory("elements") / SOURCE))


def hint_text(value: str | int | bool) -> str:
    """A hint's value as the initramfs and Ironic read it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_hint(name: str, value: str | int | bool) -> Hint:
    """The hint taken apart. Raises ValueError, whose text continues from the hint's name."""
    parse: Callable[[str, str], Hint] = _definition()["parse_hint"]
    return parse(name, hint_text(value))
