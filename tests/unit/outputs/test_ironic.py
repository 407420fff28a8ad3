"""Ironic's and Metal3's files: the same node, the same image, the same seed, in the forms that these take."""

from __future__ import annotations

import base64
import gzip
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml
from fakes.world import make_secrets
from imagegen_node.node import metadata
from netboot_images import make_images

from imagegen.base.errors import ExitCode
from imagegen.base.tree import File, Tree
from imagegen.cli.run import run_command
from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.cluster import Cluster
from imagegen.outputs.ironic import ironic_tree
from imagegen.outputs.metal3 import metal3_tree
from imagegen.outputs.pxe import find_images
from imagegen.seeds.config_drive import configdrive_iso
from imagegen.seeds.seed import make_seed

NODE = "linux-node2"


@pytest.fixture
def cluster() -> Cluster:
    loaded = load_cluster(None)
    hints: dict[str, str | int | bool] = {"serial": "S1", "size": ">= 100", "rotational": False}
    return replace(loaded, nodes=(loaded.nodes[0], replace(loaded.nodes[1], root_device=hints, serial="M1")))


@pytest.fixture
def given(cluster: Cluster, tmp_path: Path) -> tuple[Any, ...]:
    make_images(tmp_path)
    return (
        cluster,
        find_images(cluster, tmp_path),
        {node.name: make_seed(cluster, node, make_secrets()) for node in cluster.nodes},
    )


@pytest.fixture
def ironic(given: tuple[Any, ...]) -> Tree:
    return ironic_tree(*given)


def documents(tree: Tree) -> dict[str, Any]:
    """Kind and name -> document of the node's file for Metal3."""
    found = yaml.safe_load_all(tree[f"{NODE}.yaml"].data)
    return {f"{document['kind']} {document['metadata']['name']}": document for document in found}


def test_nodes_are_enrolled_without_what_ironic_refuses(ironic: Tree) -> None:
    """`openstack baremetal create` takes no instance_info; the login of the BMC is the operator's."""
    node = next(n for n in yaml.safe_load(ironic["nodes.yaml"].data)["nodes"] if n["name"] == NODE)
    assert node == {
        "name": NODE,
        "driver": "redfish",
        "resource_class": "imagegen-compute",
        "properties": {
            "cpu_arch": "x86_64",
            "root_device": {"rotational": False, "serial": "S1", "size": ">= 100"},
            "serial_number": "M1",
        },
        "ports": [{"address": "52:54:00:56:00:12"}],
    }


def test_the_image_is_named_with_its_digest(ironic: Tree, given: tuple[Any, ...]) -> None:
    """The raw one, which the ramdisk streams without a conversion, where `imagegen pxe` puts it."""
    info = json.loads(ironic[f"instance-info/{NODE}.json"].data)
    image = next(image for role, image in given[1].items() if role.name == "compute")
    assert info == {
        "image_source": "http://192.168.56.1:8080/images/compute-222222222222.raw",
        "image_disk_format": "raw",
        "image_os_hash_algo": "sha256",
        "image_os_hash_value": image.files["compute-222222222222.raw"]["sha256"],
    }


def read_iso(data: bytes) -> dict[str, bytes]:
    """Path -> bytes of every file of an ISO, by its Joliet names."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(data))
    found = {}
    for directory, _, names in iso.walk(joliet_path="/"):
        for name in names:
            path = f"{directory.rstrip('/')}/{name}"
            output = io.BytesIO()
            iso.get_file_from_iso_fp(output, joliet_path=path)
            found[path.lstrip("/")] = output.getvalue()
    assert iso.pvd.volume_identifier.rstrip() == b"config-2"
    iso.close()
    return found


def test_every_form_of_a_config_drive_holds_the_same(ironic: Tree) -> None:
    """Directory, ISO, and gzip with base64."""
    prefix = f"configdrive/{NODE}/"
    files = {path.removeprefix(prefix): file.data for path, file in ironic.items() if path.startswith(prefix)}
    assert sorted(files) == [
        f"openstack/latest/{name}" for name in ("meta_data.json", "network_data.json", "user_data")
    ]
    iso = ironic[f"configdrive/{NODE}.iso"].data
    assert read_iso(iso) == files
    assert gzip.decompress(base64.b64decode(ironic[f"configdrive/{NODE}.b64"].data)) == iso
    assert {file.mode for path, file in ironic.items() if "configdrive" in path} == {0o600}


def test_the_agent_reads_its_role_from_a_config_drive(
    ironic: Tree, given: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cloud-init gives it: the same facts as from a seed, and the same files are promised."""
    data = json.loads(ironic[f"configdrive/{NODE}/openstack/latest/meta_data.json"].data)
    place = tmp_path / "instance-data.json"
    place.write_text(json.dumps({"ds": {"meta_data": data}}))
    monkeypatch.setattr(metadata, "INSTANCE_DATA", place)
    facts = metadata.read_facts()
    seed = yaml.safe_load(given[2][NODE].render()["meta-data"].data)
    assert (facts["role"], facts["files"]) == ("compute", seed["imagegen"]["files"])
    assert (data["uuid"], data["hostname"]) == (seed["instance-id"], NODE)


def test_a_config_drive_is_the_same_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in its directories is dated too."""
    tree = {"openstack/latest/user_data": File(b"#cloud-config\n")}
    images = set()
    for now in (1e9, 1.7e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        images.add(configdrive_iso(tree))
    assert len(images) == 1


def test_the_network_is_the_seeds(ironic: Tree) -> None:
    """One interface by its MAC address, with its route and its name servers."""
    data = json.loads(ironic[f"configdrive/{NODE}/openstack/latest/network_data.json"].data)
    assert data["links"] == [{"id": "net0", "type": "phy", "ethernet_mac_address": "52:54:00:56:00:12"}]
    (network,) = data["networks"]
    assert (network["ip_address"], network["netmask"]) == ("192.168.56.12", "255.255.255.0")
    assert network["routes"] == [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.168.56.1"}]
    assert data["services"] == [{"type": "dns", "address": "192.168.56.1"}]


def test_metal3_gets_a_host_and_the_secrets_that_it_names(given: tuple[Any, ...]) -> None:
    """Each Secret has the one key that Metal3 looks for; nothing secret is in the host."""
    found = documents(metal3_tree(*given))
    spec = found[f"BareMetalHost {NODE}"]["spec"]
    assert spec["image"]["url"].endswith("/images/compute-222222222222.raw")
    assert (spec["image"]["checksumType"], spec["image"]["format"]) == ("sha256", "raw")
    assert spec["bootMACAddress"] == "52:54:00:56:00:12"
    assert spec["rootDeviceHints"] == {"rotational": False, "serialNumber": "S1", "minSizeGigabytes": 100}
    for key in ("userData", "networkData", "metaData"):
        secret = found[f"Secret {spec[key]['name']}"]
        assert list(secret["stringData"]) == [key]
    user_data = found[f"Secret {spec['userData']['name']}"]["stringData"]["userData"]
    assert user_data.encode() == given[2][NODE].render()["user-data"].data
    meta = yaml.safe_load(found[f"Secret {spec['metaData']['name']}"]["stringData"]["metaData"])
    assert meta["meta"]["imagegen.role"] == "compute"
    password = make_secrets()["messaging_compute_cell1"]
    assert password in user_data and password not in json.dumps(spec)


@pytest.mark.parametrize(
    ("options", "written"), [([], ["ironic", "metal3"]), (["--ironic"], ["ironic"]), (["--metal3"], ["metal3"])]
)
def test_what_is_written_can_be_chosen(
    options: list[str], written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "out")
    assert run_command(["init", "-q"]) == ExitCode.DONE
    assert run_command(["baremetal", "-q", *options]) == ExitCode.DONE
    assert [name for name in ("ironic", "metal3") if (tmp_path / "out" / name).exists()] == written


def test_what_metal3_cannot_express_is_refused_for_metal3_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written; Ironic gets the hint as it is."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "out")
    assert run_command(["init", "-q"]) == ExitCode.DONE
    text = Path("cluster.yaml").read_text()
    Path("cluster.yaml").write_text(text.replace("56.12}", "56.12, root_device: {size: 223}}"))
    assert run_command(["baremetal", "-q"]) == ExitCode.BAD_INPUT
    assert "`size: 223` in root_device of linux-node2" in capsys.readouterr().err
    assert not (tmp_path / "out/ironic").exists()
    assert run_command(["baremetal", "-q", "--ironic"]) == ExitCode.DONE
    nodes = yaml.safe_load((tmp_path / "out/ironic/nodes.yaml").read_text())["nodes"]
    assert [node["properties"].get("root_device") for node in nodes] == [None, {"size": 223}]


def test_the_command_writes_private_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both directories, for their owner only, from raw images alone."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "out")
    for path in (tmp_path / "out/images").glob("*/*-*"):
        if path.suffix != ".raw":
            path.unlink()
    assert run_command(["init", "-q"]) == ExitCode.DONE
    assert run_command(["baremetal", "-q", "--driver", "ipmi"]) == ExitCode.DONE
    assert "driver: ipmi" in (tmp_path / "out/ironic/nodes.yaml").read_text()
    for name in ("ironic", "metal3"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o700
    assert (tmp_path / f"out/metal3/{NODE}.yaml").stat().st_mode & 0o777 == 0o600


def test_live_nodes_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ironic and Metal3 would write an image to a disk that the cluster file says to let be."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "out")
    assert run_command(["init", "-q"]) == ExitCode.DONE
    text = Path("cluster.yaml").read_text()
    Path("cluster.yaml").write_text(text.replace("56.12}", "56.12, deploy: {mode: live}}"))
    assert run_command(["baremetal"]) == ExitCode.DONE
    assert "left out, because they are live: linux-node2" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out/metal3").iterdir()) == [".imagegen", "linux-node1.yaml"]
    assert "linux-node2" not in (tmp_path / "out/ironic/nodes.yaml").read_text()
