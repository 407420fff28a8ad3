"""network_boot.py and lan.py: what is refused before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from fakes.world import make_secrets
from netboot_images import make_images

from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.base.tree import write_tree
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import lan, network_boot, qemu
from imagegen.local.network_boot import BlankMachine, PxeQemu, TapMachine
from imagegen.local.request import Boot, NetworkBoot
from imagegen.model.cluster import Cluster
from imagegen.outputs.pxe import find_images, pxe_tree

CLUSTER = load_cluster(None)
Make = Callable[..., PxeQemu]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A backend on a tree of small files, on a machine that has all tools and is ours."""
    make_images(tmp_path)
    for module in (lan, qemu):
        monkeypatch.setattr(module, "require_tools", lambda *tools: None)
    monkeypatch.setattr(lan.os, "geteuid", lambda: 0)
    monkeypatch.setattr(network_boot, "find_ovmf", lambda: Path("/OVMF.fd"))
    # What a machine needs before it is started: its disk, and where its ssh is.
    monkeypatch.setattr(network_boot, "run", lambda argv: None)
    monkeypatch.setattr(qemu, "run", lambda argv: None)
    monkeypatch.setattr(qemu, "free_port", lambda: 40001)
    monkeypatch.setattr(qemu, "write_seed_iso", lambda seed, path: None)

    def build(cluster: Cluster = CLUSTER, **how: object) -> PxeQemu:
        write_tree(pxe_tree(CLUSTER, find_images(CLUSTER, tmp_path), tmp_path / "pxe"), tmp_path / "pxe")
        boot = Boot(cluster, make_secrets(), tmp_path, cluster.nodes, network=NetworkBoot(**how))
        return PxeQemu(boot, lambda line: None)

    return build


def test_it_needs_root(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan.os, "geteuid", lambda: 1000)
    with pytest.raises(MachineLacks, match="network boots need root"):
        make()


def test_a_cluster_that_needs_the_outside_is_refused(make: Make) -> None:
    """The LAN has no way out."""
    services = replace(CLUSTER.services, image_endpoint="http://glance.example.com:9292")
    with pytest.raises(BadUsage, match="has no way out"):
        make(replace(CLUSTER, services=services))


def test_the_server_is_on_the_nodes_network(make: Make) -> None:
    with pytest.raises(BadUsage, match=r"the nodes boot from 10\.9\.9\.9, which is outside 192\.168\.56\.0/24"):
        make(replace(CLUSTER, pxe_url="http://10.9.9.9:8080"))
    assert make(replace(CLUSTER, pxe_url="http://192.168.56.7:80")).address == IPv4Address("192.168.56.7")


def test_a_node_without_a_script_is_named(make: Make) -> None:
    """The tree is older than the cluster file."""
    more = (*CLUSTER.nodes, replace(CLUSTER.nodes[1], name="late"))
    with pytest.raises(BadUsage, match="has no script for late") as caught:
        make(replace(CLUSTER, nodes=more))
    assert "imagegen pxe" in caught.value.hint


def test_a_tree_of_other_images_is_refused(make: Make) -> None:
    """Built anew since `imagegen pxe`."""
    network = make()
    network.directory.mkdir(parents=True)
    with pytest.raises(BadUsage, match="was made for images other than"):
        network.add(CLUSTER.nodes[1], Path("/images/compute-0123456789ab.qcow2"), {})


def test_machines_are_blank_unless_told(make: Make) -> None:
    """By UEFI where they boot over the network, by BIOS from their disk; live ones have the memory for it."""
    live = replace(CLUSTER.nodes[1], name="live", deploy=replace(CLUSTER.nodes[1].deploy, mode="live"))
    network = make(from_disk=frozenset({"linux-node1"}))
    network.directory.mkdir(parents=True)
    disk = network.add(CLUSTER.nodes[0], Path("/images/controller-111111111111.qcow2"), {})
    blank = network.add(CLUSTER.nodes[1], Path("/images/compute-222222222222.qcow2"), {})
    assert (type(disk), type(blank)) == (TapMachine, BlankMachine)
    assert (disk.image, blank.image) == ("controller-111111111111.qcow2", "compute-222222222222.raw.zst")
    assert "-bios" not in disk.command() and "/OVMF.fd" in blank.command()
    assert blank.command()[blank.command().index("-m") + 1] == "2048M"
    machine = BlankMachine(network, live, Path("/images/compute-222222222222.qcow2"))
    assert machine.command()[machine.command().index("-m") + 1] == "4096M"
    assert blank.login.startswith("nsenter --net=/run/netns/imagegen-") and blank.login.endswith(
        f"root@{CLUSTER.nodes[1].address}"
    )
    assert blank.status() is None
