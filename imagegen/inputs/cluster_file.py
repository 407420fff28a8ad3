"""The cluster file: loaded, checked as a whole, and turned into a Cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagegen.base.errors import BadInput
from imagegen.base.resources import PACKAGE
from imagegen.inputs.device_hints import parse_hint
from imagegen.inputs.endpoint import find_address_fault, find_host_fault, find_url_fault
from imagegen.inputs.ssh_keys import find_key_fault
from imagegen.inputs.yaml_file import Findings, Value, check_shape, load_document, name_file, parse_document, suggest
from imagegen.model.cluster import NOWHERE, Cluster, Deploy, Flavor, Network, Node, Place, Services
from imagegen.model.json_schemas import json_schema
from imagegen.model.releases import Distro, Release, UnknownRelease, default_release, default_suite, find_release
from imagegen.model.roles import find_role, hosted_services
from imagegen.model.services import hosted_port, listening_port

DEFAULT_NAME = "the built-in example"
DEFAULT_FLAVORS = (
    Flavor("m1.tiny", 1, 512, 1),
    Flavor("m1.small", 1, 2048, 20),
    Flavor("m1.medium", 2, 4096, 40),
    Flavor("m1.large", 4, 8192, 80),
)
_URL_KEYS = ("auth_url", "endpoint")


def default_text() -> str:
    """The cluster file that `imagegen init` writes, and that is used where there is none."""
    return (PACKAGE / "data/cluster.yaml").read_text()


def load_cluster(path: Path | None) -> Cluster:
    """The cluster in that file; None: the embedded default. Raises BadInput with every problem in the file."""
    return read_cluster(path)[0]


def read_cluster(path: Path | None) -> tuple[Cluster, Findings]:
    """The same, and where in the file its values are. `-` is standard input, and counts as a file in this directory."""
    found = Findings(DEFAULT_NAME if path is None else name_file(path))
    document = parse_document(default_text(), found) if path is None else load_document(path, found)
    return check_cluster(document, found, path.parent if path else Path()), found


def check_cluster(document: Value, found: Findings, directory: Path) -> Cluster:
    """The cluster in a loaded document whose relative paths start at `directory`. Raises BadInput."""
    data = check_shape(document, json_schema("cluster"), found)
    if not isinstance(data, dict):
        raise BadInput(found.problems)
    release = _check_release(data, found)
    network = _check_network(data.get("network", {}), found)
    nodes = [node or {} for node in data.get("nodes", [])]
    cells = _check_cells(data, nodes, found)
    _check_nodes(nodes, network, found)
    given = {node.get("role", "") for node in nodes}
    if given and all(role and not find_role(role).controls for role in given):
        kinds = " and ".join(f"{role}s" for role in sorted(given))
        found.add("nodes", f"{kinds} without a controller; give at least one node `role: controller`")
    _check_services(data.get("services", {}), nodes, found)
    _check_hosts(data, network, found)
    flavors = [each or {} for each in data.get("flavors", [])]
    # Nova's database takes names that differ in case alone for the same.
    names = [each["name"].lower() if isinstance(each.get("name"), str) else None for each in flavors]
    _check_unique(((f"flavors[{i}].name", name) for i, name in enumerate(names)), found)
    for i, key in enumerate(data.get("ssh_authorized_keys", [])):
        if key and (fault := find_key_fault(key)):
            found.add(f"ssh_authorized_keys[{i}]", fault)
    if found.problems or network is None or release is None:
        raise BadInput(found.problems)
    built = tuple(_build_node(node, cells[0]) for node in nodes)
    return Cluster(
        name=data["name"],
        region=data.get("region", "RegionOne"),
        release=release,
        network=network,
        services=_build_services(data.get("services", {}), built),
        status_url=data.get("status", {}).get("url"),
        pxe_url=data["pxe"]["url"].rstrip("/") if "pxe" in data else None,
        ssh_authorized_keys=tuple(data.get("ssh_authorized_keys", [])),
        secrets_path=directory / data.get("secrets", "secrets.yaml"),
        cells=cells,
        nodes=built,
        flavors=tuple(Flavor(**one) for one in data["flavors"]) if "flavors" in data else DEFAULT_FLAVORS,
        resume_guests=data.get("resume_guests", False),
        idle_cache="host" not in data.get("services", {}).get("cache", {"host": ""}),
    )


def normalise_mac(text: str) -> str | None:
    """A MAC address in lower case with colons, from any of the five usual spellings; None when it is none."""
    digits = re.sub(r"[:.-]", "", text).lower()
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2)) if re.fullmatch(r"[0-9a-f]{12}", digits) else None


def _check_release(data: Mapping[str, Any], found: Findings) -> Release | None:
    given = data.get("distro", {})
    try:
        name = given.get("name", Distro.name)
        distro = Distro(name, given.get("suite") or default_suite(name), given.get("arch", Distro.arch))
        return find_release(data.get("release") or default_release(distro), distro)
    except UnknownRelease as error:
        found.add(error.key, error.message)
        return None


def _check_network(data: Mapping[str, Any], found: Findings) -> Network | None:
    gateway = _parse(IPv4Address, data.get("gateway"), "network.gateway", found)
    dns = [_parse(IPv4Address, each, f"network.dns[{i}]", found) for i, each in enumerate(data.get("dns", []))]
    cidr = _check_cidr(data.get("cidr"), found)
    if cidr is None:
        return None
    if gateway is not None and (message := _misplaced(gateway, cidr)):
        found.add("network.gateway", message)
    for i, each in enumerate(dns):
        if each and (message := find_address_fault(each) or (_misplaced(each, cidr) if each in cidr else "")):
            found.add(f"network.dns[{i}]", message)
    return Network(
        cidr, gateway, tuple(each for each in dns if each), tuple(each for each in data.get("ntp", []) if each)
    )


def _check_cidr(text: str | None, found: Findings) -> IPv4Network | None:
    if text is None:
        return None
    path = "network.cidr"
    try:
        cidr = IPv4Network(text, strict=False)
    except ValueError:
        found.add(path, f"`{text}` is not an IPv4 network; write one such as 192.168.56.0/24")
        return None
    if str(cidr.network_address) != text.partition("/")[0]:
        found.add(path, f"`{text}` is an address, not a network; the network is {cidr}")
    if cidr.prefixlen > 30:
        found.add(path, f"`{text}` is too small; /30 is the smallest network with room for two nodes")
    if cidr.prefixlen < 8 or cidr.is_loopback or cidr.is_multicast or cidr.is_link_local or cidr.is_reserved:
        found.add(path, f"`{text}` is not a network in which nodes can have addresses")
    return cidr


def _check_cells(data: Mapping[str, Any], nodes: list[dict[str, Any]], found: Findings) -> tuple[str, ...]:
    cells = [each for each in data.get("cells", ["cell1"]) if each]
    _check_unique(((f"cells[{i}]", each) for i, each in enumerate(data.get("cells", []))), found)
    for i, node in enumerate(nodes):
        if "cell" in node and cells and node["cell"] not in cells:
            found.add(
                f"nodes[{i}].cell", f"there is no cell `{node['cell']}`; `cells` has {', '.join(dict.fromkeys(cells))}"
            )
    return tuple(cells)


def _check_nodes(nodes: list[dict[str, Any]], network: Network | None, found: Findings) -> None:
    macs: list[tuple[str, str | None]] = []
    addresses: list[tuple[str, IPv4Address | None]] = []
    for i, node in enumerate(nodes):
        path = f"nodes[{i}]"
        macs.append((f"{path}.mac", _check_mac(node.get("mac"), f"{path}.mac", found)))
        address = _parse(IPv4Address, node.get("address"), f"{path}.address", found)
        addresses.append((f"{path}.address", address))
        if address and network and (message := _misplaced(address, network.cidr)):
            found.add(f"{path}.address", message)
        elif address and network and address == network.gateway:
            found.add(f"{path}.address", f"{address} is the gateway's address")
        _check_hints(node.get("root_device", {}), f"{path}.root_device", found)
        live = node.get("deploy", {}).get("mode") == "live"
        if live and "role" in node and not find_role(node["role"]).runs("nova-compute"):
            found.add(
                f"{path}.deploy.mode",
                "a live node loses everything when switched off, so only computes can be live",
            )
    for key in ("name", "serial"):
        _check_unique(((f"nodes[{i}].{key}", node.get(key)) for i, node in enumerate(nodes)), found)
    _check_unique(iter(macs), found)
    _check_unique(iter(addresses), found)


def _check_hints(hints: Mapping[str, Any], path: str, found: Findings) -> None:
    for hint, value in hints.items():
        try:
            parse_hint(hint, value)
        except ValueError as error:
            found.add(f"{path}.{hint}", str(error))


def _check_mac(text: str | None, path: str, found: Findings) -> str | None:
    if text is None:
        return None
    mac = normalise_mac(text)
    if mac is None:
        found.add(path, f"must be a MAC address such as 52:54:00:56:00:11, not `{text[:40]}`")
    elif int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        found.add(path, f"{mac} is not the address of an interface (it is a multicast address, or zero)")
    return mac


def _check_services(data: Mapping[str, Any], nodes: list[dict[str, Any]], found: Findings) -> None:
    roles = {node["name"]: node.get("role") for node in nodes if "name" in node}
    all_named = all("name" in node for node in nodes)  # the node meant may be one whose name is invalid
    for service in hosted_services():
        given = data.get(service)
        if not isinstance(given, dict) or service == "cache":  # a cache's node is accepted but not needed
            continue
        role = roles.get(name := given.get("node", ""))
        if role and service not in find_role(role).hosted:
            found.add(
                f"services.{service}.node", f"node `{name}` is not a controller, and only controllers host services"
            )
        elif name and name not in roles and all_named:
            found.add(f"services.{service}.node", f"there is no node `{name}`{suggest(name, list(roles))}")


def _check_hosts(data: Mapping[str, Any], network: Network | None, found: Findings) -> None:
    """Every host and URL in the file that is not a node's."""
    services = {name: given for name, given in data.get("services", {}).items() if isinstance(given, dict)}
    hosts = {f"services.{name}.host": given.get("host") for name, given in services.items()}
    hosts |= {f"network.ntp[{i}]": host for i, host in enumerate(data.get("network", {}).get("ntp", []))}
    urls = {f"services.{name}.{key}": given.get(key) for name, given in services.items() for key in _URL_KEYS}
    urls |= {f"{name}.url": data.get(name, {}).get("url") for name in ("status", "pxe")}
    southbound = ((services.get("network", {}).get("ovn")) or {}).get("southbound")
    if southbound:  # tcp:HOST:PORT
        urls["services.network.ovn.southbound"] = southbound.replace(":", "://", 1)
    faults = {path: find_host_fault(host) for path, host in hosts.items() if host}
    faults |= {path: find_url_fault(url) for path, url in urls.items() if url}
    hosts |= {path: urlsplit(url).hostname for path, url in urls.items() if url and not faults[path]}
    for path, fault in faults.items():
        if fault := fault or _find_unusable(hosts[path] or "", network):
            found.add(path, fault)


def _find_unusable(host: str, network: Network | None) -> str:
    """Why nothing can be at a host: it is the address of the nodes' network itself, or of all in it."""
    try:
        address = IPv4Address(host)
    except AddressValueError:
        return ""
    return _misplaced(address, network.cidr) if network and address in network.cidr else ""


def _check_unique(values: Iterator[tuple[str, Any]], found: Findings) -> None:
    first: dict[Any, str] = {}
    for path, value in values:
        if value is not None and first.setdefault(value, path) != path:
            there = first[value]
            found.add(path, f"`{value}` is already used by {there} on line {found.lines.get(there, 1)}")


def _parse(kind: Callable[[str], IPv4Address], text: str | None, path: str, found: Findings) -> IPv4Address | None:
    try:
        return None if text is None else kind(text)
    except ValueError:
        found.add(path, f"`{text}` is not an IPv4 address; write one such as 192.168.56.11")
        return None


def _misplaced(address: IPv4Address, cidr: IPv4Network) -> str:
    if address not in cidr:
        return f"{address} is outside the network {cidr}"
    if address == cidr.network_address:
        return f"{address} is the address of the network {cidr} itself"
    return f"{address} is the broadcast address of {cidr}" if address == cidr.broadcast_address else ""


def _build_node(data: Mapping[str, Any], first_cell: str) -> Node:
    return Node(
        name=data["name"],
        role=find_role(data["role"]),
        mac=normalise_mac(data["mac"]) or "",
        address=IPv4Address(data["address"]),
        cell=data.get("cell", first_cell),
        serial=data.get("serial"),
        root_device=_build_hints(data.get("root_device", {})),
        deploy=Deploy(**data.get("deploy", {})),
    )


def _build_hints(hints: Mapping[str, Any]) -> dict[str, str | int | bool]:
    """The hints, where a size that is only digits becomes a number."""
    return {hint: int(value) if hint == "size" and value.strip().isdigit() else value for hint, value in hints.items()}


def _build_services(data: Mapping[str, Any], nodes: tuple[Node, ...]) -> Services:
    """Every service's place: `embedded`, the default, is the first controller in file order."""
    first = next(node for node in nodes if node.role.controls)
    addresses = {node.name: str(node.address) for node in nodes}

    def place(service: str) -> Place:
        given = data.get(service, "embedded")
        if given == "none":
            return NOWHERE
        if given == "embedded":
            given = {"node": first.name}
        if "node" in given:
            return Place(addresses[given["node"]], hosted_port(service), given["node"])
        for key in _URL_KEYS:
            if key in given:
                url = urlsplit(given[key])
                return Place(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        return Place(given["host"], given.get("port", hosted_port(service)))

    def endpoint(service: str, key: str = "endpoint") -> str | None:
        given = data.get(service)
        return given[key].rstrip("/") if isinstance(given, dict) and key in given else None

    identity, image, network = place("identity"), place("image"), place("network")
    southbound = f"tcp:{network.host}:{listening_port('OVN southbound')}" if network.node else None
    if endpoint("network"):
        southbound = data["network"].get("ovn", {}).get("southbound")
    return Services(
        database=place("database"),
        messaging=place("messaging"),
        cache=place("cache") if "host" in data.get("cache", "embedded") else None,
        identity=identity,
        image=image,
        network=network,
        auth_url=endpoint("identity", "auth_url") or f"http://{identity.host}:{identity.port}/v3",
        image_endpoint=endpoint("image") or f"http://{image.host}:{image.port}",
        network_endpoint=endpoint("network") or (f"http://{network.host}:{network.port}" if network.host else None),
        southbound=southbound,
        block_storage="block_storage" in data,
    )
