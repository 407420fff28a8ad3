"""What a disk carries while it is written: a mark between the partition table and the first partition, and the seed.

Whoever finds the mark starts over. The seed is kept with it, because a seed is given out only once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

PLACE = 64 << 10  # bytes from the start of the disk
SEED_PLACE = 128 << 10
END = 1 << 20  # where the first partition starts
MOST_SEED = END - SEED_PLACE
MAGIC = b"imagegen deployment, not finished\n"


@dataclass(frozen=True)
class Mark:
    """For which node, of which image, and the sha256 and the length of the seed next to it, if any."""

    node: str
    image: str
    seed_sha256: str = ""
    seed_size: int = 0


def render_mark(node: str, image: str, seed: bytes) -> bytes:
    """The bytes from PLACE to END. Raises ValueError for a seed that does not fit."""
    if len(seed) > MOST_SEED:
        raise ValueError(f"the seed has {len(seed)} bytes, more than {MOST_SEED}")
    mark = Mark(node, image, hashlib.sha256(seed).hexdigest() if seed else "", len(seed))
    text = MAGIC + json.dumps(asdict(mark)).encode() + b"\n"
    return text.ljust(SEED_PLACE - PLACE, b"\0") + seed.ljust(MOST_SEED, b"\0")


def read_mark(head: bytes) -> Mark | None:
    """The mark in the first END bytes of a disk."""
    if not head.startswith(MAGIC, PLACE):
        return None
    line = head[PLACE + len(MAGIC) : SEED_PLACE].split(b"\n", 1)[0]
    try:
        return Mark(**json.loads(line))
    except (ValueError, TypeError):  # cut off while it was written: that it is there says enough
        return Mark("", "")


def read_kept_seed(head: bytes, mark: Mark, node: str) -> bytes:
    """The node's seed next to the mark; empty when there is no complete one."""
    seed = head[SEED_PLACE : SEED_PLACE + mark.seed_size]
    whole = mark.node == node and mark.seed_sha256 == hashlib.sha256(seed).hexdigest()
    return seed if whole and mark.seed_size else b""
