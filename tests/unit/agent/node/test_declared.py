"""A service is what its element declares: the agent starts and watches one that it has never heard of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fakes import world as fakes_world
from fakes.commands import COMMANDS
from fakes.world import World
from imagegen_node.doctor import Patient, examine
from imagegen_node.node import declared
from imagegen_node.openstack import backing
from imagegen_node.roles.controller import SHARED_STEPS

from imagegen.images import services_json
from imagegen.model import services
from imagegen.model.declarations import declarations
from imagegen.model.releases import Distro, find_release
from imagegen.model.roles import Role, find_role, roles

TOY: dict[str, Any] = {
    "packages": {"toy": {"all": "toy"}},
    "units": {"toy-api": {"all": "toy-api"}},
    "needs": ["keystone", "mariadb-server"],
    "runs": {"toy-api": {"reads": ["/etc/toy"]}},
    "listens": {"toy API": 9999},
    "schemas": [
        {
            "name": "toy",
            "user": "toy",
            "account": "toy",
            "sync": ["toy-manage", "db", "sync"],
            "revisions": "toy/migrations",
        }
    ],
    "data": [{"path": "/var/lib/toy"}],
    "users": ["toy"],
}


def declare_toy(role: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """services.json of an image whose role has the toy service as well."""
    changed: dict[str, Mapping[str, Any]] = {**declarations(), "toy": TOY}
    for module in (services, services_json):
        monkeypatch.setattr(module, "declarations", lambda: changed)
    monkeypatch.setattr(services_json, "services", services.services.__wrapped__)
    release = find_release("2025.1", Distro())
    with_toy = replace(release, services={**release.services, "toy-api": "toy-api"})
    found = find_role(role)
    return services_json.services_document(replace(found, services=(*found.services, "toy")), with_toy)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A controller whose image has the toy service, with a seed for it."""
    world = World(tmp_path, monkeypatch)
    world.make_node("linux-node1")
    world.install_services(declare_toy("controller", monkeypatch))
    monkeypatch.setitem(fakes_world.REVISIONS, "toy", {"t1": None, "t2": "t1"})
    monkeypatch.setitem(fakes_world.HOMES, "toy", "/var/lib/toy")
    monkeypatch.setitem(COMMANDS, "toy-manage db sync", lambda commands, *_: commands._sync("toy"))
    world.install_revisions("toy/migrations", fakes_world.REVISIONS["toy"])
    world.listeners[9999] = "toy-api.service"
    world.put("/etc/toy/toy.conf", "one")
    world.node["database"]["schemas"].insert(0, {"name": "toy", "user": "toy", "password": "for the database"})
    world.node["identity"]["users"].append({"name": "toy", "password": "for Keystone", "roles": ["service"]})
    return world


def test_a_service_that_only_its_element_knows_is_made_ready(toy: World) -> None:
    """Its schema is synced by its command as its account, before Nova's; then its unit starts with the others."""
    assert toy.run_controller()["state"] == "ready"
    names = [step["name"] for step in toy.documents[-1]["steps"]]
    assert names[names.index("lease") + 1 :][:4] == ["placement-schema", "toy-schema", "nova-api-schema", "cells"]
    assert names == toy.controller().list_step_names()[1:]
    assert toy.commands.users["toy-manage db sync"] == "toy"
    assert toy.server.rows("toy", "alembic_version") == [{"version_num": "t2"}]
    (start,) = [command for command in toy.commands.log if "start" in command and "toy-api.service" in command.split()]
    assert "nova-api.service" in start.split()
    assert toy.keystone.knows("toy", "for Keystone")
    toy.forget()
    assert toy.run_controller()["state"] == "ready"
    assert toy.commands.log == [] and toy.server.changes == []


def test_its_unit_is_restarted_when_what_it_reads_changes(toy: World) -> None:
    """It alone."""
    toy.run_controller()
    toy.forget()
    toy.put("/etc/toy/toy.conf", "two")
    assert toy.run_controller()["state"] == "ready"
    assert toy.commands.log == ["systemctl restart --no-block toy-api.service"]


def test_its_schema_and_its_port_are_waited_for(toy: World) -> None:
    """By name, and no service starts before that schema is at its head."""
    toy.commands.fail("toy-manage db sync", 1, "boom", times=99)
    last = toy.run_controller(60)
    assert (last["state"], last["step"]) == ("failed", "toy-schema")
    assert "toy-api.service" not in toy.units
    toy.commands.faults.clear()
    toy.listeners[9999] = "another.service"
    last = toy.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "services")
    assert last["detail"] == "toy API at 192.168.56.11:9999: Connection refused"


def test_whoever_waits_for_the_lease_waits_for_its_schema(toy: World) -> None:
    """Schema-ready is more than Nova's schemas."""
    toy.run_controller()
    toy.server.rows("toy", "alembic_version")[:] = [{"version_num": "t1"}]
    toy.server.rows("imagegen", "lease")[:] = [{"name": "cluster", "holder": "other", "expires": toy.clock + 60}]
    toy.later(1, lambda: toy.server.rows("imagegen", "lease")[0].update(expires=toy.clock + 60))
    last = toy.run_controller(30)
    assert (last["step"], last["detail"]) == ("lease", "schema toy, which is behind")


def look(world: World) -> str:
    return "\n".join(f"{found.what} -> {found.cure}" for found in examine(Patient(world.facts, world.node)))


def test_the_doctor_knows_its_unit_its_schema_and_its_port(toy: World) -> None:
    """Each is named with a cure."""
    toy.run_controller()
    assert look(toy) == ""
    toy.listeners[9999] = "another.service"
    silent = "toy API at 192.168.56.11:9999: Connection refused"
    assert look(toy) == f"{silent} -> journalctl -n 50 -u toy-api.service; then systemctl restart toy-api.service"
    toy.units["toy-api.service"].state = "failed"
    dead = (
        "toy-api.service is failed (failed) -> journalctl -u toy-api.service -n 50; then imagegen-node retry services"
    )
    assert dead in look(toy).splitlines()
    toy.server.rows("toy", "alembic_version").clear()
    assert "schema toy is absent -> the holder of the lease makes it: imagegen-node retry lease" in look(toy)
    del toy.keystone.users["toy"]
    assert "Keystone lacks user toy with the seed's password" in look(toy)


def test_a_compute_starts_what_its_role_has_besides(compute: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step of its own, which a compute without such a service does not have."""
    assert "services" not in compute.compute().list_step_names()
    compute.install_services(declare_toy("compute", monkeypatch))
    assert compute.run_compute()["state"] == "ready"
    assert compute.commands.log == ["systemctl start --no-block toy-api.service"]


# what the agent answers


def test_units_of_a_distro_are_found_by_their_service(toy: World) -> None:
    """Whatever a distro calls them; a cell's have the step of the plain one."""
    release = find_release("2024.2", Distro("centos", "9-stream", "amd64"))
    toy.install_services(services_json.services_document(find_role("controller"), release))
    services = declared.list_services()
    assert declared.find_unit("nova-conductor") == "openstack-nova-conductor.service"
    assert "openstack-nova-conductor@cell2.service" in declared.list_units(services, ["cell2"])
    assert declared.find_step("openstack-nova-conductor@cell2.service") == "services"
    with pytest.raises(KeyError):
        declared.find_unit("nova-api-metadata")


def test_the_schema_of_a_further_cell_is_that_of_every_cell(toy: World) -> None:
    """And a schema of another service, or of the agent's own, is not the role's."""
    services = declared.list_services()
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
    hosted = [element["hosted"]["as"] for element in declarations().values() if "hosted" in element]
    assert sorted(hosted) == sorted(backing.PREPARATIONS)
