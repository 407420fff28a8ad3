"""Digests that say nothing of what they stand for: keyed by the cluster's seed_key."""

from __future__ import annotations

import hmac
from hashlib import sha256

from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Node


def keyed_digest(key: str, message: str) -> str:
    return hmac.new(key.encode(), message.encode(), sha256).hexdigest()


def files_key(secrets: Secrets, node: Node) -> str:
    """The key of the file digests in meta-data: 64 hex digits whose ASCII bytes are the HMAC key.

    Derived for one node, so that no node holds the cluster's seed_key.
    """
    return keyed_digest(secrets["seed_key"], f"files/{node.name}")
