"""What runs Tempest: its configuration, and what is said of its results. The run itself is `make tempest`."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oslo_config import cfg
from repository import ROOT

from imagegen.inputs.cluster_file import load_cluster

STATE = Path("/srv/work/state")
printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=8, max_size=40)
passwords = printable.filter(lambda text: text == text.strip(" "))


@pytest.fixture(scope="module")
def cloud() -> ModuleType:
    return import_tempest("cloud")


@pytest.fixture(scope="module")
def running() -> ModuleType:
    return import_tempest("run_tempest")


def import_tempest(name: str) -> ModuleType:
    """A module of tests/tempest, as a script there finds it."""
    place = str(ROOT / "tests/tempest")
    if place not in sys.path:
        sys.path.append(place)
    return __import__(name)


def write_conf(cloud: ModuleType, password: str) -> str:
    found = cloud.Found("image-1", "image-2", "flavor-1", "flavor-2", "network-1", ["router", "qos"])
    text = cloud.tempest_conf(found, "http://10.45.0.11:5000/v3", "RegionOne", password, "2.100", STATE)
    assert isinstance(text, str)
    return text


def read_conf(text: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, default_section="no section is the default of others")
    parser.read_string(text)
    return parser


def test_the_configuration_is_read_back(cloud: ModuleType) -> None:
    """Ids, addresses and places; DEFAULT is a section like the others, as oslo.config has it."""
    conf = read_conf(write_conf(cloud, "plain-password"))
    assert conf["identity"]["uri_v3"] == "http://10.45.0.11:5000/v3"
    named = [conf["compute"][key] for key in ("image_ref", "image_ref_alt", "flavor_ref", "flavor_ref_alt")]
    assert named == ["image-1", "image-2", "flavor-1", "flavor-2"]
    assert conf["network"]["public_network_id"] == "network-1"
    assert conf["DEFAULT"]["state_path"] == str(STATE) and "state_path" not in conf["compute"]
    assert Path(conf["oslo_concurrency"]["lock_path"]).is_relative_to(STATE)
    assert conf["validation"]["run_validation"] == "False"  # guests take no login
    assert {key: value for key, value in conf["service_available"].items() if value == "True"}.keys() == {
        "glance",
        "neutron",
        "nova",
    }


@given(passwords)
@example("'in quotes'")
@example(r"a\$b%(c)s$$d")
def test_any_password_reaches_tempest(password: str) -> None:
    """As oslo.config reads and substitutes it: `$` is a variable there, and quotes around a value are its own."""
    text = write_conf(import_tempest("cloud"), password)
    sections: dict[str, Any] = {}
    super(cfg.ConfigParser, cfg.ConfigParser("memory", sections)).parse(text.splitlines(keepends=True))
    conf = cfg.ConfigOpts()
    conf.register_opts([cfg.StrOpt("admin_password")], group="auth")
    conf([], default_config_files=[], default_config_dirs=[])
    conf._namespace = cfg._Namespace(conf)
    conf._namespace._add_parsed_config_file("memory", sections, sections)
    assert conf.auth.admin_password == password


def test_the_strangers_cluster_is_good(cloud: ModuleType, tmp_path: Path) -> None:
    """One controller and two computes, as migration needs; flavors fit into the memory that nodes have here."""
    (tmp_path / "cluster.yaml").write_text(cloud.CLUSTER)
    cluster = load_cluster(tmp_path / "cluster.yaml")
    assert [node.role.name for node in cluster.nodes] == ["controller", "compute", "compute"]
    assert len({ram for ram, _ in cloud.FLAVORS.values()}) == 2  # else nothing is resized


def test_the_client_finds_the_clusters_network(cloud: ModuleType, tmp_path: Path) -> None:
    """By what a kept cluster says of itself; the password is in a file that the client reads."""
    (tmp_path / "nspawn.json").write_text('{"run": "imagegen-12ab"}')
    client = cloud.Client(cloud.read_network(tmp_path), tmp_path / "clouds.yaml", "strangers")
    assert client.command(["true"]) == ["nsenter", "--net=/run/netns/imagegen-12ab-hub", "true"]


def answer(code: int, out: str) -> Any:
    return lambda *_, **__: SimpleNamespace(returncode=code, stdout=out, stderr="Forbidden (HTTP 403)\n")


def test_a_client_that_fails_says_why(cloud: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it prints as JSON is the answer, and nothing is nothing."""
    client = cloud.Client("hub", tmp_path / "clouds.yaml", "strangers")
    monkeypatch.setattr(cloud.subprocess, "run", answer(0, '{"id": 7}'))
    assert client.make("image", "x") == "7"
    monkeypatch.setattr(cloud.subprocess, "run", answer(0, "\n"))
    assert client.ask("image", "delete", "x") is None
    monkeypatch.setattr(cloud.subprocess, "run", answer(1, ""))
    with pytest.raises(RuntimeError, match=r"openstack image create .* ended with 1: Forbidden"):
        client.make("image", "x")


NAME = "tempest.api.compute.servers.test_servers.ServersTestJSON.test_list[id-12ab,smoke]"


def junit(*cases: tuple[str, str, str]) -> bytes:
    """A document as subunit2junitxml prints it: of (class, name, what is inside)."""
    inner = "".join(
        f'<testcase classname="{escape(kind)}" name="{escape(name)}" time="1.5">{inside}</testcase>'
        for kind, name, inside in cases
    )
    return f'<testsuite errors="0" failures="1">{inner}</testsuite>'.encode()


def test_results_are_read(running: ModuleType) -> None:
    """Passed, failed by a check, failed by an error, skipped with a reason; a class that is skipped has no test."""
    document = junit(
        ("tempest.api.A", "test_a[id-1]", ""),
        ("tempest.api.A", "test_b[id-2]", '<failure type="x">Traceback: no</failure>'),
        ("tempest.api.A", "test_c[id-3]", "<error>boom</error>"),
        ("tempest.api.A", "test_d[id-4]", "<skipped>Cinder is required</skipped>"),
        ("", "setUpClass (tempest.api.B)", "<skipped/>"),
    )
    assert [(result.name, result.outcome, result.why) for result in running.read_results(document)] == [
        ("tempest.api.A.test_a[id-1]", "passed", ""),
        ("tempest.api.A.test_b[id-2]", "failed", "Traceback: no"),
        ("tempest.api.A.test_c[id-3]", "failed", "boom"),
        ("tempest.api.A.test_d[id-4]", "skipped", "Cinder is required"),
        ("setUpClass (tempest.api.B)", "skipped", ""),
    ]
    assert [result.seconds for result in running.read_results(junit(("a", "b", "")))] == [1.5]
    assert list(running.read_results(junit())) == []


def test_the_page_counts_and_gives_reasons(running: ModuleType) -> None:
    """Every test that was skipped is a row with its reason, in order; a `|` does not break the table."""
    results = [
        running.Result(NAME, "skipped", "needs a | b\n  and more", 0.1),
        running.Result("tempest.api.compute.admin.test_x[id-1]", "skipped", "", 0.1),
        running.Result("tempest.api.compute.test_y[id-2]", "passed", "", 0.1),
        running.Result("tempest.api.compute.test_z[id-3]", "failed", "boom", 0.1),
    ]
    text = running.describe("Tempest", results, 61.6, "43.0.0")
    lines = text.splitlines()
    assert lines[0] == "## Tempest 43.0.0"
    assert lines[2].endswith(": 1 passed, 1 failed, 2 skipped, 62 seconds.")
    assert lines[6:] == [
        "| `compute.admin.test_x` |  |",
        "| `compute.servers.test_servers.ServersTestJSON.test_list` | needs a \\| b and more |",
    ]
    assert "boom" not in text


def test_the_short_part_is_of_the_whole(running: ModuleType) -> None:
    """Both are regular expressions that match tests as they are named."""
    assert re.search(running.WHOLE, NAME)
    parts = running.FIXED.split("|^")
    assert len(parts) > 3 and all(re.search(running.WHOLE, part.lstrip("^").replace("\\", "")) for part in parts)
