"""Each node is itself: what must differ differs, what the seed fixes is fixed."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from deployment import Deployment
from secret_places import ROOT_OWNED


def test_machine_ids_differ(deployment: Deployment) -> None:
    """Each node has a machine-id of its own, on disk, and D-Bus has the same."""
    found = {}
    for node in deployment.nodes.values():
        found[node.name] = node.read("/etc/machine-id").strip()
        assert re.fullmatch("[0-9a-f]{32}", found[node.name]), node.name
        dbus = node.execute(["cat", "/var/lib/dbus/machine-id"])
        assert dbus.returncode != 0 or dbus.stdout.decode().strip() == found[node.name], node.name
    assert len(set(found.values())) == len(found)


def test_ssh_host_keys_differ(deployment: Deployment) -> None:
    """Each node made its own keys, of each usual type, private ones closed."""
    keys = []
    for node in deployment.nodes.values():
        names = node.ask("sh", "-c", "ls /etc/ssh/ssh_host_*_key").split()
        assert {"/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_rsa_key"} <= set(names), node.name
        assert set(node.file_facts(*names).values()) == {"root:root 0600"}, node.name
        keys += [node.read(f"{name}.pub").split()[1] for name in names]
    assert len(set(keys)) == len(keys)


def test_compute_id_is_the_seeds(deployment: Deployment) -> None:
    """A compute has the id that its name gives it, owned by nova; a controller has none."""
    for node in deployment.computes:
        assert node.read("/var/lib/nova/compute_id").strip() == str(deployment.cluster.compute_id(node.node))
        assert node.file_facts("/var/lib/nova/compute_id") == {"/var/lib/nova/compute_id": "nova:nova 0644"}
    assert deployment.controller.execute(["test", "-e", "/var/lib/nova/compute_id"]).returncode == 1


def test_the_erlang_cookie_is_the_secret(deployment: Deployment) -> None:
    """RabbitMQ runs with the cluster's cookie, which no other file on the node bears."""
    controller = deployment.controller
    assert controller.read("/var/lib/rabbitmq/.erlang.cookie") == deployment.secrets["messaging_cookie"]
    assert controller.execute(["test", "-e", "/root/.erlang.cookie"]).returncode == 1


def test_a_seeds_files_lie_in_directories_of_root(deployment: Deployment) -> None:
    """Where cloud-init writes as root no service's account can plant a link: neither there nor in a directory above."""
    for node in deployment.nodes.values():
        facts = node.ask_json("cat", "/var/lib/imagegen/seed.json")["facts"]
        files = [PurePosixPath(file["path"]) for file in facts["files"]]
        assert {str(path.parent) for path in files} <= ROOT_OWNED, node.name
        above = sorted({str(directory) for path in files for directory in path.parents})
        lines = node.ask("stat", "--format=%u %04a %n", *above).splitlines()
        assert [line for line in lines if line[0] != "0" or int(line.split()[1], 8) & 0o022] == [], node.name


def test_names_are_the_cluster_files(deployment: Deployment) -> None:
    """Hostname, /etc/hosts and RabbitMQ's node bear the node's name, also where that is a service's."""
    for node in deployment.nodes.values():
        assert node.ask("hostname").strip() == node.read("/etc/hostname").strip() == node.name
        assert node.ask("getent", "hosts", node.name).split()[0] in ("127.0.1.1", "::1"), node.name
    logs = deployment.controller.ask("ls", "/var/log/rabbitmq")
    assert f"rabbit@{deployment.controller.name}.log" in logs


def test_nodes_of_a_role_differ_only_where_they_must(deployment: Deployment) -> None:
    """libvirt's host uuid, iSCSI's initiator and NVMe's host names are not shared by two computes."""
    paths = ("/etc/iscsi/initiatorname.iscsi", "/etc/nvme/hostid", "/etc/nvme/hostnqn")
    for path in paths:
        texts = [done.stdout for node in deployment.computes if (done := node.execute(["cat", path])).returncode == 0]
        names = [
            line
            for text in texts
            for line in text.decode().splitlines()
            if line and not line.startswith(("#", "Generate"))
        ]
        assert len(set(names)) == len(names), f"{path}: {names}"
