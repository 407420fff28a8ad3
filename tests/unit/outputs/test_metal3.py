"""Metal3's documents against what its operator publishes: the CRD, the webhook, and how it reads Secrets."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import make_secrets
from jsonschema import Draft202012Validator
from netboot_images import make_images

from imagegen.base.errors import BadUsage
from imagegen.base.resources import PACKAGE
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.device_hints import parse_hint
from imagegen.model.roles import find_role
from imagegen.outputs.metal3 import METAL3_HINTS, metal3_hints, metal3_tree
from imagegen.outputs.pxe import find_images
from imagegen.seeds.seed import make_seed

SCHEMA = json.loads((Path(__file__).parents[2] / "data/baremetalhost.schema.json").read_text())
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
RESOURCE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
SECRET_BYTES = 1 << 20  # the most that Kubernetes keeps in one

CLUSTER = """\
name: {name}
network: {{cidr: 192.168.56.0/24, gateway: 192.168.56.1, dns: [192.168.56.1]}}
nodes:
  - {{name: ctl-1, role: controller, mac: "52:54:00:56:00:11", address: 192.168.56.11, serial: "S 1/2"}}
  - {{name: cpt-1, role: compute, mac: 52540056ABCD, address: 192.168.56.12{node}}}
  - {{name: cpt-2, role: compute, mac: "00:00:00:00:00:13", address: 192.168.56.13}}
"""
HINTS: dict[str, Any] = {
    "name": "/dev/sda",
    "by_path": "/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
    "hctl": "0:0:0:1",
    "model": "<in> QEMU HARDDISK",
    "vendor": "<in> ATA",
    "serial": "s== QM00001",
    "size": ">= 100",
    "wwn": "0x5000c500a1b2c3d4",
    "wwn_with_extension": "0x5000c500a1b2c3d40001",
    "wwn_vendor_extension": "0x0001",
    "rotational": False,
}


class GoLoader(yaml.SafeLoader):
    """Plain words as go-yaml 2 takes them (its resolve.go), which reads for kubectl and for the operator."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name; none of its rules are inherited


def make_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    try:
        return int(node.value, 0)
    except ValueError:
        return float(node.value.replace("_", ""))


NUMBER = r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0b[01_]+|(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?)"
TRUTH = r"y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON"
FALSEHOOD = r"n|N|no|No|NO|false|False|FALSE|off|Off|OFF"
GoLoader.add_implicit_resolver("!number", re.compile(rf"({NUMBER})\Z"), list("-+.0123456789"))
GoLoader.add_implicit_resolver("!true", re.compile(rf"({TRUTH})\Z"), list("yYtToO"))
GoLoader.add_implicit_resolver("!false", re.compile(rf"({FALSEHOOD})\Z"), list("nNfFoO"))
GoLoader.add_implicit_resolver("!null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
GoLoader.add_constructor("!number", make_number)
GoLoader.add_constructor("!true", lambda loader, node: True)
GoLoader.add_constructor("!false", lambda loader, node: False)
GoLoader.add_constructor("!null", lambda loader, node: None)


def write_documents(place: Path, node: str = "", name: str = "demo") -> dict[str, list[Any]]:
    """Node -> its documents as Kubernetes reads them, for a cluster whose node cpt-1 has the keys `node`."""
    path = place / "cluster.yaml"
    path.write_text(CLUSTER.format(name=name, node=f", {node}" if node else ""))
    if not (place / "out").exists():
        make_images(place / "out")
    cluster = load_cluster(path)
    tree = metal3_tree(
        cluster,
        find_images(cluster, place / "out"),
        {node.name: make_seed(cluster, node, make_secrets()) for node in cluster.nodes},
    )
    return {
        file.removesuffix(".yaml"): list(yaml.load_all(content.data, Loader=GoLoader)) for file, content in tree.items()
    }


def find_hosts(documents: dict[str, list[Any]]) -> dict[str, Any]:
    """Node -> its one BareMetalHost."""
    found = {node: [one for one in many if one["kind"] == "BareMetalHost"] for node, many in documents.items()}
    assert all(len(hosts) == 1 for hosts in found.values())
    return {node: hosts[0] for node, hosts in found.items()}


def complain(host: Any) -> list[str]:
    """What the CRD does not allow, as paths and sentences."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(host)]


def write_hints(hints: dict[str, Any]) -> str:
    return f"root_device: {json.dumps(hints)}"


NODES = {
    "plain": "",
    "serial": "serial: M-1",
    "live": "deploy: {mode: live}",
    "wipe": "deploy: {wipe: true}",
    "every hint": write_hints({hint: value for hint, value in HINTS.items() if hint != "by_path"}),
    **{f"hint {hint}": write_hints({hint: value}) for hint, value in HINTS.items()},
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_the_crd_knows_every_field(node: str, tmp_path: Path) -> None:
    """Of each host: no unknown field, no wrong type, no value outside an enumeration."""
    hosts = find_hosts(write_documents(tmp_path, node))
    assert sorted(hosts) == ["cpt-1", "cpt-2", "ctl-1"]
    assert {name: complain(host) for name, host in hosts.items() if complain(host)} == {}


@pytest.mark.parametrize("hint", HINTS)
def test_every_hint_arrives_as_it_is(hint: str, tmp_path: Path) -> None:
    """Under Metal3's name, with its value and no other hint beside it."""
    spec = find_hosts(write_documents(tmp_path, write_hints({hint: HINTS[hint]})))["cpt-1"]["spec"]
    value = {"model": "QEMU HARDDISK", "vendor": "ATA", "serial": "QM00001", "size": 100}.get(hint, HINTS[hint])
    assert spec["rootDeviceHints"] == {METAL3_HINTS[hint][0]: value}


@pytest.mark.parametrize("hint", HINTS)
def test_every_hint_comes_back_to_ironic_with_the_same_meaning(hint: str) -> None:
    """What baremetal-operator makes of rootDeviceHints (devicehints.go) is the hint that the cluster file has."""
    node = replace(load_cluster(None).nodes[1], root_device={hint: HINTS[hint]})
    ((field, value),) = metal3_hints(node).items()
    by_path = str(value).startswith("/dev/disk/by-path/")
    operators = {"minSizeGigabytes": ">=", "model": "<in>", "vendor": "<in>"}
    names = {"deviceName": "by_path" if by_path else "name", "serialNumber": "serial", "minSizeGigabytes": "size"}
    name = names.get(field, re.sub("[A-Z]", lambda capital: "_" + capital.group().lower(), field))
    said = str(value).lower() if field == "rotational" else f"{operators.get(field, 's==')} {value}"
    assert (name, parse_hint(name, said)) == (hint, parse_hint(hint, HINTS[hint]))


@pytest.mark.parametrize(
    ("hint", "value", "why"),
    [
        ("size", 100, r"`size: 100` in root_device of linux-node2: its minSizeGigabytes always means `>=`"),
        ("size", "> 100", "minSizeGigabytes always means `>=`"),
        ("model", "QEMU HARDDISK", "its model always means `<in>`"),
        ("vendor", "s!= ATA", "its vendor always means `<in>`"),
        ("serial", "<or> A <or> B", "its serialNumber always means `s==`"),
        ("wwn", "<in> 0x5", "its wwn always means `s==`"),
        ("name", "s!= /dev/sda", "its deviceName always means `s==`"),
    ],
)
def test_a_hint_that_would_select_other_disks_in_metal3_is_refused(hint: str, value: str | int, why: str) -> None:
    """With node, hint and reason, and how to do without Metal3."""
    with pytest.raises(BadUsage, match=why) as refused:
        metal3_hints(replace(load_cluster(None).nodes[1], root_device={hint: value}))
    assert "imagegen baremetal --ironic" in str(refused.value.hint)


def test_every_hint_of_the_cluster_file_is_tried_here() -> None:
    """A new hint is not forgotten, neither here nor in Metal3's table."""
    schema = json.loads((PACKAGE / "data/cluster.schema.json").read_text())
    assert set(schema["$defs"]["node"]["properties"]["root_device"]["properties"]) == set(HINTS) == set(METAL3_HINTS)


def rename(spec: dict[str, Any], old: str, new: str) -> None:
    spec[new] = spec.pop(old)


DEFECTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a misspelt field": lambda spec: rename(spec, "bootMACAddress", "bootMacAddress"),
    "a misspelt field of the image": lambda spec: rename(spec["image"], "checksumType", "checksumtype"),
    "a misspelt hint": lambda spec: rename(spec["rootDeviceHints"], "serialNumber", "serial"),
    "text for a truth": lambda spec: spec.update(online="true"),
    "text for a number": lambda spec: spec["rootDeviceHints"].update(minSizeGigabytes="100"),
    "a number for text": lambda spec: spec["rootDeviceHints"].update(serialNumber=789),
    "a format that Metal3 lacks": lambda spec: spec["image"].update(format="raw.zst"),
    "a name for a reference": lambda spec: spec.update(userData="cpt-1-user-data"),
    "a BMC without its login": lambda spec: spec.update(bmc={"address": "redfish://10.9.0.2"}),
    "a field that must be there": lambda spec: spec.pop("online"),
}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_planted_defects_are_caught(defect: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    """The schema is as strict as it is meant to be: one complaint, or two for a field that got another name."""
    host = find_hosts(write_documents(tmp_path, write_hints({"serial": "S1", "size": ">= 100"})))["cpt-1"]
    broken = copy.deepcopy(host)
    defect(broken["spec"])
    assert complain(host) == [] and complain(broken) != []


def test_secrets_have_the_keys_that_the_operator_looks_for(tmp_path: Path) -> None:
    """As its host_config_data.go has them; in the host's own namespace, and below the limit of Kubernetes."""
    for node, documents in write_documents(tmp_path).items():
        secrets = {document["metadata"]["name"]: document for document in documents if document["kind"] == "Secret"}
        spec = find_hosts({node: documents})[node]["spec"]
        assert len(documents) == len(secrets) + 1 == 4
        for key in ("userData", "networkData", "metaData"):
            assert list(spec[key]) == ["name"]  # no namespace: the operator allows only the host's, its default
            secret = secrets[spec[key]["name"]]
            assert sorted(secret) == ["apiVersion", "kind", "metadata", "stringData", "type"]
            assert (secret["apiVersion"], secret["type"], list(secret["stringData"])) == ("v1", "Opaque", [key])
            assert isinstance(secret["stringData"][key], str) and len(secret["stringData"][key]) < SECRET_BYTES


def test_the_operator_can_merge_what_the_secrets_hold(tmp_path: Path) -> None:
    """It reads networkData and metaData as YAML objects, and lays metaData over a uuid and names of its own."""
    for documents in write_documents(tmp_path).values():
        texts: dict[str, str] = {}
        for document in documents:
            texts |= document.get("stringData", {})
        network, meta = (yaml.load(texts[key], Loader=GoLoader) for key in ("networkData", "metaData"))
        assert sorted(network) == ["links", "networks", "services"]
        assert list(meta) == ["meta"]
        assert find_role(meta["meta"]["imagegen.role"])
        assert [value for value in meta["meta"].values() if not isinstance(value, str)] == []
        assert texts["userData"].startswith("#cloud-config")


def test_kubernetes_takes_the_names_and_labels(tmp_path: Path) -> None:
    """Names of resources are DNS names, and no two Secrets have one; labels have at most 63 characters."""
    written = [document for documents in write_documents(tmp_path, name="A" * 63).values() for document in documents]
    names = [(document["kind"], document["metadata"]["name"]) for document in written]
    assert len(set(names)) == len(names)
    assert all(RESOURCE_NAME.fullmatch(name) for _, name in names)
    labels = [value for document in written for value in document["metadata"].get("labels", {}).values()]
    assert labels and all(LABEL.fullmatch(value) for value in labels)


SAFE = ("1_0", "on", "~", "0x17", "00:00")  # Python's YAML quotes them by itself, or both know them for text
UNSAFE = ("0789", "12E5", "y", "0o17", ".5e3")


@pytest.mark.parametrize("serial", [*SAFE, *UNSAFE])
def test_text_that_looks_like_a_number_stays_text(serial: str, tmp_path: Path) -> None:
    """Go's YAML knows numbers and truths that Python's does not: unquoted, the API would refuse the host."""
    host = find_hosts(write_documents(tmp_path, write_hints({"serial": serial})))["cpt-1"]
    assert host["spec"]["rootDeviceHints"] == {"serialNumber": serial}


@pytest.mark.parametrize("name", ["0789", "1e3", "n"])
def test_a_cluster_whose_name_looks_like_a_number_keeps_it(name: str, tmp_path: Path) -> None:
    """In the host's label and, quoted once more, in the metadata that the operator reads from the Secret."""
    documents = write_documents(tmp_path, name=f'"{name}"')["cpt-1"]
    assert documents[-1]["metadata"]["labels"]["imagegen-cluster"] == name
    (text,) = [
        document["stringData"]["metaData"] for document in documents if "metaData" in document.get("stringData", {})
    ]
    assert yaml.load(text, Loader=GoLoader)["meta"]["imagegen.cluster"] == name


def test_two_hints_for_one_field_are_refused(tmp_path: Path) -> None:
    """Metal3 has deviceName alone for a name and a path: one of them would be lost."""
    with pytest.raises(BadUsage, match="both `name` and `by_path`"):
        write_documents(tmp_path, write_hints({hint: HINTS[hint] for hint in ("name", "by_path")}))
