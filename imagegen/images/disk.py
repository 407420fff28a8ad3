"""A bootable disk image from an OS tree, in user space: no loop device, device-mapper or mount.

One image boots under BIOS and UEFI firmware. GRUB and mke2fs are the image's own, started with the tree's loader, so
the build host's versions do not matter. Only kernel links, grub.cfg and fstab are written to the tree.

The same tree and content id give the same raw bytes. Not reproducible are a qcow2's bytes (clusters are written in any
order), and whatever differs between two builds of the tree itself.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from imagegen.base.commands import require_tools, run
from imagegen.base.errors import CommandFailed, ImagegenError
from imagegen.base.tree import text, write_file
from imagegen.model.cluster import NAMESPACE

SECTOR = 512
MIB = 1 << 20
SEED_SIZE = 8 * MIB
# nodelalloc: a new file gets its data before its name. Otherwise a power cut at first boot leaves empty files that
# cloud-init believes it has written (ext4(5), data=ordered and delalloc).
ROOT_OPTIONS = "errors=remount-ro,nodelalloc"
# For every kernel, wherever it comes from. systemd.gpt_auto=no: only what is in fstab is mounted (otherwise systemd
# checks and mounts the ESP at every boot).
KERNEL_WORDS = f"ro rootflags={ROOT_OPTIONS} systemd.gpt_auto=no console=tty0 console=ttyS0,115200"

# Partition types: GRUB manual "BIOS installation", UEFI specification 2.10 table 5.7, Discoverable Partitions.
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_DATA = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
LINUX_ROOT_AMD64 = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")

# Modules for grub-mkimage to embed: all that grub_config() uses, so that none is read from the disk.
MODULES = (
    "part_gpt",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "test",
    "echo",
    "serial",
    "terminal",
    "ls",
    "cat",
    "reboot",
)
PLATFORM_MODULES = {"i386-pc": ("biosdisk",), "x86_64-efi": ("fat", "efi_gop")}

# Instead of the build host's mke2fs.conf: features that GRUB since 2.06 and all kernels of our releases can read.
MKE2FS_CONF = """\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	default_mntopts = acl,user_xattr
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384
[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
"""


@dataclass(frozen=True)
class TreeSize:
    """The size of a tree: bytes in 4 KiB blocks, inodes, and the newest mtime of a Python source in seconds."""

    size: int
    inodes: int
    newest_source: int


@dataclass(frozen=True)
class Partition:
    """One GPT partition; start and size in bytes."""

    number: int
    name: str
    type: UUID
    uuid: UUID
    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    """A whole disk; size in bytes. The root partition is last, so that growpart can grow it."""

    uuid: UUID
    size: int
    bios: Partition
    esp: Partition
    seed: Partition
    root: Partition

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.bios, self.esp, self.seed, self.root)


def measure_tree(tree: Path) -> TreeSize:
    """Walks the tree once, hard links counted once. Raises OSError for what cannot be read."""
    size = newest = 0
    seen: set[int] = set()

    def stop(error: OSError) -> None:
        raise error

    for directory, _, files in os.walk(tree, onerror=stop):
        entries = [Path(directory, name) for name in files]
        for path in (Path(directory), *entries):
            status = path.lstat()
            if status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            if stat.S_ISREG(status.st_mode):
                size += -(-status.st_size // 4096) * 4096
                if path.suffix == ".py":
                    newest = max(newest, int(status.st_mtime))
            else:
                size += 4096
    return TreeSize(size, len(seen), newest)


def root_size(content: TreeSize) -> int:
    """Bytes of a root file system for the content plus a quarter, at least 512 MiB, rounded up to 64 MiB.

    There is one inode per 16 KiB, so a tree of many small files needs more. Journal and tables: 64 MiB and 2 %.
    """
    needed = max(content.size, content.inodes * 16384)
    needed += needed // 50 + 64 * MIB + max(content.size // 4, 512 * MIB)
    return -(-needed // (64 * MIB)) * 64 * MIB


def plan_layout(root_bytes: int, content_id: str) -> Layout:
    """The disk for a root file system of that many bytes (whole MiB); all UUIDs are derived from the content id."""
    if root_bytes % MIB:
        raise ValueError(f"the root file system's size must be whole MiB, not {root_bytes} bytes")
    start = MIB
    partitions = []
    for number, (name, kind, size) in enumerate(
        [
            ("bios", BIOS_BOOT, MIB),
            ("esp", ESP, 64 * MIB),
            ("seed", LINUX_DATA, SEED_SIZE),
            ("root", LINUX_ROOT_AMD64, root_bytes),
        ],
        start=1,
    ):
        partitions.append(Partition(number, name, kind, derive_uuid(content_id, name), start, size))
        start += size
    # One more MiB: the backup GPT takes the last 33 sectors.
    return Layout(derive_uuid(content_id, "disk"), start + MIB, *partitions)


def derive_uuid(content_id: str, what: str) -> UUID:
    """The fixed UUID of one part of the image with that content id."""
    return uuid5(NAMESPACE, f"disk/{content_id}/{what}")


def partition_script(layout: Layout) -> str:
    """The input for sfdisk(8) to make the layout."""
    lines = ["label: gpt", f"label-id: {layout.uuid}", "unit: sectors", ""]
    for part in layout.partitions:
        lines.append(
            f"{part.number} : start={part.start // SECTOR}, size={part.size // SECTOR}, "
            f'type={part.type}, uuid={part.uuid}, name="{part.name}"'
        )
    return "\n".join(lines) + "\n"


def grub_config(root: UUID) -> str:
    """/boot/grub/grub.cfg, which boots the distro's kernel links, so that an upgraded kernel is the next to boot.

    `root` names the partition to the kernel; GRUB itself reads from the disk that it came from (see grub_prefix).
    UEFI firmware mirrors its own console to the serial port, so GRUB must not.
    """
    arguments = f"root=PARTUUID={root} {KERNEL_WORDS}"
    return f"""\
if [ "$grub_platform" = pc ]; then
  if serial --unit=0 --speed=115200; then
    terminal_input console serial
    terminal_output console serial
  fi
fi
set default=0
set fallback=1
set timeout=1
menuentry "Linux" {{
  linux /vmlinuz {arguments}
  initrd /initrd.img
}}
menuentry "Linux, the kernel before" {{
  linux /vmlinuz.old {arguments}
  initrd /initrd.img.old
}}
"""


def grub_prefix(root: Partition) -> str:
    """GRUB's prefix without a disk: GRUB adds the disk that it was loaded from (grub_set_prefix_and_root)."""
    return f"(,gpt{root.number})/boot/grub"


def fstab(root: UUID) -> str:
    """/etc/fstab: only the root file system, by the partition's UUID."""
    return f"PARTUUID={root} / ext4 {ROOT_OPTIONS} 0 1\n"


def patch_boot_image(image: bytes, core_lba: int) -> bytes:
    """The first 440 bytes of LBA 0 from GRUB's boot.img, as grub-bios-setup would write them.

    0x5c: 64-bit LBA of core.img. 0x66: a jump becomes two NOPs, so that GRUB corrects a drive number that no hard disk
    has (grub-core/boot/i386/pc/boot.S).
    """
    if len(image) != SECTOR:
        raise ValueError(f"boot.img has {len(image)} bytes, not {SECTOR}")
    patched = bytearray(image[:440])
    struct.pack_into("<Q", patched, 0x5C, core_lba)
    patched[0x66:0x68] = b"\x90\x90"
    return bytes(patched)


def patch_core_image(image: bytes, core_lba: int) -> bytes:
    """core.img for the BIOS boot partition that starts at core_lba: whole sectors, with the block list of its rest.

    The list ends the first sector (grub-core/boot/i386/pc/diskboot.S): 64-bit LBA, 16-bit sectors, 16-bit segment.
    """
    sectors = -(-len(image) // SECTOR)
    if not 1 < sectors <= min(0xFFFF, MIB // SECTOR):
        raise ValueError(f"core.img has {sectors} sectors: it does not fit the BIOS boot partition")
    patched = bytearray(image.ljust(sectors * SECTOR, b"\0"))
    struct.pack_into("<QHH", patched, 0x1F4, core_lba + 1, sectors - 1, 0x820)
    return bytes(patched)


def tree_command(tree: Path, program: str) -> list[str]:
    """The start of an argv that runs a program of the tree with the tree's loader and libraries, without a chroot."""
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    return [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", str(libraries), str(tree / program)]


def require_bootable(tree: Path) -> None:
    """Raises ImagegenError with a line for everything that the tree needs for a disk, but lacks."""
    needed = {
        "usr/lib/grub/i386-pc/boot.img": "grub-pc-bin",
        "usr/lib/grub/x86_64-efi/linux.mod": "grub-efi-amd64-bin",
        "usr/bin/grub-mkimage": "grub-common",
        "usr/sbin/mke2fs": "e2fsprogs",
    }
    missing = [
        f"the image has no /{path}: add the package {name}"
        for path, name in needed.items()
        if not (tree / path).exists()
    ]
    if missing:
        raise ImagegenError("\n".join(missing))


def link_kernel(tree: Path) -> None:
    """Makes the links /vmlinuz and /initrd.img if the distro's own are missing or broken. Raises ImagegenError."""
    links = {"vmlinuz": tree / "vmlinuz", "initrd.img": tree / "initrd.img"}
    if all(link.is_symlink() and (tree / str(link.readlink()).lstrip("/")).is_file() for link in links.values()):
        return
    versions = [path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*")]
    usable = [version for version in versions if (tree / f"boot/initrd.img-{version}").is_file()]
    if not usable:
        raise ImagegenError(
            f"{tree}/boot has no kernel with an initrd", "add a kernel package (linux-image-cloud-amd64) to the image"
        )
    newest = max(usable, key=version_key)
    for name, link in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(f"boot/{name}-{newest}")


def version_key(version: str) -> list[tuple[int, str]]:
    """A sort key for kernel versions: runs of digits by value, the rest as text."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", version)]


def prepare_tree(tree: Path, layout: Layout) -> None:
    """Writes into the tree what depends on the disk: kernel links, /boot/grub/grub.cfg, /etc/fstab, mount points."""
    link_kernel(tree)
    for name in ("proc", "sys"):  # dib leaves them out of its tar; without them systemd stops
        (tree / name).mkdir(mode=0o555, exist_ok=True)
    (tree / "boot/grub").mkdir(mode=0o755, parents=True, exist_ok=True)
    write_file(tree / "boot/grub/grub.cfg", text(grub_config(layout.root.uuid)))
    write_file(tree / "etc/fstab", text(fstab(layout.root.uuid)))


def assemble_disk(
    tree: Path,
    target: Path,
    *,
    content_id: str,
    root_bytes: int | None = None,
    report: Callable[[str], None] = lambda phase: None,
) -> Layout:
    """Writes `target`, a sparse raw disk image of the OS tree, and returns its layout.

    `root_bytes` (whole MiB) defaults to root_size(). `report` gets the name of each phase. Needs root to read the whole
    tree. Raises MachineLacks, CommandFailed, or ImagegenError for a tree that cannot boot.
    """
    require_tools("sfdisk", "mformat", "mcopy")
    require_bootable(tree)
    report("measuring the tree")
    content = measure_tree(tree)
    layout = plan_layout(root_bytes or root_size(content), content_id)
    prepare_tree(tree, layout)
    # Not older than any Python source: mke2fs clamps times to this one, and a .pyc records its source's time.
    # If they differed, Python would compile every module again at every start.
    epoch = {"SOURCE_DATE_EPOCH": str(content.newest_source), "TZ": "UTC0"}
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        work = Path(name)
        raw = work / "disk.raw"
        with raw.open("wb") as stream:
            stream.truncate(layout.size)
        report("partitioning")
        run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", raw], input=partition_script(layout).encode())
        report("making GRUB")
        write_grub(tree, raw, layout, work, epoch)
        report("writing the root file system")
        write_root(tree, raw, layout, work, epoch)
        raw.replace(target)
    return layout


def write_grub(tree: Path, raw: Path, layout: Layout, work: Path, env: dict[str, str]) -> None:
    """Puts GRUB for BIOS into LBA 0 and its partition, GRUB for UEFI into the ESP as a removable medium's loader."""
    core_lba = layout.bios.start // SECTOR
    core = patch_core_image(make_grub_image(tree, "i386-pc", layout.root, work / "core.img").read_bytes(), core_lba)
    with raw.open("r+b") as stream:
        stream.write(patch_boot_image((tree / "usr/lib/grub/i386-pc/boot.img").read_bytes(), core_lba))
        stream.seek(layout.bios.start)
        stream.write(core)
    loader = work / "EFI/BOOT/BOOTX64.EFI"
    loader.parent.mkdir(parents=True)
    make_grub_image(tree, "x86_64-efi", layout.root, loader)
    esp = f"{raw}@@{layout.esp.start}"
    sectors = layout.esp.size // SECTOR
    mtools = {**env, "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}
    geometry = ["-h", "64", "-s", "32", "-T", str(sectors), "-H", str(layout.esp.start // SECTOR), "-c", "1"]
    serial = layout.esp.uuid.hex[:8]
    run(["mformat", "-i", esp, "-F", *geometry, "-N", serial, "-v", "ESP", "::"], env=mtools)
    run(["mcopy", "-i", esp, "-s", work / "EFI", "::"], env=mtools)


def make_grub_image(tree: Path, platform: str, root: Partition, output: Path) -> Path:
    """Runs the tree's grub-mkimage; returns `output`."""
    modules = [*MODULES, *PLATFORM_MODULES[platform]]
    command = tree_command(tree, "usr/bin/grub-mkimage")
    options = ["-d", str(tree / "usr/lib/grub" / platform), "-O", platform, "-p", grub_prefix(root), "-o", str(output)]
    run([*command, *options, *modules])
    return output


def write_root(tree: Path, raw: Path, layout: Layout, work: Path, env: dict[str, str]) -> None:
    """Makes ext4 from the tree, straight into its partition. It has no label: a second disk could have the same."""
    (work / "mke2fs.conf").write_text(MKE2FS_CONF)
    uuid, seed = derive_uuid(layout.root.uuid.hex, "ext4"), derive_uuid(layout.root.uuid.hex, "hash")
    # The file is new and sparse, so it reads as zeros: neither mke2fs nor the first boot needs to write zeros.
    extended = f"offset={layout.root.start},hash_seed={seed},lazy_itable_init=1,assume_storage_prezeroed=1"
    options = ["-q", "-F", "-t", "ext4", "-m", "1", "-J", "size=64", "-U", str(uuid), "-E", extended, "-d", str(tree)]
    argv = [*tree_command(tree, "usr/sbin/mke2fs"), *options, str(raw), f"{layout.root.size // 1024}k"]
    try:
        run(argv, env={**env, "MKE2FS_CONFIG": str(work / "mke2fs.conf")})
    except CommandFailed as error:
        error.last_lines.append(f"the root file system has {layout.root.size // MIB} MiB")
        raise


@contextmanager
def put_beside(target: Path) -> Iterator[Path]:
    """A temporary path next to the target, renamed to it on success."""
    beside = target.with_name(f".{target.name}.new")
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def convert_qcow2(raw: Path, target: Path) -> None:
    """Writes `target`, the raw image as a compressed qcow2 (zstd). Raises MachineLacks or CommandFailed."""
    require_tools("qemu-img")
    options = ["-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-W", "-m", "16"]
    with put_beside(target) as beside:
        run(["qemu-img", "convert", *options, raw, beside])
