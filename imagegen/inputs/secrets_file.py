"""secrets.yaml: made, loaded and checked. No value of it ever appears in a message or a repr."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from imagegen.base.errors import BadInput
from imagegen.inputs.yaml_file import Findings, check_shape, load_document

_HEADER = """\
# The secrets of one cluster, made by `imagegen init`. Keep this file out of version control and readable by you alone.
# Passwords may be any printable ASCII, not starting or ending with a space; write them in quotes.
"""
SHORTEST = 8  # characters of a password
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
    optional: Mapping[str, str] = field(default_factory=dict)  # passwords that the file need not have, by key

    def __repr__(self) -> str:
        return "Secrets(...)"

    def password(self, name: str) -> str:
        """The password for that key: the file's or, if it is optional and missing, one derived from its parent's.

        Made by HMAC-SHA256, so the child does not reveal the parent, and a new parent makes a new child. 43 characters.
        Raises KeyError for a key that secrets.yaml cannot have.
        """
        if name in NAMES:
            return str(getattr(self, name))
        if name in self.optional:
            return self.optional[name]
        for pattern, parent in OPTIONAL.items():
            if re.fullmatch(pattern, name):
                made = hmac.new(self.password(parent).encode(), f"imagegen/{name}".encode(), sha256).digest()
                return base64.urlsafe_b64encode(made).decode().rstrip("=")
        raise KeyError(name)


NAMES = tuple(one.name for one in fields(Secrets) if one.name != "optional")
# Computes' passwords. Key (a pattern) -> the key from whose value it is derived if the file lacks it.
OPTIONAL = {
    "identity_nova_compute": "identity_nova",
    "messaging_compute_[a-z][a-z0-9_]*": "messaging_openstack",  # one for each cell
}
_OPTIONAL_OF_INIT = ("identity_nova_compute", "messaging_compute_cell1")
_FERNET = ("keystone_fernet_key", "keystone_credential_key")


def generate_secrets() -> str:
    """The text of a new secrets.yaml; every value from the system's random source, 190 bits or more."""
    values = {name: secrets.token_urlsafe(24) for name in (*NAMES, *_OPTIONAL_OF_INIT)}
    values["messaging_cookie"] = "".join(secrets.choice(_COOKIE) for _ in range(40))
    values["seed_key"] = secrets.token_hex(32)
    for name in _FERNET:
        values[name] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return _HEADER + "".join(f'{name}: "{value}"\n' for name, value in values.items())


def load_secrets(path: Path, typed: Mapping[str, str] | None = None) -> Secrets:
    """The secrets in that file. Raises BadInput with every problem: missing, unknown and duplicate keys, bad values.

    `typed`: optional key -> why this file must have it: somebody types it elsewhere (logins.typed_secrets).
    """
    found = Findings(os.fspath(path), secret=True)
    try:
        document = load_document(path, found)
        given = document.content if isinstance(document.content, dict) else {}
        optional = [name for name in given if any(re.fullmatch(pattern, name) for pattern in OPTIONAL)]
        properties = {name: {"type": "string"} for name in (*NAMES, *optional)}
        schema = {"type": "object", "properties": properties, "required": NAMES}
        data: dict[str, Any] = check_shape(document, schema, found)
    except BadInput as error:
        if not path.exists():
            where = "" if path.parent in (Path(), Path.cwd()) else f" {path.parent}"
            name = "one" if path.name == "secrets.yaml" else "a secrets.yaml, which you can use in its place"
            raise found.stop(f"not found; `imagegen init{where}` writes {name}") from None
        raise error
    if isinstance(data, dict):
        for name, value in data.items():
            if message := _problem(name, value):
                found.add(name, message)
    for name, why in (typed or {}).items():
        if name not in given:
            found.add("", f"the key `{name}` is missing: {why}")
    if found.problems:
        raise BadInput(found.problems)
    return Secrets(optional={name: data.pop(name) for name in optional}, **data)


def secrets_warnings(path: Path) -> list[str]:
    """Warnings about a secret file, if it is there: whether other people can read it."""
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
        return "must not start or end with a space"
    if len(value) < SHORTEST:
        return f"must have at least {SHORTEST} characters"
    return "" if len(value) <= 255 else "must have at most 255 characters"


def _is_fernet_key(value: str) -> bool:
    try:
        return bool(re.fullmatch(r"[A-Za-z0-9_=-]{44}", value)) and len(base64.urlsafe_b64decode(value)) == 32
    except binascii.Error:
        return False
