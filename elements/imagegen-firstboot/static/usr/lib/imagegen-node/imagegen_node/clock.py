"""This node's clock against another's."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

# Seconds. Nova calls a service down whose last report is 60 seconds away, by whichever clock; a header has whole ones.
MOST_SKEW = 15.0


def describe_skew(theirs: float, whose: str) -> str:
    """How far this node's clock is from another, whose time in seconds since 1970 that is; empty when near enough."""
    skew = time.time() - theirs
    if abs(skew) <= MOST_SKEW:
        return ""
    side = "ahead of" if skew > 0 else "behind"
    return f"this node's clock is {abs(skew):.0f} seconds {side} {whose}"


def describe_dated(headers: dict[str, str], whose: str) -> str:
    """As describe_skew, by the Date header of an HTTP answer; empty when it has none."""
    date = next((value for name, value in headers.items() if name.lower() == "date"), "")
    return describe_skew(parsedate_to_datetime(date).timestamp(), whose) if date else ""
