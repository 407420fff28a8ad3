"""What makes a node that node: its cloud-init seed, a value that is rendered last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID, uuid5

from imagegen.base.templates import dump_yaml
from imagegen.base.tree import Tree, text
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import NAMESPACE, Cluster, Node
from imagegen.seeds.keyed import files_key, keyed_digest
from imagegen.seeds.node_json import compute_id
from imagegen.seeds.service_files import SeedFile, node_files


@dataclass(frozen=True, repr=False)
class Seed:
    """One node's seed. Same input, same bytes."""

    cluster: str
    node: str
    key: str  # of the cluster's digests
    user_data: Mapping[str, Any]  # the cloud-config, with secrets in it
    network_config: Mapping[str, Any]
    facts: Mapping[str, Any]  # meta-data without the instance-id

    @cached_property
    def instance_id(self) -> UUID:
        """Changes with the content. It is a keyed digest, so it reveals nothing about the secrets inside."""
        digest = keyed_digest(self.key, "".join(self._texts))
        return uuid5(NAMESPACE, f"instance/{self.cluster}/{self.node}/{digest}")

    @cached_property
    def _texts(self) -> tuple[str, str, str]:
        """user-data, network-config, and meta-data without the instance-id."""
        return "#cloud-config\n" + dump_yaml(self.user_data), dump_yaml(self.network_config), dump_yaml(self.facts)

    def render(self) -> Tree:
        """The files user-data, meta-data and network-config, mode 0600."""
        user_data, network_config, facts = self._texts
        return {
            "meta-data": text(f"instance-id: {self.instance_id}\n{facts}", 0o600),
            "network-config": text(network_config, 0o600),
            "user-data": text(user_data, 0o600),
        }


def make_seed(cluster: Cluster, node: Node, secrets: Secrets) -> Seed:
    """The seed of one node."""
    files = node_files(cluster, node, secrets)
    return Seed(
        cluster.name,
        node.name,
        secrets["seed_key"],
        _user_data(cluster, files),
        _network_config(cluster, node),
        _facts(cluster, node, files, files_key(secrets, node)),
    )


def seed_tree(cluster: Cluster, node: Node, secrets: Secrets) -> Tree:
    """The files of one node's seed."""
    return make_seed(cluster, node, secrets).render()


def _user_data(cluster: Cluster, files: tuple[SeedFile, ...]) -> dict[str, Any]:
    """The cloud-config. It writes files and lets people log in; the agent does the rest, so there is no runcmd."""
    document: dict[str, Any] = {
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": False,  # host keys survive a new instance-id
    }
    if cluster.ssh_authorized_keys:
        document["ssh_authorized_keys"] = list(cluster.ssh_authorized_keys)
    document["write_files"] = [
        {"path": file.path, "owner": file.owner, "permissions": file.permissions, "content": file.content}
        for file in files
    ]
    return document


def _network_config(cluster: Cluster, node: Node) -> dict[str, Any]:
    """Version 2, one interface, matched and renamed: without set-name, cloud-init 22.4 also matches the key."""
    network = cluster.network
    interface: dict[str, Any] = {
        "match": {"macaddress": node.mac},
        "set-name": "net0",
        "addresses": [f"{node.address}/{network.cidr.prefixlen}"],
    }
    if network.gateway is not None:
        # Not the word `default`: cloud-init 25.1's networkd renderer takes addresses only.
        interface["routes"] = [{"to": "0.0.0.0/0", "via": str(network.gateway)}]
    if network.dns:
        interface["nameservers"] = {"addresses": [str(address) for address in network.dns]}
    return {"version": 2, "ethernets": {"net0": interface}}


def _facts(cluster: Cluster, node: Node, files: tuple[SeedFile, ...], key: str) -> dict[str, Any]:
    """Meta-data without the instance-id. Every process on the node can read it, so it has only public facts and keyed
    digests.
    """
    return {
        "local-hostname": node.name,
        "imagegen": {
            "version": 1,
            "cluster": cluster.name,
            "region": cluster.region,
            "release": cluster.release.id,
            "role": node.role.name,
            "cell": node.cell,
            "hosts_services": list(cluster.hosted_on(node)),
            "compute_id": compute_id(cluster, node),
            "files": [
                {
                    "path": file.path,
                    "owner": file.owner,
                    "mode": file.permissions,
                    "sha256-HMAC": keyed_digest(key, file.content),
                }
                for file in files
            ],
        },
    }
