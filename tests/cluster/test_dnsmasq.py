"""dnsmasq itself gives out what `imagegen pxe` writes: each machine its address, in a network of this machine alone."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest
from netboot_images import make_images, make_loaders

from imagegen.base.commands import run
from imagegen.local.bridge import Bridge, remove_namespaces
from imagegen.local.lan import Lan
from imagegen.model.cluster import Network

SECONDS = 30.0
NAME = f"imagegen-dnsmasq-{os.getpid()}"
SERVER = IPv4Address("10.67.0.1")
NETWORK = Network(IPv4Network("10.67.0.0/24"), SERVER)
NODES = ("ignore", "infinite", "45m", "7", "set", "a1b2", "1d")  # names that dnsmasq has words or lease times for
COOKIE = b"\x63\x82\x53\x63"  # RFC 2131
HEAD = "!BBBBIHH4s4s4s4s16s64s128s"
PLACE = 'it\'s #1, "two" \\new words'


@dataclass(frozen=True)
class Wire:
    """The network with its DHCP server, as a machine on it sees both."""

    call: Callable[[Callable[[], object]], object]

    def discover(self, mac: str, vendor: str = "", wait: float = SECONDS) -> tuple[str, str] | None:
        """The address and the host name that a machine with that MAC address is offered; None: it is not answered."""

        def ask() -> tuple[str, str] | None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                client.bind(("0.0.0.0", 68))
                deadline = time.monotonic() + wait
                while (left := deadline - time.monotonic()) > 0:
                    client.sendto(make_discover(mac, vendor), ("255.255.255.255", 67))
                    client.settimeout(min(left, 4.0))
                    try:
                        while found := client.recv(2048):
                            if found[28:34].hex(":") == mac:
                                options = read_options(found)
                                return str(IPv4Address(found[16:20])), options.get(12, b"").decode()
                    except TimeoutError:
                        continue
            return None

        return self.call(ask)  # type: ignore[return-value]

    def fetch(self, name: str) -> bytes:
        """A small file by TFTP (RFC 1350)."""

        def ask() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(SECONDS)
                client.sendto(b"\0\1" + name.encode() + b"\0octet\0", (str(SERVER), 69))
                return client.recv(2048)

        return bytes(self.call(ask))  # type: ignore[arg-type, call-overload]


def make_discover(mac: str, vendor: str) -> bytes:
    none = bytes(4)
    hardware = bytes.fromhex(mac.replace(":", "")).ljust(16, b"\0")
    head = struct.pack(HEAD, 1, 1, 6, 0, 0x1234, 0, 0x8000, none, none, none, none, hardware, b"", b"")
    options = [(53, b"\x01"), (55, b"\x01\x03\x0c\x43"), *([(60, vendor.encode())] if vendor else [])]
    return head + COOKIE + b"".join(bytes([code, len(data)]) + data for code, data in options) + b"\xff"


def read_options(message: bytes) -> dict[int, bytes]:
    rest, options = message[struct.calcsize(HEAD) + 4 :], {}
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return options


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """dnsmasq by the emitted configuration, in a directory whose name holds all that needs quotes."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    place = tmp_path_factory.mktemp("dnsmasq")
    lines = [
        f'  - {{name: "{name}", role: {"compute" if i else "controller"}, mac: "52:54:00:67:00:{i + 16}",'
        f" address: 10.67.0.{i + 16}{', serial: S1' if i == 1 else ''}}}\n"
        for i, name in enumerate(NODES)
    ]
    head = "name: demo\nnetwork: {cidr: 10.67.0.0/24, gateway: 10.67.0.1}\nnodes:\n"
    (place / "cluster.yaml").write_text(head + "".join(lines))
    out = place / PLACE
    make_images(out)
    loaders = make_loaders(place / "ipxe")
    code = f"import pathlib; from imagegen.cli import main, pxe; pxe.IPXE = pathlib.Path({str(loaders)!r}); main.main()"
    subprocess.run([sys.executable, "-c", code, "-q", "-c", place / "cluster.yaml", "-o", out, "pxe"], check=True)
    remove_namespaces(NAME)
    lan = Lan(NAME, NETWORK, SERVER)
    try:
        lan.make()
        machine = Bridge(lan.other, NETWORK)
        lan.add_namespace(machine.name, "nic")
        run(["ip", "-n", machine.name, "address", "add", "10.67.0.9/24", "dev", "nic"])
        run(["ip", "-n", machine.name, "link", "set", "nic", "up"])
        run(["ip", "-n", machine.name, "route", "add", "default", "dev", "nic"])
        process = lan.start_dnsmasq(out / "pxe/dnsmasq.conf", place, place / "log")
        try:
            yield Wire(machine.call)
        finally:
            process.terminate()
            process.wait(SECONDS)
    finally:
        remove_namespaces(NAME)


@pytest.mark.parametrize(("number", "name"), list(enumerate(NODES)))
def test_every_node_gets_its_own_address_and_name(number: int, name: str, wire: Wire) -> None:
    """Whatever dnsmasq would take its name for."""
    assert wire.discover(f"52:54:00:67:00:{number + 16}") == (f"10.67.0.{number + 16}", name)


@pytest.mark.parametrize("vendor", ["PXEClient:Arch:00007:UNDI:003016", "HTTPClient:Arch:00016:UNDI:003001"])
def test_a_node_that_is_known_by_its_serial_number_boots_by_any_interface(vendor: str, wire: Wire) -> None:
    """It gets an address that no node has."""
    mac = f"52:54:00:99:00:{len(vendor):02x}"
    offered = wire.discover(mac, vendor)
    assert offered is not None
    assert IPv4Address("10.67.0.55") <= IPv4Address(offered[0]) <= IPv4Address("10.67.0.254")


def test_what_does_not_boot_over_the_network_gets_no_address(wire: Wire) -> None:
    """dnsmasq answers a machine that it gives an address within its own three seconds."""
    assert wire.discover("52:54:00:99:00:01", wait=5.0) is None


def test_boot_files_come_from_a_directory_of_any_name(wire: Wire) -> None:
    assert wire.fetch("undionly.kpxe") == b"\0\3\0\1undionly.kpxe"
