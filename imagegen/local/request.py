"""What `imagegen boot` is asked to do, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagegen.base.errors import BadUsage
from imagegen.images.current import find_current
from imagegen.inputs.secrets_file import Secrets
from imagegen.local.hardware import Firmware
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import Role

# Backend -> the suffix of the image file that it boots.
IMAGE_SUFFIX = {"qemu": "qcow2", "nspawn": "tar"}


@dataclass(frozen=True)
class NetworkBoot:
    """How machines boot over the network: all but which, with what firmware, and next to which DHCP server."""

    from_disk: frozenset[str] = frozenset()  # these boot from image and seed ISO
    firmware: Firmware = Firmware.UEFI
    proxy_dhcp: bool = False  # another server gives the addresses


@dataclass(frozen=True)
class Boot:
    """What to boot on this machine, and how."""

    cluster: Cluster
    secrets: Secrets
    out: Path
    nodes: tuple[Node, ...]
    backend: str = "qemu"
    network: NetworkBoot | None = None  # QEMU's machines start with blank disks
    timeout: float | None = None  # seconds; None: the backend's own
    keep: bool = False  # machines keep running, ready or not
    instance: bool = False  # at the end a guest boots on every compute
    images: Mapping[Role, Path] | None = None  # instead of OUT/images; nspawn takes directories too

    @property
    def directory(self) -> Path:
        return self.out / "boot"

    def find_images(self) -> Mapping[Role, Path]:
        """Each role's image. Raises BadUsage if one has not been built."""
        roles = dict.fromkeys(node.role for node in self.nodes)
        return self.images or {role: find_image(self.out, role, self.backend) for role in roles}


def find_tar(out: Path, role: Role) -> Path:
    """The role's current image as a tar. Raises BadUsage if it has not been built."""
    return find_image(out, role, "nspawn")


def find_image(out: Path, role: Role, backend: str) -> Path:
    """The role's current image for the backend. Raises BadUsage if it has not been built."""
    how = f"run `imagegen build --role {role}` first"
    image = find_current(out, role)
    if image is None:
        raise BadUsage(f"there is no image for the role {role} in {out / 'images' / role.name}", how)
    suffix = IMAGE_SUFFIX[backend]
    if not image.has(suffix):
        raise BadUsage(f"{image.directory / image.file_name(suffix)} is missing; the {backend} backend needs it", how)
    return image.directory / image.file_name(suffix)
