"""Ironic itself takes what `imagegen baremetal` writes: standalone, with hardware that only pretends.

Nothing is booted: what is looked at is what Ironic accepts, and what it would hand to the machine.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycdlib
import pytest
from netboot_images import make_images

PROGRAMS = Path(__file__).parents[2] / ".venv-ironic/bin"
SECONDS = 120.0
POLL = 0.2
NODES = ("linux-node1", "linux-node2")
NODE = NODES[1]
CONFIGURATION = """\
[DEFAULT]
auth_strategy = noauth
enabled_hardware_types = fake-hardware
enabled_bios_interfaces = no-bios
enabled_boot_interfaces = fake
enabled_console_interfaces = no-console
enabled_deploy_interfaces = fake
enabled_firmware_interfaces = no-firmware
enabled_inspect_interfaces = no-inspect
enabled_management_interfaces = fake
enabled_network_interfaces = noop
enabled_power_interfaces = fake
enabled_raid_interfaces = no-raid
enabled_rescue_interfaces = no-rescue
enabled_storage_interfaces = noop
enabled_vendor_interfaces = no-vendor
rpc_transport = none
host = localhost
log_dir = {place}
[api]
host_ip = 127.0.0.1
port = {port}
[conductor]
automated_clean = false
[database]
connection = sqlite:///{place}/ironic.sqlite
[service_catalog]
endpoint_override = http://127.0.0.1:{port}
"""


@dataclass(frozen=True)
class Ironic:
    """A running Ironic, and the directory of its database."""

    place: Path
    port: int

    def ask(self, *words: str) -> Any:
        """What `baremetal WORDS` prints, as JSON where there is any. Fails with what it says."""
        environment = {**os.environ, "OS_AUTH_TYPE": "none", "OS_ENDPOINT": f"http://127.0.0.1:{self.port}"}
        argv = [str(PROGRAMS / "baremetal"), *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=SECONDS)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout) if "json" in words else None

    def show(self, node: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("node", "show", node, "-f", "json")
        return shown

    def read_configdrive(self, node: str) -> Any:
        """What Ironic keeps for the machine, which its API masks: a text, or the document that was given."""
        with sqlite3.connect(self.place / "ironic.sqlite") as database:
            (row,) = database.execute("SELECT instance_info FROM nodes WHERE name = ?", (node,)).fetchall()
        return json.loads(row[0])["configdrive"]


@pytest.fixture(scope="session")
def ironic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ironic]:
    place = tmp_path_factory.mktemp("ironic")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (place / "ironic.conf").write_text(CONFIGURATION.format(place=place, port=port))
    options = ["--config-file", str(place / "ironic.conf")]
    subprocess.run([PROGRAMS / "ironic-dbsync", *options, "create_schema"], check=True, timeout=SECONDS)
    with (place / "output").open("wb") as output:
        process = subprocess.Popen([PROGRAMS / "ironic", *options], stdout=output, stderr=output)
    try:
        running = Ironic(place, port)
        wait_for_drivers(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)


def wait_for_drivers(ironic: Ironic, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            assert ironic.ask("driver", "list", "-f", "json")
            return
        except AssertionError:
            assert process.poll() is None, (ironic.place / "output").read_text()[-3000:]
            assert time.monotonic() < deadline, "Ironic's conductor does not register"
            time.sleep(POLL)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, ironic: Ironic) -> Path:
    """OUT/ironic as the command line writes it; the nodes are enrolled."""
    place = tmp_path_factory.mktemp("cluster")
    make_images(place / "out")
    imagegen = [sys.executable, "-m", "imagegen"]
    subprocess.run([*imagegen, "init", "-q", str(place)], check=True)
    options = ["-q", "-c", str(place / "cluster.yaml"), "-o", str(place / "out"), "--driver", "fake-hardware"]
    subprocess.run([*imagegen, "baremetal", *options], check=True)
    ironic.ask("create", str(place / "out/ironic/nodes.yaml"))
    return place / "out/ironic"


def test_nodes_are_enrolled_with_their_ports(ironic: Ironic, written: Path) -> None:
    """By `baremetal create nodes.yaml`, one port a node."""
    assert {node: ironic.show(node)["resource_class"] for node in NODES} == {
        "linux-node1": "imagegen-controller",
        "linux-node2": "imagegen-compute",
    }
    ports = ironic.ask("port", "list", "--fields", "address", "-f", "json")
    assert sorted(value for port in ports for value in port.values()) == ["52:54:00:56:00:11", "52:54:00:56:00:12"]


@pytest.mark.parametrize("form", ["base64", "directory", "document"])
def test_a_node_gets_active_with_its_own_config_drive(ironic: Ironic, written: Path, form: str) -> None:
    """Its image with the digest, and, in each form that Ironic takes, the config drive that was written."""
    info = json.loads((written / f"instance-info/{NODE}.json").read_text())
    drive, document = written / "configdrive" / NODE, read_document(written)
    given = {"base64": f"{drive}.b64", "directory": str(drive), "document": json.dumps(document)}[form]
    ironic.ask("node", "set", NODE, *(word for key in info for word in ("--instance-info", f"{key}={info[key]}")))
    if ironic.show(NODE)["provision_state"] == "enroll":
        ironic.ask("node", "manage", NODE, "--wait", "60")
    ironic.ask("node", "provide", NODE, "--wait", "60")
    ironic.ask("node", "deploy", NODE, "--config-drive", given, "--wait", "60")
    shown = ironic.show(NODE)
    assert (shown["provision_state"], shown["last_error"]) == ("active", None)
    assert {key: shown["instance_info"][key] for key in info} == info
    kept = ironic.read_configdrive(NODE)
    if form == "document":
        assert kept == document
    else:
        iso = gzip.decompress(base64.b64decode(kept))
        assert read_files(iso) == {file.name: file.read_bytes() for file in (drive / "openstack/latest").iterdir()}
        assert form != "base64" or iso == Path(f"{drive}.iso").read_bytes()
    ironic.ask("node", "undeploy", NODE, "--wait", "60")
    ironic.ask("node", "manage", NODE, "--wait", "60")


def read_document(written: Path) -> dict[str, Any]:
    """The config drive's directory as the one JSON document that Ironic builds it from."""
    latest = written / "configdrive" / NODE / "openstack/latest"
    return {
        "meta_data": json.loads((latest / "meta_data.json").read_text()),
        "network_data": json.loads((latest / "network_data.json").read_text()),
        "user_data": (latest / "user_data").read_text(),
    }


def read_files(iso: bytes) -> dict[str, bytes]:
    """Name -> bytes below openstack/latest, by whichever names the ISO has."""
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(iso))
    kind = "joliet_path" if image.has_joliet() else "rr_path"
    found = {}
    for child in image.list_children(**{kind: "/openstack/latest"}):
        name = image.full_path_from_dirrecord(child, rockridge=kind == "rr_path").rpartition("/")[2]
        if child.is_file():
            output = io.BytesIO()
            image.get_file_from_iso_fp(output, **{kind: f"/openstack/latest/{name}"})
            found[name] = output.getvalue()
    image.close()
    return found
