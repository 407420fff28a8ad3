"""Which machine this is: its name, its own identity, and whether its disk was another machine's before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from imagegen_node.engine.errors import Refused
from imagegen_node.engine.files import put_file

MACHINE_ID = Path("/etc/machine-id")
SSH = Path("/etc/ssh")
DMI_UUID = Path("/sys/class/dmi/id/product_uuid")
# For whom, and on which hardware, this disk's identity was made.
STAMP = Path("/var/lib/imagegen/machine.json")
# What two machines must never share, besides the name.
NAMES = (Path("/etc/iscsi/initiatorname.iscsi"), Path("/etc/nvme/hostnqn"), Path("/etc/nvme/hostid"))
COPIED = (
    "It holds the other machine's {copied}. Give this node its own disk, made from the image; keep this one only if "
    "the other machine is gone for good: `rm {stamp}` and reboot"
)


def read_dmi_uuid() -> str:
    """The machine's DMI system UUID (SMBIOS type 1), lower case; empty where the firmware has none or only zeros."""
    try:
        uuid = DMI_UUID.read_text().strip().lower()
    except OSError:
        return ""
    return "" if set(uuid) <= set("0-") or set(uuid) <= set("f-") else uuid


def read_stamp() -> dict[str, str]:
    """node and dmi_uuid under which this disk was first booted; empty on a first boot."""
    try:
        return dict(json.loads(STAMP.read_text()))
    except FileNotFoundError:
        return {}


def list_identity() -> str:
    """What on this disk tells machines apart, listed for a message."""
    present = [str(path) for path in (MACHINE_ID, *sorted(SSH.glob("ssh_host_*_key")), *NAMES) if path.exists()]
    return ", ".join(present)


def check_machine(node: dict[str, Any]) -> str:
    """Raises Refused when the machine's name, its identity or its disk is not its own."""
    name = os.uname().nodename
    if name != node["node"]:
        raise Refused("this machine is named {}, but its seed is for {}".format(name, node["node"]))
    machine_id = MACHINE_ID.read_text().strip()
    if len(machine_id) != 32:
        raise Refused(f"{MACHINE_ID} does not hold a valid id: {machine_id!r}")
    if not list(SSH.glob("ssh_host_*_key")):
        raise Refused("there are no ssh host keys: cloud-init's ssh module did not run")
    here, stamp = read_dmi_uuid(), read_stamp()
    copied = COPIED.format(copied=list_identity(), stamp=STAMP)
    if stamp.get("node", name) != name:
        raise Refused(
            "this disk was first booted as node {}, but its seed now says {}: it was copied, or the host was "
            "renamed, which Nova does not support. {}".format(stamp["node"], name, copied)
        )
    if here and stamp.get("dmi_uuid", "") not in ("", here):
        raise Refused(
            "this disk was first booted on machine {}, but this is {}: it was copied, or the machine is new. {}".format(
                stamp["dmi_uuid"], here, copied
            )
        )
    return f"machine {machine_id[:8]}"


def stamp_machine(node: dict[str, Any]) -> str:
    """As check_machine; then claims a new disk for this machine."""
    detail = check_machine(node)
    if not read_stamp().get("dmi_uuid"):
        put_file(STAMP, json.dumps({"node": node["node"], "dmi_uuid": read_dmi_uuid()}) + "\n", 0o600)
    return detail
