"""The files for Ironic: a node's enrolment, its image with its digest, and its config drive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from imagegen.base.templates import dump_yaml
from imagegen.base.tree import File, Tree, text
from imagegen.images.current import RoleImage
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import Role
from imagegen.outputs.pxe import choose_url
from imagegen.seeds.config_drive import configdrive_iso, configdrive_tree, encode_configdrive
from imagegen.seeds.seed import Seed

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

SUFFIXES = {"deploy": ("raw",)}
"""Which built files are needed, by the modes of nodes."""


def ironic_tree(
    cluster: Cluster, images: Mapping[Role, RoleImage], seeds: Mapping[str, Seed], driver: str = "redfish"
) -> Tree:
    """Path -> file for `openstack baremetal`: nodes.yaml, instance-info/ and, with secrets inside, configdrive/."""
    nodes = [ironic_node(cluster, node, driver) for node in cluster.nodes]
    tree = {"nodes.yaml": text("# openstack baremetal create nodes.yaml\n" + dump_yaml({"nodes": nodes}), 0o600)}
    for node in cluster.nodes:
        info = instance_info(cluster, images[node.role])
        tree[f"instance-info/{node.name}.json"] = text(json.dumps(info, indent=2) + "\n", 0o600)
        drive = configdrive_tree(cluster, node, seeds[node.name])
        tree |= {f"configdrive/{node.name}/{path}": file for path, file in drive.items()}
        iso = configdrive_iso(drive)
        tree[f"configdrive/{node.name}.iso"] = File(iso, 0o600)
        tree[f"configdrive/{node.name}.b64"] = text(encode_configdrive(iso), 0o600)
    return dict(sorted(tree.items()))


def ironic_node(cluster: Cluster, node: Node, driver: str) -> dict[str, Any]:
    """One node of nodes.yaml, where Ironic refuses instance_info. driver_info, the BMC's login, is the operator's."""
    properties: dict[str, Any] = {
        "cpu_arch": ARCHITECTURES.get(cluster.release.distro.arch, cluster.release.distro.arch)
    }
    if node.root_device:
        properties["root_device"] = dict(sorted(node.root_device.items()))
    if node.serial:
        properties["serial_number"] = node.serial
    return {
        "name": node.name,
        "driver": driver,
        "resource_class": f"imagegen-{node.role}",
        "properties": properties,
        "ports": [{"address": node.mac}],
    }


def instance_info(cluster: Cluster, image: RoleImage) -> dict[str, Any]:
    """instance_info of a node: the raw image, which the deploy ramdisk streams to the disk, with its sha256."""
    name = image.file_name("raw")
    return {
        "image_source": f"{choose_url(cluster)}/images/{name}",
        "image_disk_format": "raw",
        "image_os_hash_algo": "sha256",
        "image_os_hash_value": image.files[name]["sha256"],
    }
