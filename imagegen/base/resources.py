"""Where the files that ship with imagegen are: in the wheel below _data, in a checkout at the top."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def data_directory(name: str) -> Path:
    """The directory `elements` or `pxe_templates`, installed or in the checkout. Raises FileNotFoundError."""
    for place in (PACKAGE / "_data" / name, PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"this installation of imagegen has no {name}")
