"""Tokens for claims of seeds. They are computed, not stored, so requesting some uses nothing up."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

_BOOT_BYTES, _NONCE_BYTES, _MAC_BYTES = 4, 6, 14  # together 32 characters; a guess is right once in 2**112


def make_token(key: bytes, node: str, boot: int) -> str:
    """A new token for one claim of the node's seed, good until that boot of the node is over."""
    head = boot.to_bytes(_BOOT_BYTES, "big") + secrets.token_bytes(_NONCE_BYTES)
    return base64.urlsafe_b64encode(head + _mac(key, node, head)).decode()


def read_token(key: bytes, node: str, token: str) -> int | None:
    """The boot that the token was made for; None: it was never made for that node."""
    try:
        data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    head, mac = data[: _BOOT_BYTES + _NONCE_BYTES], data[_BOOT_BYTES + _NONCE_BYTES :]
    if not hmac.compare_digest(mac, _mac(key, node, head)):
        return None
    return int.from_bytes(head[:_BOOT_BYTES], "big")


def _mac(key: bytes, node: str, head: bytes) -> bytes:
    return hmac.digest(key, head + node.encode(), hashlib.sha256)[:_MAC_BYTES]
