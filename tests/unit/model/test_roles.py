"""Roles: declared by elements, and the same wherever one is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fakes.command_line import Output, fixed_directory, output
from fakes.third_role import storage
from fakes.world import make_secrets
from repository import ELEMENTS, read_modules

from imagegen.base.errors import BadInput
from imagegen.base.resources import PACKAGE
from imagegen.base.tree import read_tree
from imagegen.cli import build
from imagegen.cli.run import run_command
from imagegen.images.elements import elements_tree, in_house_elements, role_element
from imagegen.inputs.cluster_file import default_text, load_cluster
from imagegen.local.verify import COMPUTE_SERVICES, Facts, check_facts
from imagegen.model.cluster import Services
from imagegen.model.declarations import declarations
from imagegen.model.json_schemas import json_schema
from imagegen.model.roles import Role, UnknownRole, find_role, hosted_services, roles
from imagegen.seeds.node_json import node_document
from imagegen.seeds.seed import make_seed
from imagegen.seeds.service_files import node_files

__all__ = ["fixed_directory", "output", "storage"]  # fixtures


def test_every_role_is_declared_once() -> None:
    """By the element of its main service; those that can host something come first."""
    declared = [one["role"]["name"] for one in declarations().values() if "role" in one]
    assert sorted(declared) == sorted(role.name for role in roles())
    assert len(set(declared)) == len(declared)
    assert [str(role) for role in roles()] == ["controller", "compute"]
    compute = find_role("compute")
    assert declarations()["nova-compute"]["role"]["name"] == "compute"
    assert (compute.machine_memory, compute.processors) == (2 << 30, 1)


def test_roles_compare_by_value() -> None:
    """So one may be a key, whoever made it."""
    role = find_role("compute")
    again = Role(**{field.name: getattr(role, field.name) for field in fields(role)})
    assert again is not role and {role: "found"}[again] == "found"


def test_an_unknown_role_is_refused_by_name() -> None:
    """With those that there are."""
    with pytest.raises(UnknownRole, match="there is no role `storage`; choose one of controller, compute"):
        find_role("storage")


def test_a_role_is_what_it_runs() -> None:
    """Each of the two runs its side of Nova, and not the other's."""
    assert [[role.controls, role.runs("nova-compute")] for role in roles()] == [[True, False], [False, True]]


def test_code_asks_for_elements_that_there_are() -> None:
    """A misspelt one would run nowhere, and nobody would notice."""
    asked = {name for source in read_modules().values() for name in re.findall(r"\.runs\(\"(.+?)\"\)", source)}
    assert asked >= {"nova-controller", "nova-compute"}
    assert sorted({*asked, *COMPUTE_SERVICES} - declarations().keys()) == []


@pytest.mark.parametrize("role", roles(), ids=str)
def test_what_a_role_runs_is_in_its_image(role: Role) -> None:
    """Each of its elements exists, declares itself, and is among what the image is built of."""
    tree = elements_tree(read_tree(ELEMENTS), [role], load_cluster(None).release, {})
    reached = in_house_elements(role_element(role), tree)
    assert [element for element in (*role.services, *role.hosts) if element not in declarations()] == []
    assert [element for element in (*role.services, *role.hosts) if element not in reached] == []
    assert not set(role.services) & set(role.hosts)
    (element,) = (one for one, declared in declarations().items() if declared.get("role", {}).get("name") == role.name)
    assert element in role.services


def test_hosted_services_have_one_name_everywhere() -> None:
    """In the declarations, the cluster file and the Cluster, in the order of metadata and seeds."""
    assert hosted_services() == ("database", "messaging", "cache", "identity", "network", "image")
    of_the_file = json_schema("cluster")["properties"]["services"]["properties"]
    assert sorted(of_the_file) == sorted([*hosted_services(), "block_storage"])
    assert set(hosted_services()) <= {field.name for field in fields(Services)}


def find_enums(schema: Any) -> list[list[str]]:
    """Every list of values in a schema that has a role among them."""
    if isinstance(schema, Mapping):
        enum = schema.get("enum")
        own = [enum] if isinstance(enum, list) and set(enum) & {str(role) for role in roles()} else []
        return own + [found for value in schema.values() for found in find_enums(value)]
    return [found for value in schema for found in find_enums(value)] if isinstance(schema, list) else []


def test_schemas_know_the_same_roles() -> None:
    """The status document has none, too, of a node that does not know its own yet."""
    names = [str(role) for role in roles()]
    assert find_enums(json_schema("cluster")) == find_enums(json_schema("output")) == [names]
    assert find_enums(json_schema("status")) == [["", *names]]


def test_no_schema_lists_roles_itself() -> None:
    """They come from the declarations, so a new one is known everywhere."""
    texts = {path: path.read_text() for path in Path(PACKAGE / "data").glob("*.schema.json")}
    assert len(texts) > 3
    assert [(path.name, role.name) for path, text in texts.items() for role in roles() if f'"{role}"' in text] == []


CONTROLLER, COMPUTE, STORAGE = (
    f'  - {{name: {role}-1, role: {role}, mac: "52:54:00:56:00:2{number}", address: 192.168.56.2{number}}}\n'
    for number, role in enumerate(("controller", "compute", "storage"))
)
HEAD = "name: x\nnetwork: {cidr: 192.168.56.0/24}\n"


def test_a_third_role_needs_no_more_than_its_declaration(
    storage: Role, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """validate and seed take a node of it, schemas and build's options name it, and build makes its image."""
    assert [str(role) for role in roles()] == ["controller", "compute", "storage"]
    assert find_enums(json_schema("status")) == [["", "controller", "compute", "storage"]]
    assert run_command(["init"]) == 0
    Path("cluster.yaml").write_text(f"{default_text()}{STORAGE}")
    assert run_command(["validate"]) == 0
    assert run_command(["seed", "storage-1"]) == 0
    assert output()[0].splitlines()[-1] == "out/seeds/storage-1.iso"
    built: list[tuple[Role, ...]] = []
    monkeypatch.setattr(build, "build_images", lambda cluster, roles, *_, **__: built.append(roles) or [])
    assert run_command(["build", "--role", "storage", "--role", "controller"]) == 0
    assert run_command(["build"]) == 0
    assert built == [(find_role("controller"), storage), roles()]
    assert run_command(["build", "--role", "block"]) != 0
    assert "is not one of 'controller', 'compute', 'storage'" in output()[1]


def test_a_node_of_a_third_role_is_neither_controller_nor_compute(storage: Role, tmp_path: Path) -> None:
    """It gets no login, runs nothing of Nova, hosts nothing, and nobody looks for it in Nova."""
    path, secrets = tmp_path / "cluster.yaml", make_secrets()
    path.write_text(f"{default_text()}{STORAGE}")
    cluster = load_cluster(path)
    controller, _, node = cluster.nodes
    assert (node.role, cluster.roles) == (storage, roles())
    assert (cluster.controllers, cluster.hosted_on(node), cluster.serves_others(node)) == ((controller,), (), False)
    document = node_document(cluster, node, secrets)
    assert document["role"] == "storage"
    assert not {"messaging", "database", "cells", "identity", "compute_id", "erlang_cookie"} & document.keys()
    assert make_seed(cluster, node, secrets).facts["imagegen"]["compute_id"] is None
    places = {file.path.split("/")[2] for file in node_files(cluster, node, secrets)}
    assert places == {"imagegen", "chrony"}
    faults = check_facts(cluster, [node], node_document(cluster, controller, secrets), Facts([], [], [], [], [], []))
    assert node.name not in {fault.subject for fault in faults}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HEAD}nodes:\n{STORAGE}", "storages without a controller"),
        (f"{HEAD}nodes:\n{STORAGE}{COMPUTE}", "computes and storages without a controller"),
        (f"{HEAD}services: {{database: {{node: storage-1}}}}\nnodes:\n{CONTROLLER}{STORAGE}", "not a controller"),
        (f"{HEAD}nodes:\n{CONTROLLER}{STORAGE}".replace("20}", "20, deploy: {mode: live}}"), "only computes can be"),
        (f"{HEAD}nodes:\n{CONTROLLER}{STORAGE}".replace("22}", "22, deploy: {mode: live}}"), "only computes can be"),
        (f"{HEAD}nodes:\n{CONTROLLER}{STORAGE}".replace("role: s", "role: z"), "controller or compute or storage, not"),
    ],
)
def test_a_cluster_file_may_not_take_a_third_role_for_another(storage: Role, text: str, said: str) -> None:
    """What takes a controller or a compute is refused, in the words of what it is."""
    Path("cluster.yaml").write_text(text)
    with pytest.raises(BadInput) as refused:
        load_cluster(Path("cluster.yaml"))
    (problem,) = refused.value.problems
    assert said in problem.message
