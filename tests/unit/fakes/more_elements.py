"""Elements besides those of imagegen, added as a contributor would: a folder, and a line in a role."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from repository import ELEMENTS

from imagegen.base.resources import data_directory
from imagegen.cli import build
from imagegen.model.declarations import FILE


@contextmanager
def more_elements(work: Path, folder: Path, role_of: str = "") -> Iterator[None]:
    """imagegen as it is when elements/ has that folder too; `role_of`: the element whose role runs it."""
    elements = work / "elements"
    shutil.copytree(ELEMENTS, elements)
    shutil.copytree(folder, elements / folder.name)
    if role_of:
        declaration = elements / role_of / FILE
        declared = yaml.safe_load(declaration.read_text())
        declared["role"]["services"].append(folder.name)
        declaration.write_text(yaml.safe_dump(declared, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("imagegen.") and getattr(module, "data_directory", None) is data_directory:
                patch.setattr(module, "data_directory", lambda of: elements if of == "elements" else data_directory(of))
        read_elements_again()
        yield
    read_elements_again()


def read_elements_again() -> None:
    """Forgets whatever was made of them before."""
    for name, module in list(sys.modules.items()):
        if name.startswith("imagegen."):
            for function in vars(module).values():
                if hasattr(function, "cache_clear"):
                    function.cache_clear()
    importlib.reload(build)  # its options are made when it is imported
