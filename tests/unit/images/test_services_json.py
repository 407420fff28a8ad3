"""What the agent is told of the services of its image: the whole documents of the default release, and other distros'.

The golden documents are written anew, and the run then fails so that somebody reads the difference, by
    IMAGEGEN_WRITE_GOLDEN=1 pytest tests/unit/images/test_services_json.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imagegen.base.resources import data_directory
from imagegen.base.tree import read_tree
from imagegen.images.elements import SERVICES_JSON, content_id, generate_role_element
from imagegen.images.services_json import services_document
from imagegen.model.releases import Distro, find_release
from imagegen.model.roles import Role, find_role, roles

GOLDEN = Path(__file__).parent.parent / "golden/services"
RELEASE = find_release("2025.1", Distro())
CENTOS = Distro("centos", "9-stream", "amd64")


@pytest.mark.parametrize("role", roles(), ids=str)
def test_the_default_release_has_the_golden_documents(role: Role) -> None:
    """Every byte; nobody but root writes there."""
    file = generate_role_element(role, RELEASE, {})[SERVICES_JSON]
    golden = GOLDEN / f"{role}.json"
    if os.environ.get("IMAGEGEN_WRITE_GOLDEN") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_bytes(file.data)
        pytest.fail(f"wrote {golden}: read the difference, then run without IMAGEGEN_WRITE_GOLDEN")
    assert file.data.decode() == golden.read_text()
    assert file.mode == 0o644


def test_units_are_the_distro_s() -> None:
    """By its own names; where another unit does the work, none is listed."""
    release = find_release("2024.2", CENTOS)
    units = {
        unit["service"]: unit["unit"]
        for element in services_document(find_role("controller"), release)["elements"]
        for unit in element["units"]
    }
    assert units["nova-conductor"] == "openstack-nova-conductor.service"
    assert units["keystone"] == "httpd.service"
    assert "nova-api-metadata" not in units


def test_services_in_one_unit_are_restarted_for_what_either_reads() -> None:
    """Whichever step starts it: else each would restart what the other had started."""
    release = find_release("2024.2", CENTOS)
    elements = services_document(find_role("controller"), release)["elements"]
    reads = [unit["reads"] for one in elements for unit in one["units"] if unit["unit"] == "httpd.service"]
    assert len(reads) == 2 and reads[0] == reads[1]
    assert {"/etc/keystone/keystone.conf.d", "/etc/placement"} < set(reads[0])


def test_another_document_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that changes changes the content id."""
    static = read_tree(data_directory("elements"))
    before = content_id(find_role("compute"), RELEASE, static, {})
    changed = json.loads((GOLDEN / "compute.json").read_text()) | {"version": 2}
    monkeypatch.setattr("imagegen.images.elements.services_document", lambda role, release: changed)
    assert content_id(find_role("compute"), RELEASE, static, {}) != before
