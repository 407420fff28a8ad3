"""secrets.yaml: made, loaded and checked. No value of it ever stands in a message or a repr."""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import string
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from imagegen.document import Findings, check_shape, load_document
from imagegen.errors import BadInput

_HEADER = """\
# The secrets of one cluster, made by `imagegen init`. Keep this file out of version control and readable by you alone.
# Passwords may be any printable ASCII, not starting or ending with a space; write them in quotes.
"""
_COOKIE = string.ascii_uppercase + string.digits


@dataclass(frozen=True, repr=False)
class Secrets:
    """The values of secrets.yaml."""

    database_nova: str
    database_placement: str
    database_keystone: str
    database_imagegen: str
    messaging_openstack: str
    messaging_cookie: str  # Erlang's cookie: A-Z and 0-9
    identity_admin: str
    identity_nova: str
    identity_placement: str
    seed_key: str  # keys the HMACs that stand in for secrets, such as the instance-id
    keystone_fernet_key: str  # 32 bytes in urlsafe base64
    keystone_credential_key: str

    def __repr__(self) -> str:
        return "Secrets(...)"


NAMES = tuple(field.name for field in fields(Secrets))
_FERNET = ("keystone_fernet_key", "keystone_credential_key")


def generate_secrets() -> str:
    """The text of a new secrets.yaml; every value from the system's random source, 190 bits or more."""
    values = {name: secrets.token_urlsafe(24) for name in NAMES}
    values["messaging_cookie"] = "".join(secrets.choice(_COOKIE) for _ in range(40))
    values["seed_key"] = secrets.token_hex(32)
    for name in _FERNET:
        values[name] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return _HEADER + "".join(f'{name}: "{value}"\n' for name, value in values.items())


def load_secrets(path: Path) -> Secrets:
    """The secrets in that file. Raises BadInput with every problem: missing, unknown and duplicate keys, bad values."""
    found = Findings(os.fspath(path), secret=True)
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in NAMES}, "required": NAMES}
    try:
        data: dict[str, Any] = check_shape(load_document(path, found), schema, found)
    except BadInput as error:
        if not path.exists():
            raise found.stop("there is no such file; `imagegen init` writes one") from None
        raise error
    if isinstance(data, dict):
        for name, value in data.items():
            if message := _problem(name, value):
                found.add(name, message)
    if found.problems:
        raise BadInput(found.problems)
    return Secrets(**data)


def secrets_warnings(path: Path) -> list[str]:
    """What is doubtful about a secret file itself, if it is there: a sentence when other people can read it."""
    if not path.exists():
        return []
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return [f"{path} can be read or changed by others (mode {mode:04o}): run `chmod 600 {path}`"]
    return []


def _problem(name: str, value: str) -> str:
    if name == "messaging_cookie":
        good = re.fullmatch(r"[A-Z0-9]{20,255}", value)
        return "" if good else "must be 20 to 255 upper-case letters and digits"
    if name in _FERNET:
        return "" if _is_fernet_key(value) else "must be a fernet key: 32 bytes in urlsafe base64"
    if not value:
        return "must not be empty"
    if not re.fullmatch(r"[ -~]+", value):
        return "must be printable ASCII"
    if value != value.strip(" "):
        return "must neither start nor end with a space"
    return "" if len(value) <= 255 else "must have at most 255 characters"


def _is_fernet_key(value: str) -> bool:
    try:
        return bool(re.fullmatch(r"[A-Za-z0-9_=-]{44}", value)) and len(base64.urlsafe_b64decode(value)) == 32
    except binascii.Error:
        return False
