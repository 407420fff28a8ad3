"""This node's clock against another's."""

from __future__ import annotations

import time

# Seconds. Nova calls a service down whose last report is 60 seconds away, by whichever clock.
MOST_SKEW = 15.0


def describe_skew(theirs: float, whose: str) -> str:
    """How far this node's clock is from the one that shows `theirs` (seconds since 1970); empty when close enough."""
    skew = time.time() - theirs
    if abs(skew) <= MOST_SKEW:
        return ""
    side = "ahead of" if skew > 0 else "behind"
    return f"this node's clock is {abs(skew):.0f} seconds {side} {whose}"
