"""A new service is a folder and a line in a role: `toy-api` beside this directory goes the whole way, with no Python.

docs/contributing.md counts the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from fakes import world as fakes_world
from fakes.command_line import Output, fixed_directory, output
from fakes.commands import COMMANDS
from fakes.more_elements import more_elements
from fakes.world import World
from imagegen_node.doctor import Patient, examine

from imagegen.base.resources import PACKAGE
from imagegen.base.tree import read_tree
from imagegen.cli.run import run_command
from imagegen.images.elements import FOR_THIS_MACHINE, SERVICES_JSON
from imagegen.inputs.cluster_file import default_text, load_cluster
from imagegen.inputs.prerequisites import explain_external
from imagegen.inputs.secrets_file import load_secrets
from imagegen.local.verify import INTERFACES, Facts, check_facts
from imagegen.model.declarations import FILE
from imagegen.seeds.node_json import node_document
from imagegen.seeds.service_files import node_files

__all__ = ["fixed_directory", "output"]  # fixtures

FOLDER = Path(__file__).parent.parent / "toy/toy-api"
OWN = {"database_toy": 'p@ss "$x', "identity_toy": 'id "$x y', "toy_salt": "salt$salt"}


@pytest.fixture(autouse=True, scope="module")
def toy_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """imagegen with the toy service on its controllers."""
    with more_elements(tmp_path_factory.mktemp("toy"), FOLDER, role_of="nova-controller"):
        yield


def test_its_declaration_has_the_form_of_the_schema() -> None:
    """As that of every other service."""
    declared = yaml.safe_load((FOLDER / FILE).read_text())
    jsonschema.validate(declared, json.loads((PACKAGE / "data/declaration.schema.json").read_bytes()))


def test_a_cluster_with_it_is_made_and_checked(output: Output) -> None:
    """`init` makes its secrets, `validate` finds nothing, and every command demands them."""
    assert run_command(["init"]) == 0
    values = yaml.safe_load(Path("secrets.yaml").read_text())
    assert OWN.keys() < values.keys()
    output()
    assert run_command(["validate"]) == 0
    assert "secret" not in output()[1]
    Path("secrets.yaml").write_text(yaml.safe_dump({key: value for key, value in values.items() if key not in OWN}))
    assert run_command(["seed"]) == 2
    assert [line.partition(": ")[2] for line in output()[1].splitlines() if "key" in line] == [
        f"the key `{key}` is missing" for key in sorted(OWN)
    ]


def test_its_file_reaches_controllers_alone(output: Output) -> None:
    """With the database's URL and the passwords, quoted; the agent is told of its schema, its user and its endpoint."""
    run_command(["init"])
    values = yaml.safe_load(Path("secrets.yaml").read_text())
    Path("secrets.yaml").write_text(json.dumps(values | OWN))
    cluster, secrets = load_cluster(None), load_secrets(Path("secrets.yaml"))
    controller, compute = ({file.path: file for file in node_files(cluster, node, secrets)} for node in cluster.nodes)
    file = controller["/etc/toy/toy.conf"]
    assert (file.owner, file.permissions) == ("root:toy", "0640")
    assert 'connection = "mysql+pymysql://toy:p%40ss%20%22%24x@192.168.56.11:3306/toy"\n' in file.content
    assert 'salt = "salt\\$salt"\n' in file.content and 'password = "id "\\$x y"\n' in file.content
    assert not [path for path in compute if "toy" in path]
    node = json.loads(controller["/etc/imagegen/node.json"].content)
    assert {"name": "toy", "user": "toy", "password": OWN["database_toy"]} in node["database"]["schemas"]
    assert {"name": "toy", "password": OWN["identity_toy"], "roles": ["service"]} in node["identity"]["users"]
    assert {"name": "toy", "type": "play", "url": "http://192.168.56.11:9999/v1"} in node["identity"]["services"]
    assert "toy" not in compute["/etc/imagegen/node.json"].content


def test_who_runs_the_backing_services_elsewhere_is_told(tmp_path: Path) -> None:
    """What to make there for it."""
    path = tmp_path / "cluster.yaml"
    path.write_text(default_text().replace("database: {node: linux-node1}", "database: {host: 10.0.0.5}"))
    lines = "\n".join(explain_external(load_cluster(path)))
    assert "CREATE DATABASE `toy`" in lines and "IDENTIFIED BY '<database_toy of secrets.yaml>'" in lines


def test_the_controller_s_image_has_it(output: Output) -> None:
    """Its package, its unit, and what the agent must know; the compute's image is the same as before."""
    run_command(["init"])
    assert run_command(["generate"]) == 0
    tree = read_tree(Path("out/elements"))
    of_controller = tree["imagegen-role-controller/element-deps"].data.decode().split()
    assert "toy-api" in of_controller and "toy-api" not in tree["imagegen-role-compute/element-deps"].data.decode()
    assert {"toy-api/package-installs.yaml", "toy-api/static/etc/systemd/system/toy-api.service"} <= tree.keys()
    assert not [path for path in tree if path.split("/")[1:2] in [[one] for one in FOR_THIS_MACHINE]]
    told = json.loads(tree[f"imagegen-role-controller/{SERVICES_JSON}"].data)
    (mine,) = (element for element in told["elements"] if element["element"] == "toy-api")
    assert (mine["units"][0]["unit"], mine["listens"]) == ("toy-api.service", {"toy API": 9999})


# the node


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A controller with its seed and its image's packages, not yet started."""
    monkeypatch.setitem(fakes_world.REVISIONS, "toy", {"t1": None, "t2": "t1"})
    monkeypatch.setitem(fakes_world.HOMES, "toy", "/var/lib/toy")
    monkeypatch.setitem(COMMANDS, "toy-manage db sync", lambda commands, *_: commands._sync("toy"))
    world = World(tmp_path, monkeypatch)
    world.make_node("linux-node1")
    world.install_revisions("toy/migrations", fakes_world.REVISIONS["toy"])
    world.listeners[9999] = "toy-api.service"
    return world


def test_the_agent_makes_it_ready(controller: World) -> None:
    """Its schema is synced by its command as its account, before Nova's; then its unit starts with the others."""
    assert controller.run_controller()["state"] == "ready"
    names = [step["name"] for step in controller.documents[-1]["steps"]]
    assert names[names.index("lease") + 1 :][:4] == ["placement-schema", "toy-schema", "nova-api-schema", "cells"]
    assert names == controller.controller().list_step_names()[1:]
    assert controller.commands.users["toy-manage db sync"] == "toy"
    assert controller.server.rows("toy", "alembic_version") == [{"version_num": "t2"}]
    starts = [command.split() for command in controller.commands.log if "toy-api.service" in command.split()]
    assert [("start" in words, "nova-api.service" in words) for words in starts] == [(True, True)]
    assert controller.keystone.knows("toy", controller.secrets["identity_toy"])
    controller.forget()
    assert controller.run_controller()["state"] == "ready"
    assert controller.commands.log == [] and controller.server.changes == []


def test_its_unit_is_restarted_when_what_it_reads_changes(controller: World) -> None:
    """It alone."""
    controller.run_controller()
    controller.forget()
    controller.put("/etc/toy/more.conf", "two")
    assert controller.run_controller()["state"] == "ready"
    assert controller.commands.log == ["systemctl restart --no-block toy-api.service"]


def test_its_schema_and_its_port_are_waited_for(controller: World) -> None:
    """By name, and no service starts before that schema is at its head."""
    controller.commands.fail("toy-manage db sync", 1, "boom", times=99)
    last = controller.run_controller(60)
    assert (last["state"], last["step"]) == ("failed", "toy-schema")
    assert "toy-api.service" not in controller.units
    controller.commands.faults.clear()
    controller.listeners[9999] = "another.service"
    last = controller.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "services")
    assert last["detail"] == "toy API at 192.168.56.11:9999: Connection refused"


def test_whoever_waits_for_the_lease_waits_for_its_schema(controller: World) -> None:
    """Schema-ready is more than Nova's schemas."""
    controller.run_controller()
    world = controller
    world.server.rows("toy", "alembic_version")[:] = [{"version_num": "t1"}]
    world.server.rows("imagegen", "lease")[:] = [{"name": "cluster", "holder": "other", "expires": world.clock + 60}]
    world.later(1, lambda: world.server.rows("imagegen", "lease")[0].update(expires=world.clock + 60))
    last = world.run_controller(30)
    assert (last["step"], last["detail"]) == ("lease", "schema toy, which is behind")


def test_the_doctor_knows_its_unit_its_schema_its_port_and_its_user(controller: World) -> None:
    """Each is named with a cure."""
    controller.run_controller()

    def look() -> list[str]:
        return [f"{found.what} -> {found.cure}" for found in examine(Patient(controller.facts, controller.node))]

    assert look() == []
    controller.listeners[9999] = "another.service"
    silent = "toy API at 192.168.56.11:9999: Connection refused"
    assert look() == [f"{silent} -> journalctl -n 50 -u toy-api.service; then systemctl restart toy-api.service"]
    controller.units["toy-api.service"].state = "failed"
    cure = "journalctl -u toy-api.service -n 50; then imagegen-node retry services"
    assert f"toy-api.service is failed (failed) -> {cure}" in look()
    controller.server.rows("toy", "alembic_version").clear()
    assert "schema toy is absent -> the holder of the lease makes it: imagegen-node retry lease" in "\n".join(look())
    del controller.keystone.users["toy"]
    assert "Keystone lacks user toy with the seed's password" in "\n".join(look())


# from outside


def test_verify_looks_for_its_endpoints() -> None:
    """As for those of every service: each exactly once, at its URL."""
    cluster = load_cluster(None)
    expected = node_document(cluster, cluster.controllers[0], fakes_world.make_secrets())

    def look(url: str) -> list[str]:
        services = [{"id": "s1", "name": "toy", "type": "play"}]
        made = {"service_id": "s1", "region": cluster.region, "enabled": True, "url": url}
        endpoints = [{**made, "interface": interface} for interface in INTERFACES]
        faults = check_facts(cluster, cluster.nodes, expected, Facts([], [], services, endpoints, [], []))
        return [fault.message for fault in faults if fault.subject == "service toy"]

    assert look("http://192.168.56.11:9999/v1") == []
    assert len(look("http://192.168.56.11:9999/v2")) == 3
