"""What a stolen compute's seed is good for: its logins, used from the compute, at everything that they could reach."""

from __future__ import annotations

from typing import Any

import pytest
from deployment import Deployment, RunningNode

USER = "nova_compute"


@pytest.fixture(scope="module")
def asked(deployment: Deployment) -> Any:
    """What the APIs answer to the computes' user, from a compute: a name -> HTTP status."""
    cluster = deployment.cluster
    nova = f"http://{deployment.controller.node.address}:8774/v2.1"
    placement = f"http://{deployment.controller.node.address}:8778"
    identity = cluster.services.auth_url
    service = {"service": {"type": "mine", "name": "mine"}}
    image = str(cluster.cell_uuid("cell1"))  # any uuid: the policy is asked first
    server = {"server": {"name": "mine", "imageRef": image, "flavorRef": "1", "networks": "none"}}
    questions = {
        "see services": ["GET", f"{nova}/os-services", None],
        "see hypervisors": ["GET", f"{nova}/os-hypervisors/detail", None],
        "see providers": ["GET", f"{placement}/resource_providers", None],
        "see all servers": ["GET", f"{nova}/servers/detail?all_tenants=1", None],
        "make a server": ["POST", f"{nova}/servers", server],
        "disable a service": ["PUT", f"{nova}/os-services/{cluster.cell_uuid('cell1')}", {"status": "disabled"}],
        "delete a service": ["DELETE", f"{nova}/os-services/{cluster.cell_uuid('cell1')}", None],
        "list users": ["GET", f"{identity}/users", None],
        "list projects": ["GET", f"{identity}/projects", None],
        "make a service": ["POST", f"{identity}/services", service],
    }
    password = deployment.secrets[f"identity_{USER}"]
    return deployment.computes[0].probe("identity", identity, USER, password, questions)


def test_a_computes_user_has_one_role(asked: Any) -> None:
    """`service`, in the project service."""
    assert asked["roles"] == ["service"]


def test_a_compute_sees_what_it_and_its_agent_need(asked: Any) -> None:
    """Services and hypervisors of Nova, and Placement."""
    needed = {name: status for name, status in asked["statuses"].items() if name.startswith("see ")}
    assert needed == {"see services": 200, "see hypervisors": 200, "see providers": 200, "see all servers": 403}


def test_a_computes_user_administers_nothing(asked: Any) -> None:
    """Neither Nova's services nor servers, nor Keystone's users, projects and services."""
    refused = {name: status for name, status in asked["statuses"].items() if not name.startswith("see ")}
    assert len(refused) == 6
    assert set(refused.values()) == {403}, refused


def test_a_computes_password_is_nobody_elses(deployment: Deployment) -> None:
    """Neither Nova's nor Placement's own user takes it, and no controller logs in with it."""
    secrets = deployment.secrets
    assert len({secrets[f"identity_{user}"] for user in ("nova", "placement", USER)}) == 3
    nova = "/etc/nova/nova.conf.d/50-imagegen.conf"
    assert USER not in deployment.controller.read(nova)
    for node in deployment.computes:
        users = [line for line in node.read(nova).splitlines() if line.startswith("username")]
        assert users == [f'username = "{USER}"'] * 3, node.name


def test_no_service_user_is_an_administrator(deployment: Deployment) -> None:
    """Controllers log in with the role `service` alone, too."""
    for user in ("nova", "placement"):
        password = deployment.secrets[f"identity_{user}"]
        said = deployment.controller.probe("identity", deployment.cluster.services.auth_url, user, password, {})
        assert said["roles"] == ["service"], user


def test_a_computes_messages_are_its_cells(deployment: Deployment) -> None:
    """It gets into no other cell's vhost, cannot read what conductors and schedulers read, nor bind to their topics."""
    where = f"{deployment.controller.node.address}:5672"
    vhosts = {"cell1": "nova", "oost": "nova_oost"}
    for node in deployment.computes:
        user = f"compute_{node.node.cell}"
        password = deployment.secrets[f"messaging_{user}"]
        rows = [[where, user, password, vhost] for vhost in (*vhosts.values(), "/")]
        outcomes = dict(zip((*vhosts.values(), "/"), node.probe("broker", rows), strict=True))
        assert [vhost for vhost, outcome in outcomes.items() if outcome == "open"] == [vhosts[node.node.cell]]
        own = node.probe("broker_rights", where, user, password, vhosts[node.node.cell], node.name)
        assert {name: said for name, said in own.items() if name.startswith("own ")} == {"own queue": "done"}, node.name
        assert {said for name, said in own.items() if not name.startswith("own ")} == {"AccessRefused"}, own


def test_databases_refuse_a_computes_address(deployment: Deployment) -> None:
    """With the right password, from a compute: the accounts are those of the controllers' addresses."""
    address = str(deployment.controller.node.address)
    for user in ("nova", "placement", "keystone", "imagegen"):
        password = deployment.secrets[f"database_{user}"]
        assert deployment.controller.probe("database_login", address, user, password) == "open", user
        assert deployment.computes[0].probe("database_login", address, user, password) == 1130, user


def test_a_cache_is_its_own_nodes(deployment: Deployment, controller: RunningNode) -> None:
    """Another node cannot reach it, whose one `set` would make an administrator's token."""
    probe = f"import socket; socket.create_connection(('{controller.node.address}', 11211), timeout=10)"
    done = deployment.computes[0].execute(["python3", "-c", probe])
    assert done.returncode != 0
    assert b"ConnectionRefusedError" in done.stderr
    controller.ask("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 11211), timeout=10)")
