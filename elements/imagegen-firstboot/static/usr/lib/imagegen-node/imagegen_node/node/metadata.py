"""The node's role and data: cloud-init's instance data, the seed's node.json, what the image holds."""

from __future__ import annotations

import grp
import hashlib
import hmac
import json
import os
import pwd
from pathlib import Path
from typing import Any

from imagegen_node.engine.errors import Refused, Waiting
from imagegen_node.engine.files import read_file
from imagegen_node.engine.system import run
from imagegen_node.node import declared, seed

INSTANCE_DATA = Path("/run/cloud-init/instance-data.json")
NODE_FILE = Path("/etc/imagegen/node.json")
IMAGE_FILE = Path("/etc/imagegen/image.json")


def read_facts() -> dict[str, Any]:
    """The public facts of the metadata or, without a data source, of the previous seed: a map with a `role`.

    NoCloud has them in ds.meta_data.imagegen, OpenStack's metadata and config drive as
    ds.meta_data.meta["imagegen.role"] and so on. Raises Refused when no role is there.
    """
    try:
        document = json.loads(INSTANCE_DATA.read_text())
    except FileNotFoundError as error:
        if not NODE_FILE.exists():  # a live node keeps its facts on a disk, and its files in memory
            raise Refused(seed.NO_SEED) from error
        return seed.read_kept()
    metadata = document.get("ds", {}).get("meta_data", {})
    facts = metadata.get("imagegen")
    if not isinstance(facts, dict):
        meta = metadata.get("meta") or {}
        facts = {key.split(".", 1)[1]: value for key, value in meta.items() if key.startswith("imagegen.")}
        if isinstance(facts.get("files"), str):
            facts["files"] = json.loads(facts["files"])
    if not facts.get("role"):
        raise Refused("the metadata names no role: expected imagegen.role in meta-data")
    return facts


def check_role(facts: dict[str, Any]) -> str:
    """The role. Raises Refused when this image holds another role or release."""
    try:
        image, roles = json.loads(IMAGE_FILE.read_text()), declared.read_declared()["roles"]
    except FileNotFoundError as error:
        raise Refused(f"{error.filename} is missing: this image was built without a role's element") from error
    role, release = facts["role"], str(facts.get("release", image["release"]))
    if role not in roles:
        raise Refused("the metadata asks for role {}; the roles are {}".format(role, ", ".join(roles)))
    if role not in image["roles"]:
        raise Refused("the metadata asks for role {}, but this image holds {}".format(role, ", ".join(image["roles"])))
    if release != str(image["release"]):
        raise Refused("the seed is for release {}, but this image holds {}".format(release, image["release"]))
    return str(role)


def read_node() -> dict[str, Any]:
    """The seed's data for the agent. Raises Waiting until cloud-init wrote it, Refused for one that is too old."""
    try:
        node = dict(json.loads(NODE_FILE.read_text()))
    except FileNotFoundError as error:
        raise Waiting(f"{NODE_FILE}, which cloud-init writes from the seed") from error
    if "elements" not in node:
        raise Refused(
            "the seed is older than this image and does not say which services are at work here: write it again with "
            "the imagegen that built the image, give it to the node, and reboot"
        )
    return node


def name_owner(uid: int, gid: int) -> str:
    """USER:GROUP; numbers where this machine has no name for them."""
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        return f"{user}:{grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"{user}:{gid}"


def find_wrong_files(expected: list[dict[str, str]], key: str) -> list[str]:
    """One sentence for every promised file that is absent or differs in owner, mode or content."""
    wrong = []
    for entry in expected:
        path = Path(entry["path"])
        read = read_file(path)
        if read is None:
            wrong.append(
                f"{path} is missing"
                if not os.path.lexists(path)
                else f"{path} is not a regular file, but a link or something else"
            )
            continue
        found, content = read
        owner = name_owner(found.st_uid, found.st_gid)
        digest = hmac.new(key.encode(), content, hashlib.sha256).hexdigest()
        if owner != entry["owner"]:
            wrong.append("{} belongs to {}, not {}".format(path, owner, entry["owner"]))
        elif (found.st_mode & 0o7777) != int(entry["mode"], 8):
            wrong.append("{} has mode {:04o}, not {}".format(path, found.st_mode & 0o7777, entry["mode"]))
        elif not hmac.compare_digest(digest, entry["sha256-HMAC"]):
            wrong.append(f"{path} differs from the seed")
    return wrong


def restore_files(facts: dict[str, Any], node: dict[str, Any]) -> bool:
    """Has cloud-init write the seed's files again if one differs; True if it did.

    Left alone, it writes them once per instance-id: not after somebody edited one, and not when a node gets back a
    seed that it has had before.
    """
    if not find_wrong_files(facts.get("files") or [], node["files_key"]):
        return False
    run(["cloud-init", "single", "--name", "write_files", "--frequency", "always"])
    return True


def check_files(facts: dict[str, Any], node: dict[str, Any]) -> str:
    """Raises Refused with the first wrong files, if any."""
    expected = facts.get("files") or []
    wrong = find_wrong_files(expected, node["files_key"])
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Refused(
            "{}{}. Give the node its seed again and reboot it; cloud-init stops at the first owner "
            "it does not know: see /var/log/cloud-init.log".format("; ".join(wrong[:3]), more)
        )
    return f"{len(expected)} files as the seed promised"
