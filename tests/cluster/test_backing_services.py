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
    "imagegen": {"imagegen"},
}
# What MariaDB's packages make and use: no login by password, reached through the unix socket or not at all.
OWN_USERS = {("root", "localhost"), ("mysql", "localhost"), ("mariadb.sys", "localhost")}


def test_mariadb_has_only_the_clusters_users(answers: Answers) -> None:
    """Beside the server's own there is one user a service; no anonymous one, and root from this host only."""
    users = {(user, host) for user, host, _ in answers["database"]["users"] if user != "PUBLIC"}
    assert users == OWN_USERS | {(user, "%") for user in SCHEMAS}


def test_mariadb_grants_are_for_own_schemas(answers: Answers) -> None:
    """Each user has all privileges on its own schemas, by their exact names, and nothing else; nobody may grant."""
    for user, schemas in SCHEMAS.items():
        grants = answers["database"]["grants"][f"{user}@%"]
        given = set()
        for grant in grants:
            if grant.startswith(f"GRANT USAGE ON *.* TO `{user}`@`%` IDENTIFIED BY PASSWORD '*"):
                continue
            found = re.fullmatch(rf"GRANT ALL PRIVILEGES ON `(.+)`\.\* TO `{user}`@`%`", grant)
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
    assert (settings["bind_address"], settings["port"]) == ("10.73.8.100", "3306")


@pytest.fixture(scope="module")
def definitions(controller: RunningNode) -> Any:
    """What RabbitMQ itself exports: users, vhosts, permissions."""
    return json.loads(controller.ask("rabbitmqctl", "--silent", "export_definitions", "-", "--format", "json"))


def test_rabbitmq_has_only_the_clusters_user(definitions: Any) -> None:
    """User openstack without any tag; guest does not exist."""
    assert [(user["name"], user["tags"]) for user in definitions["users"]] == [("openstack", [])]


def test_rabbitmq_has_only_the_clusters_vhosts(definitions: Any) -> None:
    """A vhost for each cell, where openstack may do everything; the vhost / does not exist."""
    vhosts = ["nova", "nova_oost"]
    assert sorted(vhost["name"] for vhost in definitions["vhosts"]) == vhosts
    everything = {"user": "openstack", "configure": ".*", "write": ".*", "read": ".*"}
    permissions = sorted(definitions["permissions"], key=lambda permission: permission["vhost"])
    assert permissions == [{**everything, "vhost": vhost} for vhost in vhosts]


def test_rabbitmq_lets_nobody_else_in(deployment: Deployment) -> None:
    """From another node: openstack with its nasty password gets into nova and not into /, guest gets in nowhere."""
    where = f"{deployment.controller.node.address}:5672"
    password = deployment.secrets.messaging_openstack
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


def test_memcached_listens_to_the_cluster_only(controller: RunningNode) -> None:
    """It runs as its own user, at the node's address, without UDP."""
    argv = controller.ask("ps", "-C", "memcached", "-o", "user:20=,args=").split()
    assert argv[0] == "memcache"
    assert argv[argv.index("-l") + 1] == str(controller.node.address)
    assert "-U" not in argv
