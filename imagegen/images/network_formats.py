"""The files for an image's network boot: its disk compressed, its tree as a squashfs, its kernel and initramfs."""

from __future__ import annotations

import shutil
from pathlib import Path

from imagegen.base.commands import require_tools, run
from imagegen.base.errors import ImagegenError
from imagegen.images.disk import link_kernel, measure_tree, put_beside

LEVEL = "6"  # of zstd, for both: higher levels take many times as long for a few percent


def compress_raw(raw: Path, target: Path) -> None:
    """Writes `target`, the raw image in zstd, the same bytes on any machine. Raises MachineLacks, CommandFailed."""
    require_tools("zstd")
    with put_beside(target) as beside:
        run(["zstd", "-q", f"-{LEVEL}", "-T0", raw, "-o", beside])


def pack_squashfs(tree: Path, target: Path) -> None:
    """Writes `target`, the OS tree without its boot files, which come over the network. Raises as compress_raw()."""
    require_tools("mksquashfs")
    epoch = {"SOURCE_DATE_EPOCH": str(measure_tree(tree).newest_source)}
    options = ["-quiet", "-no-progress", "-noappend", "-comp", "zstd", "-Xcompression-level", LEVEL, "-wildcards"]
    with put_beside(target) as beside:
        run(["mksquashfs", tree, beside, *options, "-e", "boot/*"], env=epoch)


def copy_kernel(tree: Path, vmlinuz: Path, initrd: Path) -> None:
    """Writes the newest kernel of the tree and its initramfs. Raises ImagegenError when there is none."""
    link_kernel(tree)
    for name, target in (("vmlinuz", vmlinuz), ("initrd.img", initrd)):
        source = tree / str((tree / name).readlink()).lstrip("/")
        if not source.is_file():
            raise ImagegenError(f"{source} is not a file", "add a kernel package to the image")
        with put_beside(target) as beside:
            shutil.copyfile(source, beside)
