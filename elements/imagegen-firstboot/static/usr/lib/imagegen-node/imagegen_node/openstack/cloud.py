"""Glance and Neutron, as this node's own user sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from imagegen_node.engine.errors import Waiting
from imagegen_node.openstack.api import Session

# What a compute has in Neutron's list of agents, with OVN.
AGENTS = ("OVN Controller agent", "OVN Metadata agent")


def check_apis(node: dict[str, Any], session: Session) -> None:
    """Raises Waiting until Glance, and Neutron where the cluster has one, answer to this node's login."""
    # Images themselves are shown to readers of a project only, and this login is none (glance/policies/image.py).
    session.get(node["image_endpoint"] + "/v2/schemas/image", "the image API")
    if node["network_endpoint"]:
        session.get(node["network_endpoint"] + "/v2.0/networks?limit=1&fields=id", "the network API")


def check_catalog(node: dict[str, Any], session: Session) -> Iterator[str]:
    """Each type of service that users find nowhere, though the cluster has it."""
    wanted = ["image", "network"] if node["network_endpoint"] else ["image"]
    for kind in wanted:
        if not session.endpoints(kind, node["region"]).get("public"):
            yield "Keystone has no public endpoint of type {} in {region}".format(kind, **node)


def check_agents(node: dict[str, Any], session: Session) -> str:
    """Raises Waiting until Neutron calls this node's agents alive."""
    alive = {agent["agent_type"] for agent in list_agents(node, session, node["node"]) if agent["alive"]}
    if missing := [kind for kind in AGENTS if kind not in alive]:
        raise Waiting("{} alive in the network API".format(" and ".join(missing)))
    return "alive"


def list_agents(node: dict[str, Any], session: Session, host: str = "") -> list[dict[str, Any]]:
    """Neutron's agents, on that host or on all. With OVN, Neutron gives them on one page."""
    fields = "&".join(f"fields={name}" for name in ("agent_type", "alive", "host", "id"))
    query = f"{fields}&host={host}" if host else fields
    return list(session.get("{network_endpoint}/v2.0/agents?{}".format(query, **node), "the network API")["agents"])


def list_unbound_ports(node: dict[str, Any], session: Session) -> list[dict[str, Any]]:
    """The ports that Neutron could not bind to their hosts: their instances have no network."""
    # Neutron filters by hosts only, not by what became of a binding.
    query = "fields=id&fields=binding:host_id&fields=binding:vif_type"
    ports = session.get("{network_endpoint}/v2.0/ports?{}".format(query, **node), "the network API")["ports"]
    return [port for port in ports if port["binding:vif_type"] == "binding_failed"]
