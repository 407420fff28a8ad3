"""bridge.py: which commands of iproute2 make and remove a run's network."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from imagegen.base.errors import CommandFailed
from imagegen.local import bridge
from imagegen.local.bridge import Bridge, remove_namespaces
from imagegen.model.cluster import Network

SERVER, GATEWAY = IPv4Address("10.0.0.2"), IPv4Address("10.0.0.1")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that would have been run."""
    called: list[str] = []
    monkeypatch.setattr(bridge, "run", lambda argv: called.append(" ".join(argv)))
    return called


@pytest.mark.parametrize(
    ("gateway", "others", "addresses"),
    [(GATEWAY, [], {GATEWAY}), (GATEWAY, [SERVER, GATEWAY], {SERVER, GATEWAY}), (None, [], set())],
)
def test_a_bridge_answers_as_the_gateway_and_the_server(
    gateway: IPv4Address | None, others: list[IPv4Address], addresses: set[IPv4Address], commands: list[str]
) -> None:
    """Each address once: a second time would be an error; without any the nodes still reach each other."""
    Bridge("run-lan", Network(IPv4Network("10.0.0.0/28"), gateway), *others).make()
    assert commands[:2] == ["ip netns add run-lan", "ip -n run-lan link add br0 type bridge"]
    assert set(commands[2:-2]) == {f"ip -n run-lan address add {address}/28 dev br0" for address in addresses}
    assert len(commands[2:-2]) == len(addresses)
    assert commands[-2:] == [f"ip -n run-lan link set {link} up" for link in ("lo", "br0")]


def test_every_machine_has_a_port_of_its_own(commands: list[str]) -> None:
    """A tap, or a cable to another namespace, with the MAC address of the seed."""
    own = Bridge("run-lan", Network(IPv4Network("10.0.0.0/28")))
    assert [own.add_tap(), own.add_tap()] == ["port1", "port2"]
    own.add_namespace("run-n0", "host0", "52:54:00:00:00:01")
    own.add_namespace("run-dhcp", "lan")
    assert [line for line in commands if "netns" in line] == [
        "ip netns add run-n0",
        "ip -n run-lan link add port3 type veth peer name host0 address 52:54:00:00:00:01 netns run-n0",
        "ip netns add run-dhcp",
        "ip -n run-lan link add port4 type veth peer name lan netns run-dhcp",
    ]
    assert [line for line in commands if "master" in line] == [
        f"ip -n run-lan link set port{number} master br0 up" for number in range(1, 5)
    ]


def test_a_runs_namespaces_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: list[str]
) -> None:
    monkeypatch.setattr(bridge, "NAMESPACES", tmp_path)
    for name in ("imagegen-0a-lan", "imagegen-0a-n1", "imagegen-0ab-lan", "imagegen-0a", "mine"):
        (tmp_path / name).touch()
    remove_namespaces("imagegen-0a")
    assert sorted(commands) == ["ip netns delete imagegen-0a-lan", "ip netns delete imagegen-0a-n1"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_namespace_that_another_run_removed_is_no_error(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is still there is."""

    def run(argv: list[str]) -> None:
        if gone:
            (tmp_path / argv[-1]).unlink()
        raise CommandFailed("`ip netns delete` ended with 1")

    monkeypatch.setattr(bridge, "NAMESPACES", tmp_path)
    monkeypatch.setattr(bridge, "run", run)
    (tmp_path / "run-lan").touch()
    if gone:
        remove_namespaces("run")
    else:
        with pytest.raises(CommandFailed):
            remove_namespaces("run")
