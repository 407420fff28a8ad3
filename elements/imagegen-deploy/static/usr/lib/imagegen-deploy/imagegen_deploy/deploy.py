"""Writes a node's image to its disk, once it is known to which disk, that it may be overwritten, and with what seed.

While it works the disk has our mark and no partition table. The table, which makes it bootable and carries the stamp,
comes when all the rest is right; then the mark goes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO, BinaryIO, Callable, cast

from imagegen_node.engine.errors import CommandFailed, Refused, Waiting
from imagegen_node.engine.files import write_atomically
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import Sleep, Step, run_steps
from imagegen_node.engine.system import run

from imagegen_deploy import gpt
from imagegen_deploy.disks import STAMP, Content, Disk, choose_disk, examine, find_seed_label, list_disks, require_wipe
from imagegen_deploy.mark import END, PLACE, read_kept_seed, render_mark
from imagegen_deploy.network import lower_interface, raise_interface
from imagegen_deploy.plan import Plan
from imagegen_deploy.seed import ATTACHED, Claim
from imagegen_deploy.stream import BLOCK, Download

ROOT = "root"  # the names of the image's partitions
SEED = "seed"
MOUNT = Path("/run/imagegen/root")
KERNEL = os.uname().release  # it came by the network, and the disk's system is to run with it
MODULES = ("usr/lib/modules", "lib/modules")
CONFIGURATION = ("boot/grub/grub.cfg", "etc/fstab")  # what names the root partition by its UUID


class Deployment:
    """One boot of one node, and what it has found out so far."""

    def __init__(self, plan: Plan, status: Status, sleep: Sleep = time.sleep) -> None:
        self.plan = plan
        self.status = status
        self.sleep = sleep
        self.disk = Disk(Path(), 0, 0)  # until find_disk()
        self.content = Content("blank")
        self.seed = b""
        self.claim = Claim(plan)
        self.head = b""  # the image's first MiB, which is written last
        self.old_table = self.table = gpt.Table(gpt.NONE, ())  # the image's, and this disk's
        self.root = Path()

    def run(self) -> Path:
        """Makes the disk the node's; returns its root partition's device."""
        first = [Step("network", lambda: raise_interface(self.plan)), Step("disk", self.find_disk)]
        run_steps(first, self.status, self.sleep)
        if self.content.kind != "deployed":
            run_steps(self.list_steps(), self.status, self.sleep)
        last = [Step("root", self.find_root)]
        if self.content.kind == "deployed":  # since then the node may have got another kernel
            last.append(Step("kernel", self.check_kernel))
        run_steps(last, self.status, self.sleep)
        lower_interface(self.plan)
        return self.root

    def list_steps(self) -> list[Step]:
        return [
            Step("seed", self.fetch_seed),
            Step("image", self.write_image),
            Step("own", self.make_own),
            Step("table", self.write_table),
        ]

    def find_disk(self) -> str:
        """Raises Refused for a disk that must not be touched."""
        plan = self.plan
        disk = choose_disk(list_disks(), plan.root_device)
        if disk.sector != gpt.SECTOR:
            raise Refused(f"{disk} has sectors of {disk.sector} bytes; images need {gpt.SECTOR}")
        if disk.size < plan.size + END:
            raise Refused(f"{disk} is too small: the image needs {(plan.size + END) >> 20} MiB")
        content = examine(disk, plan.id)
        if content.kind == "foreign":
            require_wipe(disk, content, plan)
        self.disk, self.content = disk, content
        return f"{disk}: {content.text or content.kind}"

    def fetch_seed(self) -> str:
        """The seed from an unfinished deployment, else from the server. It is kept on the disk at once.

        None when a medium has one, which the first boot takes.
        """
        plan, mark = self.plan, self.content.mark
        label = find_seed_label(self.disk)
        if not self.seed and mark:
            with self.disk.path.open("rb") as stream:
                self.seed = read_kept_seed(stream.read(END), mark, plan.node)
        kept = bool(self.seed)
        self.seed = b"" if label else self.seed or self.claim.take()
        with self.open_disk() as stream:
            stream.seek(PLACE)
            stream.write(render_mark(plan.node, plan.id, self.seed))
        if label:
            return ATTACHED.format(label)
        if not self.seed:
            return "none is given out here; the first boot takes one from a medium labelled cidata"
        return f"{len(self.seed)} bytes" + (", kept by the earlier deployment" if kept else "")

    def write_image(self) -> str:
        """Streams the image to the disk, all but its first MiB. Raises Refused when its checksum is wrong."""
        begun = time.monotonic()
        download = Download(self.plan.image, self.plan.sha256, self.status, self.sleep)
        with self.open_disk() as stream:
            stream.write(bytes(PLACE))
            stream.seek(self.disk.size - END)
            stream.write(bytes(END))
        with self.open_disk() as stream:
            writer = Writer(stream, self.plan.size)
            with decompress(writer.take) as pipe:
                for block in download.blocks():
                    pipe.write(block)
        if writer.written != self.plan.size:
            raise Refused(f"{self.plan.image} unpacks to {writer.written} bytes, not {self.plan.size}")
        table = gpt.read_table(writer.head[: gpt.HEAD])
        if table is None:
            raise Refused(f"{self.plan.image} has no partition table")
        self.head, self.old_table, self.table = writer.head, table, gpt.renew_uuids(table)
        return (
            f"{download.total >> 20} MiB read, {writer.written >> 20} MiB written in {time.monotonic() - begun:.0f} s"
        )

    def make_own(self) -> str:
        """Fresh UUIDs, also where the root file system names its partition; the seed, in its own partition."""
        old, new = gpt.find_partition(self.old_table, ROOT), gpt.find_partition(self.table, ROOT)
        with self.looped(new) as device, mounted(device) as tree:
            for name in CONFIGURATION:
                path = tree / name
                write_atomically(path, path.read_text().replace(str(old.uuid), str(new.uuid)))
        if self.seed:
            place = gpt.find_partition(self.table, SEED)
            if len(self.seed) > place.sectors * gpt.SECTOR:
                raise Refused(f"the seed of {len(self.seed)} bytes does not fit the image's seed partition")
            with self.open_disk() as stream:
                stream.seek(place.first * gpt.SECTOR)
                stream.write(self.seed)
        return f"root is {new.uuid}"

    def write_table(self) -> str:
        """Writes the boot code and the table, fitted to this disk and with the image's stamp; removes the mark."""
        stamped = gpt.rename_partition(self.table, ROOT, STAMP.format(self.plan.id))
        head, tail = gpt.render_table(stamped, self.disk.sectors)
        with self.open_disk() as stream:
            stream.seek(self.disk.size - gpt.TAIL)
            stream.write(tail)
            stream.seek(0)
            stream.write(self.head[: gpt.BOOT_CODE] + head[gpt.BOOT_CODE :])
        with self.open_disk() as stream:
            stream.seek(PLACE)
            stream.write(bytes(END - PLACE))
        run(["blockdev", "--rereadpt", str(self.disk.path)])
        return f"{self.disk.path} holds {self.plan.id}"

    def find_root(self) -> str:
        """Raises Waiting until the kernel has made the root partition's device."""
        with self.disk.path.open("rb") as stream:
            table = gpt.read_table(stream.read(gpt.HEAD))
        if table is None:
            raise Refused(f"{self.disk} has lost its partition table")
        number = gpt.find_number(table, STAMP.format(self.plan.id))
        separator = "p" if self.disk.path.name[-1].isdigit() else ""
        self.root = Path(f"{self.disk.path}{separator}{number}")
        if not self.root.exists():
            raise Waiting(f"the kernel to make {self.root}")
        return str(self.root)

    def check_kernel(self) -> str:
        """Raises Refused when the disk's system has no modules for the running kernel, which came by the network."""
        with mounted(self.root, "ro") as tree:
            found = {path.parent.name for name in MODULES for path in (tree / name).glob("*/modules.dep")}
        if KERNEL not in found:
            raise Refused(
                f"the system on {self.disk} has modules for {', '.join(sorted(found)) or 'no kernel'}, but the kernel "
                f"from the network is {KERNEL}: let this machine boot from its disk first (the firmware's boot order), "
                f"or build a new image and deploy it (`deploy: {{wipe: true}}` for {self.plan.node})"
            )
        return KERNEL

    # the disk

    @contextmanager
    def open_disk(self) -> Iterator[BinaryIO]:
        """The disk; what was written is safely on it when this ends."""
        with self.disk.path.open("r+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def looped(self, partition: gpt.Partition) -> Iterator[Path]:
        """A device for a partition of the disk, which has no partition table yet."""
        loop = run(["losetup", "-f"]).strip()
        run(["losetup", "-o", str(partition.first * gpt.SECTOR), loop, str(self.disk.path)])
        try:
            yield Path(loop)
        finally:
            run(["losetup", "-d", loop])


@contextmanager
def mounted(device: Path, mode: str = "rw") -> Iterator[Path]:
    """Where the file system on the device is, until this ends."""
    MOUNT.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "ext4", "-o", mode, str(device), str(MOUNT)])
    try:
        yield MOUNT
    finally:
        run(["umount", str(MOUNT)])


class Writer:
    """Takes an image's bytes in order; the first MiB is kept, the rest goes to its place on the disk."""

    def __init__(self, disk: BinaryIO, size: int) -> None:
        self._disk = disk
        self._size = size
        self._head = bytearray()
        self.written = 0

    @property
    def head(self) -> bytes:
        return bytes(self._head)

    def take(self, block: bytes) -> None:
        """Raises ValueError for more bytes than the image has."""
        if self.written + len(block) > self._size:
            raise ValueError(f"the image unpacks to more than {self._size} bytes")
        if room := END - len(self._head):
            self._head += block[:room]
            self.written += len(block[:room])
            block = block[room:]
        if block:
            self._disk.seek(self.written)
            self._disk.write(block)
            self.written += len(block)


@contextmanager
def decompress(take: Callable[[bytes], None]) -> Iterator[IO[bytes]]:
    """A pipe for zstd's format; what comes out goes to `take`, all of it when this ends. Raises CommandFailed."""
    process = subprocess.Popen(
        ["zstd", "--decompress", "--stdout", "--quiet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pipe, output, said = (cast(IO[bytes], stream) for stream in (process.stdin, process.stdout, process.stderr))
    errors: list[Exception] = []

    def pump() -> None:
        try:
            while block := output.read(BLOCK):
                take(block)
        except Exception as error:
            errors.append(error)
            process.kill()

    thread = Thread(target=pump, daemon=True)
    thread.start()
    try:
        with suppress(BrokenPipeError):  # it says why below
            yield pipe
            pipe.close()
        thread.join()
        text = said.read().decode(errors="replace").strip()
        if errors:
            raise errors[0]
        if process.wait():
            raise CommandFailed("zstd --decompress", process.returncode, text)
    finally:
        process.kill()
        process.wait()
        thread.join()
