"""A role besides controller and compute, which nothing but an element's declaration names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from fakes.more_elements import more_elements
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


@pytest.fixture
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """The role `storage`, whose nodes run and host nothing of OpenStack."""
    work = tmp_path_factory.mktemp("storage")
    folder = work / "storage"
    folder.mkdir()
    (folder / FILE).write_text(yaml.safe_dump(STORAGE))
    with more_elements(work, folder):
        yield find_role("storage")
