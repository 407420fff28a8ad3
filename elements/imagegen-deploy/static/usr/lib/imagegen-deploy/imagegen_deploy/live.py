"""A node that lives in memory: the image's tree from a squashfs, and whatever changes in RAM, until it is switched off.

If the node names a local disk, its instances and what tells it from other machines are kept there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from imagegen_node.engine.errors import Refused
from imagegen_node.engine.files import replaced_file, write_atomically
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import Sleep, Step, run_steps
from imagegen_node.engine.system import run

from imagegen_deploy.disks import Disk, choose_disk, examine, find_seed_label, list_disks, require_wipe
from imagegen_deploy.mark import END
from imagegen_deploy.network import lower_interface, raise_interface
from imagegen_deploy.plan import Plan
from imagegen_deploy.seed import ATTACHED, Claim
from imagegen_deploy.stream import Download

MEMORY = Path("/proc/meminfo")
PLACE = Path("/run/imagegen/live")
ROOT = Path("/root")  # where the initramfs continues
SEED = Path("var/lib/cloud/seed/nocloud")
SPARE = 512 << 20  # bytes of memory on top of the image
LABEL = "imagegen-data"
# What outlives a boot where there is a disk for it: instances, and what two machines must never share.
KEPT = ("var/lib/nova", "var/lib/imagegen", "etc/ssh", "etc/iscsi", "etc/nvme")
MACHINE_ID = "etc/machine-id"
# Where systemd takes the id from at a first boot, as every boot of a live node is (machine-id(5)).
GIVEN_ID = "var/lib/dbus/machine-id"
FSTAB = "# Live: the root file system is in memory.\n"


class LiveBoot:
    """One boot of one node."""

    def __init__(self, plan: Plan, status: Status, sleep: Sleep = time.sleep) -> None:
        self.plan = plan
        self.status = status
        self.sleep = sleep
        self.disk: Disk | None = None
        self.seed = b""
        self.claim = Claim(plan)

    def run(self) -> None:
        """Leaves the node's root file system at ROOT."""
        steps = [Step("network", lambda: raise_interface(self.plan))]
        if self.plan.root_device:
            steps.append(Step("disk", self.find_disk))
        steps += [
            Step("image", self.fetch_image),
            Step("seed", self.fetch_seed),
            Step("root", self.mount_root),
        ]
        run_steps(steps, self.status, self.sleep)
        lower_interface(self.plan)

    def find_disk(self) -> str:
        """The disk for what is kept, with our file system on it. Raises Refused for one that must not be touched."""
        disk = choose_disk(list_disks(), self.plan.root_device)
        content = examine(disk, self.plan.id)
        if content.label == LABEL:
            self.disk = disk
            return f"{disk}: kept"
        if content.kind != "blank":
            require_wipe(disk, content, self.plan)
        forget(disk)
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, str(disk.path)])
        self.disk = disk
        return f"{disk}: new"

    def fetch_image(self) -> str:
        """The squashfs in memory, checked. Raises Refused when it is not the right one or does not fit."""
        PLACE.mkdir(parents=True, exist_ok=True)
        if not PLACE.is_mount():
            run(["mount", "-t", "tmpfs", "-o", "size=90%,mode=0700", "tmpfs", str(PLACE)])
        begun, memory = time.monotonic(), read_memory()
        download = Download(self.plan.image, self.plan.sha256, self.status, self.sleep)
        with replaced_file(PLACE / "image", 0o600) as stream:
            for block in download.blocks():
                if download.total + SPARE > memory:
                    raise Refused(
                        f"the image takes {download.total >> 20} MiB of memory, and a live node needs "
                        f"{SPARE >> 20} MiB more, but this machine has {memory >> 20} MiB"
                    )
                stream.write(block)
        return f"{download.total >> 20} MiB in {time.monotonic() - begun:.0f} s"

    def fetch_seed(self) -> str:
        """The seed, where one is given out: each boot claims one."""
        if label := find_seed_label(self.disk):
            return ATTACHED.format(label)
        self.seed = self.claim.take()
        return (
            f"{len(self.seed)} bytes" if self.seed else "none is given out here; a medium labelled cidata may hold one"
        )

    def mount_root(self) -> str:
        """The tree with a writable layer over it, the seed where cloud-init looks for it, what is kept in its place."""
        lower, upper, work = (PLACE / name for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            path.mkdir(exist_ok=True)
        if not lower.is_mount():
            mount_image(PLACE / "image", "squashfs", lower)
        if not ROOT.is_mount():
            layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
            run(["mount", "-t", "overlay", "-o", layers, "overlay", str(ROOT)])
        write_atomically(ROOT / "etc/fstab", FSTAB)
        if self.seed:
            unpack_seed(self.seed)
        if self.disk is not None:
            keep(self.disk, PLACE / "data", KEPT)
        return "in memory" + (f", instances and identity on {self.disk}" if self.disk else "")


def forget(disk: Disk) -> None:
    """Fills both ends of the disk with zeros and drops its partitions.

    mke2fs would leave a mark there, and what other systems write at the end, for the next boot to mistake for real.
    """
    with disk.path.open("r+b") as stream:
        stream.write(bytes(END))
        stream.seek(disk.size - END)
        stream.write(bytes(END))
    run(["blockdev", "--rereadpt", str(disk.path)])


def unpack_seed(seed: bytes) -> None:
    """Unpacks the seed into the overlay, which is memory: the ISO's bytes are nowhere else."""
    medium, image = PLACE / "seed", PLACE / "seed.iso"
    medium.mkdir(exist_ok=True)
    with replaced_file(image, 0o600) as stream:
        stream.write(seed)
    loop = mount_image(image, "iso9660", medium)
    for source in sorted(medium.iterdir()):
        write_atomically(ROOT / SEED / source.name, source.read_text(), 0o600)
    run(["umount", str(medium)])
    run(["losetup", "-d", loop])
    image.unlink()


def read_memory() -> int:
    """All of this machine's memory, in bytes."""
    fields = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
    return int(fields["MemTotal"].split()[0]) << 10


def mount_image(image: Path, kind: str, place: Path) -> str:
    """Mounts a file, read-only; returns the loop device."""
    loop = run(["losetup", "-f"]).strip()
    run(["losetup", "-r", loop, str(image)])
    run(["mount", "-t", kind, "-o", "ro", loop, str(place)])
    return loop


def keep(disk: Disk, place: Path, paths: Sequence[str]) -> None:
    """Puts the disk's copies of these directories over the image's; at first the image's own are copied to it."""
    place.mkdir(exist_ok=True)
    if not place.is_mount():
        run(["mount", "-t", "ext4", str(disk.path), str(place)])
    for path in paths:
        mine, theirs = place / path, ROOT / path
        theirs.mkdir(parents=True, exist_ok=True)
        if not mine.exists():
            beside = mine.with_name(f".{mine.name}.new")
            beside.parent.mkdir(parents=True, exist_ok=True)
            run(["rm", "-rf", str(beside)])
            run(["cp", "-a", str(theirs), str(beside)])
            beside.rename(mine)
        if not theirs.is_mount():
            run(["mount", "-o", "bind", str(mine), str(theirs)])
    keep_machine_id(place / MACHINE_ID)


def keep_machine_id(mine: Path) -> None:
    """The machine has the id that is on its disk; a new disk gets one."""
    if not mine.exists():
        write_atomically(mine, uuid4().hex + "\n")
    (ROOT / GIVEN_ID).unlink(missing_ok=True)  # a link to what systemd is about to write
    write_atomically(ROOT / GIVEN_ID, mine.read_text())
