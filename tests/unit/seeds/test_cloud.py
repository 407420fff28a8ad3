"""Glance, Neutron and Cinder in each form that the cluster file has for them, down to what nodes are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import make_secrets

from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.cluster import Cluster
from imagegen.model.logins import (
    database_schemas,
    identity_users,
    messaging_users,
    messaging_vhosts,
    service_users,
    typed_secrets,
)
from imagegen.seeds.node_json import node_document
from imagegen.seeds.service_files import node_files

NOVA = "/etc/nova/nova.conf.d/50-imagegen.conf"
GLANCE = "/etc/glance/glance.conf.d/50-imagegen.conf"
NEUTRON = "/etc/neutron/neutron.conf.d/50-imagegen.conf"
SYSTEM_ID = "/etc/openvswitch/system-id.conf"
ELSEWHERE: dict[str, Any] = {"endpoint": "http://10.0.0.8:9696/"}
JOINED: dict[str, Any] = {**ELSEWHERE, "ovn": {"southbound": "tcp:10.0.0.8:6642"}}

Make = Callable[..., Cluster]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A cluster of two controllers and a compute whose file has these services."""

    def load(**services: Any) -> Cluster:
        nodes = [("ctl-1", "controller"), ("ctl-2", "controller"), ("cpt-1", "compute")]
        document = {
            "name": "demo",
            "network": {"cidr": "192.168.56.0/24"},
            "services": services,
            "nodes": [
                {"name": name, "role": role, "mac": f"52:54:00:56:00:1{i}", "address": f"192.168.56.1{i}"}
                for i, (name, role) in enumerate(nodes, 1)
            ],
        }
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document))
        return load_cluster(tmp_path / "cluster.yaml")

    return load


def read_files(cluster: Cluster, name: str) -> dict[str, str]:
    return {file.path: file.content for file in node_files(cluster, cluster.node(name), make_secrets())}


def section(text: str, name: str) -> dict[str, str]:
    """The options of one section of a drop-in; empty: there is none."""
    _, found, rest = text.partition(f"[{name}]\n")
    lines = rest.partition("\n[")[0].splitlines() if found else []
    pairs = [line.split(" = ", 1) for line in lines if " = " in line and not line.startswith("#")]
    return {key: value.strip('"') for key, value in pairs}


def of(cluster: Cluster, name: str, path: str, part: str) -> dict[str, str]:
    return section(read_files(cluster, name)[path], part)


# where they are


def test_they_are_on_the_first_controller_by_default(make: Make) -> None:
    """With their elements, files, users, databases, virtual host and endpoints there."""
    cluster = make()
    assert cluster.at_work(cluster.node("ctl-1"))[-3:] == ("ovn-central", "glance-api", "neutron-api")
    assert not {"ovn-central", "glance-api", "neutron-api"} & {*cluster.at_work(cluster.node("ctl-2"))}
    assert "ovn-host" in cluster.at_work(cluster.node("cpt-1"))
    assert {GLANCE, NEUTRON} < read_files(cluster, "ctl-1").keys()
    assert not {GLANCE, NEUTRON} & read_files(cluster, "ctl-2").keys()
    assert {NEUTRON, SYSTEM_ID} < read_files(cluster, "cpt-1").keys()
    assert {("glance", "glance"), ("neutron", "neutron")} < {*database_schemas(cluster)}
    assert messaging_vhosts(cluster) == ["nova", "neutron"]
    assert {user.name: user.roles for user in identity_users(cluster)} | {} == {
        "glance": ("service",),
        "neutron": ("admin", "service"),
        "nova": ("service",),
        "placement": ("service",),
        "nova_compute": ("service",),
    }
    assert [url for _, url in cluster.catalog][:2] == ["http://192.168.56.11:9292", "http://192.168.56.11:9696"]
    assert not cluster.services.block_storage


def test_they_are_where_the_file_says(make: Make) -> None:
    """Each on a controller of its own; the catalogue and the computes follow."""
    cluster = make(image={"node": "ctl-2"}, network={"node": "ctl-2"})
    assert {"glance-api", "neutron-api", "ovn-central"} < {*cluster.at_work(cluster.node("ctl-2"))}
    assert not {"glance-api", "neutron-api", "ovn-central"} & {*cluster.at_work(cluster.node("ctl-1"))}
    assert [url for _, url in cluster.catalog][:2] == ["http://192.168.56.12:9292", "http://192.168.56.12:9696"]
    assert of(cluster, "ctl-2", NEUTRON, "ovn")["ovn_sb_connection"] == "tcp:192.168.56.12:6642"
    document = node_document(cluster, cluster.node("cpt-1"), make_secrets())
    assert document["chassis"] == {
        "name": str(cluster.chassis(cluster.node("cpt-1"))),
        "southbound": "tcp:192.168.56.12:6642",
    }
    assert of(cluster, "cpt-1", NEUTRON, "ovn")["ovn_sb_connection"] == "tcp:192.168.56.12:6642"
    assert read_files(cluster, "cpt-1")[SYSTEM_ID].strip() == document["chassis"]["name"]


def test_a_neutron_elsewhere_brings_nothing_into_the_cluster(make: Make) -> None:
    """No element, no login, no place in the catalogue; without OVN's database computes have no agents either."""
    cluster = make(network=ELSEWHERE)
    services = cluster.services
    assert (services.network_endpoint, services.southbound) == ("http://10.0.0.8:9696", None)
    for node in cluster.nodes:
        assert not {"ovn-central", "neutron-api", "ovn-host"} & {*cluster.at_work(node)}
        assert NEUTRON not in read_files(cluster, node.name)
        assert "chassis" not in node_document(cluster, node, make_secrets())
    assert "neutron" not in {user.name for user in identity_users(cluster)}
    assert service_users(cluster) == [] and "neutron" not in dict(database_schemas(cluster))
    assert "network" not in {endpoint.type for endpoint, _ in cluster.catalog}


def test_computes_join_an_ovn_elsewhere(make: Make) -> None:
    """They have their agents, and these the database that the file names."""
    cluster = make(network=JOINED)
    assert not {"ovn-central", "neutron-api"} & {*cluster.at_work(cluster.node("ctl-1"))}
    assert "ovn-host" in cluster.at_work(cluster.node("cpt-1"))
    agent = read_files(cluster, "cpt-1")[NEUTRON]
    assert section(agent, "ovn") == {"ovn_sb_connection": "tcp:10.0.0.8:6642"}
    assert section(agent, "DEFAULT")["nova_metadata_host"] == "192.168.56.11"
    assert node_document(cluster, cluster.node("cpt-1"), make_secrets())["chassis"]["southbound"] == "tcp:10.0.0.8:6642"


def test_a_cluster_may_have_no_network_at_all(make: Make) -> None:
    """Nobody is told of a Neutron, and nobody has a secret for it."""
    cluster = make(network="none")
    assert (cluster.services.network_endpoint, cluster.services.southbound) == (None, None)
    for node in cluster.nodes:
        assert not [element for element in cluster.at_work(node) if "ovn" in element or "neutron" in element]
        text = "\n".join(read_files(cluster, node.name).values())
        assert make_secrets()["neutron_metadata"] not in text
        assert section(read_files(cluster, node.name)[NOVA], "neutron") == {}
    assert typed_secrets(cluster) == {}


def test_a_glance_elsewhere_is_named_to_nova_alone(make: Make) -> None:
    """As its file has it, without a slash at its end; there is no user, database or endpoint."""
    cluster = make(image={"endpoint": "https://glance.example/image/"})
    assert "glance-api" not in cluster.at_work(cluster.node("ctl-1"))
    assert "glance" not in {user.name for user in identity_users(cluster)} | dict(database_schemas(cluster)).keys()
    assert "image" not in {endpoint.type for endpoint, _ in cluster.catalog}
    for name in ("ctl-1", "cpt-1"):
        assert of(cluster, name, NOVA, "glance")["endpoint_override"] == "https://glance.example/image"


# what Nova reads


@pytest.mark.parametrize(
    ("network", "url"),
    [
        ("embedded", "http://192.168.56.11:9696"),
        ({"node": "ctl-2"}, "http://192.168.56.12:9696"),
        (ELSEWHERE, "http://10.0.0.8:9696"),
        (JOINED, "http://10.0.0.8:9696"),
    ],
    ids=["embedded", "node", "elsewhere", "joined"],
)
def test_nova_asks_neutron_as_itself(make: Make, network: object, url: str) -> None:
    """Each role as its own user; controllers answer for metadata, and share a secret with its agents."""
    cluster, secrets = make(network=network), make_secrets()
    for name, user in (("ctl-1", "nova"), ("ctl-2", "nova"), ("cpt-1", "nova_compute")):
        found = of(cluster, name, NOVA, "neutron")
        assert (found["endpoint_override"], found["region_name"]) == (url, "RegionOne")
        assert (found["username"], found["auth_url"]) == (user, cluster.services.auth_url)
        proxied = {"service_metadata_proxy": "true", "metadata_proxy_shared_secret": secrets["neutron_metadata"]}
        assert {key: value for key, value in found.items() if "metadata" in key} == (
            {} if user == "nova_compute" else proxied
        )


def test_nova_finds_its_images(make: Make) -> None:
    """On the controller that hosts Glance."""
    cluster = make(image={"node": "ctl-2"})
    for name in ("ctl-1", "ctl-2", "cpt-1"):
        assert of(cluster, name, NOVA, "glance")["endpoint_override"] == "http://192.168.56.12:9292"


@pytest.mark.parametrize(("name", "user"), [("ctl-1", "nova"), ("cpt-1", "nova_compute")])
def test_nova_uses_a_cinder_if_there_is_one(make: Make, name: str, user: str) -> None:
    """Else it has its region and no login."""
    assert of(make(), name, NOVA, "cinder") == {"os_region_name": "RegionOne"}
    found = of(make(block_storage={}), name, NOVA, "cinder")
    assert (found["catalog_info"], found["username"]) == ("volumev3::internalURL", user)


# what somebody types elsewhere

OWN = ("glance", "neutron")


@pytest.mark.parametrize(
    ("services", "keys"),
    [
        ({"database": {"host": "db"}}, [f"database_{user}" for user in OWN]),
        ({"database": {"host": "db"}, "network": "none"}, ["database_glance"]),
        ({"messaging": {"host": "mq"}}, ["messaging_compute_cell1", "messaging_neutron"]),
        ({"messaging": {"host": "mq"}, "network": ELSEWHERE}, ["messaging_compute_cell1", "neutron_metadata"]),
        ({"identity": {"auth_url": "http://k/v3"}}, [f"identity_{user}" for user in (*OWN, "nova_compute")]),
        ({"network": ELSEWHERE}, ["neutron_metadata"]),
        ({"network": JOINED, "image": {"endpoint": "http://g"}}, ["neutron_metadata"]),
        ({"network": "none"}, []),
    ],
    ids=str,
)
def test_what_is_typed_elsewhere_is_in_the_secrets_file(
    make: Make, services: dict[str, Any], keys: list[str]
) -> None:
    """A derived password would be known to nobody there."""
    assert list(typed_secrets(make(**services))) == keys


def test_the_agent_is_told_of_both(make: Make) -> None:
    """Where they answer, on every node; other users of the queue on the controller that hosts it."""
    cluster = make(network=JOINED, image={"node": "ctl-2"})
    for node in cluster.nodes:
        document = node_document(cluster, node, make_secrets())
        assert document["elements"] == [*cluster.at_work(node)]
        told = (document["image_endpoint"], document["network_endpoint"])
        assert told == ("http://192.168.56.12:9292", "http://10.0.0.8:9696")
    assert {user.name for user in messaging_users(cluster)} == {"openstack", "compute_cell1"}
    assert json.dumps(node_document(cluster, cluster.node("cpt-1"), make_secrets())).count("database") == 0
