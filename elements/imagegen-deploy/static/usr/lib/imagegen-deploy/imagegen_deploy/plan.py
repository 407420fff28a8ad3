"""What a network boot is to do: the kernel's command line, as the node's iPXE script wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from imagegen_node.engine.errors import Refused

COMMAND_LINE = Path("/proc/cmdline")
PREFIX = "imagegen."
HINT = "root_device."
NEEDED = ("mode", "node", "role", "mac", "address", "url", "image", "sha256", "size", "id")


@dataclass(frozen=True)
class Plan:
    """One node's boot. Sizes in bytes; what is not asked for is empty."""

    mode: str  # deploy or live
    node: str
    role: str
    mac: str
    address: str  # with the prefix's length
    gateway: str
    url: str  # the tree that `imagegen pxe` makes, without a slash at its end
    image: str  # URL
    sha256: str  # of what the URL gives
    size: int  # of the image unpacked
    id: str  # 12 hex digits of the content id
    root_device: dict[str, str]
    wipe: bool
    seed: str  # URL, with its token
    ca: str  # sha256 of the certificate at URL/ca.pem, which signs the seed's server
    status: str  # URL


def read_plan() -> Plan:
    """The plan of this boot. Raises Refused for a command line that lacks something."""
    return parse_plan(COMMAND_LINE.read_text())


def parse_plan(text: str) -> Plan:
    """Every word `imagegen.KEY=VALUE`, percent-decoded; the last of a key counts, as for the kernel itself."""
    words = (word[len(PREFIX) :].split("=", 1) for word in text.split() if word.startswith(PREFIX) and "=" in word)
    given = {key: unquote(value) for key, value in words}
    missing = [PREFIX + key for key in NEEDED if not given.get(key)]
    if missing or given["mode"] not in ("deploy", "live") or not given["size"].isdigit():
        wrong = "lacks " + ", ".join(missing) if missing else "has an invalid imagegen.mode or imagegen.size"
        raise Refused(f"the kernel's command line {wrong}: boot with the node's script from `imagegen pxe`")
    return Plan(
        mode=given["mode"],
        node=given["node"],
        role=given["role"],
        mac=given["mac"].lower(),
        address=given["address"],
        gateway=given.get("gateway", ""),
        url=given["url"].rstrip("/"),
        image=given["image"],
        sha256=given["sha256"].lower(),
        size=int(given["size"]),
        id=given["id"],
        root_device={key[len(HINT) :]: value for key, value in given.items() if key.startswith(HINT)},
        wipe=given.get("wipe") == "1",
        seed=given.get("seed", ""),
        ca=given.get("ca", "").lower(),
        status=given.get("status", ""),
    )
