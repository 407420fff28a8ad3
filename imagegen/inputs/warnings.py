"""What is valid in a cluster file, but deserves a second look."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address
from urllib.parse import urlsplit

from imagegen.base.errors import Problem
from imagegen.inputs.yaml_file import Findings
from imagegen.model.cluster import Cluster
from imagegen.model.roles import hosted_services
from imagegen.model.services import services


def find_warnings(cluster: Cluster, found: Findings) -> list[Problem]:
    """The warnings about a valid cluster, in the order of their lines; `found` has the line of every path."""
    doubts = Findings(found.file, lines=found.lines)
    for path, message in (
        *_doubt_release(cluster),
        *_doubt_login(cluster),
        *_doubt_availability(cluster),
        *_doubt_cache(found),
        *_doubt_network(cluster),
        *_doubt_hosts(cluster, found),
    ):
        doubts.add(path, message)
    return sorted(doubts.problems)


def untested_release(cluster: Cluster) -> str:
    """A sentence if nobody has built and booted the cluster's release on its distro; else empty."""
    release = cluster.release
    if release.booted:
        return ""
    where = f"{release.distro.name} {release.distro.suite}"
    return f"nobody has built and booted OpenStack {release.id} on {where} yet: its data come from documentation"


Doubts = Iterator[tuple[str, str]]  # path, message


def _doubt_release(cluster: Cluster) -> Doubts:
    if sentence := untested_release(cluster):
        yield "release", f"{sentence}; `build` needs --untested"


def _doubt_login(cluster: Cluster) -> Doubts:
    if not cluster.ssh_authorized_keys:
        yield "ssh_authorized_keys", "without an ssh key nobody can log in to the nodes, not even on their consoles"


def _doubt_availability(cluster: Cluster) -> Doubts:
    """Several controllers look like high availability. What every controller has itself does not matter here."""
    if len(cluster.controllers) < 2:
        return
    first = cluster.controllers[0].name
    yield (
        "nodes",
        f"{len(cluster.controllers)} controllers do not make a cluster highly available: the API's endpoints are on"
        f" {first} only; while {first} is down, nobody can reach Nova or Placement",
    )
    for service in services():
        place = cluster.services.place(service.hosted_as) if service.hosted_as else None
        if place and (node := place.node) and service.loss:
            yield f"services.{service.hosted_as}", f"runs on {node} alone; while {node} is down, {service.loss}"


def _doubt_cache(found: Findings) -> Doubts:
    if "services.cache.host" in found.lines:
        yield (
            "services.cache",
            "memcached has no authentication: whoever reaches it can forge tokens and run code in the APIs; remove"
            " the key, and every controller uses its own",
        )
    elif "services.cache" in found.lines:
        yield "services.cache", "is not needed: every controller has its own memcached; remove the key"


def _doubt_network(cluster: Cluster) -> Doubts:
    if cluster.services.network_endpoint is None:
        yield "services.network", "is none: instances have no network, and nobody reaches them but on their consoles"


def _doubt_hosts(cluster: Cluster, found: Findings) -> Doubts:
    """Hosts outside the cluster that turn out to be a node, each node itself, or out of reach."""
    names = {str(node.address): node.name for node in cluster.nodes} | {node.name: node.name for node in cluster.nodes}
    for path, host, role in _outside(cluster, found):
        if node := names.get(host):
            yield path, f"{host} is the node {node}, {role}"
        elif message := _unreachable(cluster, host) or (_relayed(cluster, host) if path == "pxe.url" else ""):
            yield path, message


def _outside(cluster: Cluster, found: Findings) -> Iterator[tuple[str, str, str]]:
    """(path, host, what is wrong if the host is a node) for everything that nodes expect outside the cluster."""
    for service in hosted_services():
        place = cluster.services.place(service)
        if place and place.host and place.node is None:
            yield f"services.{service}", place.host, "where imagegen does not start this service; write {node: NAME}"
    for i, address in enumerate(cluster.network.dns):
        yield f"network.dns[{i}]", str(address), "which does not answer DNS"
    for i, host in enumerate(cluster.network.ntp):
        yield f"network.ntp[{i}]", host, "and nodes follow the first controller's time anyway; leave it out"
    if cluster.pxe_url:
        yield "pxe.url", urlsplit(cluster.pxe_url).hostname or "", "which cannot serve its own first boot"
    if cluster.status_url:
        yield "status.url", urlsplit(cluster.status_url).hostname or "", "where nothing receives statuses"


def _unreachable(cluster: Cluster, host: str) -> str:
    try:
        address = IPv4Address(host)
    except AddressValueError:
        return f"{host} means each node itself" if host.lower() == "localhost" else ""
    if address.is_loopback:
        return f"{host} means each node itself"
    if address.is_link_local:
        return f"{host} is a link-local address: no router leads there"
    if cluster.network.gateway is None and address not in cluster.network.cidr:
        return f"{host} is outside the network {cluster.network.cidr}, and without a gateway no node reaches it"
    return ""


def _relayed(cluster: Cluster, host: str) -> str:
    """What is to know of a server for network boots that is not on the nodes' network; a name may be anywhere."""
    try:
        outside = IPv4Address(host) not in cluster.network.cidr
    except AddressValueError:
        return ""
    cidr = cluster.network.cidr
    return f"{host} is outside the network {cidr}: nodes need a DHCP relay to reach dnsmasq there" if outside else ""
