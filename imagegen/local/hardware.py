"""The virtual hardware of a cluster: QEMU's commands for its nodes and their gateway."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid5

from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.inputs.device_hints import parse_hint
from imagegen.model.cluster import NAMESPACE, Cluster, Node
from imagegen.model.roles import hosted_services

OVMF = (Path("/usr/share/ovmf/OVMF.fd"), Path("/usr/share/qemu/OVMF.fd"))


class Firmware(StrEnum):
    """The machines' firmware."""

    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True)
class Outside:
    """The user network's own addresses, and whether it blocks the nodes' traffic to the outside."""

    gateway: IPv4Address
    dns: IPv4Address
    dhcp: IPv4Address
    restrict: bool


@dataclass(frozen=True)
class Hardware:
    """A node's machine."""

    memory: int  # bytes
    accelerated: bool = False  # by KVM
    firmware: Path | None = None  # None: BIOS
    tap: str = ""  # the interface that it is connected to; empty: to the switch
    blank: bool = False  # it boots over the network first, and has no seed medium


def lan_socket(name: str) -> str:
    """The switch's socket, relative to the run's directory like all sockets here: their paths must be short."""
    return f"{name}-lan"


def gateway_command(name: str, cluster: Cluster, outside: Outside, ports: Mapping[Node, int]) -> list[str]:
    """The command of the gateway's QEMU. `ports` are those of 127.0.0.1 that lead to the nodes' ssh."""
    user = [
        f"user,id=outside,ipv6=off,restrict={'on' if outside.restrict else 'off'}",
        f"net={cluster.network.cidr},host={outside.gateway},dns={outside.dns},dhcpstart={outside.dhcp}",
        *(f"hostfwd=tcp:127.0.0.1:{port}-{node.address}:22" for node, port in ports.items()),
    ]
    return [
        *("qemu-system-x86_64", "-name", f"{name}-gateway", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "none", "-netdev", f"stream,id=lan,server=off,addr.type=unix,addr.path={lan_socket(name)}"),
        *("-netdev", "hubport,id=inner,hubid=0,netdev=lan", "-netdev", ",".join(user)),
        *("-netdev", "hubport,id=outer,hubid=0,netdev=outside"),
    ]


def node_command(name: str, node: Node, hardware: Hardware) -> list[str]:
    """The command of a node's QEMU. Paths are relative to the run's directory.

    A blank machine uses QEMU's own iPXE under BIOS, and the firmware's PXE under UEFI, which loads iPXE over TFTP.
    Without KVM cx16=off: before QEMU 8.0, cmpxchg16b leaves other instructions' results in the flags, and a kernel
    that uses it for each allocation (6.12) dies of a double fault within a minute.
    """
    here = node.name
    netdev = f"tap,id=lan,ifname={hardware.tap},script=no,downscript=no"
    if not hardware.tap:
        netdev = f"stream,id=lan,server=off,addr.type=unix,addr.path={lan_socket(name)}"
    rom = "" if hardware.blank and not hardware.firmware else ",romfile="
    first, second = (",bootindex=1", "") if not hardware.blank else (",bootindex=2", ",bootindex=1")
    serial = parse_hint("serial", node.root_device.get("serial", node.name)).values[0][:20]  # for root_device's hint
    seed = [
        *("-drive", f"if=none,id=seed,file={here}/seed.iso,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=seed"),
    ]
    engine = ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]
    if hardware.accelerated:
        engine = ["-accel", "kvm", "-cpu", "host"]
    return [
        *("qemu-system-x86_64", "-name", f"{name}-{node.name}", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35", *engine, "-m", f"{hardware.memory >> 20}M", "-smp", str(node.role.processors)),
        # By which a node recognises its machine; without it all machines have the same, zeros.
        *("-uuid", str(uuid5(NAMESPACE, f"machine/{node.mac}"))),
        *(("-bios", str(hardware.firmware)) if hardware.firmware else ()),
        # A node's disk is thrown away: writes need not reach it.
        *("-drive", f"if=none,id=root,file={here}/disk.qcow2,format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", f"virtio-blk-pci,drive=root,serial={serial}{first}"),
        *([] if hardware.blank else seed),
        *("-netdev", netdev, "-device", f"virtio-net-pci,netdev=lan,mac={node.mac}{rom}{second}"),
        *("-chardev", f"file,id=console,path={here}/console.log,append=on", "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci", "-chardev", f"file,id=status,path={here}/status.jsonl,append=on"),
        *("-device", "virtserialport,chardev=status,name=org.imagegen.status"),
        *("-device", "virtio-rng-pci", "-qmp", f"unix:{here}/qmp,server=on,wait=off"),
    ]


def plan_outside(cluster: Cluster) -> Outside:
    """The user network's addresses: the gateway, and free ones for the services that it always has. Raises BadUsage."""
    network = cluster.network
    taken = {network.gateway, *(node.address for node in cluster.nodes)}
    free = []
    for number in range(int(network.cidr.broadcast_address) - 1, int(network.cidr.network_address), -1):
        if (address := IPv4Address(number)) not in taken:
            free.append(address)
        if len(free) == 3:
            return Outside(network.gateway or free[2], free[0], free[1], not needs_outside(cluster))
    raise BadUsage(f"QEMU's user network needs three free addresses in {network.cidr}", "use a larger network")


def needs_outside(cluster: Cluster) -> bool:
    """Whether the nodes use anything outside their network."""
    services = cluster.services
    places = map(services.place, hosted_services())
    hosts = [place.host for place in places if place and place.node is None] + list(cluster.network.ntp)
    hosts.append(urlsplit(services.image_endpoint).hostname or "")

    def inside(host: str) -> bool:
        try:
            return ip_address(host) in cluster.network.cidr
        except ValueError:
            return False

    return not all(inside(host) for host in hosts)


def can_accelerate(cpuinfo: str, access: bool) -> bool:
    """Whether KVM works. The device alone proves nothing: in some containers it opens, and then hangs."""
    return access and re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.MULTILINE) is not None


def find_ovmf() -> Path:
    """The UEFI firmware. Raises MachineLacks."""
    for path in OVMF:
        if path.is_file():
            return path
    raise MachineLacks("UEFI firmware for QEMU not found: install the package ovmf")
