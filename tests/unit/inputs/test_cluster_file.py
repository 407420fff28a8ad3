"""The cluster file: good ones load, bad ones give every problem with its line, and the shipped schema says the same."""

from __future__ import annotations

import copy
import json
import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.base.errors import BadInput, Problem
from imagegen.inputs.cluster_file import default_text, load_cluster, normalise_mac
from imagegen.inputs.prerequisites import explain_external
from imagegen.inputs.yaml_file import MAX_BYTES, Findings, Value, check_shape, load_document, parse_document
from imagegen.model.cluster import Cluster, Flavor, Place
from imagegen.model.json_schemas import json_schema
from imagegen.model.logins import OF_COMPUTES, database_schemas, typed_secrets
from imagegen.model.roles import find_role, hosted_services

CASES = Path(__file__).parents[1] / "cases"
GOOD = sorted((CASES / "good").glob("*.yaml"))
BAD = sorted((CASES / "bad").glob("*.yaml"))


def read_expected(path: Path) -> list[str]:
    """The problems that a bad case says of itself, in lines that start with `#! `."""
    return [line.removeprefix("#! ") for line in path.read_text().splitlines() if line.startswith("#! ")]


def find_problems(path: Path) -> list[Problem]:
    with pytest.raises(BadInput) as caught:
        load_cluster(path)
    return caught.value.problems


def load_text(tmp_path: Path, text: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


def ecma_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    """JSON schema's patterns are ECMA-262's, where `$` is the very end and not also before a last newline."""
    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": ecma_pattern})


def to_plain(value: Value) -> Any:
    if isinstance(value.content, dict):
        return {key: to_plain(entry) for key, entry in value.content.items()}
    return [to_plain(entry) for entry in value.content] if isinstance(value.content, list) else value.content


def compare_with_schema(document: Value) -> tuple[bool, list[Problem]]:
    """Whether jsonschema takes the document, and what the loader finds wrong with its shape."""
    found = Findings("x")
    check_shape(document, json_schema("cluster"), found)
    return Validator(json_schema("cluster")).is_valid(to_plain(document)), found.problems


def test_there_are_cases() -> None:
    """The tables below are not empty, and every bad case says what is wrong with it."""
    assert len(GOOD) >= 10
    assert len(BAD) >= 40
    assert [path.name for path in BAD if not read_expected(path)] == []


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_gives_all_its_problems(path: Path) -> None:
    """Every problem is found at once, in the order of lines, as FILE:LINE: PATH: MESSAGE."""
    problems = [str(problem) for problem in find_problems(path)]
    assert problems == [f"{path}:{line}" if line[0].isdigit() else f"{path}: {line}" for line in read_expected(path)]
    assert all("\n" not in line and line.isprintable() for line in problems)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_file_loads(path: Path) -> None:
    """What the contract allows is taken."""
    assert load_cluster(path).controllers


@pytest.mark.parametrize("path", GOOD + BAD, ids=lambda path: path.stem)
def test_the_shipped_schema_agrees_with_the_loader_on_the_cases(path: Path) -> None:
    """An editor that uses `imagegen schema` marks a file exactly when the loader finds its shape wrong."""
    found = Findings(str(path))
    try:
        document = load_document(path, found)
    except BadInput:
        return  # no YAML that a schema could look at
    if found.problems:
        return  # duplicate keys, tags or aliases: the schema's reader sees another document, or none
    valid, problems = compare_with_schema(document)
    assert valid == (problems == []), problems


words = st.text("aB01.:/-_\n é$", max_size=9)
junk = words | st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99999) | st.floats(0, 3000) | words,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["node", "host", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def mutated_clusters(draw: st.DrawFn) -> str:
    """A good cluster file with up to three places replaced, removed or added to, as JSON (which is YAML)."""
    source = draw(st.sampled_from([path for path in GOOD if path.stem in ("everything", "external", "two-cells")]))
    data = copy.deepcopy(to_plain(load_document(source, Findings("x"))))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.integers(0, 9)):
                place = place[key]
                continue
            match draw(st.sampled_from(["replace", "remove", "add"])):
                case "replace":
                    place[key] = draw(junk)
                case "remove":
                    del place[key]
                case "add" if isinstance(place, dict):
                    place[draw(st.sampled_from(["name", "port", "host", "cell", "nmae"]))] = draw(junk)
            break
    return json.dumps(data, ensure_ascii=False)


@given(mutated_clusters())
@settings(max_examples=400)
def test_the_shipped_schema_agrees_with_the_loader(text: str) -> None:
    """Also on files that nobody thought of."""
    found = Findings("x")
    valid, problems = compare_with_schema(parse_document(text, found))
    assert valid == (problems == []), problems


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("services: {cache: {host: a, port: 0}}", "services.cache.port"),
        ("services: {cache: {host: a, port: 65536}}", "services.cache.port"),
        ("services: {cache: {host: a, port: 1.5}}", "services.cache.port"),
        (f"services: {{cache: {{host: {'a' * 254}}}}}", "services.cache.host"),
        ('region: "R\\n"', "region"),
        ("cells: []", "cells"),
        ("services: {cache: {host: a, node: b}}", "services.cache.host"),
        ("services: {cache: {}}", "services.cache"),
        ("services: {identity: {host: a}}", "services.identity"),
    ],
)
def test_the_shipped_schema_agrees_with_the_loader_at_the_limits(line: str, path: str) -> None:
    """Just outside what is allowed, both refuse."""
    valid, problems = compare_with_schema(
        parse_document((CASES / "good/minimal.yaml").read_text() + line, Findings("x"))
    )
    assert (valid, [problem.path for problem in problems]) == (False, [path])


def test_the_shipped_schema_is_a_schema() -> None:
    """By JSON Schema's own rules."""
    jsonschema.Draft202012Validator.check_schema(json_schema("cluster"))


@given(st.text())
def test_any_text_is_loaded_or_refused_with_problems(text: str) -> None:
    """No input ends in another exception than BadInput."""
    try:
        compare_with_schema(parse_document(text.encode(errors="replace").decode(), Findings("x")))
    except BadInput as error:
        assert error.problems
    except Exception as error:
        # libyaml's own refusal of control characters; files with them are refused when they are read.
        assert "unacceptable character" in str(error)


@given(st.binary(max_size=200))
def test_any_file_is_loaded_or_refused_with_problems(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes a file holds."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(BadInput):
        load_cluster(path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"~\n", "the file is empty"),
        (b"\x7fELF\x02\x01\x01\0\0", "this is not text: it holds the control character U+007F"),
        (b"name: demo\nregion: \x1b[31m\n", "this is not text: it holds the control character U+001B"),
        (b"name: \xff\xfe\n", "this is not text: byte 6 is not UTF-8"),
        (b"a: " + b"[" * 200_000, "nested more than 32 deep; no cluster needs that"),
        (b"#" * (MAX_BYTES + 1), "the file has 8388609 bytes; at most 8388608 are read"),
        (b"\0" * (MAX_BYTES + 1), "the file has 8388609 bytes; at most 8388608 are read"),
    ],
    ids=["empty", "blank", "null", "elf", "escape", "latin", "deep", "big", "big-binary"],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    """One problem, found before anything costs time; size is looked at before content."""
    path = tmp_path / "cluster.yaml"
    path.write_bytes(data)
    assert [each.message for each in find_problems(path)] == [problem]


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    """So are a directory and a name that no file can have."""
    assert str(find_problems(tmp_path / "no.yaml")[0]) == f"{tmp_path}/no.yaml: not found"
    assert "cannot be read" in find_problems(tmp_path)[0].message
    assert "not a valid file name" in find_problems(Path("a\0b"))[0].message


def test_a_stream_is_read_no_further_than_the_limit() -> None:
    """A device has no size to refuse it by."""
    assert "more than 8388608 bytes" in find_problems(Path("/dev/zero"))[0].message


def test_a_byte_order_mark_and_windows_lines_are_taken(tmp_path: Path) -> None:
    """Editors on other systems write them."""
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + default_text().replace("\n", "\r\n").encode())
    assert load_cluster(path).nodes == load_cluster(None).nodes


def test_the_default_cluster_is_the_contracts() -> None:
    """One controller that hosts everything, one compute, all values normalised."""
    cluster = load_cluster(None)
    assert (cluster.name, cluster.region, cluster.release.id, cluster.cells) == (
        "demo",
        "RegionOne",
        "2025.1",
        ("cell1",),
    )
    assert [(node.name, node.role, node.mac, str(node.address), node.cell) for node in cluster.nodes] == [
        ("linux-node1", find_role("controller"), "52:54:00:56:00:11", "192.168.56.11", "cell1"),
        ("linux-node2", find_role("compute"), "52:54:00:56:00:12", "192.168.56.12", "cell1"),
    ]
    assert cluster.hosted_on(cluster.nodes[0]) == hosted_services()
    assert cluster.services.auth_url == "http://192.168.56.11:5000/v3"
    assert cluster.secrets_path == Path("secrets.yaml")


def test_services_that_are_not_named_are_on_the_first_controller() -> None:
    """Nothing said means embedded, and so does the word."""
    services = load_cluster(CASES / "good/minimal.yaml").services
    assert services.database == Place("192.168.56.11", 3306, "ctrl")
    assert services.identity == Place("192.168.56.11", 5000, "ctrl")
    assert services.image_endpoint == "http://192.168.56.11:9292"


def test_external_services_have_no_node() -> None:
    """Ports have defaults, Keystone's come from its URL, and trailing slashes go."""
    services = load_cluster(CASES / "good/external.yaml").services
    assert services.database == Place("db.example", 3307)
    assert services.messaging == Place("10.0.0.6", 5672)
    assert services.cache is None
    assert services.identity == Place("keystone.example", 443)
    assert services.auth_url == "https://keystone.example/identity/v3"
    assert services.image_endpoint == "http://10.0.0.7:9292"


@pytest.mark.parametrize(
    ("cache", "place", "idle"),
    [
        ("", None, False),
        ("cache: embedded", None, True),
        ("cache: {node: ctrl}", None, True),
        ("cache: {node: gone}", None, True),
        ("cache: {host: 10.0.0.9}", Place("10.0.0.9", 11211), False),
        ("cache: {host: 10.0.0.9, port: 11212}", Place("10.0.0.9", 11212), False),
    ],
)
def test_a_cache_in_the_cluster_needs_no_place(tmp_path: Path, cache: str, place: Place | None, idle: bool) -> None:
    """Each controller has its own; what old files say of its node is read and does nothing; one outside is used."""
    text = (CASES / "good/minimal.yaml").read_text() + f"services: {{{cache}}}\n"
    cluster = load_text(tmp_path, text)
    assert (cluster.services.cache, cluster.idle_cache) == (place, idle)
    hosting = [node.name for node in cluster.nodes if "cache" in cluster.hosted_on(node)]
    assert hosting == ([] if place else [node.name for node in cluster.controllers])


def test_a_cache_makes_no_controller_needed_by_others() -> None:
    """Who boots some of the nodes needs those that host what others use."""
    cluster = load_cluster(CASES / "good/names-of-services.yaml")
    assert [node.name for node in cluster.nodes if cluster.serves_others(node)] == ["keystone", "rabbitmq"]


def test_a_service_goes_where_it_is_put() -> None:
    """A node may bear the name of a service."""
    cluster = load_cluster(CASES / "good/names-of-services.yaml")
    assert cluster.hosted_on(cluster.node("rabbitmq")) == ("messaging", "cache")
    assert "messaging" not in cluster.hosted_on(cluster.node("keystone"))


def test_every_spelling_of_a_mac_address_is_one_address() -> None:
    """Also unquoted ones that YAML 1.1 takes for numbers."""
    macs = [node.mac for node in load_cluster(CASES / "good/mac-notations.yaml").nodes]
    assert macs[:4] == [f"52:54:00:ab:00:1{i}" for i in range(4)]
    assert macs[4:8] == ["52:54:00:56:00:14", "52:54:00:56:00:15", "52:54:00:56:e0:16", "00:54:00:56:00:17"]
    assert macs[8:] == ["3c:ec:ef:00:e0:18"]  # as HP writes it


SPELLINGS = [(":", 2), ("-", 2), (".", 4), ("-", 6), ("", 12)]


@given(st.binary(min_size=6, max_size=6), st.sampled_from(SPELLINGS), st.booleans())
def test_a_mac_address_survives_its_spelling(raw: bytes, spelling: tuple[str, int], upper: bool) -> None:
    """Any address in any spelling and case comes out the same."""
    mark, width = spelling
    digits = raw.hex().upper() if upper else raw.hex()
    text = mark.join(digits[i : i + width] for i in range(0, 12, width))
    assert normalise_mac(text) == ":".join(f"{byte:02x}" for byte in raw)


@pytest.mark.parametrize("name", ["release-float", "release-name"])
def test_a_release_has_one_id_however_it_is_named(name: str) -> None:
    """A float or a name in any case."""
    assert load_cluster(CASES / f"good/{name}.yaml").release.id == "2025.1"


def test_a_release_number_is_taken_as_written(tmp_path: Path) -> None:
    """2025.10 is another release than 2025.1, though the numbers are equal."""
    with pytest.raises(BadInput, match="1 problem") as caught:
        load_text(tmp_path, default_text().replace('"2025.1"', "2025.10"))
    assert "no release `2025.10`" in caught.value.problems[0].message


def test_the_release_is_what_the_distro_ships_unless_said(tmp_path: Path) -> None:
    """A distro without a suite gets its default suite."""
    text = (CASES / "good/minimal.yaml").read_text()
    assert load_text(tmp_path, text).release.id == "2025.1"
    assert load_text(tmp_path, text + "distro: {name: ubuntu}\n").release.distro.suite == "noble"
    assert load_text(tmp_path, text + "distro: {name: debian, suite: bookworm}\n").release.id == "zed"


def test_the_secrets_file_is_relative_to_the_cluster_file(tmp_path: Path) -> None:
    """Wherever the command runs."""
    text = default_text()
    assert load_text(tmp_path, text).secrets_path == tmp_path / "secrets.yaml"
    assert load_text(tmp_path, text.replace("secrets: secrets.yaml", "secrets: /etc/x.yaml")).secrets_path == Path(
        "/etc/x.yaml"
    )


def test_a_full_node_keeps_all_its_values() -> None:
    """Serial number, Ironic's hints and how to deploy."""
    node = load_cluster(CASES / "good/everything.yaml").node("linux-node3")
    assert (node.serial, node.address) == ("ABC-123", IPv4Address("192.168.56.13"))
    assert node.root_device == {"size": 100, "rotational": False, "wwn": "0x4000c500"}
    assert (node.deploy.mode, node.deploy.wipe) == ("live", True)


def test_nothing_external_needs_nothing() -> None:
    """Embedded services are prepared by the nodes themselves."""
    assert explain_external(load_cluster(None)) == []


def test_what_must_exist_outside_is_explained() -> None:
    """Every database with its owner's grants, the vhosts, the users - and no password, only its key."""
    lines = explain_external(load_cluster(CASES / "good/external.yaml"))
    assert lines[0] == "# database at db.example:3307"
    assert "CREATE DATABASE `nova_cell0` CHARACTER SET utf8mb4;" in lines
    assert "CREATE USER 'nova'@'192.168.56.11' IDENTIFIED BY '<database_nova of secrets.yaml>';" in lines
    assert "GRANT ALL PRIVILEGES ON `placement`.* TO 'placement'@'192.168.56.11';" in lines
    assert not any("keystone`" in line for line in lines), "Keystone is elsewhere and so is its database"
    assert "GRANT ALL PRIVILEGES ON `nova\\_api`.* TO 'nova'@'192.168.56.11';" in lines, "_ is a wildcard there"
    assert "rabbitmqctl set_permissions -p nova openstack '.*' '.*' '.*'" in lines
    of_computes = [line for line in lines if "compute_cell1" in line]
    assert of_computes[0].startswith("rabbitmqctl add_user compute_cell1 ")
    assert of_computes[0].endswith("messaging_compute_cell1 of secrets.yaml")
    may = OF_COMPUTES
    assert of_computes[1:] == [
        f"rabbitmqctl set_permissions -p nova compute_cell1 '{may.configure}' '{may.write}' '{may.read}'",
        f"rabbitmqctl set_topic_permissions -p nova compute_cell1 nova '.*' '{may.topics}'",
    ]
    roles = [line.split()[-2:] for line in lines if line.startswith("openstack role add")]
    assert roles == [
        ["neutron", "admin"],
        *([user, "service"] for user in ("neutron", "nova", "placement", "nova_compute")),
    ]
    assert sum("endpoint create" in line for line in lines) == 9
    assert "CREATE DATABASE `neutron` CHARACTER SET utf8mb4;" in lines
    assert not any("glance" in line for line in lines), "Glance is elsewhere"
    assert lines[-2:] == [
        "# image at 10.0.0.7:9292",
        "# Keystone's catalogue must have, in region RegionOne, an endpoint of type image at http://10.0.0.7:9292",
    ]
    assert not any("cache at" in line for line in lines)


def test_a_network_elsewhere_is_explained(tmp_path: Path) -> None:
    """What Neutron must allow; with OVN for the computes, what they must reach, and what they ask."""
    cluster = load_cluster(CASES / "good/cloud-elsewhere.yaml")
    text = "\n".join(explain_external(cluster))
    assert "# network at 10.0.0.8:9696\n" in text and "type network at http://10.0.0.8:9696\n" in text
    for word in ("nova and nova_compute", "service-role-port-device-id", "update_port:device_id", "administrator"):
        assert word in text
    assert "metadata_proxy_shared_secret: neutron_metadata of secrets.yaml" in text
    assert "nova_metadata_host: 192.168.56.11" in text
    assert "tcp:10.0.0.8:6642" in text and "get_agent" in text and "6081/UDP" in text
    assert "an endpoint of type block-storage (or volumev3) that leads to Cinder" in text
    plain = (CASES / "good/minimal.yaml").read_text() + "services: {network: {endpoint: http://10.0.0.8:9696}}\n"
    lines = explain_external(load_text(tmp_path, plain))
    assert lines and not any("southbound" in line or "get_agent" in line for line in lines)
    assert not any("Cinder" in line for line in lines)


def test_no_network_needs_no_explanation() -> None:
    """There is nowhere to make anything."""
    assert explain_external(load_cluster(CASES / "good/no-network.yaml")) == []


def test_a_cache_elsewhere_is_for_controllers_alone(tmp_path: Path) -> None:
    """There is nothing to create, and somebody to keep out."""
    text = (CASES / "good/minimal.yaml").read_text() + "services: {cache: {host: 10.0.0.9}}\n"
    assert explain_external(load_text(tmp_path, text)) == [
        "# cache at 10.0.0.9:11211",
        "# nothing to create; 192.168.56.11 must reach it, and nobody else: it has no authentication",
    ]


def test_passwords_that_an_administrator_types_are_named(tmp_path: Path) -> None:
    """Of the computes' users at a message queue or a Keystone elsewhere; in the cluster they can be derived."""
    assert typed_secrets(load_cluster(CASES / "good/two-cells.yaml")) == {}
    outside = 'services: {messaging: {host: mq}, identity: {auth_url: "http://k:5000/v3"}}\ncells: [cell1, far]\n'
    typed = typed_secrets(load_text(tmp_path, (CASES / "good/minimal.yaml").read_text() + outside))
    users = [f"identity_{name}" for name in ("glance", "neutron", "nova_compute")]
    assert list(typed) == ["messaging_compute_cell1", "messaging_compute_far", "messaging_neutron", *users]
    assert typed["messaging_compute_far"] == (
        "the message queue is outside this cluster and needs a password for user compute_far: "
        "`imagegen validate --explain` prints how"
    )


def test_guests_stay_shut_off_by_default(tmp_path: Path) -> None:
    """Nova's own default; the key takes a boolean and nothing else."""
    text = (CASES / "good/flavors.yaml").read_text()
    assert not load_text(tmp_path, text).resume_guests
    assert load_text(tmp_path, text + "resume_guests: true\n").resume_guests
    with pytest.raises(BadInput):
        load_text(tmp_path, text + "resume_guests: 1\n")


def test_flavors_have_defaults_and_may_be_none(tmp_path: Path) -> None:
    """Said nothing, those that everybody knows; an empty list is an answer, and what is given is all there is."""
    text = (CASES / "good/minimal.yaml").read_text()
    assert [one.name for one in load_text(tmp_path, text).flavors] == ["m1.tiny", "m1.small", "m1.medium", "m1.large"]
    assert load_text(tmp_path, text + "flavors: []\n").flavors == ()
    given = load_cluster(CASES / "good/flavors.yaml").flavors
    assert given == (Flavor("m1.tiny", 1, 1, 0), Flavor("GPU 4 x_big-one", 1024, 16777216, 1048576))


def test_each_cell_has_a_database_of_its_own() -> None:
    """The first has Nova's usual name."""
    names = [name for name, _ in database_schemas(load_cluster(CASES / "good/two-cells.yaml"))]
    of_nova = ["nova_api", "nova_cell0", "nova", "nova_cell2"]
    assert names == ["keystone", "placement", *of_nova, "glance", "neutron", "imagegen"]
