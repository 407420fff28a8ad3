"""What the agent knows of services is what their elements declare (tests/unit/project/test_new_service.py)."""

from __future__ import annotations

from importlib import import_module

import pytest
from fakes.world import World
from imagegen_node.node import declared
from imagegen_node.openstack import backing
from imagegen_node.roles.controller import SHARED_STEPS

from imagegen.images.services_json import services_document
from imagegen.model.declarations import declarations
from imagegen.model.releases import Distro, find_release
from imagegen.model.roles import Role, find_role, roles


def test_a_compute_starts_what_its_role_has_besides(compute: World) -> None:
    """In a step of its own, which a compute without such a service does not have."""
    assert "services" not in compute.compute().list_step_names()
    document = services_document(find_role("compute"), compute.cluster.release)
    unit = {"service": "toy", "unit": "toy.service", "reads": [], "step": "services", "per_cell": False}
    toy = {"element": "toy", "hosted": None, "units": [unit], "listens": {}, "schemas": [], "steps": [], "data": []}
    more = {"services": [*document["services"], "toy"], "elements": [*document["elements"], toy]}
    compute.install_services(document | more)
    compute.node["elements"].append("toy")
    assert compute.run_compute()["state"] == "ready"
    assert compute.commands.log == ["systemctl start --no-block toy.service"]


# what the agent answers


def test_units_of_a_distro_are_found_by_their_service(controller: World) -> None:
    """Whatever a distro calls them; a cell's have the step of the plain one."""
    release = find_release("2024.2", Distro("centos", "9-stream", "amd64"))
    controller.install_services(services_document(find_role("controller"), release))
    services = declared.list_services(controller.node)
    assert declared.find_unit("nova-conductor") == "openstack-nova-conductor.service"
    assert "openstack-nova-conductor@cell2.service" in declared.list_units(services, ["cell2"])
    assert declared.find_step("openstack-nova-conductor@cell2.service") == "services"
    with pytest.raises(KeyError):
        declared.find_unit("nova-api-metadata")


def test_the_schema_of_a_further_cell_is_that_of_every_cell(controller: World) -> None:
    """And a schema of another service, or of the agent's own, is not the role's."""
    services = declared.list_services(controller.node)
    found = declared.find_schema("nova_oost", services)
    assert found and found["name"] == "nova"
    zero = declared.find_schema("nova_cell0", services)
    assert zero and zero["name"] == "nova_cell0"
    assert [declared.find_schema(name, services) for name in ("keystone", "imagegen")] == [None, None]


# what elements declare is what the agent can do


@pytest.mark.parametrize("role", roles(), ids=str)
def test_every_role_has_its_class(role: Role) -> None:
    """By its name."""
    assert hasattr(import_module(f"imagegen_node.roles.{role}"), role.name.capitalize())


def test_every_declared_step_and_preparation_is_there() -> None:
    """By the names that elements use; each preparation is some element's."""
    steps = [name for element in declarations().values() for name in element.get("steps", ())]
    assert sorted(steps) == sorted(SHARED_STEPS)
    hosted = {name for name, element in declarations().items() if "hosted" in element}
    assert set(backing.PREPARATIONS) <= hosted
    # The others are done when their units are up and their ports answer: so they have both.
    for name in hosted - set(backing.PREPARATIONS):
        assert declarations()[name]["runs"] and declarations()[name]["listens"]
