"""Network namespaces of this machine, and the bridge in one of them that connects the nodes of a run."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from imagegen.base.commands import run
from imagegen.base.errors import CommandFailed
from imagegen.model.cluster import Network

NAMESPACES = Path("/run/netns")
BRIDGE = "br0"
CLONE_NEWNET = 0x40000000  # sched.h

Result = TypeVar("Result")


class Bridge:
    """A bridge in a network namespace, whose name begins with the run's: remove_namespaces() goes by that."""

    tools: tuple[str, ...] = ("ip", "nsenter")

    def __init__(self, name: str, network: Network, *addresses: IPv4Address) -> None:
        """It will have these addresses and the gateway's, so that the nodes' gateway answers."""
        self.name = name
        self.network = network
        self._addresses = {*addresses, network.gateway} - {None}
        self._ports = 0

    @property
    def prefix(self) -> list[str]:
        """The prefix of a command that is to run in the namespace."""
        return namespace_command(self.name)

    def make(self) -> None:
        """Makes the namespace and its bridge. Raises CommandFailed."""
        run(["ip", "netns", "add", self.name])
        self._ip("link", "add", BRIDGE, "type", "bridge")
        for address in self._addresses:
            self._ip("address", "add", f"{address}/{self.network.cidr.prefixlen}", "dev", BRIDGE)
        for link in ("lo", BRIDGE):
            self._ip("link", "set", link, "up")

    def add_tap(self) -> str:
        """Makes a port for one virtual machine; returns the interface's name."""
        tap = self._name_port()
        self._ip("tuntap", "add", tap, "mode", "tap")
        self._ip("link", "set", tap, "master", BRIDGE, "up")
        return tap

    def add_namespace(self, name: str, interface: str, mac: str | None = None) -> None:
        """Makes another namespace, whose one interface, still down, leads to the bridge. Raises CommandFailed."""
        run(["ip", "netns", "add", name])
        self.add_interface(name, interface, mac)

    def add_interface(self, namespace: str, interface: str, mac: str | None = None) -> None:
        """Makes one more interface in such a namespace, still down, which leads to the bridge. Raises CommandFailed."""
        port, address = self._name_port(), [] if mac is None else ["address", mac]
        self._ip("link", "add", port, "type", "veth", "peer", "name", interface, *address, "netns", namespace)
        self._ip("link", "set", port, "master", BRIDGE, "up")

    def call(self, function: Callable[[], Result]) -> Result:
        """Calls the function in the namespace, where the sockets that it makes belong, and returns its result."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self._enter()
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _enter(self) -> None:
        """Moves only the calling thread to the namespace (setns(2); Python has os.setns since 3.12)."""
        with (NAMESPACES / self.name).open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise CommandFailed(f"setns to {self.name}: {os.strerror(ctypes.get_errno())}")

    def _name_port(self) -> str:
        self._ports += 1
        return f"port{self._ports}"

    def _ip(self, *words: str) -> None:
        run(["ip", "-n", self.name, *words])


def namespace_command(namespace: str) -> list[str]:
    """The prefix of a command that is to run in that network namespace."""
    return ["nsenter", f"--net={NAMESPACES / namespace}"]


def remove_namespaces(run_name: str) -> None:
    """Removes the namespaces of a run whose processes have ended, with all that is in them. Raises CommandFailed."""
    for namespace in NAMESPACES.glob(f"{run_name}-*"):
        try:
            run(["ip", "netns", "delete", namespace.name])
        except CommandFailed:
            if namespace.exists():  # not removed by another run meanwhile
                raise
