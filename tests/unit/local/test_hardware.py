"""hardware.py: the commands of QEMU, and what they are decided by."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from fakes.booted import option_values as values
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import hardware, qemu
from imagegen.local.hardware import Hardware
from imagegen.model.cluster import Cluster

CLUSTER = load_cluster(None)
CONTROLLER, COMPUTE = CLUSTER.nodes[0], CLUSTER.nodes[1]
PORTS = {CONTROLLER: 40001, COMPUTE: 40002}


def with_network(**changes: object) -> Cluster:
    return dataclasses.replace(CLUSTER, network=dataclasses.replace(CLUSTER.network, **changes))  # type: ignore[arg-type]


def test_the_gateway_is_one_port_of_the_switch() -> None:
    """A QEMU without a machine joins the user network and the switch, and both ends name the same hub."""
    argv = hardware.gateway_command("run", CLUSTER, hardware.plan_outside(CLUSTER), PORTS)
    netdevs = values(argv, "-netdev")
    assert netdevs[0] == "stream,id=lan,server=off,addr.type=unix,addr.path=run-lan"
    hub = [netdev for netdev in netdevs if netdev.startswith("hubport,")]
    assert [port.split("netdev=")[1] for port in hub] == ["lan", "outside"]
    assert all(",hubid=0," in port for port in hub)
    assert values(argv, "-machine") == ["none"]
    assert qemu.switch_command("run")[-1] == "run-lan"


def test_the_user_network_is_the_seeds_gateway_and_forwards_ssh() -> None:
    """It answers as the gateway in the cluster's own network and leads one local port to each node."""
    argv = hardware.gateway_command("run", CLUSTER, hardware.plan_outside(CLUSTER), PORTS)
    [user] = [netdev.split(",") for netdev in values(argv, "-netdev") if netdev.startswith("user,")]
    assert {"net=192.168.56.0/24", "host=192.168.56.1", "restrict=on", "ipv6=off"} <= set(user)
    assert "hostfwd=tcp:127.0.0.1:40001-192.168.56.11:22" in user
    assert "hostfwd=tcp:127.0.0.1:40002-192.168.56.12:22" in user


@given(st.integers(min_value=8, max_value=29), st.sets(st.integers(min_value=1, max_value=6), max_size=3))
def test_the_user_networks_own_addresses_are_nobodys(prefix: int, taken: set[int]) -> None:
    """QEMU answers ARP for its addresses, so none may be a node's; all lie in the network."""
    cidr = IPv4Network(f"10.0.0.0/{prefix}")
    nodes = tuple(dataclasses.replace(CONTROLLER, address=cidr[number]) for number in sorted(taken))
    cluster = dataclasses.replace(with_network(cidr=cidr, gateway=None), nodes=nodes)
    outside = hardware.plan_outside(cluster)
    chosen = [outside.gateway, outside.dns, outside.dhcp]
    assert len(set(chosen)) == 3
    assert not set(chosen) & {node.address for node in nodes}
    assert all(address in cidr and address not in (cidr[0], cidr[-1]) for address in chosen)


def test_a_network_too_small_for_qemu_is_refused() -> None:
    """A /30 that its node and gateway fill has nothing left for the user network."""
    cluster = dataclasses.replace(
        with_network(cidr=IPv4Network("10.0.0.0/30"), gateway=IPv4Address("10.0.0.1")),
        nodes=(dataclasses.replace(CONTROLLER, address=IPv4Address("10.0.0.2")),),
    )
    with pytest.raises(BadUsage, match="three free addresses"):
        hardware.plan_outside(cluster)


def test_nodes_reach_out_only_when_their_cluster_needs_it() -> None:
    """Services on nodes of the cluster keep the network closed; one elsewhere, by name or address, opens it."""
    assert not hardware.needs_outside(CLUSTER)
    for host in ("10.0.0.5", "db.example.com"):
        place = dataclasses.replace(CLUSTER.services.database, host=host, node=None)
        services = dataclasses.replace(CLUSTER.services, database=place)
        assert hardware.needs_outside(dataclasses.replace(CLUSTER, services=services))
    services = dataclasses.replace(CLUSTER.services, image_endpoint="http://glance.example.com:9292")
    assert hardware.needs_outside(dataclasses.replace(CLUSTER, services=services))
    assert hardware.needs_outside(with_network(ntp=("ntp.example.com",)))
    assert not hardware.needs_outside(with_network(ntp=("192.168.56.11",)))


def test_a_node_has_the_one_nic_of_its_seed() -> None:
    """One NIC with the seed's MAC on the switch, and no user network of its own."""
    argv = hardware.node_command("run", COMPUTE, Hardware(2 << 30))
    devices = values(argv, "-device")
    assert [d for d in devices if "net" in d] == [f"virtio-net-pci,netdev=lan,mac={COMPUTE.mac},romfile="]
    assert values(argv, "-netdev") == ["stream,id=lan,server=off,addr.type=unix,addr.path=run-lan"]


def test_a_node_boots_its_disk_and_cannot_write_its_seed() -> None:
    """The overlay comes first in the boot order; the seed is read-only; both logs survive a second start."""
    argv = hardware.node_command("run", COMPUTE, Hardware(2 << 30))
    root, seed = values(argv, "-drive")
    assert "file=linux-node2/disk.qcow2,format=qcow2" in root
    assert "file=linux-node2/seed.iso" in seed and "readonly=on" in seed
    assert [d for d in values(argv, "-device") if "bootindex" in d] == [
        "virtio-blk-pci,drive=root,serial=linux-node2,bootindex=1"
    ]
    assert all(chardev.endswith(",append=on") for chardev in values(argv, "-chardev"))
    assert "virtserialport,chardev=status,name=org.imagegen.status" in values(argv, "-device")
    assert values(argv, "-m") == ["2048M"]


@pytest.mark.parametrize(("firmware", "rom"), [(None, ""), (Path("/f/OVMF.fd"), ",romfile=")])
def test_a_blank_machine_boots_over_the_network_first(firmware: Path | None, rom: str) -> None:
    """On a tap, without a seed's medium. BIOS needs the card's own iPXE; UEFI has PXE itself."""
    argv = hardware.node_command("run", COMPUTE, Hardware(2 << 30, firmware=firmware, tap="tap0", blank=True))
    assert values(argv, "-netdev") == ["tap,id=lan,ifname=tap0,script=no,downscript=no"]
    assert [d for d in values(argv, "-device") if "bootindex" in d] == [
        "virtio-blk-pci,drive=root,serial=linux-node2,bootindex=2",
        f"virtio-net-pci,netdev=lan,mac={COMPUTE.mac}{rom},bootindex=1",
    ]
    assert len(values(argv, "-drive")) == 1


def test_a_disk_bears_the_serial_number_that_is_looked_for() -> None:
    """So that a root_device hint finds it; virtio takes 20 characters."""
    hinted = dataclasses.replace(COMPUTE, root_device={"serial": "WD-" + "1" * 30})
    argv = hardware.node_command("run", hinted, Hardware(1 << 30))
    assert f"virtio-blk-pci,drive=root,serial=WD-{'1' * 17},bootindex=1" in values(argv, "-device")


def test_sockets_are_relative_because_their_paths_must_be_short() -> None:
    """A socket's path has 108 bytes; the longest node name fits whatever the output directory is."""
    long = dataclasses.replace(COMPUTE, name="n" * 63)
    argv = hardware.node_command("run", long, Hardware(1 << 30))
    argv += hardware.gateway_command("run", CLUSTER, hardware.plan_outside(CLUSTER), {long: 1})
    paths = [word.split("=")[1] for words in argv for word in words.split(",") if word.startswith("addr.path=")]
    paths += [value.removeprefix("unix:").split(",")[0] for value in values(argv, "-qmp")]
    assert len(paths) == 3
    assert all(len(path) < 108 and not path.startswith("/") for path in paths)


@pytest.mark.parametrize(
    ("accelerated", "accel", "cpu"), [(True, "kvm", "host"), (False, "tcg,thread=multi", "max,cx16=off")]
)
def test_without_kvm_the_broken_cmpxchg16b_is_hidden(accelerated: bool, accel: str, cpu: str) -> None:
    """QEMU 7.2 emulates it wrongly, and kernel 6.12 dies of it."""
    argv = hardware.node_command("run", CONTROLLER, Hardware(1 << 30, accelerated))
    assert values(argv, "-accel") == [accel]
    assert values(argv, "-cpu") == [cpu]


def test_firmware_is_bios_unless_told() -> None:
    """QEMU's default is SeaBIOS."""
    assert "-bios" not in hardware.node_command("run", COMPUTE, Hardware(1 << 30))
    uefi = hardware.node_command("run", COMPUTE, Hardware(1 << 30, firmware=Path("/f/OVMF.fd")))
    assert values(uefi, "-bios") == ["/f/OVMF.fd"]


def test_each_machine_has_a_uuid_of_its_own() -> None:
    """As hardware has: the agent knows a copied disk by it. The same node has the same at every boot."""
    argv = [hardware.node_command("run", node, Hardware(1 << 30)) for node in (COMPUTE, CONTROLLER, COMPUTE)]
    uuids = [values(each, "-uuid")[0] for each in argv]
    assert uuids[0] == uuids[2] != uuids[1]


def test_missing_uefi_firmware_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first place that has the firmware serves; none is the machine's lack."""
    monkeypatch.setattr(hardware, "OVMF", (tmp_path / "a.fd", tmp_path / "b.fd"))
    with pytest.raises(MachineLacks, match="package ovmf"):
        hardware.find_ovmf()
    (tmp_path / "b.fd").touch()
    assert hardware.find_ovmf() == tmp_path / "b.fd"


@pytest.mark.parametrize(
    ("flags", "access", "usable"),
    [("fpu vmx sse", True, True), ("svm", True, True), ("fpu sse", True, False), ("fpu vmx", False, False)],
)
def test_kvm_needs_the_processors_own_word(flags: str, access: bool, usable: bool) -> None:
    """/dev/kvm alone is no proof: it opens where guests hang. Neither is a flag of another line."""
    assert hardware.can_accelerate(f"model name\t: svm vmx\nflags\t\t: {flags}\nbugs\t\t: vmx\n", access) is usable
