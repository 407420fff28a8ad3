"""disk.py: layouts, texts and bytes, without starting anything."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base.errors import CommandFailed, ImagegenError
from imagegen.base.machine import MIB
from imagegen.images import disk

LAYOUT = disk.plan_layout(2048 * MIB, "0123456789ab")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one kernel and the distro's links to it."""
    (tmp_path / "boot").mkdir()
    (tmp_path / "etc").mkdir()
    add_kernel(tmp_path, "6.12.9+deb13-amd64")
    (tmp_path / "vmlinuz").symlink_to("boot/vmlinuz-6.12.9+deb13-amd64")
    (tmp_path / "initrd.img").symlink_to("boot/initrd.img-6.12.9+deb13-amd64")
    return tmp_path


def add_kernel(tree: Path, version: str) -> None:
    for name in ("vmlinuz", "initrd.img"):
        (tree / f"boot/{name}-{version}").write_bytes(b"x")


@given(st.integers(min_value=1, max_value=1 << 20), st.text("0123456789abcdef", min_size=1))
def test_partitions_are_aligned_and_never_overlap(mib: int, content_id: str) -> None:
    """Every partition begins on a whole MiB after the one before, and both GPTs have room."""
    layout = disk.plan_layout(mib * MIB, content_id)
    end = MIB
    for part in layout.partitions:
        assert part.start == end
        assert part.start % MIB == part.size % MIB == 0
        end = part.start + part.size
    assert layout.size - end >= 33 * 512
    assert layout.partitions[-1] is layout.root


def test_root_of_broken_mib_is_refused() -> None:
    """A root that would end inside a MiB is the caller's mistake."""
    with pytest.raises(ValueError, match="whole MiB"):
        disk.plan_layout(MIB + 512, "a")


def test_uuids_follow_from_the_content_id_alone() -> None:
    """The same content id gives the same disk; another one shares no UUID with it; no two parts share one."""
    again, other = disk.plan_layout(2048 * MIB, "0123456789ab"), disk.plan_layout(2048 * MIB, "ba9876543210")
    assert again == LAYOUT

    def uuids(layout: disk.Layout) -> set[UUID]:
        return {layout.uuid, *(part.uuid for part in layout.partitions)}

    assert len(uuids(LAYOUT)) == 5
    assert not uuids(LAYOUT) & uuids(other)


def test_partition_script_says_the_layout_in_sectors() -> None:
    """sfdisk gets every partition by number with its place, type, UUID and name."""
    script = disk.partition_script(LAYOUT)
    assert script.startswith(f"label: gpt\nlabel-id: {LAYOUT.uuid}\nunit: sectors\n\n")
    found = re.findall(r'^(\d) : start=(\d+), size=(\d+), type=(\S+), uuid=(\S+), name="(\w+)"$', script, re.MULTILINE)
    assert [
        (int(n), int(start) * 512, int(size) * 512, UUID(kind), UUID(uuid), name)
        for n, start, size, kind, uuid, name in found
    ] == [(p.number, p.start, p.size, p.type, p.uuid, p.name) for p in LAYOUT.partitions]
    assert [p.name for p in LAYOUT.partitions] == ["bios", "esp", "seed", "root"]


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20), st.integers(0, 1 << 31))
def test_root_size_holds_the_content_with_room(size: int, inodes: int, newest: int) -> None:
    """A quarter, at least 512 MiB, stays free beside the journal, and the inode tables suffice."""
    root = disk.root_size(disk.TreeSize(size, inodes, newest))
    assert root % (64 * MIB) == 0
    assert root - size - 64 * MIB >= max(size // 4, 512 * MIB)
    assert root // 16384 >= inodes


def test_measure_tree_counts_blocks_and_hard_links_once(tmp_path: Path) -> None:
    """Sizes are whole blocks, a second name costs nothing, and only Python sources set the newest time."""
    (tmp_path / "a.py").write_bytes(b"x" * 4097)
    os.utime(tmp_path / "a.py", (5, 1700000000))
    (tmp_path / "b.py").hardlink_to(tmp_path / "a.py")
    (tmp_path / "data").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/nowhere")
    before = disk.measure_tree(tmp_path)
    # The directory itself, two blocks of a.py, one of data, the link.
    assert before == disk.TreeSize(size=5 * 4096, inodes=4, newest_source=1700000000)


def test_core_image_describes_where_its_rest_is() -> None:
    """The first sector ends with the block list: LBA of the second, their number, a segment. The rest is kept."""
    image = bytes(range(256)) * 5
    patched = disk.patch_core_image(image, 2048)
    assert len(patched) == 3 * 512
    assert struct.unpack_from("<QHH", patched, 0x1F4) == (2049, 2, 0x820)
    assert patched[:0x1F4] == image[:0x1F4]
    assert patched[512:] == image[512:].ljust(1024, b"\0")


@pytest.mark.parametrize("size", [0, 512, MIB + 1])
def test_core_image_that_cannot_be_one_is_refused(size: int) -> None:
    """One sector has no rest to describe, and more than the BIOS boot partition would overwrite the ESP."""
    with pytest.raises(ValueError, match=r"core\.img"):
        disk.patch_core_image(bytes(size), 2048)


def test_boot_image_keeps_clear_of_the_partition_table() -> None:
    """440 bytes, changed only where core.img's LBA and the drive check are."""
    image = bytes([7]) * 512
    patched = disk.patch_boot_image(image, 0x123456789A)
    assert len(patched) == 440
    assert struct.unpack_from("<Q", patched, 0x5C)[0] == 0x123456789A
    assert patched[0x66:0x68] == b"\x90\x90"
    assert {i for i, byte in enumerate(patched) if byte != 7} == {*range(0x5C, 0x64), 0x66, 0x67}
    with pytest.raises(ValueError, match="510"):
        disk.patch_boot_image(bytes(510), 1)


def test_grub_and_fstab_name_root_by_its_partition() -> None:
    """Nothing names a label or a file system's UUID, which a second disk may bear; GRUB's prefix names no disk."""
    config = disk.grub_config(LAYOUT.root.uuid)
    kernels = re.findall(r"^  linux (\S+) (.*)$", config, re.MULTILINE)
    assert [path for path, _ in kernels] == ["/vmlinuz", "/vmlinuz.old"]
    for _, arguments in kernels:
        words = arguments.split()
        assert words[0] == f"root=PARTUUID={LAYOUT.root.uuid}"
        assert words[-2:] == ["console=tty0", "console=ttyS0,115200"]
    assert re.findall(r"^  initrd (\S+)$", config, re.MULTILINE) == ["/initrd.img", "/initrd.img.old"]
    assert "LABEL" not in config and "search" not in config
    assert disk.grub_prefix(LAYOUT.root) == "(,gpt4)/boot/grub"
    assert disk.fstab(LAYOUT.root.uuid).split()[:3] == [f"PARTUUID={LAYOUT.root.uuid}", "/", "ext4"]


def test_every_grub_command_is_embedded() -> None:
    """A command of grub.cfg whose module is not in the image would ask for a module that the disk does not have."""
    commands = {"[": "test", "serial": "serial", "terminal_input": "terminal", "terminal_output": "terminal"}
    commands |= {"linux": "linux", "initrd": "linux", "menuentry": "normal"}
    words = {word for line in disk.grub_config(LAYOUT.root.uuid).splitlines() for word in line.split()[:2]}
    assert commands.keys() <= words
    assert {commands[word] for word in words & commands.keys()} <= set(disk.MODULES)


def test_prepare_tree_writes_only_what_it_says(tree: Path) -> None:
    """grub.cfg, fstab and mount points; the distro's kernel links stay as they are; a second time changes nothing."""

    def look() -> dict[str, bytes | str | None]:
        return {
            path.relative_to(tree).as_posix(): str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
            for path in tree.rglob("*")
        }

    before = look()
    disk.prepare_tree(tree, LAYOUT)
    after = look()
    assert {path for path in after if after[path] != before.get(path, 0)} == {
        *("boot/grub", "boot/grub/grub.cfg", "etc/fstab", "proc", "sys")
    }
    disk.prepare_tree(tree, LAYOUT)
    assert look() == after


@pytest.mark.parametrize("broken", ["missing", "dangling", "a file"])
def test_missing_kernel_links_are_made_relative(tree: Path, broken: str) -> None:
    """The newest kernel by number that has an initrd gets the links; they lead somewhere from any place of the tree."""
    add_kernel(tree, "6.12.107+deb13-amd64")
    (tree / "boot/vmlinuz-6.13.0").write_bytes(b"no initrd")
    (tree / "vmlinuz").unlink()
    if broken == "dangling":
        (tree / "vmlinuz").symlink_to("boot/vmlinuz-5.0")
    elif broken == "a file":
        (tree / "vmlinuz").write_bytes(b"a file")
    disk.link_kernel(tree)
    assert str((tree / "vmlinuz").readlink()) == "boot/vmlinuz-6.12.107+deb13-amd64"
    assert str((tree / "initrd.img").readlink()) == "boot/initrd.img-6.12.107+deb13-amd64"


def test_absolute_kernel_links_mean_the_tree(tree: Path) -> None:
    """A link to /boot/... is as good as a relative one: on the node the tree is the root."""
    (tree / "vmlinuz").unlink()
    (tree / "vmlinuz").symlink_to("/boot/vmlinuz-6.12.9+deb13-amd64")
    disk.link_kernel(tree)
    assert str((tree / "vmlinuz").readlink()) == "/boot/vmlinuz-6.12.9+deb13-amd64"


def test_tree_without_a_kernel_is_refused(tmp_path: Path) -> None:
    """A disk without a kernel would be found out only when it does not boot."""
    (tmp_path / "boot").mkdir()
    with pytest.raises(ImagegenError, match="no kernel"):
        disk.link_kernel(tmp_path)


def test_everything_that_a_tree_lacks_is_named_at_once(tree: Path) -> None:
    """Each missing part comes with the package to bake."""
    with pytest.raises(ImagegenError) as raised:
        disk.require_bootable(tree)
    for package in ("grub-pc-bin", "grub-efi-amd64-bin", "grub-common", "e2fsprogs"):
        assert f"package {package}" in raised.value.message


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What disk.py would have run, with its environment; nothing is run."""
    seen: list[tuple[list[str], dict[str, str]]] = []

    def record(argv: list[str | Path], *, env: dict[str, str] | None = None, input: bytes | None = None) -> None:
        words = [str(word) for word in argv]
        seen.append((words, env or {}))
        if "-o" in words:
            Path(words[words.index("-o") + 1]).write_bytes(b"x" * 1024)

    monkeypatch.setattr(disk, "run", record)
    monkeypatch.setattr(disk, "require_tools", lambda *tools: None)
    return seen


def test_the_trees_own_programs_make_the_disk(tree: Path, tmp_path_factory: pytest.TempPathFactory, commands) -> None:
    """GRUB and mke2fs run by the tree's loader, times are clamped to the newest source, only the disk is left."""
    for path in ("usr/lib/grub/i386-pc/boot.img", "usr/lib/grub/x86_64-efi/linux.mod", "usr/bin/grub-mkimage"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(bytes(512))
    (tree / "usr/sbin").mkdir()
    (tree / "usr/sbin/mke2fs").touch()
    (tree / "usr/a.py").touch()
    os.utime(tree / "usr/a.py", (1, 1750000000))
    target = tmp_path_factory.mktemp("out") / "disk.raw"
    phases: list[str] = []
    layout = disk.assemble_disk(tree, target, content_id="abc", report=phases.append)
    assert target.stat().st_size == layout.size
    assert target.stat().st_blocks * 512 < layout.size // 100
    assert [path.name for path in target.parent.iterdir()] == ["disk.raw"]
    loader = str(tree / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    programs = [words[3] if words[0] == loader else words[0] for words, _ in commands]
    grub, mke2fs = str(tree / "usr/bin/grub-mkimage"), str(tree / "usr/sbin/mke2fs")
    assert programs == ["sfdisk", grub, grub, "mformat", "mcopy", mke2fs]
    words, env = commands[-1]
    assert env["SOURCE_DATE_EPOCH"] == "1750000000"
    assert f"offset={layout.root.start}," in words[words.index("-E") + 1]
    assert words[-1] == f"{layout.root.size // 1024}k"
    assert "-L" not in words
    assert len(phases) == 4


def test_a_failed_assembly_leaves_the_disk_before(tree: Path, commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-written: the target is the old one and no work directory is left."""
    target = tree / "etc/disk.raw"
    target.write_bytes(b"the disk before")

    def fail(*_: object) -> None:
        raise CommandFailed("no space")

    monkeypatch.setattr(disk, "require_bootable", lambda tree: None)
    monkeypatch.setattr(disk, "write_grub", fail)
    with pytest.raises(CommandFailed):
        disk.assemble_disk(tree, target, content_id="abc")
    assert target.read_bytes() == b"the disk before"
    assert sorted(path.name for path in target.parent.iterdir()) == ["disk.raw", "fstab"]


def test_qcow2_is_renamed_only_when_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed conversion leaves neither half an image nor a file beside it; a good one is compressed with zstd."""
    monkeypatch.setattr(disk, "require_tools", lambda *tools: None)
    target = tmp_path / "disk.qcow2"

    def convert(argv: list[str | Path], rc: int) -> None:
        assert "compression_type=zstd" in argv
        Path(argv[-1]).write_bytes(b"qcow2")
        if rc:
            raise CommandFailed("no space")

    monkeypatch.setattr(disk, "run", lambda argv: convert(argv, 1))
    with pytest.raises(CommandFailed):
        disk.convert_qcow2(tmp_path / "disk.raw", target)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(disk, "run", lambda argv: convert(argv, 0))
    disk.convert_qcow2(tmp_path / "disk.raw", target)
    assert [path.name for path in tmp_path.iterdir()] == ["disk.qcow2"]
