"""MariaDB, RabbitMQ and memcached as the agent left them: only the cluster's users, each only where it belongs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from answers import Answers
from deployment import Deployment, RunningNode

SCHEMAS = {
    "keystone": {"keystone"},
    "placement": {"placement"},
    "nova": {"nova", "nova_api", "nova_cell0", "nova_oost"},
    "glance": {"glance"},
    "neutron": {"neutron"},
    "imagegen": {"imagegen"},
}
HOST = "10.73.8.100"  # the controller's address
# What MariaDB's packages make and use: no login by password, reached through the unix socket or not at all.
OWN_USERS = {("root", "localhost"), ("mysql", "localhost"), ("mariadb.sys", "localhost")}


def test_mariadb_has_only_the_clusters_users(answers: Answers) -> None:
    """Beside the server's own one user a service, from the controller's address; none for anybody, no anonymous one."""
    users = {(user, host) for user, host, _ in answers["database"]["users"] if user != "PUBLIC"}
    assert users == OWN_USERS | {(user, HOST) for user in SCHEMAS}


def test_mariadb_grants_are_for_own_schemas(answers: Answers) -> None:
    """Each user has all privileges on its own schemas, by their exact names, and nothing else; nobody may grant."""
    for user, schemas in SCHEMAS.items():
        grants = answers["database"]["grants"][f"{user}@{HOST}"]
        given = set()
        for grant in grants:
            if grant.startswith(f"GRANT USAGE ON *.* TO `{user}`@`{HOST}` IDENTIFIED BY PASSWORD '*"):
                continue
            found = re.fullmatch(rf"GRANT ALL PRIVILEGES ON `(.+)`\.\* TO `{user}`@`{HOST}`", grant)
            assert found, grant
            given.add(found[1])
        # An underscore would be a wildcard: it must be escaped.
        assert given == {schema.replace("_", "\\_") for schema in schemas}


def test_mariadb_holds_only_the_clusters_schemas(answers: Answers) -> None:
    """The wanted schemas and the server's own; no test database."""
    own = {"mysql", "sys", "information_schema", "performance_schema"}
    wanted = {schema for schemas in SCHEMAS.values() for schema in schemas}
    assert set(answers["database"]["schemas"]) - own == wanted


def test_mariadbs_root_uses_the_socket(controller: RunningNode, answers: Answers) -> None:
    """Root gets in through the socket as system user root; another system user, or anybody by TCP, does not."""
    plugins = {user: plugin for user, _, plugin in answers["database"]["users"]}
    assert plugins["root"] in ("unix_socket", "mysql_native_password")
    controller.ask("mariadb", "--user=root", "--execute=SELECT 1")
    assert (
        controller.execute(["runuser", "-u", "nobody", "--", "mariadb", "-u", "root", "-e", "SELECT 1"]).returncode == 1
    )
    address = str(controller.node.address)
    assert controller.execute(["mariadb", f"--host={address}", "--user=root", "-e", "SELECT 1"]).returncode == 1


def test_mariadb_can_serve_every_worker(answers: Answers) -> None:
    """max_connections follows the number of workers; the server listens on the node's address only."""
    settings = answers["database"]["settings"]
    assert int(settings["max_connections"]) >= 400
    assert (settings["bind_address"], settings["port"]) == (HOST, "3306")


@pytest.fixture(scope="module")
def definitions(controller: RunningNode) -> Any:
    """What RabbitMQ itself exports: users, vhosts, permissions."""
    return json.loads(controller.ask("rabbitmqctl", "--silent", "export_definitions", "-", "--format", "json"))


def test_rabbitmq_has_only_the_clusters_users(definitions: Any) -> None:
    """The controllers' user, one for each cell's computes and Neutron's, without any tag; guest does not exist."""
    users = ["compute_cell1", "compute_oost", "neutron", "openstack"]
    assert sorted((user["name"], user["tags"]) for user in definitions["users"]) == [(user, []) for user in users]


def test_rabbitmq_has_only_the_clusters_vhosts(definitions: Any) -> None:
    """Each cell's, where openstack may do everything and the cell's computes less, and Neutron's; / is not there."""
    vhosts, own = ["nova", "nova_oost"], "neutron"
    assert sorted(vhost["name"] for vhost in definitions["vhosts"]) == [own, *vhosts]
    verbs = ("configure", "write", "read")
    may = {(one["user"], one["vhost"]): tuple(one[verb] for verb in verbs) for one in definitions["permissions"]}
    assert {place: rights for place, rights in may.items() if place[0] == "openstack"} == {
        ("openstack", vhost): (".*", ".*", ".*") for vhost in vhosts
    }
    assert may.pop((own, own)) == (".*", ".*", ".*")
    others = {place: rights for place, rights in may.items() if place[0] != "openstack"}
    assert set(others) == {("compute_cell1", "nova"), ("compute_oost", "nova_oost")}
    assert not any(".*" in rights for rights in others.values())


def test_rabbitmq_lets_nobody_else_in(deployment: Deployment) -> None:
    """From another node: openstack with its nasty password gets into nova and not into /, guest gets in nowhere."""
    where = f"{deployment.controller.node.address}:5672"
    password = deployment.secrets["messaging_openstack"]
    rows = [
        [where, "openstack", password, "nova"],
        [where, "openstack", password, "/"],
        [where, "openstack", password + "x", "nova"],
        [where, "guest", "guest", "nova"],
        [where, "guest", "guest", "/"],
    ]
    outcomes = deployment.computes[0].probe("broker", rows)
    assert outcomes[0] == "open"
    assert "open" not in outcomes[1:], outcomes


def test_memcached_listens_to_its_own_node_only(controller: RunningNode) -> None:
    """It runs as its own user, on loopback, without UDP."""
    argv = controller.ask("ps", "-C", "memcached", "-o", "user:20=,args=").split()
    assert argv[0] == "memcache"
    assert [argv[argv.index(option) + 1] for option in ("-l", "-U")] == ["127.0.0.1", "0"]
