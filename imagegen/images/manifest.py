"""What lies next to an image: manifest.json and SHA256SUMS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imagegen.base.handles import read_file


def digest_files(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Name -> {"size": bytes, "sha256": hex} for each file; several are read at once."""

    def digest(path: Path) -> tuple[str, dict[str, Any]]:
        with path.open("rb") as stream:
            value = hashlib.file_digest(stream, "sha256").hexdigest()
        return path.name, {"size": path.stat().st_size, "sha256": value}

    with ThreadPoolExecutor(2) as pool:
        return dict(sorted(pool.map(digest, paths)))


def checksums(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of SHA256SUMS, as sha256sum(1) writes and checks it: `HEX  FILE`."""
    return "".join(f"{facts['sha256']}  {name}\n" for name, facts in sorted(files.items()))


def read_packages(status: str) -> dict[str, str]:
    """Package -> version from the text of /var/lib/dpkg/status: what is installed, and nothing that was removed."""
    packages: dict[str, str] = {}
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            packages[fields["Package"]] = fields["Version"]
    return dict(sorted(packages.items()))


def write_json(value: object) -> str:
    """The JSON text of a manifest: sorted, indented, ends with a newline."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def read_manifest(directory: Path) -> dict[str, Any]:
    """DIRECTORY/manifest.json; empty when it is missing or broken. Raises BadUsage for a link."""
    try:
        loaded = json.loads(read_file(directory / "manifest.json"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def intact_files(directory: Path) -> dict[str, dict[str, Any]]:
    """The files of the manifest that are there, of the size it says, and not written to since it was written."""
    try:
        written = (directory / "manifest.json").stat().st_mtime_ns
        files: dict[str, dict[str, Any]] = read_manifest(directory).get("files", {})
        return {name: facts for name, facts in files.items() if _unchanged(directory / name, facts["size"], written)}
    except (OSError, AttributeError, KeyError, TypeError):
        return {}


def _unchanged(path: Path, size: int, written: int) -> bool:
    if not path.is_file():
        return False
    facts = path.stat()
    return facts.st_size == size and facts.st_mtime_ns <= written
