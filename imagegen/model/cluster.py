"""What a cluster is made of: plain values, already checked and normalised."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from uuid import UUID, uuid5

from imagegen.model.declarations import declarations
from imagegen.model.releases import Release
from imagegen.model.roles import Role, roles
from imagegen.model.services import Endpoint, Service, services

# Every uuid that imagegen derives (instance-id, compute_id, cell) is a uuid5 below this one.
NAMESPACE = UUID("6f3c1f0e-3d5b-5d0c-9b60-6d6167656e31")

CONSOLE_PORT = 6080  # Nova's default, nova/conf/novnc.py


@dataclass(frozen=True)
class Network:
    cidr: IPv4Network
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    ntp: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a service answers. `node` names the controller that hosts it; None: it is outside the cluster."""

    host: str
    port: int
    node: str | None = None


NOWHERE = Place("", 0)
"""Where a service is that the cluster does without."""


@dataclass(frozen=True)
class Services:
    database: Place
    messaging: Place
    cache: Place | None  # outside the cluster; None: each controller has its own, on loopback
    identity: Place
    image: Place
    network: Place
    auth_url: str  # of identity, ends in /v3
    image_endpoint: str
    network_endpoint: str | None  # None: instances have no networks
    southbound: str | None  # OVN's database for the computes' agents, such as tcp:192.0.2.1:6642; None: they have none
    block_storage: bool  # whether there is a Cinder, outside the cluster

    def place(self, service: str) -> Place | None:
        """Where the service of that name answers; None: on loopback, each controller has its own."""
        found: Place | None = getattr(self, service)
        return found


@dataclass(frozen=True)
class Flavor:
    name: str
    vcpus: int
    ram: int  # MiB
    disk: int  # GiB


@dataclass(frozen=True)
class Deploy:
    mode: str = "deploy"
    wipe: bool = False


@dataclass(frozen=True)
class Node:
    name: str
    role: Role
    mac: str  # lower case, colons
    address: IPv4Address
    cell: str
    serial: str | None = None
    root_device: dict[str, str | int | bool] = field(default_factory=dict, hash=False)
    deploy: Deploy = Deploy()


@dataclass(frozen=True)
class Cluster:
    """One validated cluster file: every service has a place and every node a cell."""

    name: str
    region: str
    release: Release
    network: Network
    services: Services
    status_url: str | None
    pxe_url: str | None
    ssh_authorized_keys: tuple[str, ...]
    secrets_path: Path
    cells: tuple[str, ...]
    nodes: tuple[Node, ...]
    flavors: tuple[Flavor, ...]  # where Nova has none
    resume_guests: bool = False  # a compute that boots starts the instances that ran on it
    idle_cache: bool = False  # the file gives the cache a place in the cluster, which is accepted but not needed

    @property
    def controllers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.role.controls)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that the nodes use, those that can host services first."""
        used = {node.role for node in self.nodes}
        return tuple(role for role in roles() if role in used)

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def runs(self, service: Service) -> bool:
        """Whether the service runs in the cluster: all but those that the file has elsewhere or not at all."""
        place = self.services.place(service.hosted_as) if service.hosted_as else None
        return place is None or place.node is not None

    @property
    def catalog(self) -> tuple[tuple[Endpoint, str], ...]:
        """What the cluster adds to Keystone's catalogue, by service, with the URL of each."""
        found = []
        for service in filter(self.runs, services()):
            place = self.services.place(service.hosted_as) if service.hosted_as else None
            host = place.host if place else str(self.controllers[0].address)
            if service.endpoint:
                found.append((service.endpoint, service.endpoint.url(host)))
        return tuple(sorted(found, key=lambda one: one[0].service))

    def hosted_on(self, node: Node) -> tuple[str, ...]:
        """The services that this node hosts, by their names in the cluster file."""
        places = {service: self.services.place(service) for service in node.role.hosted}
        return tuple(service for service, place in places.items() if place is None or place.node == node.name)

    def at_work(self, node: Node) -> tuple[str, ...]:
        """The elements at work on this node: those of its role that the cluster has a use for, then what it hosts."""
        declared = declarations()
        hosted = [one for one in node.role.hosts if declared[one]["hosted"]["as"] in self.hosted_on(node)]
        used = [one for one in node.role.services if "when" not in declared[one] or self._has(declared[one]["when"])]
        return (*used, *hosted)

    def _has(self, what: str) -> bool:
        return bool(getattr(self.services, what))

    def serves_others(self, node: Node) -> bool:
        """Whether other nodes need a service that this one hosts; what has no place is for itself."""
        return any(self.services.place(service) for service in self.hosted_on(node))

    def console_port(self, cell: str) -> int:
        """The port of a cell's noVNC proxy, on every controller: 6080 for the first, one higher for each further."""
        return CONSOLE_PORT + self.cells.index(cell)

    def cell_uuid(self, cell: str) -> UUID:
        """The fixed uuid of a cell's mapping, so that two controllers cannot make two rows."""
        return uuid5(NAMESPACE, f"cell/{self.region}/{cell}")

    def compute_id(self, node: Node) -> UUID:
        """The node's compute_id (Nova 2023.1 on, doc compute-node-identification)."""
        return uuid5(NAMESPACE, f"compute/{self.name}/{node.name}")

    def chassis(self, node: Node) -> UUID:
        """The node's name in OVN: a node that is installed again takes the place of what it was."""
        return uuid5(NAMESPACE, f"chassis/{self.name}/{node.name}")
