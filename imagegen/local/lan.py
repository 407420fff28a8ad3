"""The bridge of a network boot, with dnsmasq for DHCP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from imagegen.base.commands import Process, require_tools, run, start
from imagegen.base.errors import MachineLacks
from imagegen.base.handles import append_file
from imagegen.local.bridge import Bridge, namespace_command
from imagegen.model.cluster import Network, Node


class Lan(Bridge):
    """The bridge. What runs on it has the run's name, so that a later run can find and end it."""

    tools = (*Bridge.tools, "dnsmasq")

    def __init__(self, name: str, network: Network, address: IPv4Address) -> None:
        """`address` is this machine's on the LAN, next to the gateway's. Raises MachineLacks without root or a tool."""
        if os.geteuid() != 0:
            raise MachineLacks('network boots need root: run `sudo "$(command -v imagegen)" boot ...`')
        require_tools(*self.tools)
        super().__init__(f"{name}-lan", network, address)
        self.other = f"{name}-dhcp"  # another machine on the LAN, where a DHCP server of somebody else is at work

    def start_dnsmasq(self, configuration: Path, directory: Path, log: Path) -> Process:
        """Starts dnsmasq with a configuration of `imagegen pxe`, as root: the tree may be closed to other users."""
        return _dnsmasq(self.prefix, ["--user=root", f"--conf-file={configuration}"], directory / self.name, log)

    def start_other_dhcp(self, address: IPv4Address, nodes: Sequence[Node], directory: Path, log: Path) -> Process:
        """Starts a DHCP server without network boot, to try proxy DHCP next to it. Raises CommandFailed."""
        self.add_namespace(self.other, "lan")
        run(["ip", "-n", self.other, "address", "add", f"{address}/{self.network.cidr.prefixlen}", "dev", "lan"])
        run(["ip", "-n", self.other, "link", "set", "lan", "up"])
        options = [
            "--conf-file=/dev/null",
            "--port=0",
            f"--dhcp-range={self.network.cidr.network_address},static,{self.network.cidr.netmask},12h",
            *(f"--dhcp-host={node.mac},{node.address}" for node in nodes),
            "--dhcp-authoritative",
        ]
        return _dnsmasq(namespace_command(self.other), options, directory / self.other, log)


def _dnsmasq(prefix: Sequence[str], options: Sequence[str], files: Path, log: Path) -> Process:
    """A dnsmasq that stays in the foreground and writes only to `files`, whose name it has."""
    own = ["--keep-in-foreground", "--pid-file=", f"--dhcp-leasefile={files}.leases", "--log-facility=-", "--log-dhcp"]
    with append_file(log) as output:
        return start([*prefix, "dnsmasq", *own, *options], stdout=output.fileno())
