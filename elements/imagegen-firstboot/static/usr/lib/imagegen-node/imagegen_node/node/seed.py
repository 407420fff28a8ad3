"""What becomes of the seed after the first boot: the node keeps what it needs, and the copy on the disk is erased.

A medium may be detached once the node is ready (virtual media end with their session). The files that the seed brought
are on the disk already; the node also keeps the public facts of its meta-data and its network interfaces' names.
"""

from __future__ import annotations

import configparser
import json
import os
import re
from pathlib import Path
from typing import Any

from imagegen_node.engine.errors import Refused, Waiting
from imagegen_node.engine.files import put_file, read_text, remove_file
from imagegen_node.node.machine import read_dmi_uuid, stamp_machine

COPY = Path("/var/lib/imagegen/seed.json")
NETWORK = Path("/etc/systemd/network")
INTERFACES = Path("/sys/class/net")
ROOT = Path("/")
BLOCK_DEVICES = Path("/sys/dev/block")
DEVICES = Path("/dev")
PARTITION = "PARTNAME=seed"  # the image's partition for a seed, by its name in the partition table
BLOCK = 1 << 20  # bytes
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
NO_SEED = "cloud-init found no data source: give this node a seed (label cidata) or metadata with a role"
# Only hardware has a path (systemd.link(5)): a bridge, which may bear the MAC address of the card in it, has none.
LINK = """\
# Written by imagegen-node: the interface keeps the name that the seed gave it.
[Match]
MACAddress={mac}
Path=*

[Link]
Name={name}
"""


# the agent's copy


def keep_machine(facts: dict[str, Any], node: dict[str, Any]) -> str:
    """As stamp_machine; then the right machine keeps its facts and the names of its interfaces."""
    detail = stamp_machine(node)
    keep(facts)
    return detail


def keep(facts: dict[str, Any]) -> None:
    """Keeps the facts and the machine they belong to, and gives the interfaces their names for good."""
    names = read_names()
    for mac, name in names.items():
        put_file(NETWORK / link_file(mac), LINK.format(mac=mac, name=name))
    for path in NETWORK.glob(link_file("*")):
        if path.name not in map(link_file, names):
            remove_file(path)
    copy = {"version": 1, "dmi_uuid": read_dmi_uuid(), "macs": sorted(names), "facts": facts}
    put_file(COPY, json.dumps(copy, sort_keys=True) + "\n", 0o600)


def read_kept() -> dict[str, Any]:
    """The facts of the newest seed that this machine had. Raises Refused when there are none, or they are another's."""
    text = read_text(COPY)
    if text is None:
        raise Refused(NO_SEED)
    try:
        copy = json.loads(text)
        facts, uuid, macs = dict(copy["facts"]), str(copy["dmi_uuid"]), list(copy["macs"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"cloud-init found no data source, and {COPY} is damaged: give this node its seed") from error
    if difference := tell_apart(uuid, macs):
        raise Refused(
            f"cloud-init found no data source, and the last seed on this disk was for another machine: "
            f"{difference}. Give this machine its own seed (label cidata)"
        )
    return facts


def tell_apart(uuid: str, macs: list[str]) -> str:
    """How this machine differs from the one with that DMI UUID and these MAC addresses; empty: it is the same.

    Containers show their host's UUID, and some firmware shows none, so the interfaces count as well.
    """
    here = read_dmi_uuid()
    if uuid and here and uuid != here:
        return f"that machine had the DMI UUID {uuid}, this one has {here}"
    if macs and not set(macs) & read_macs():
        return f"that machine had a network interface with the MAC address {' or '.join(macs)}, this one has none"
    if not macs and not (uuid and here):
        return "neither a DMI UUID nor a MAC address shows that this is the same one"
    return ""


# network


def link_file(mac: str) -> str:
    """One file per card, whatever its name. It sorts before netplan's and the distribution's."""
    return f"05-imagegen-{mac.replace(':', '')}.link"


def read_names() -> dict[str, str]:
    """MAC address -> name, of every interface that cloud-init has configured for networkd."""
    found = {}
    for path in sorted(NETWORK.glob("10-cloud-init-*.network")):
        # networkd's sections and keys may come more than once.
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(read_text(path) or "")
        match = parser["Match"] if parser.has_section("Match") else {}
        mac, name = match.get("macaddress", "").lower(), match.get("name", "")
        # networkd's account owns these files, and must not choose what root writes, or where.
        if MAC.fullmatch(mac) and NAME.fullmatch(name):
            found[mac] = name
    return found


def read_macs() -> set[str]:
    """The MAC addresses of all interfaces that are here now."""
    return {path.read_text().strip().lower() for path in INTERFACES.glob("*/address")}


# the disk's seed partition


def find_partition() -> Path | None:
    """The device of the seed partition on the disk that the root file system is on; None where there is none."""
    device = ROOT.stat().st_dev
    root = BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}"
    if not root.exists():  # in memory, or a container's
        return None
    for partition in sorted(root.resolve().parent.glob("*/partition")):
        if PARTITION in (partition.parent / "uevent").read_text().splitlines():
            return DEVICES / partition.parent.name
    return None


def erase() -> str:
    """Overwrites the seed in the disk's seed partition with zeros; says what it did. Raises Waiting if it is mounted.

    cloud-init would take it instead of a newer one on a medium, and it holds the node's passwords.
    """
    device = find_partition()
    if device is None:
        return ""
    try:
        handle = os.open(device, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW)  # O_EXCL: not while it is mounted
    except OSError as error:
        raise Waiting(f"{device} to be free, to erase the seed in it ({error.strerror})") from error
    with os.fdopen(handle, "r+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if not any(any(stream.read(BLOCK)) for _ in range(0, size, BLOCK)):
            return f"{device} holds no seed"
        stream.seek(0)
        for start in range(0, size, BLOCK):
            stream.write(bytes(min(BLOCK, size - start)))
        os.fsync(handle)
    return f"erased from {device}"
