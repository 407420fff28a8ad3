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
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from imagegen.base.errors import BadInput
from imagegen.inputs.yaml_file import Findings, check_shape, load_document
from imagegen.model.secret_keys import CELL, derived_secrets, parent_of, secret_kinds

_HEADER = """\
# The secrets of one cluster, made by `imagegen init`. Keep this file out of version control and readable by you alone.
# Passwords may be any printable ASCII, not starting or ending with a space; write them in quotes.
"""
SHORTEST = 8  # characters of a password
_MAKERS = {
    "password": lambda: secrets.token_urlsafe(24),
    "key": lambda: secrets.token_hex(32),
    "cookie": lambda: "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(40)),
    "fernet": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
}


@dataclass(frozen=True, repr=False)
class Secrets:
    """The values of secrets.yaml, by key."""

    values: Mapping[str, str]

    def __repr__(self) -> str:
        return "Secrets(...)"

    def __getitem__(self, key: str) -> str:
        """The file's value or, if it has none and the key is derived, one made from its parent's value.

        Made by HMAC-SHA256, so the child does not reveal the parent, and a new parent makes a new child. 43 characters.
        Raises KeyError for a key that secrets.yaml cannot have.
        """
        if key in self.values:
            return self.values[key]
        if (parent := parent_of(key)) is None:
            raise KeyError(key)
        made = hmac.new(self[parent].encode(), f"imagegen/{key}".encode(), sha256).digest()
        return base64.urlsafe_b64encode(made).decode().rstrip("=")


def generate_secrets() -> str:
    """The text of a new secrets.yaml; every value from the system's random source, 190 bits or more."""
    of_default_cluster = [key.replace(CELL, "cell1") for key in derived_secrets()]
    kinds = secret_kinds() | dict.fromkeys(of_default_cluster, "password")
    return _HEADER + "".join(f'{key}: "{_MAKERS[kind]()}"\n' for key, kind in kinds.items())


def load_secrets(path: Path, typed: Mapping[str, str] | None = None) -> Secrets:
    """The secrets in that file. Raises BadInput with every problem: missing, unknown and duplicate keys, bad values.

    `typed`: optional key -> why this file must have it: somebody types it elsewhere (logins.typed_secrets).
    """
    found = Findings(os.fspath(path), secret=True)
    try:
        document = load_document(path, found)
        given = document.content if isinstance(document.content, dict) else {}
        required = secret_kinds()
        kinds = required | {key: "password" for key in given if parent_of(key)}
        properties = {key: {"type": "string"} for key in kinds}
        schema = {"type": "object", "properties": properties, "required": list(required)}
        data: dict[str, Any] = check_shape(document, schema, found)
    except BadInput as error:
        if not path.exists():
            where = "" if path.parent in (Path(), Path.cwd()) else f" {path.parent}"
            name = "one" if path.name == "secrets.yaml" else "a secrets.yaml, which you can use in its place"
            raise found.stop(f"not found; `imagegen init{where}` writes {name}") from None
        raise error
    if isinstance(data, dict):
        for key, value in data.items():
            if message := _problem(kinds[key], value):
                found.add(key, message)
    for key, why in (typed or {}).items():
        if key not in given:
            found.add("", f"the key `{key}` is missing: {why}")
    if found.problems:
        raise BadInput(found.problems)
    return Secrets(data)


def secrets_warnings(path: Path) -> list[str]:
    """Warnings about a secret file, if it is there: whether other people can read it."""
    if not path.exists():
        return []
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return [f"{path} can be read or changed by others (mode {mode:04o}): run `chmod 600 {path}`"]
    return []


def _problem(kind: str, value: str) -> str:
    if kind == "cookie":
        good = re.fullmatch(r"[A-Z0-9]{20,255}", value)
        return "" if good else "must be 20 to 255 upper-case letters and digits"
    if kind == "fernet":
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
