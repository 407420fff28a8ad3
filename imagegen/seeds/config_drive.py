"""The same seed as OpenStack's config drive: what Ironic and Metal3 hand to a machine."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from typing import Any

from imagegen.base.tree import Tree, text
from imagegen.model.cluster import Cluster, Node
from imagegen.seeds.iso import iso_bytes
from imagegen.seeds.seed import Seed

LABEL = "config-2"  # what cloud-init's ConfigDrive datasource looks for
LATEST = "openstack/latest"
MOST_BYTES = 64 << 20  # of a config drive, for Ironic


def meta_data(cluster: Cluster, seed: Seed) -> dict[str, Any]:
    """meta_data.json: the facts of the seed's meta-data as `meta` keys, whose values are texts as in Nova's API."""
    facts = seed.facts
    flat = {
        f"imagegen.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in facts["imagegen"].items()
        if value is not None
    }
    name = facts["local-hostname"]
    return {"uuid": str(seed.instance_id), "hostname": name, "name": name, "project_id": cluster.name, "meta": flat}


def network_data(cluster: Cluster, node: Node) -> dict[str, Any]:
    """network_data.json (OpenStack's metadata, 2015-10-15): the node's one interface."""
    network = cluster.network
    route = {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": str(network.gateway)}  # noqa: S104 - no address
    return {
        "links": [{"id": "net0", "type": "phy", "ethernet_mac_address": node.mac}],
        "networks": [
            {
                "id": "net0",
                "link": "net0",
                "type": "ipv4",
                "ip_address": str(node.address),
                "netmask": str(network.cidr.netmask),
                "routes": [route] if network.gateway else [],
            }
        ],
        "services": [{"type": "dns", "address": str(address)} for address in network.dns],
    }


def configdrive_tree(cluster: Cluster, node: Node, seed: Seed) -> Tree:
    """The files of the node's config drive, mode 0600; secrets are in user_data alone."""
    documents = {"meta_data.json": meta_data(cluster, seed), "network_data.json": network_data(cluster, node)}
    tree = {f"{LATEST}/{name}": text(json.dumps(value, indent=2) + "\n", 0o600) for name, value in documents.items()}
    return {**tree, f"{LATEST}/user_data": seed.render()["user-data"]}


def configdrive_iso(tree: Tree) -> bytes:
    """The ISO 9660 image of a config drive; the same bytes for the same tree."""
    return iso_bytes(tree, LABEL)


def encode_configdrive(iso: bytes) -> str:
    """gzip and base64, as Ironic's API takes a config drive. Raises ValueError for one that is too large for it."""
    encoded = b64encode(gzip.compress(iso, mtime=0)).decode()
    if len(encoded) > MOST_BYTES:
        raise ValueError(f"a config drive of {len(encoded)} bytes is too large for Ironic")
    return encoded
