"""What each element declares about itself in elements/NAME/declaration.yaml (data/declaration.schema.json)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from imagegen.base.resources import data_directory

FILE = "declaration.yaml"


@cache
def declarations() -> Mapping[str, Mapping[str, Any]]:
    """Element -> what it declares. Every value is checked by a test, none here."""
    return {
        path.parent.name: yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
        for path in sorted(data_directory("elements").glob(f"*/{FILE}"))
    }
