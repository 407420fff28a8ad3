"""Quoting: what is written is what its reader reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from oslo_config import cfg

from imagegen.base.resources import data_directory
from imagegen.base.templates import (
    dump_json,
    dump_yaml,
    environment,
    quote_config,
    quote_oslo,
    quote_url,
    quote_yaml,
    render_template,
)

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)
NASTY = r"""p@ss/w:r%d"$#{}\'x $$ \$ ${region} $region %(a)s;&"""


def read_oslo(text: str) -> str:
    """What oslo.config makes of `text` behind `password = `, beside an option that $region could mean."""
    sections: dict[str, dict[str, list[str]]] = {}
    lines = ["[login]\n", f"password = {text}\n"]
    # The base class's parse takes lines, the class's own opens a file.
    super(cfg.ConfigParser, cfg.ConfigParser("memory", sections)).parse(lines)
    conf = cfg.ConfigOpts()
    conf.register_opts([cfg.StrOpt("password"), cfg.StrOpt("region", default="WRONG")], group="login")
    conf([], default_config_files=[], default_config_dirs=[])
    conf._namespace = cfg._Namespace(conf)
    conf._namespace._add_parsed_config_file("memory", sections, sections)
    value = conf.login.password
    assert isinstance(value, str)
    return value


@given(PRINTABLE)
@example(NASTY)
@example('"')
@example("'")
@example("\\")
@example(r"\$")
@example(r"\$$\\$region")
@example("$$")
@example("'quoted'")
@example('"quoted"')
def test_oslo_config_reads_what_was_quoted(value: str) -> None:
    """Any printable ASCII survives oslo.config's quotes, its escapes and its substitution of $names."""
    assert read_oslo(quote_oslo(value)) == value


def test_a_doubled_dollar_would_not_do() -> None:
    """oslo.config's other escape loses a dollar behind a backslash: why quote_oslo does not use it."""
    assert read_oslo('"' + r"\$region".replace("$", "$$") + '"') != r"\$region"


@pytest.mark.parametrize("value", ["a\nb = c", "a\rb", "a\x00b", "\x7f"])
def test_oslo_values_stay_on_their_line(value: str) -> None:
    """A control character cannot smuggle in a second option."""
    with pytest.raises(ValueError, match="control character"):
        quote_oslo(value)


@given(TEXT)
@example(NASTY)
def test_a_url_part_is_read_back(value: str) -> None:
    """Percent-encoding leaves nothing that a URL, str.format or ConfigParser's substitution could take for its own."""
    quoted = quote_url(value)
    assert re.fullmatch(r"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})*", quoted)
    assert unquote(quoted) == value
    assert quoted.format() == quoted


@given(PRINTABLE.filter(bool))
def test_a_url_keeps_its_host_and_path(password: str) -> None:
    """No password moves the borders between the parts of a URL."""
    url = urlsplit(f"rabbit://openstack:{quote_url(password)}@10.0.0.5:5672/nova")
    assert (url.username, url.hostname, url.port, url.path) == ("openstack", "10.0.0.5", 5672, "/nova")
    assert unquote(url.password or "") == password


@given(VALUES)
@example({"content": "trailing space \nnext\n"})
@example({"content": "\n leading space and line\n\n"})
@example({"content": "tab\tand # no comment\n: {} [] & * !\n"})
@example(["no", "0640", "1e3", "null", "~", "2025.1", "12:30:45", "=", "<<"])
def test_yaml_is_read_back_as_the_same_value(value: object) -> None:
    """Types and every character survive, in the block style and in the flow style."""
    assert yaml.safe_load(dump_yaml(value)) == value
    assert yaml.safe_load(f"key: {quote_yaml(value)}\n") == {"key": value}
    assert "\n" not in quote_yaml(value)


def test_yaml_shows_files_as_they_are() -> None:
    """Text of several lines stands there as a literal block, in the order given, without aliases."""
    twice = ["same"]
    assert dump_yaml({"b": "one\n\n  two\n", "a": [twice, twice]}) == (
        "b: |\n  one\n\n    two\na:\n- - same\n- - same\n"
    )


def test_yaml_refuses_what_is_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumper's mistake never reaches a node."""
    monkeypatch.setattr(yaml, "dump", lambda *args, **kwargs: "a: 1\n")
    with pytest.raises(ValueError, match="does not survive"):
        dump_yaml({"a": 2})


@given(VALUES)
def test_json_is_read_back(value: object) -> None:
    """JSON is ASCII, ends with a line end and keeps the value."""
    text = dump_json(value)
    assert text.isascii() and text.endswith("\n")
    assert json.loads(text) == value


def test_a_template_names_only_what_it_gets() -> None:
    """A name that is not given is an error, not an empty string."""
    with pytest.raises(jinja2.UndefinedError, match="port"):
        render_template("memcached/seed/memcached.conf.j2", {"name": "node", "cache": {"host": "10.0.0.1"}})


@pytest.mark.parametrize(
    ("filter_name", "quote"), [("url", quote_url), ("oslo", quote_oslo), ("json", dump_json), ("yaml", quote_yaml)]
)
def test_the_filters_are_the_functions(filter_name: str, quote: Callable[[object], str]) -> None:
    """Templates quote with the tested functions."""
    template = environment().from_string("{{ value | " + filter_name + " }}")
    assert template.render(value=NASTY) == quote(NASTY)


def oslo_templates() -> list[Path]:
    return sorted(path for path in data_directory("elements").glob("*/seed/*.j2") if "| oslo" in path.read_text())


def test_there_are_templates_for_every_openstack_service() -> None:
    """The glob behind the next test finds what it is for."""
    names = {path.name for path in oslo_templates()}
    assert names == {
        "auth.j2",
        "glance.conf.j2",
        "keystone.conf.j2",
        "metadata-agent.conf.j2",
        "neutron.conf.j2",
        "nova-cell.conf.j2",
        "nova-compute.conf.j2",
        "nova-controller.conf.j2",
        "placement.conf.j2",
    }


@pytest.mark.parametrize("template", oslo_templates(), ids=lambda path: path.name)
def test_no_value_for_oslo_config_goes_unquoted(template: Path) -> None:
    """Every expression behind a `=` passes the oslo filter."""
    assignments = re.findall(r"^\S.* = .*\{\{.*", template.read_text(), re.MULTILINE)
    assert assignments
    assert [line for line in assignments if not line.endswith("| oslo }}")] == []


@given(st.text("ab\\\"'#,;{} :\u00e9tnrbe"))
def test_a_value_in_quotes_means_itself_to_dnsmasq_and_nginx(value: str) -> None:
    """Both undo a backslash before these letters (dnsmasq's option.c, read_file; nginx takes fewer)."""
    inner = quote_config(value)[1:-1]
    undone = {**{c: c for c in '"\\'}, "t": "\t", "n": "\n", "b": "\b", "r": "\r", "e": "\x1b"}
    assert re.fullmatch(r'([^"\\]|\\.)*', inner)
    assert re.sub(r"\\(.)", lambda match: undone.get(match[1], match[0]), inner) == value


@pytest.mark.parametrize("value", ["a$b", "a\nb", "\x9b"])
def test_what_no_quotes_can_hold_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="dollar sign or a control"):
        quote_config(value)
