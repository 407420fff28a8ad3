"""guest.py: a guest from a tar that is made by hand, and the archive that its kernel will unpack."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import stat
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base.errors import MachineLacks
from imagegen.base.resources import PACKAGE
from imagegen.local import guest
from imagegen.local.guest import APPLETS, make_guest, pack_initramfs

VERSION = "6.12.9+deb13-amd64"
MODULES = f"usr/lib/modules/{VERSION}/kernel"
PLACES = {
    "lib/failover.ko": f"{MODULES}/net/core/failover.ko.xz",
    "lib/net_failover.ko": f"{MODULES}/drivers/net/net_failover.ko.xz",
    "lib/virtio_net.ko": f"{MODULES}/drivers/net/virtio_net.ko.xz",
    "lib/libc.so.6": "usr/lib/x86_64-linux-gnu/libc.so.6",
    "lib/libresolv.so.2": "usr/lib/x86_64-linux-gnu/libresolv.so.2",
    "lib64/ld-linux-x86-64.so.2": "usr/lib64/ld-linux-x86-64.so.2",
    "bin/busybox": "usr/bin/busybox",
    "kernel": f"boot/vmlinuz-{VERSION}",
}
"""Where in an image each part of a guest is."""

LINKS = {
    "usr/lib64/ld-linux-x86-64.so.2": "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/libresolv.so.2": "../x86_64-linux-gnu/libresolv-2.41.so",
}
"""As Debian has them: one absolute, one relative. What they lead to is in the tar as well."""

REAL = {
    "usr/lib64/ld-linux-x86-64.so.2": "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/libresolv.so.2": "usr/lib/x86_64-linux-gnu/libresolv-2.41.so",
}


def content(name: str) -> bytes:
    data = f"this is {name}".encode()
    return lzma.compress(data) if name.endswith(".xz") else data


def write_tar(place: Path, prefix: str = "", lost: str = "", big: bytes = b"", **links: str) -> Path:
    """An image's tar, as small as one may be."""
    files = {name: content(name) for name in PLACES.values() if name not in LINKS}
    files |= {real: content(link) for link, real in REAL.items()}
    if big:
        files["usr/bin/busybox"] = big
    files["boot/config-" + VERSION] = b"of no use"
    with tarfile.open(place / "image.tar", "w") as archive:
        for name in [each for each in files if each not in (lost, REAL.get(lost))]:
            info = tarfile.TarInfo(prefix + name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
        for name, target in {**LINKS, **links}.items():
            if name != lost:
                info = tarfile.TarInfo(prefix + name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                archive.addfile(info)
    return place / "image.tar"


class Entry(NamedTuple):
    """One file of a cpio archive."""

    mode: int
    data: bytes
    links: int


def unpack(packed: bytes) -> dict[str, Entry]:
    """The archive as a kernel reads it: format `newc`, every part on a multiple of four."""
    data, at, found = gzip.decompress(packed), 0, {}
    while True:
        assert at % 4 == 0 and data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, links, size, length = fields[1], fields[4], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length]
        assert name.endswith(b"\0")
        at += (110 + length + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert not data[at:].strip(b"\0")
            return found
        text = name[:-1].decode()
        assert text not in found
        found[text] = Entry(mode, data[at : at + size], links)
        at += (size + 3) // 4 * 4


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_guest_is_made_of_the_image(tmp_path: Path, prefix: str) -> None:
    """Kernel, busybox, libraries and modules without their compression; links are followed, however names begin."""
    made = make_guest(write_tar(tmp_path, prefix))
    marked = bytearray(content(PLACES["kernel"]))
    marked[0x10], marked[0x15] = 2, 0xF8  # or Nova takes it for a disk without partitions
    assert made.kernel == bytes(marked)
    files = unpack(made.ramdisk)
    for name, place in PLACES.items():
        if name != "kernel":
            expected = content(place)
            assert files[name].data == (lzma.decompress(expected) if place.endswith(".xz") else expected)
            assert files[name].mode == stat.S_IFREG | 0o755
    assert files["init"].data == (PACKAGE / "data/guest-init").read_bytes()


def test_the_same_tar_gives_the_same_bytes(tmp_path: Path) -> None:
    """Names in the tar may begin either way: Glance then holds the same."""
    made = [make_guest(write_tar(tmp_path, prefix)) for prefix in ("", "", "./")]
    assert made[0] == made[1] == made[2]
    assert made[0].ramdisk[4:8] == bytes(4)  # no time of its making


def test_every_applet_is_a_link_to_busybox(tmp_path: Path) -> None:
    """And what the guest's program calls is among them."""
    files = unpack(make_guest(write_tar(tmp_path)).ramdisk)
    links = {name: entry for name, entry in files.items() if stat.S_ISLNK(entry.mode)}
    assert {name.removeprefix("bin/") for name in links} == set(APPLETS)
    assert {entry.data for entry in links.values()} == {b"busybox"}
    called = set((PACKAGE / "data/guest-init").read_text().replace("$(", " ").split())
    assert {"mount", "insmod", "ip", "udhcpc", "wget", "ping", "tr", "cut", "grep"} <= called & set(APPLETS)


def test_directories_stand_before_what_is_in_them(tmp_path: Path) -> None:
    """A kernel makes no directory by itself."""
    files = unpack(make_guest(write_tar(tmp_path)).ramdisk)
    seen = {""}
    for name, entry in files.items():
        assert name.rpartition("/")[0] in seen
        if stat.S_ISDIR(entry.mode):
            seen.add(name)
    assert {"proc", "sys", "dev", "tmp"} <= seen


@pytest.mark.parametrize("lost", [place for name, place in PLACES.items() if name != "kernel"])
def test_what_is_missing_is_named(tmp_path: Path, lost: str) -> None:
    with pytest.raises(MachineLacks) as raised:
        make_guest(write_tar(tmp_path, lost=lost))
    named = lost.rpartition("/")[2] if ".so." in lost else lost
    assert raised.value.message == f"the image's tar lacks {named}, of which the guest is made"


def test_an_image_without_a_kernel_is_named(tmp_path: Path) -> None:
    """Containers need none."""
    with pytest.raises(MachineLacks, match="has no kernel in /boot"):
        make_guest(write_tar(tmp_path, lost=PLACES["kernel"]))


@pytest.mark.parametrize("target", ["/nowhere/at-all", "nowhere", "/usr/bin/busybox", "busybox"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str) -> None:
    """Also one that leads to itself."""
    link = {"usr/bin/busybox": target}
    with pytest.raises(MachineLacks, match="no file usr/bin/busybox"):
        make_guest(write_tar(tmp_path, **link))


def test_a_guest_of_more_than_four_mebibytes_is_refused(tmp_path: Path) -> None:
    """It would not boot in the memory that its flavor has."""
    noise = random.Random(0).randbytes(guest.LIMIT)
    with pytest.raises(MachineLacks, match=r"initramfs has \d+ bytes, more than 4194304"):
        make_guest(write_tar(tmp_path, big=noise))
    assert len(make_guest(write_tar(tmp_path, big=noise[: guest.LIMIT - 20_000])).ramdisk) <= guest.LIMIT


names = st.text(st.characters(min_codepoint=0x21, exclude_categories=["Cs"], exclude_characters="/"), min_size=1)
paths = st.builds("{}/{}".format, st.sampled_from(["bin", "lib", "lib64", "etc"]), names) | names.map("file-{}".format)
NO_PATHS = {"bin/.", "bin/..", *(f"bin/{name}" for name in APPLETS)}


@given(st.dictionaries(paths.filter(lambda path: path not in NO_PATHS), st.binary(max_size=50), max_size=4))
def test_files_come_back_from_the_archive(files: dict[str, bytes]) -> None:
    """Whatever their names and lengths, which move the padding; the same files give the same bytes."""
    packed = pack_initramfs(files)
    found = unpack(packed)
    assert {name: entry.data for name, entry in found.items() if stat.S_ISREG(entry.mode)} == files
    assert {entry.links for entry in found.values()} == {1}
    assert packed == pack_initramfs(dict(reversed(files.items())))


def test_a_guest_is_not_said(tmp_path: Path) -> None:
    """Some mebibytes in a traceback help nobody."""
    assert "this is" not in repr(make_guest(write_tar(tmp_path)))
