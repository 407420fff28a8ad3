"""The QEMU backend's network boot: blank machines on a LAN with dnsmasq and `imagegen serve`, until they are ready."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagegen.base.commands import Process, run
from imagegen.base.console import read_tail
from imagegen.base.errors import BadUsage
from imagegen.base.handles import make_fresh, remove_place
from imagegen.base.streams import Say
from imagegen.base.tree import Tree
from imagegen.local import qemu
from imagegen.local.hardware import Firmware, Hardware, find_ovmf, needs_outside, plan_outside
from imagegen.local.lan import Lan
from imagegen.local.qemu import Qemu, QemuMachine
from imagegen.local.request import Boot, NetworkBoot
from imagegen.model.cluster import Node
from imagegen.outputs.pxe import SUFFIXES, choose_url, read_image
from imagegen.seeds.seed import seed_tree
from imagegen.server.ledger import Ledger
from imagegen.server.listener import Serving
from imagegen.server.provisioning import LEDGER, Serve, Window, check_tree, provision

DISK = "20G"  # sparse
WINDOW = 24 * 3600.0  # seconds; longer than any run
LIVE_MEMORY = 4 << 30  # bytes: the image and all that the node writes are in it


class PxeQemu(Qemu):
    """One run's network and machines."""

    tools = (*Qemu.tools, *Lan.tools)

    def __init__(self, boot: Boot, say: Say) -> None:
        """Raises BadUsage and MachineLacks."""
        super().__init__(boot.cluster, boot.directory)
        cluster, root = boot.cluster, boot.out / "pxe"
        check_tree(cluster, root)
        if needs_outside(cluster):
            raise BadUsage("with --pxe the nodes' network has no way out, but this cluster uses services outside")
        self.address = IPv4Address(str(urlsplit(choose_url(cluster)).hostname))
        if self.address not in cluster.network.cidr:
            raise BadUsage(
                f"the nodes boot from {self.address}, which is outside {cluster.network.cidr}",
                "give `pxe: {url: ...}` an address in their network, then run `imagegen pxe`",
            )
        self.root = root.absolute()
        self.served = self.directory / qemu.SERVED
        self.secrets = boot.secrets
        self.say = say
        self.how = boot.network or NetworkBoot()
        self.firmware = find_ovmf() if self.how.firmware is Firmware.UEFI else None
        self.lan = Lan(self.name, cluster.network, self.address)
        self.ledger: Ledger | None = None
        self.serving: Serving | None = None
        self._stack = ExitStack()

    @property
    def prefix(self) -> list[str]:
        return self.lan.prefix

    def add(self, node: Node, image: Path, seed: Tree) -> QemuMachine:
        """As Qemu.add(); a machine that boots over the network gets a blank disk, and its seed when it asks."""
        machine = TapMachine(self, node, image) if node.name in self.how.from_disk else BlankMachine(self, node, image)
        if isinstance(machine, BlankMachine) and read_image(self.root, node.name) not in image.name:
            raise BadUsage(
                f"{self.root} was made for images other than those in {image.parent}", "run `imagegen pxe` again"
            )
        self.machines.append(machine)
        machine.prepare(image, self.complete_seed(seed))
        return machine

    def needs(self, node: Node, image: Path) -> tuple[int, int]:
        """As Qemu.needs(); a blank disk takes the whole image, and a live node has it in memory."""
        memory, disk = super().needs(node, image)
        if node.name in self.how.from_disk:
            return memory, disk
        return memory_of(node), disk + (3 << 30)

    def connect(self) -> None:
        """Makes the LAN and starts what serves it. Raises CommandFailed, BadUsage."""
        if self._processes:
            return
        self.lan.make()
        for machine in self.machines:
            if isinstance(machine, TapMachine):
                machine.tap = self.lan.add_tap()
        self._serve_files()
        if self.how.proxy_dhcp:
            address, nodes = plan_outside(self.cluster).dhcp, [machine.node for machine in self.machines]
            self._await_dnsmasq("dhcp.log", lambda log: self.lan.start_other_dhcp(address, nodes, self.served, log))
        configuration = self.root / ("dnsmasq-proxy.conf" if self.how.proxy_dhcp else "dnsmasq.conf")
        self._await_dnsmasq("dnsmasq.log", lambda log: self.lan.start_dnsmasq(configuration, self.served, log))

    def _await_dnsmasq(self, log: str, begin: Callable[[Path], Process]) -> None:
        path = self.directory / log
        remove_place(path)
        self._await_process(begin(path), path, lambda: b" started, " in read_tail(path))

    def _serve_files(self) -> None:
        """The same server as `imagegen serve`, on the LAN; what it keeps is thrown away with the machines."""
        make_fresh(self.served, 0o700)
        asked = Serve(
            self.cluster,
            self.root,
            self.served,
            lambda cluster, node: self.complete_seed(seed_tree(cluster, node, self.secrets)),
            Window(seconds=WINDOW),
        )
        self.serving = self.lan.call(lambda: self._stack.enter_context(provision(asked, self.say))).serving
        self.ledger = Ledger(self.served / LEDGER)  # of this thread
        self._stack.callback(self.ledger.close)

    def close(self) -> None:
        """As Qemu.close(); the server ends even if machines are kept, because they no longer need it."""
        try:
            self._stack.close()
        finally:
            super().close()


def memory_of(node: Node) -> int:
    """The bytes of memory of a node that boots over the network."""
    return max(node.role.machine_memory, LIVE_MEMORY if node.deploy.mode == "live" else 0)


class TapMachine(QemuMachine):
    """A node on the LAN that boots from its disk, with its seed's ISO."""

    def __init__(self, network: PxeQemu, node: Node, image: Path) -> None:
        super().__init__(network, node, image)
        self.host, self.port = str(node.address), 22
        self.tap = ""
        self._lan = network

    @property
    def hardware(self) -> Hardware:
        return replace(super().hardware, tap=self.tap)


class BlankMachine(TapMachine):
    """A node with an empty disk, which boots over the LAN."""

    @property
    def hardware(self) -> Hardware:
        memory, firmware = memory_of(self.node), self._lan.firmware
        return replace(super().hardware, memory=memory, firmware=firmware, blank=True)

    def prepare(self, image: Path, seed: Tree) -> None:
        """Replaces the node's directory. Raises CommandFailed."""
        self.image = f"{image.stem}.{SUFFIXES[self.node.deploy.mode][-1]}"
        make_fresh(self.directory, 0o700)
        run(["qemu-img", "create", "-q", "-f", "qcow2", self.directory / "disk.qcow2", DISK])

    def status(self) -> dict[str, Any] | None:
        """What the node has reported to the server, from its firmware and initramfs too. None: nothing yet.

        Raises ImagegenError if the server has ended.
        """
        if self._lan.serving:
            self._lan.serving.wait(0)
        return self._lan.ledger.find_document(self.node.name) if self._lan.ledger else None
