"""The files for Metal3: a BareMetalHost for each node, and the Secrets that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from imagegen.base.errors import BadUsage
from imagegen.base.templates import dump_yaml
from imagegen.base.tree import Tree, text
from imagegen.images.current import RoleImage
from imagegen.inputs.device_hints import hint_text, parse_hint
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import Role
from imagegen.outputs.ironic import instance_info
from imagegen.seeds.config_drive import meta_data, network_data
from imagegen.seeds.seed import Seed

# Ironic's hints -> spec.rootDeviceHints of a BareMetalHost, and the one operator that each becomes in Ironic again
# (baremetal-operator, pkg/provisioner/ironic/devicehints).
METAL3_HINTS = {
    "name": ("deviceName", "s=="),
    "by_path": ("deviceName", "s=="),
    "hctl": ("hctl", "s=="),
    "model": ("model", "<in>"),
    "vendor": ("vendor", "<in>"),
    "serial": ("serialNumber", "s=="),
    "size": ("minSizeGigabytes", ">="),
    "wwn": ("wwn", "s=="),
    "wwn_with_extension": ("wwnWithExtension", "s=="),
    "wwn_vendor_extension": ("wwnVendorExtension", "s=="),
    "rotational": ("rotational", "=="),
}


def metal3_tree(cluster: Cluster, images: Mapping[Role, RoleImage], seeds: Mapping[str, Seed]) -> Tree:
    """NODE.yaml of each node: its Secrets and its BareMetalHost. Raises BadUsage: see metal3_hints."""
    tree = {}
    for node in cluster.nodes:
        documents = [
            *metal3_secrets(cluster, node, seeds[node.name]),
            bare_metal_host(cluster, node, images[node.role]),
        ]
        tree[f"{node.name}.yaml"] = text("---\n".join(dump_yaml(document) for document in documents), 0o600)
    return tree


def metal3_secrets(cluster: Cluster, node: Node, seed: Seed) -> list[dict[str, Any]]:
    """The three Secrets that the BareMetalHost names; each has the one key that Metal3 looks for."""
    contents = {
        "userData": seed.render()["user-data"].data.decode(),
        "networkData": json.dumps(network_data(cluster, node), indent=2) + "\n",
        "metaData": dump_yaml({"meta": meta_data(cluster, seed)["meta"]}),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret_name(node, key)},
            "type": "Opaque",
            "stringData": {key: value},
        }
        for key, value in contents.items()
    ]


def secret_name(node: Node, key: str) -> str:
    return f"{node.name}-{key.removesuffix('Data')}-data"


def bare_metal_host(cluster: Cluster, node: Node, image: RoleImage) -> dict[str, Any]:
    """metal3.io/v1alpha1 BareMetalHost without `bmc`, which is the operator's to add. Raises BadUsage."""
    info = instance_info(cluster, image)
    spec: dict[str, Any] = {
        "online": True,
        "bootMACAddress": node.mac,
        "image": {
            "url": info["image_source"],
            "checksum": info["image_os_hash_value"],
            "checksumType": "sha256",
            "format": "raw",
        },
    }
    if node.root_device:
        spec["rootDeviceHints"] = metal3_hints(node)
    spec |= {key: {"name": secret_name(node, key)} for key in ("userData", "networkData", "metaData")}
    return {
        "apiVersion": "metal3.io/v1alpha1",
        "kind": "BareMetalHost",
        "metadata": {"name": node.name, "labels": {"imagegen-cluster": cluster.name, "imagegen-role": str(node.role)}},
        "spec": spec,
    }


def metal3_hints(node: Node) -> dict[str, Any]:
    """rootDeviceHints, which select the same disks. Raises BadUsage for a hint that would select others in Metal3."""
    found: dict[str, Any] = {}
    for name, value in sorted(node.root_device.items()):
        hint = parse_hint(name, value)
        field, operator = METAL3_HINTS[name]
        if hint.operator != operator:
            raise refuse(node, f"`{name}: {hint_text(value)}`", f"its {field} always means `{operator}`")
        if field in found:
            raise refuse(node, "both `name` and `by_path`", f"it has only {field} for the two")
        found[field] = value if name == "rotational" else int(hint.values[0]) if name == "size" else hint.values[0]
    return found


def refuse(node: Node, what: str, why: str) -> BadUsage:
    return BadUsage(
        f"Metal3 cannot express {what} in root_device of {node.name}: {why}",
        "change the hint, or run `imagegen baremetal --ironic`, which leaves Metal3's files out",
    )
