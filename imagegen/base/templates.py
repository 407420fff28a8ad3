"""Renders templates: the only Jinja environment, its quoting filters, and YAML that is verified by reading it back."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imagegen.base.resources import data_directory


def quote_url(value: object) -> str:
    """The value percent-encoded for any part of a URL: only letters, digits and `_.-~` stay (RFC 3986, unreserved)."""
    return quote(str(value), safe="")


def quote_oslo(value: object) -> str:
    r"""The value as it stands after `option = ` in a file that oslo.config reads.

    In double quotes, because oslo.config takes one pair of outer quotes off and strips what is outside. `$` becomes
    `\$` and not `$$`: oslo.config first turns every `\$` into `$$`, so a backslash of the value would spoil a `$$`.
    Raises ValueError for control characters, which would end the line.
    """
    text = str(value)
    if not text.isprintable():
        raise ValueError("a value for oslo.config holds a control character")
    return '"' + text.replace("$", r"\$") + '"'


def quote_config(value: object) -> str:
    """The value in double quotes, for a place in a configuration of dnsmasq (option.c, read_file) or nginx.

    In quotes, dnsmasq sees no keyword, separator or comment. Raises ValueError for control
    characters, and for a dollar sign, which nginx has no way to quote.
    """
    text = str(value)
    if "$" in text or not text.isprintable():
        raise ValueError("a value for dnsmasq or nginx holds a dollar sign or a control character")
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'


def dump_json(value: object) -> str:
    """JSON in ASCII, indented, in the order of the value."""
    return json.dumps(value, indent=2) + "\n"


def quote_yaml(value: object) -> str:
    """The value in YAML's flow style on one line, for a place in a YAML template."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, default_style='"', width=2**30).rstrip("\n")


class _Dumper(yaml.CSafeDumper):
    """Values that look alike are written out, never as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _LiteralDumper(_Dumper):
    """Text of several lines becomes a literal block, as a person would write it."""


# Text for Python's YAML, but a number or a boolean for Go's, which kubectl uses.
_NO_TEXT_IN_GO = re.compile(r"[yYnN]|[-+]?(0[oO][0-7_]+|(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?)")


def _represent_line(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "'" if _NO_TEXT_IN_GO.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_text(dumper: _LiteralDumper, value: str) -> yaml.ScalarNode:
    if "\n" in value:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|")
    return _represent_line(dumper, value)


_Dumper.add_representer(str, _represent_line)
_LiteralDumper.add_representer(str, _represent_text)


def dump_yaml(value: object) -> str:
    """YAML text of plain values, in their order, read back before it is returned: what a node reads is what was meant.

    Text that a literal block cannot hold exactly is quoted. Raises ValueError when the value cannot be written in YAML.
    """
    for dumper in (_LiteralDumper, _Dumper):
        text = yaml.dump(value, Dumper=dumper, sort_keys=False, default_flow_style=False, width=2**30)
        try:
            if yaml.load(text, Loader=yaml.CSafeLoader) == value:
                return text
        except yaml.YAMLError:
            continue
    raise ValueError("a value does not survive in YAML")


@cache
def environment() -> Environment:
    """The Jinja environment. Templates are ELEMENT/seed/NAME, or files of pxe_templates; unknown values are errors."""
    made = Environment(
        loader=FileSystemLoader([data_directory(name) for name in ("elements", "pxe_templates")]),
        undefined=StrictUndefined,
        auto_reload=False,
        autoescape=False,  # noqa: S701 - these are configuration files, quoted by the filters below
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"url": quote_url, "oslo": quote_oslo, "json": dump_json, "yaml": quote_yaml}
    made.filters |= {"config": quote_config, "shell": lambda value: shlex.quote(str(value))}
    return made


def render_template(name: str, values: dict[str, object]) -> str:
    """The text of one template. Raises jinja2.UndefinedError when it names a value that is not given."""
    return environment().get_template(name).render(values)
