"""Controller and compute as virtual machines, from qcow2 and seed ISO, and one image under UEFI."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from bringup import BOOT_MINUTES, IMAGES, BootedCluster

from imagegen.boot import find_image
from imagegen.cluster import load_cluster
from imagegen.model import Role
from imagegen.qemu import Firmware, Qemu
from imagegen.secrets import load_secrets
from imagegen.seeds import seed_tree

LOGIN_MINUTES = 12
POLL = 2.0  # seconds between two looks at a console


@pytest.mark.item(20, 26, 27)
def test_both_nodes_become_ready_with_nobody_typing(booted: BootedCluster) -> None:
    """`imagegen boot` ends with 0: both nodes are ready and the cluster was verified from outside."""
    assert booted.rc == 0, booted.stderr[-5000:]
    nodes = json.loads(booted.stdout)["nodes"]
    assert {node["name"]: node["state"] for node in nodes} == {"rabbitmq": "ready", "attic-c1": "ready"}
    assert all(node["seconds"] < BOOT_MINUTES * 60 for node in nodes)
    assert set(booted.logins) == {"rabbitmq", "attic-c1"}


def test_the_seed_came_from_the_iso(booted: BootedCluster) -> None:
    """cloud-init found the label cidata on the second drive and nothing else; the one NIC bears the seed's name."""
    for node in booted.cluster.nodes:
        facts = booted.execute(
            node.name,
            "cat /run/cloud-init/result.json; blkid -L cidata; cat /sys/class/net/net0/address; ls /sys/class/net",
        )
        assert "DataSourceNoCloud [seed=/dev/vdb]" in facts
        assert f"/dev/vdb\n{node.mac}\n" in facts
        assert facts.splitlines()[-2:] == ["lo", "net0"]


def test_the_root_file_system_took_the_whole_disk(booted: BootedCluster) -> None:
    """The last partition and its file system grew at first boot to what the disk has."""
    for node in booted.cluster.nodes:
        sizes = booted.execute(
            node.name, "blockdev --getsize64 /dev/vda; findmnt -no SIZE --bytes /; findmnt -no SOURCE /"
        ).split()
        disk, root, source = int(sizes[0]), int(sizes[1]), sizes[2]
        assert source == "/dev/vda4"
        assert disk - root < 2 << 30, f"{node.name}: the disk has {disk} bytes, / has {root}"


def test_no_unit_failed(booted: BootedCluster) -> None:
    """systemd knows of no failed unit, and no start job waits for ever."""
    for node in booted.cluster.nodes:
        assert booted.execute(node.name, "systemctl list-units --failed --no-legend") == ""
        assert booted.execute(node.name, "systemctl list-jobs --no-legend") == ""


@pytest.mark.item(24)
def test_virt_type_follows_the_processor(booted: BootedCluster) -> None:
    """kvm when the guest's processor shows vmx or svm and /dev/kvm is there, qemu otherwise."""
    said = booted.execute(
        "attic-c1",
        "grep -cwE 'vmx|svm' /proc/cpuinfo || true; [ -e /dev/kvm ] && echo kvm || echo none; "
        "cat /etc/nova/nova.conf.d/40-virt-type.conf",
    ).split("\n", 2)
    expected = "kvm" if int(said[0]) and said[1] == "kvm" else "qemu"
    assert f"virt_type = {expected}\n" in said[2]


def test_a_login_prompt_under_uefi(cluster_directory: Path, booted: BootedCluster) -> None:
    """The compute's image, the same file, boots under OVMF as well."""
    del booted  # one thing at a time: its machines are up, and this one comes after them
    cluster = load_cluster(cluster_directory / "cluster.yaml")
    secrets = load_secrets(cluster_directory / "secrets.yaml")
    node = cluster.node("attic-c1")
    image = find_image(IMAGES.parent, Role.COMPUTE, "qemu")
    with Qemu(cluster, cluster_directory / "uefi", firmware=Firmware.UEFI) as network:
        machine = network.add(node, image, seed_tree(cluster, node, secrets))
        machine.start()
        deadline = time.monotonic() + LOGIN_MINUTES * 60
        while not any(line.startswith(f"{node.name} login:") for line in machine.console(50)):
            assert machine.alive(), "the machine ended:\n" + "\n".join(machine.console(50))
            assert time.monotonic() < deadline, "no login prompt:\n" + "\n".join(machine.console(50))
            time.sleep(POLL)
