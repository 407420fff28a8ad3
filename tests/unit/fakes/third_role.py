"""A role besides controller and compute, which nothing but an element's declaration names."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator

import pytest
import yaml
from repository import ELEMENTS

from imagegen.cli import build
from imagegen.model.declarations import FILE
from imagegen.model.roles import Role, find_role

STORAGE = {
    "packages": {"lvm2": {"all": "lvm2"}},
    "role": {
        "name": "storage",
        "services": ["imagegen-firstboot", "imagegen-base", "storage"],
        "container": {"memory": 512},
        "machine": {"memory": 1024, "processors": 1},
    },
}


def read_declarations_again() -> None:
    """Whatever was made of them before."""
    for name, module in list(sys.modules.items()):
        if name.startswith("imagegen."):
            for function in vars(module).values():
                if hasattr(function, "cache_clear"):
                    function.cache_clear()
    importlib.reload(build)  # its options are made when it is imported


@pytest.fixture
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """The role `storage`, whose nodes run and host nothing of OpenStack."""
    elements = tmp_path_factory.mktemp("elements")
    for path in ELEMENTS.glob(f"*/{FILE}"):
        (elements / path.parent.name).mkdir()
        shutil.copy(path, elements / path.parent.name)
    (elements / "storage").mkdir()
    (elements / "storage" / FILE).write_text(yaml.safe_dump(STORAGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagegen.model.declarations.data_directory", lambda name: elements)
        read_declarations_again()
        yield find_role("storage")
    read_declarations_again()
