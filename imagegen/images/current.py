"""Which image of a role is current: the one that `imagegen build` linked to OUT/images last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegen.base.handles import is_file, read_file
from imagegen.images.manifest import read_manifest
from imagegen.model.roles import Role


@dataclass(frozen=True)
class RoleImage:
    """A built image: where its files are, and the sha256 and size in bytes of each."""

    name: str  # ROLE-ID
    directory: Path
    files: Mapping[str, Mapping[str, Any]]

    @property
    def id(self) -> str:
        return self.name.rpartition("-")[2]

    def file_name(self, suffix: str) -> str:
        return f"{self.name}.{suffix}"

    def has(self, suffix: str) -> bool:
        """Whether the image was built in that format. Raises BadUsage for a link in its place."""
        return is_file(self.directory / self.file_name(suffix))


def find_current(out: Path, role: Role) -> RoleImage | None:
    """The role's current image; None when none was built. Raises BadUsage for a link in its place."""
    directory = out / "images" / role.name
    try:
        content_id = read_file(directory / "current", 200).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    manifest = read_manifest(directory)
    return RoleImage(f"{role}-{content_id}", directory, manifest.get("files", {}))
