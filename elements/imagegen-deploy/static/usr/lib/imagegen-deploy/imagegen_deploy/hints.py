"""Ironic's root device hints: what one may contain, and which disk it matches.

The one definition, for the initramfs and for `imagegen validate` alike: it imports the standard library alone, and
imagegen/inputs/device_hints.py loads this file. Source: ironic-python-agent 10.2 (OpenStack 2025.1), device_hints.py,
and oslo.utils' specs_matcher.
"""

from __future__ import annotations

import operator
import re
from typing import Callable, NamedTuple
from urllib.parse import quote

GIB = 1 << 30

NAMES = (
    "model",
    "vendor",
    "serial",
    "wwn",
    "wwn_with_extension",
    "wwn_vendor_extension",
    "hctl",
    "name",
    "by_path",
    "size",
    "rotational",
)
NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<=": operator.le,
    "s>=": operator.ge,
    "s<": operator.lt,
    "s>": operator.gt,
    "<in>": operator.contains,
    "<or>": operator.eq,
}
# Ironic takes these too, but not for what they look like.
REFUSED = {
    "=": "means `>=` to Ironic; write `>=` or `==`",
    "<all-in>": "matches no disk in Ironic, because no property of a disk is a list; use `<in>`",
    "<range-in>": "is not an operator for hints in Ironic; use `>=` or `<=`",
}
OPERATOR = re.compile(r"<or>|<all-in>|<range-in>|<in>|s?(?:==|!=|<=|>=|<|>)|=", re.IGNORECASE)
BRACKETED = re.compile(r"<(or|all-in|range-in|in)>", re.IGNORECASE)
# Only a text that is compared as a whole can be seen to match nothing.
WHOLE = {
    "name": (re.compile(r"/dev/[^/]+"), "a device's own name such as /dev/sda; for a link use by_path, wwn or serial"),
    "by_path": (re.compile(r"/dev/disk/by-path/[^/]+"), "a path such as /dev/disk/by-path/pci-0000:00:1f.2-ata-1"),
}


class Hint(NamedTuple):
    """One hint taken apart. Without an operator it means `s==`, for `size` and `rotational` `==`."""

    name: str
    operator: str
    values: tuple[str, ...]  # as they were written; several for <or>

    def fits(self, facts: tuple[str, ...]) -> bool:
        """Whether a disk with these facts matches; for `size`, its bytes.

        Texts are compared as Ironic compares them: lower case, percent-encoded, and `none` where a disk says nothing.
        A disk may have several names for one thing. Then one is enough, but `s!=` must hold for each of them: whoever
        wants any disk but this one must not get it by its other name.
        """
        if self.name == "size":
            return any(NUMBERS[self.operator](int(fact) / GIB, int(self.values[0])) for fact in facts)
        wanted = [normalise(value) for value in self.values]
        compare = TEXTS["s==" if self.operator == "==" else self.operator]
        every = all if self.operator == "s!=" else any
        return every(any(compare(normalise(fact), value) for value in wanted) for fact in facts or ("none",))


def normalise(text: str) -> str:
    return quote(text.strip().lower())


def parse_hint(name: str, text: str) -> Hint:
    """The hint in `text`. Raises ValueError, whose text continues from the hint's name, for what means nothing."""
    if name not in NAMES:
        raise ValueError(f"is not a hint; the hints are {', '.join(NAMES)}")
    text = text.strip()
    found = OPERATOR.match(text)
    sign = found.group().lower() if found else ""
    rest = re.split(re.escape(sign), text[len(sign) :], flags=re.IGNORECASE) if sign else [text]
    values = tuple(value.strip() for value in rest)
    known = () if name == "rotational" else NUMBERS if name == "size" else TEXTS
    if sign and sign not in known:
        kind = f"takes {', '.join(f'`{each}`' for each in known)}" if known else "takes true or false without operator"
        raise ValueError(f"`{sign}` {REFUSED[sign]}" if sign in REFUSED else f"{kind}, not `{sign}`")
    for value in values:
        check_value(name, sign, value)
    if len(values) > 1 and sign != "<or>":
        raise ValueError(f"has `{sign}` more than once; only `<or>` can come before each of several values")
    return Hint(name, sign or ("==" if name in ("size", "rotational") else "s=="), values)


def check_value(name: str, sign: str, value: str) -> None:
    """Raises ValueError for a value that Ironic refuses, or that no disk can have."""
    if not value:
        raise ValueError(f"has no value after `{sign}`" if sign else "is empty")
    if OPERATOR.match(value) or BRACKETED.search(value):
        raise ValueError(f"has a second operator in `{value}`; put one at the beginning, or `<or>` before each value")
    if name == "size" and not (re.fullmatch("[0-9]{1,7}", value) and int(value)):
        raise ValueError(f"must be whole GiB, 1 to 9999999, after an operator such as `>=`, not `{value}`")
    if name == "rotational" and value not in ("true", "false"):
        raise ValueError(f"must be true or false, not `{value}`")
    if sign in ("", "s==", "<or>") and name in WHOLE and not WHOLE[name][0].fullmatch(value):
        raise ValueError(f"must be {WHOLE[name][1]}, not `{value}`")
