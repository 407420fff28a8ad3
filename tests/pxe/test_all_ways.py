"""Whole clusters that boot over the network, the controller too: by BIOS and by UEFI, with DHCP of our own and beside
another server. `make pxe-full`; each takes as long as the vm tier's bring-up.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from bringup import IMAGES, run_imagegen
from netboot_images import share_images

MINUTES = 60
NODES = {"linux-node1": "deploy", "linux-node2": "deploy", "linux-node3": "live"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default cluster with a live compute besides, and its tree."""
    place = tmp_path_factory.mktemp("pxe")
    share_images(IMAGES, place / "out")
    run_imagegen(["init", str(place)])
    document = yaml.safe_load((place / "cluster.yaml").read_text())
    live = {"name": "linux-node3", "role": "compute", "mac": "52:54:00:56:00:13", "address": "192.168.56.13"}
    document["nodes"].append({**live, "deploy": {"mode": "live"}})
    (place / "cluster.yaml").write_text(yaml.safe_dump(document))
    run_imagegen(["-c", str(place / "cluster.yaml"), "-o", str(place / "out"), "pxe"])
    return place


@pytest.mark.parametrize(
    ("options", "firmware"),
    [(["--firmware", "bios"], "SeaBIOS"), (["--firmware", "uefi", "--proxy-dhcp"], "efi: EFI v2")],
    ids=["bios, full DHCP", "uefi, proxy DHCP"],
)
def test_a_cluster_boots_over_the_network(site: Path, options: list[str], firmware: str) -> None:
    """Every node from nothing to ready, verified from outside; who gave the addresses stands in the logs."""
    words = ["-c", str(site / "cluster.yaml"), "-o", str(site / "out"), "--output", "json"]
    done = run_imagegen(
        [*words, "boot", "--pxe", "--timeout", str(MINUTES), *options],
        check=False,
        each_line=lambda line: print(line, end="", file=sys.stderr, flush=True),
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert {node["name"]: node["state"] for node in json.loads(done.stdout)["nodes"]} == dict.fromkeys(NODES, "ready")
    boot = site / "out/boot"
    for name, mode in NODES.items():
        said = (boot / name / "console.log").read_text(errors="replace")
        assert ("efi: EFI v2" in said) == (firmware == "efi: EFI v2"), name
        assert ("working root: in memory" if mode == "live" else "working table: /dev/vda holds") in said
    ours = (boot / "dnsmasq.log").read_text()
    assert ("proxy" in ours) == ("--proxy-dhcp" in options)
    assert ("DHCPACK(lan)" in (boot / "dhcp.log").read_text()) if "--proxy-dhcp" in options else "DHCPACK(br0)" in ours
    shutil.rmtree(boot)
