"""A node after its first boot: it needs no seed, a new one wins, and the disk's own copy of the old one goes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes.world import DMI_UUID, World
from hypothesis import given
from hypothesis import strategies as st
from imagegen_node import cli
from imagegen_node.engine.errors import Refused, Waiting
from imagegen_node.node import metadata, seed
from repository import ELEMENTS

MAC, OTHER_MAC = "52:54:00:56:00:11", "52:54:00:56:00:99"
NETWORK = f"[Address]\nAddress=192.0.2.1/24\n\n[Match]\nMACAddress={MAC}\nName=net0\n\n[Route]\nGateway=192.0.2.2\n"
ISO = bytes(32768) + b"\x01CD001" + b"a password" + bytes(4096)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A node at its first boot, as cloud-init leaves it."""
    made = World(tmp_path, monkeypatch)
    made.make_node("linux-node1")
    made.put("/etc/systemd/network/10-cloud-init-net0.network", NETWORK)
    made.put("/sys/class/net/net0/address", f"{MAC}\n")
    made.put("/sys/class/net/lo/address", "00:00:00:00:00:00\n")
    return made


def detach(world: World) -> None:
    """The next boot, without the medium: cloud-init stays off."""
    world.at("/run/cloud-init/instance-data.json").unlink()


@pytest.fixture
def detached(world: World) -> World:
    """A node that was ready once and boots without its seed."""
    assert world.run_controller()["state"] == "ready"
    detach(world)
    return world


# without a seed


def test_a_node_that_was_ready_needs_no_seed(detached: World) -> None:
    """The same facts from the agent's own copy, which is root's alone; the whole role runs by them."""
    assert metadata.read_facts() == detached.facts
    assert detached.at("/var/lib/imagegen/seed.json").stat().st_mode & 0o7777 == 0o600
    detached.facts = metadata.read_facts()
    assert detached.run_controller()["state"] == "ready"


def test_the_copy_holds_no_secret(detached: World) -> None:
    """Only what every process on the node may read in cloud-init's instance data."""
    text = detached.at("/var/lib/imagegen/seed.json").read_text()
    assert "s3cret" not in text and detached.secrets["messaging_openstack"] not in text


def test_a_first_boot_without_a_seed_is_refused(world: World) -> None:
    """Nothing was kept yet: as ever."""
    detach(world)
    with pytest.raises(Refused, match="cloud-init found no data source: give this node a seed"):
        metadata.read_facts()


def test_a_live_node_without_its_seed_is_refused(detached: World) -> None:
    """Its facts are kept on a disk, but its files were in memory: it must not wait for them."""
    detached.at("/etc/imagegen/node.json").unlink()
    with pytest.raises(Refused, match="cloud-init found no data source"):
        metadata.read_facts()


def test_a_new_seed_wins_and_is_kept(detached: World) -> None:
    """Applied as at a first boot; at the next boot without it, it is the one that counts."""
    new = {**detached.facts, "region": "elsewhere"}
    detached.put("/run/cloud-init/instance-data.json", json.dumps({"ds": {"meta_data": {"imagegen": new}}}))
    assert metadata.read_facts() == new
    detached.facts = new
    assert detached.run_controller()["state"] == "ready"
    detach(detached)
    assert metadata.read_facts()["region"] == "elsewhere"


def test_a_medium_with_something_else_is_no_detached_seed(detached: World) -> None:
    """Whoever attaches a seed means it: without a role it is refused, not passed over."""
    detached.put("/run/cloud-init/instance-data.json", json.dumps({"ds": {"meta_data": {}}}))
    with pytest.raises(Refused, match="names no role"):
        metadata.read_facts()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"facts": 1, "dmi_uuid": "", "macs": []}'])
def test_a_damaged_copy_is_said(detached: World, text: str) -> None:
    """No traceback, and what to do."""
    detached.put("/var/lib/imagegen/seed.json", text)
    with pytest.raises(Refused, match=r"seed\.json is damaged: give this node its seed"):
        metadata.read_facts()


# another machine


def test_another_machines_disk_is_refused(detached: World) -> None:
    """By its hardware, before anything starts; with a seed of its own the stamp decides as before."""
    detached.put("/sys/class/dmi/id/product_uuid", "11111111-2222-4333-8444-555555555555\n")
    with pytest.raises(Refused) as caught:
        metadata.read_facts()
    said = str(caught.value)
    assert "for another machine: " in said and DMI_UUID.lower() in said and "11111111-2222-4333" in said
    assert "Give this machine its own seed" in said


def test_a_disk_behind_another_network_card_is_refused(detached: World) -> None:
    """Containers show their host's UUID and some firmware none: the card that the seed named must be there."""
    detached.put("/sys/class/net/net0/address", f"{OTHER_MAC}\n")
    with pytest.raises(Refused, match=f"interface with the MAC address {MAC}, this one has none"):
        metadata.read_facts()


@pytest.mark.parametrize(
    ("kept", "here", "macs", "same"),
    [
        ("a", "a", [MAC], True),
        ("a", "b", [MAC], False),
        ("", "", [MAC], True),
        ("", "b", [MAC], True),
        ("a", "", [MAC], True),
        ("a", "a", [OTHER_MAC], False),
        ("a", "a", [OTHER_MAC, MAC], True),
        ("a", "a", [], True),
        ("", "", [], False),
        ("", "b", [], False),
        ("a", "", [], False),
    ],
)
def test_which_machine_is_the_same(world: World, kept: str, here: str, macs: list[str], same: bool) -> None:
    """Nothing may speak against it, and something must speak for it."""
    world.put("/sys/class/dmi/id/product_uuid", f"{here}\n")
    assert (seed.tell_apart(kept, macs) == "") is same


# names of interfaces


def test_an_interface_keeps_its_name(world: World) -> None:
    """udev gives it the seed's name at the next boot; one file for each card, written once."""
    seed.keep(world.facts)
    link = world.at("/etc/systemd/network/05-imagegen-525400560011.link")
    assert f"MACAddress={MAC}\nPath=*\n\n[Link]\nName=net0\n" in link.read_text()
    before = link.stat().st_ino
    seed.keep(world.facts)
    assert link.stat().st_ino == before


def test_the_link_of_a_card_that_is_gone_goes(world: World) -> None:
    """A new seed names another card; files of others stay."""
    seed.keep(world.facts)
    world.put("/etc/systemd/network/20-mine.link", "[Match]\n")
    world.put("/etc/systemd/network/10-cloud-init-net0.network", NETWORK.replace(MAC, OTHER_MAC))
    seed.keep(world.facts)
    names = sorted(path.name for path in world.at("/etc/systemd/network").glob("*.link"))
    assert names == ["05-imagegen-525400560099.link", "20-mine.link"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[Match]\nName=eno1\n",
        "[Network]\nDHCP=yes\n",
        "[Match]\nMACAddress=x\n",
        f"[Match]\nMACAddress={MAC}/../../x\nName=net0\n",
        f"[Match]\nMACAddress={MAC}\nName=net0\n more\n",
        f"[Match]\nMACAddress={MAC}\nName=a name\n",
        f"[Match]\nMACAddress={MAC}\nName=eno*\n",
    ],
)
def test_a_network_without_a_card_needs_no_link(world: World, text: str) -> None:
    """Where cloud-init matched by name alone, it renamed nothing; and networkd's account writes no path and no line."""
    world.put("/etc/systemd/network/10-cloud-init-net0.network", text)
    assert seed.read_names() == {}


@given(st.lists(st.tuples(st.binary(min_size=6, max_size=6), st.from_regex("[a-z][a-z0-9]{0,14}", fullmatch=True))))
def test_names_come_back_as_networkd_has_them(
    tmp_path_factory: pytest.TempPathFactory, cards: list[tuple[bytes, str]]
) -> None:
    """Any addresses and names, beside repeated sections and keys."""
    directory = tmp_path_factory.mktemp("network")
    wanted = {raw.hex(":"): name for raw, name in cards}
    for number, (mac, name) in enumerate(wanted.items()):
        match = f"[Match]\nMACAddress={mac}\nName={name}\n"
        text = f"[Address]\nAddress=1\n[Address]\nAddress=2\n{match}[Network]\nDNS=1\nDNS=2\n"
        (directory / f"10-cloud-init-{number}.network").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed, "NETWORK", directory)
        assert seed.read_names() == wanted


# the seed partition


def give_disk(world: World, content: bytes = ISO) -> Path:
    """A disk with the root file system on its fourth partition and a seed on its third; the seed's device."""
    device = world.root.stat().st_dev
    place = world.at("/sys/dev/block") / f"{os.major(device)}:{os.minor(device)}"
    place.parent.mkdir(parents=True)
    for number, name in ((3, "seed"), (4, "imagegen-0123")):
        world.put(f"/sys/devices/vda/vda{number}/partition", f"{number}\n")
        world.put(f"/sys/devices/vda/vda{number}/uevent", f"DEVNAME=vda{number}\nPARTNAME={name}\n")
    place.symlink_to(world.at("/sys/devices/vda/vda4"))
    world.at("/dev").mkdir(exist_ok=True)
    world.at("/dev/vda3").write_bytes(content)
    world.at("/dev/vda4").write_bytes(ISO)
    return world.at("/dev/vda3")


def test_the_partitions_seed_goes_when_the_node_is_ready(world: World) -> None:
    """Every byte is overwritten, the partition stays as large as it was, the others are let be; and not before."""
    device = give_disk(world)
    seen: list[bool] = []
    world.later(1, lambda: seen.append(device.read_bytes() == ISO))
    assert world.run_controller()["state"] == "ready"
    assert seen == [True]
    assert device.read_bytes() == bytes(len(ISO))
    assert world.at("/dev/vda4").read_bytes() == ISO
    done = [entry["name"] for entry in world.documents[-1]["steps"]]
    assert done[-1] == "seed"


def test_a_node_that_fails_keeps_its_seed(world: World) -> None:
    """A deployed disk's seed is given out once: until the node is ready it may be needed again."""
    device = give_disk(world)
    world.node_name = "other"
    assert world.run_controller(100)["state"] == "failed"
    assert device.read_bytes() == ISO


def test_an_empty_partition_is_not_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each later boot the step only looks."""
    device = give_disk(world, bytes(3 << 20))
    device.chmod(0o400)
    before = device.stat().st_mtime_ns
    assert seed.erase() == f"{device} holds no seed"
    assert device.stat().st_mtime_ns == before


@pytest.mark.parametrize("place", [0, (1 << 20) - 1, 1 << 20, (3 << 20) + 6])
def test_what_lies_anywhere_in_it_goes(world: World, place: int) -> None:
    """One byte in any block, the last and short one too."""
    content = bytearray((3 << 20) + 7)
    content[place] = 1
    device = give_disk(world, bytes(content))
    assert seed.erase() == f"erased from {device}"
    assert device.read_bytes() == bytes(len(content))


def test_a_partition_that_is_in_use_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has mounted it: said with the device's name, and the seed goes when it is free."""
    device = give_disk(world)

    def refuse(*_: object) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with (
        monkeypatch.context() as patch,
        pytest.raises(Waiting, match=r"vda3 to be free, .* \(Device or resource busy\)"),
    ):
        patch.setattr("imagegen_node.node.seed.os.open", refuse)
        seed.erase()
    assert seed.erase() == f"erased from {device}"


def test_a_machine_without_such_a_partition_has_nothing_to_erase(world: World) -> None:
    """A root file system in memory, a container, or a disk of another layout."""
    assert seed.erase() == ""
    give_disk(world)
    world.put("/sys/devices/vda/vda3/uevent", "DEVNAME=vda3\nPARTNAME=seedling\n")
    assert seed.find_partition() is None


def test_the_command_erases_it_for_a_newer_medium(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What imagegen-medium.service runs before cloud-init looks for a seed."""
    device = give_disk(world)
    assert cli.main(["erase-seed"]) == 0
    assert capsys.readouterr().out == f"erased from {device}\n"
    world.at("/sys/dev/block").rename(world.at("/sys/dev/none"))
    assert cli.main(["erase-seed"]) == 0
    assert capsys.readouterr().out == "this disk has no seed partition\n"


def test_the_medium_is_asked_for_before_cloud_init() -> None:
    """The unit is ordered before the stage that looks for seeds, and enabled by the preset."""
    unit = (ELEMENTS / "imagegen-firstboot/static/etc/systemd/system/imagegen-medium.service").read_text()
    assert "Before=cloud-init-local.service" in unit and "ExecStart=/usr/bin/imagegen-node erase-seed" in unit
    preset = ELEMENTS / "imagegen-base/static/etc/systemd/system-preset/00-imagegen.preset"
    assert "enable imagegen-medium.service" in preset.read_text().splitlines()


def run_agent(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    ran: list[Any] = []
    monkeypatch.setattr("imagegen_node.roles.controller.Controller.run", lambda self: ran.append(self.facts))
    assert cli.main(["run"]) == 0
    return ran


def test_the_agent_works_from_its_copy(detached: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command, with files that are as the seed promised."""
    assert run_agent(detached, monkeypatch) == [detached.facts]
    assert "cloud-init" not in str(detached.commands.log)
