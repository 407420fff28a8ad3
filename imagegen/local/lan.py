"""An Ethernet of this machine alone: a network namespace with a bridge, taps for virtual machines, dnsmasq for DHCP."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from imagegen.base.commands import Process, require_tools, run, start
from imagegen.base.errors import CommandFailed, MachineLacks
from imagegen.base.handles import append_file
from imagegen.model.cluster import Network, Node

NAMESPACES = Path("/run/netns")
BRIDGE = "br0"
CLONE_NEWNET = 0x40000000  # sched.h

Result = TypeVar("Result")


class Lan:
    """The namespace. Everything in it has the run's name, so that a later run can find and end it."""

    tools = ("ip", "nsenter", "dnsmasq")

    def __init__(self, name: str, network: Network, address: IPv4Address) -> None:
        """`address` is this machine's on the LAN, next to the gateway's. Raises MachineLacks without root or a tool."""
        if os.geteuid() != 0:
            raise MachineLacks('network boots need root: run `sudo "$(command -v imagegen)" boot ...`')
        require_tools(*self.tools)
        self.name = f"{name}-lan"
        self.other = f"{name}-dhcp"  # another machine on the LAN, where a DHCP server of somebody else is at work
        self._network = network
        self._address = address
        self._taps = 0

    @property
    def prefix(self) -> list[str]:
        """The prefix of a command that is to run on the LAN."""
        return enter_command(self.name)

    def make(self) -> None:
        """Makes the namespace and its bridge. Raises CommandFailed."""
        run(["ip", "netns", "add", self.name])
        self._ip("link", "add", BRIDGE, "type", "bridge")
        for address in {self._address, self._network.gateway} - {None}:
            self._ip("address", "add", f"{address}/{self._network.cidr.prefixlen}", "dev", BRIDGE)
        for link in ("lo", BRIDGE):
            self._ip("link", "set", link, "up")

    def add_tap(self) -> str:
        """Makes a port for one virtual machine; returns the interface's name."""
        tap = f"tap{self._taps}"
        self._taps += 1
        self._ip("tuntap", "add", tap, "mode", "tap")
        self._ip("link", "set", tap, "master", BRIDGE, "up")
        return tap

    def start_dnsmasq(self, configuration: Path, directory: Path, log: Path) -> Process:
        """Starts dnsmasq with a configuration of `imagegen pxe`, as root: the tree may be closed to other users."""
        return _dnsmasq(self.prefix, ["--user=root", f"--conf-file={configuration}"], directory / self.name, log)

    def start_other_dhcp(self, address: IPv4Address, nodes: Sequence[Node], directory: Path, log: Path) -> Process:
        """Starts a DHCP server without network boot, to try proxy DHCP next to it. Raises CommandFailed."""
        run(["ip", "netns", "add", self.other])
        self._ip("link", "add", "other", "type", "veth", "peer", "name", "lan", "netns", self.other)
        self._ip("link", "set", "other", "master", BRIDGE, "up")
        run(["ip", "-n", self.other, "address", "add", f"{address}/{self._network.cidr.prefixlen}", "dev", "lan"])
        run(["ip", "-n", self.other, "link", "set", "lan", "up"])
        options = [
            "--conf-file=/dev/null",
            "--port=0",
            f"--dhcp-range={self._network.cidr.network_address},static,{self._network.cidr.netmask},12h",
            *(f"--dhcp-host={node.mac},{node.address}" for node in nodes),
            "--dhcp-authoritative",
        ]
        return _dnsmasq(enter_command(self.other), options, directory / self.other, log)

    def call(self, function: Callable[[], Result]) -> Result:
        """Calls the function on the LAN, where the sockets that it makes belong, and returns its result."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self.enter()
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def enter(self) -> None:
        """Moves only the calling thread to the LAN (setns(2); Python has os.setns since 3.12)."""
        with (NAMESPACES / self.name).open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise CommandFailed(f"setns to {self.name}: {os.strerror(ctypes.get_errno())}")

    def _ip(self, *words: str) -> None:
        run(["ip", "-n", self.name, *words])


def remove_lan(name: str) -> None:
    """Removes the namespaces of a run whose processes have ended, with all that is in them."""
    for namespace in (f"{name}-lan", f"{name}-dhcp"):
        if (NAMESPACES / namespace).exists():
            with suppress(CommandFailed):  # ended by another run meanwhile
                run(["ip", "netns", "delete", namespace])


def enter_command(namespace: str) -> list[str]:
    """The command prefix that runs something in that network namespace."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--"]


def _dnsmasq(prefix: Sequence[str], options: Sequence[str], files: Path, log: Path) -> Process:
    """A dnsmasq that stays in the foreground and writes only to `files`, whose name it has."""
    own = ["--keep-in-foreground", "--pid-file=", f"--dhcp-leasefile={files}.leases", "--log-facility=-", "--log-dhcp"]
    with append_file(log) as output:
        return start([*prefix, "dnsmasq", *own, *options], stdout=output.fileno())
