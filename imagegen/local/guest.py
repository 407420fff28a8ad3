"""The guest of `imagegen verify --instance`: a role's kernel, and an initramfs of what is in the role's image."""

from __future__ import annotations

import gzip
import lzma
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imagegen.base.errors import MachineLacks
from imagegen.base.resources import PACKAGE

LIMIT = 4 << 20  # bytes of the initramfs
MODULES = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")  # in the order of their loading
PROGRAM = "usr/bin/busybox"
APPLETS = (
    *("cat", "chmod", "cut", "dmesg", "grep", "hostname", "insmod", "ip"),
    *("mkdir", "mount", "ping", "sh", "sleep", "tr", "udhcpc", "wget"),
)
LIBRARIES = ("ld-linux-x86-64.so.2", "libc.so.6", "libresolv.so.2")
LIBRARY_PLACES = ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib")
MOST_LINKS = 8  # that lead to a file
DISK = bytes(1 << 20)
"""What Glance holds as the guest's image: Nova boots the kernel beside it, and nothing reads the disk."""


@dataclass(frozen=True, repr=False)
class Guest:
    """What boots: the same tree gives the same bytes."""

    kernel: bytes
    ramdisk: bytes


def make_guest(tar: Path) -> Guest:
    """The guest from an image's tar. Raises MachineLacks when something that it needs is not in there."""
    with tarfile.open(tar) as archive:
        wanted = find_members(archive.getnames())
        found = {name: _read(archive, member) for name, member in wanted.items()}
    kernel = found.pop("kernel")
    modules = {name: lzma.decompress(found.pop(name)) for name in MODULES}
    files = {f"lib/{posixpath.basename(name)}.ko": data for name, data in modules.items()}
    ramdisk = pack_initramfs(found | files | {"init": (PACKAGE / "data/guest-init").read_bytes()})
    if len(ramdisk) > LIMIT:
        raise MachineLacks(f"the guest's initramfs has {len(ramdisk)} bytes, more than {LIMIT}")
    return Guest(mark_kernel(kernel), ramdisk)


def mark_kernel(kernel: bytes) -> bytes:
    """The kernel with two bytes of its DOS header changed, which no boot loader reads.

    A kernel ends its first sector as a partitioned disk does. Nova, which looks when it fetches one for a migration,
    refuses it as a disk without partitions, unless it has these bytes of a FAT volume (oslo.utils,
    imageutils/format_inspector.py, GPTInspector).
    """
    marked = bytearray(kernel)
    marked[0x10], marked[0x15] = 2, 0xF8  # number of FATs, media descriptor
    return bytes(marked)


def find_members(names: Iterable[str]) -> dict[str, str]:
    """Where the parts are in the tar: `kernel`, each of MODULES, and files by their path in the guest."""
    there = {name.removeprefix("./"): name for name in names}
    kernels = sorted(name for name in there if name.startswith("boot/vmlinuz-"))
    if not kernels:
        raise MachineLacks("the image's tar has no kernel in /boot")
    version = kernels[-1].removeprefix("boot/vmlinuz-")
    wanted = {"kernel": kernels[-1], "bin/busybox": PROGRAM}
    wanted |= {name: f"usr/lib/modules/{version}/kernel/{name}.ko.xz" for name in MODULES}
    for library in LIBRARIES:
        places = [f"{place}/{library}" for place in LIBRARY_PLACES if f"{place}/{library}" in there]
        # Where Debian's loader is, and where it looks.
        place = "lib64" if library.startswith("ld-") else "lib"
        wanted[f"{place}/{library}"] = places[0] if places else library
    if lost := sorted(set(wanted.values()) - there.keys()):
        raise MachineLacks(f"the image's tar lacks {', '.join(lost)}, of which the guest is made")
    return {name: there[place] for name, place in wanted.items()}


def _read(archive: tarfile.TarFile, member: str) -> bytes:
    """A file's bytes; links within the archive are followed, also absolute ones. Raises MachineLacks."""
    prefix = "./" if member.startswith("./") else ""
    place = member.removeprefix("./")
    try:
        for _ in range(MOST_LINKS):
            info = archive.getmember(prefix + place)
            if not info.issym():
                break
            # An absolute target takes the place of the directory.
            place = posixpath.normpath(posixpath.join("/", posixpath.dirname(place), info.linkname)).lstrip("/")
        file = None if info.issym() else archive.extractfile(info)
    except KeyError:
        file = None
    if file is None:
        raise MachineLacks(
            f"the image's tar has no file {member.removeprefix('./')}, or a link to nothing in its place"
        )
    return file.read()


def pack_initramfs(files: Mapping[str, bytes]) -> bytes:
    """A compressed cpio archive of these files, all executable, and of links to busybox for its applets."""
    directories = sorted(
        {"bin", "dev", "lib", "lib64", "proc", "sys", "tmp"} | {posixpath.dirname(name) for name in files} - {""}
    )
    entries: list[tuple[str, int, bytes]] = [(name, 0o040755, b"") for name in directories]
    entries += [(name, 0o100755, files[name]) for name in sorted(files)]
    entries += [(f"bin/{name}", 0o120777, b"busybox") for name in APPLETS]
    return gzip.compress(b"".join(_pack(entries)), mtime=0)


def _pack(entries: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The archive in cpio's format `newc` (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        path = name.encode() + b"\0"
        links = 1
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        yield _pad(head) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
