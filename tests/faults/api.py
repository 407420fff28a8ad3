"""The APIs of a cluster, asked from its network: what imagegen's own verification asks with."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_SPEC = spec_from_file_location("observe", Path(__file__).parents[2] / "imagegen/data/observe.py")
assert _SPEC and _SPEC.loader
observe: Any = module_from_spec(_SPEC)
_SPEC.loader.exec_module(observe)
