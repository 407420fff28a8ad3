"""Small files in the place of built images, as `imagegen build` leaves them, and of the package ipxe."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from imagegen.base.handles import link_file
from imagegen.model.roles import roles

SUFFIXES = ("raw", "raw.zst", "squashfs", "vmlinuz", "initrd")


def make_images(out: Path) -> None:
    """OUT/images/ROLE with a manifest and `current`; ids are of one digit a role."""
    for number, role in enumerate(roles(), 1):
        place = out / "images" / role.name
        place.mkdir(parents=True)
        files = {}
        for suffix in SUFFIXES:
            name = f"{role}-{str(number) * 12}.{suffix}"
            (place / name).write_text(f"{role} {suffix}")
            digest = hashlib.sha256(f"{role} {suffix}".encode()).hexdigest()
            files[name] = {"size": len(f"{role} {suffix}"), "sha256": digest}
        (place / "manifest.json").write_text(json.dumps({"id": str(number) * 12, "files": files}))
        (place / "current").write_text(f"{str(number) * 12}\n")


def share_images(images: Path, out: Path) -> None:
    """OUT/images as a build leaves it, from images elsewhere: by hard links, since imagegen follows no others."""
    out.mkdir(exist_ok=True)
    shutil.copytree(images, out / "images", copy_function=lambda source, target: link_file(Path(source), Path(target)))


def make_loaders(place: Path) -> Path:
    """iPXE's files, as far as the tests look at them."""
    place.mkdir()
    for name in ("undionly.kpxe", "ipxe.efi", "snponly.efi"):
        (place / name).write_text(name)
    return place
