"""The machine's disks: which one the node's root_device hints select, and what is on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from imagegen_node.engine.errors import Refused
from imagegen_node.engine.system import run

from imagegen_deploy.gpt import HEAD, NONE, SECTOR, read_table
from imagegen_deploy.hints import GIB, parse_hint
from imagegen_deploy.mark import Mark, read_mark
from imagegen_deploy.plan import Plan

BLOCK_DEVICES = Path("/sys/block")
DEVICES = Path("/dev")
NO_DISKS = re.compile(r"^(loop|ram|zram|dm-|md|sr|fd|nbd|mtdblock)")
SEED_LABELS = ("cidata", "CIDATA", "config-2", "CONFIG-2")
STAMP = "imagegen-{}"  # the name of a deployed disk's root partition, with the content id

# The udev properties where ironic-python-agent finds what these hints ask for, itself or through lsblk (hardware.py,
# list_all_block_devices and get_os_install_device): all of them count.
PROPERTIES = {
    "serial": ("ID_SCSI_SERIAL", "SCSI_IDENT_SERIAL", "ID_SERIAL_SHORT", "ID_SERIAL"),
    "wwn": ("ID_WWN_WITH_EXTENSION", "ID_WWN"),
    "wwn_with_extension": ("ID_WWN_WITH_EXTENSION",),
    "wwn_vendor_extension": ("ID_WWN_VENDOR_EXTENSION",),
}


@dataclass(frozen=True)
class Disk:
    """One whole disk, and by hint name what it says of itself; its size is not among these facts."""

    path: Path
    size: int  # bytes
    sector: int  # bytes
    facts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sectors(self) -> int:
        return self.size // SECTOR

    def read(self, hint: str) -> tuple[str, ...]:
        """What the disk says of that hint; its size in bytes."""
        return (str(self.size),) if hint == "size" else self.facts.get(hint, ())

    def __str__(self) -> str:
        told = " ".join(self.facts.get("model", ())[:1] + self.facts.get("serial", ())[:1]).lower()
        return f"{self.path} ({self.size / GIB:.1f} GiB{', ' if told else ''}{told})"


@dataclass(frozen=True)
class Content:
    """What is on a disk. `kind`: blank, begun (our deployment, cut off), deployed (this image), foreign."""

    kind: str
    text: str = ""
    mark: Mark | None = None
    label: str = ""  # of a file system on the whole disk


def list_disks() -> list[Disk]:
    """Every disk that could be deployed to: writable, not removable, no medium that carries a seed."""
    settle()
    found = []
    for entry in sorted(BLOCK_DEVICES.iterdir()):
        size = int(read_fact(entry / "size") or 0) * 512
        if NO_DISKS.match(entry.name) or not size or "1" in (read_fact(entry / "ro"), read_fact(entry / "removable")):
            continue
        path = DEVICES / entry.name
        if probe(path).get("LABEL") in SEED_LABELS:
            continue
        found.append(
            Disk(path, size, int(read_fact(entry / "queue/logical_block_size") or 512), read_facts(entry, path))
        )
    return found


def find_seed_label(besides: Disk | None) -> str:
    """The label of a medium with a seed, as cloud-init looks for it; empty when none is attached.

    `besides` is the disk that is to be the node's: what an older deployment left there does not count. Raises Refused
    when an older deployment left one on another disk, since cloud-init could mistake it for this node's.
    """
    settle()
    for entry in sorted(BLOCK_DEVICES.iterdir()):
        if NO_DISKS.match(entry.name) and not entry.name.startswith("sr"):
            continue
        if besides is not None and besides.path == DEVICES / entry.name:
            continue
        partitions = [path.parent.name for path in sorted(entry.glob("*/partition"))]
        for name in [entry.name, *partitions]:
            label = probe(DEVICES / name).get("LABEL", "")
            if label in SEED_LABELS and name != entry.name and read_fact(entry / "removable") == "0":
                raise Refused(
                    f"{DEVICES / name} is labelled {label}: it holds the seed of an earlier deployment, which first "
                    "boot could mistake for this node's. Erase that disk, or take it out"
                )
            if label in SEED_LABELS:
                return label
    return ""


def settle() -> None:
    """Waits until udev knows every disk that the kernel has found."""
    run(["udevadm", "settle", "--timeout=30"])


def read_fact(path: Path) -> str:
    """One line of sysfs; empty when it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_facts(entry: Path, path: Path) -> dict[str, tuple[str, ...]]:
    """By hint name what the disk says of itself, as ironic-python-agent finds it."""
    text = run(["udevadm", "info", "--query=property", f"--name={path}"], ok=(0, 1, 2, 4))
    udev = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    facts = {hint: [udev.get(name, "") for name in names] for hint, names in PROPERTIES.items()}
    facts["serial"] += [read_fact(entry / "serial"), read_fact(entry / "device/serial")]
    facts["model"] = [read_model(udev) or read_fact(entry / "device/model")]
    facts["vendor"] = [read_fact(entry / "device/vendor")]
    facts["by_path"] = [link for link in udev.get("DEVLINKS", "").split() if "/by-path/" in link]
    facts["name"] = [str(path)]
    facts["hctl"] = [address.name for address in sorted((entry / "device/scsi_device").glob("*"))[:1]]
    facts["rotational"] = ["true" if read_fact(entry / "queue/rotational") == "1" else "false"]
    return {hint: tuple(dict.fromkeys(value for value in values if value)) for hint, values in facts.items()}


def read_model(udev: dict[str, str]) -> str:
    """The model with the blanks that it has, as lsblk prints it (util-linux, misc-utils/lsblk-properties.c)."""
    encoded = udev.get("ID_MODEL_ENC", "")
    decoded = re.sub(r"\\x([0-9a-fA-F]{2})", lambda found: chr(int(found.group(1), 16)), encoded)
    return " ".join(decoded.split()) or udev.get("ID_MODEL", "")


def choose_disk(disks: list[Disk], hints: dict[str, str]) -> Disk:
    """The one disk that every hint matches. Raises Refused when there is none, or more than one."""
    asked = " ".join(f"{hint}={value}" for hint, value in sorted(hints.items()))
    try:
        wanted = [parse_hint(name, value) for name, value in hints.items()]
    except ValueError as error:
        raise Refused(f"root_device {asked} is not valid: a hint {error}. Correct the cluster file") from error
    fitting = [disk for disk in disks if all(hint.fits(disk.read(hint.name)) for hint in wanted)]
    there = ", ".join(map(str, disks)) or "none"
    if not fitting:
        what = f"no disk matches root_device {asked}" if hints else "there is no disk to deploy to"
        raise Refused(f"{what}; this machine has: {there}")
    if len(fitting) > 1:
        what = f"root_device {asked} matches {len(fitting)} disks" if hints else f"there are {len(fitting)} disks"
        raise Refused(f"{what}: {', '.join(map(str, fitting))}. Select one with root_device in the cluster file")
    return fitting[0]


def probe(path: Path) -> dict[str, str]:
    """What blkid sees on a whole disk, under its names (TYPE, PTTYPE, LABEL); empty: nothing that it knows."""
    text = run(["blkid", "--probe", "--output", "export", str(path)], ok=(0, 2, 8))
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def examine(disk: Disk, image: str) -> Content:
    """What is on the disk, to a deployment of the image with that id."""
    with disk.path.open("rb") as stream:
        head = stream.read(1 << 20)
    if mark := read_mark(head):
        return Content("begun", f"an unfinished deployment of {mark.image} to {mark.node}", mark)
    table = read_table(head[:HEAD])
    if table is not None:
        names = [partition.name for partition in table.partitions if partition.type != NONE]
        if STAMP.format(image) in names:
            return Content("deployed")
        if names:
            return Content("foreign", f"a partition table with {', '.join(name or 'no name' for name in names)}")
        return Content("blank")
    seen = probe(disk.path)
    if seen.get("PTTYPE") == "dos" and "TYPE" not in seen and head[446:510] == bytes(64):
        return Content("blank")
    if seen:
        kinds = [seen[key] for key in ("TYPE", "PTTYPE", "LABEL") if key in seen]
        text = f"something that blkid calls {', '.join(kinds) or 'ambiguous'}"
        return Content("foreign", text, label=seen.get("LABEL", ""))
    return Content("blank")


def require_wipe(disk: Disk, content: Content, plan: Plan) -> None:
    """Raises Refused unless the cluster file says that what is on the disk may go."""
    if not plan.wipe:
        raise Refused(
            f"{disk} holds {content.text or 'this image'}, so it is left alone. To overwrite it, set `deploy: {{wipe: "
            f"true}}` for {plan.node} in the cluster file and run `imagegen pxe`"
        )
