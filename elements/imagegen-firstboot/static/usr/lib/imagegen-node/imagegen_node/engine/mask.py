"""Keeping passwords, and what steers a terminal, out of what others read: the status, the console, the journal."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

SECRET_KEYS = ("password", "admin_password", "files_key", "erlang_cookie")  # of node.json
SHORTEST = 4  # characters; masking shorter words would only make texts unreadable
MASK = "***"
# user:password@, with the scheme before it if there is one.
CREDENTIALS = re.compile(r"((?:\w[\w+.-]*://)?[\w.%+-]*):\S+@")


def find_secrets(document: Any) -> list[str]:
    """Every secret of node.json, in each spelling that a message may show it in; the longest first."""
    spellings = {spelling for secret in _walk(document) if len(secret) >= SHORTEST for spelling in _spell(secret)}
    return sorted(spellings, key=lambda item: (-len(item), item))


def mask(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, without any password that stands in a URL, and with control characters escaped.

    What services answer ends up on consoles and terminals.
    """
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = CREDENTIALS.sub(rf"\1:{MASK}@", text).replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _walk(document: Any) -> Iterable[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            if key in SECRET_KEYS and isinstance(value, str):
                yield value
            else:
                yield from _walk(value)
    elif isinstance(document, list):
        for value in document:
            yield from _walk(value)


def _spell(secret: str) -> set[str]:
    """The secret as it is, in a URL, in JSON, in Python's repr, in a file of oslo.config, and in base64."""
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        secret.replace("$", "\\$"),
        secret.replace("$", "$$"),
        secret.replace("%", "%%"),
        base64.b64encode(secret.encode()).decode(),
    }
