"""The APIs of a cluster, asked from its network: what imagegen's own verification and acceptance test ask with."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """A program of imagegen/data as a module."""
    spec = spec_from_file_location(name, Path(__file__).parents[2] / f"imagegen/data/{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


observe = load("observe")
instance = load("instance")
