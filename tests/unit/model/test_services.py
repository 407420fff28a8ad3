"""The services that elements declare: each after what it needs, and nothing claimed twice."""

from __future__ import annotations

import re
from collections import Counter

from repository import ROOT

from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.declarations import declarations
from imagegen.model.roles import hosted_services
from imagegen.model.services import hosted_port, listening_port, services


def list_ports(element: str) -> list[int]:
    """Where it answers: as a hosted service, and on each node that runs it."""
    declared = declarations()[element]
    return [*filter(None, [declared.get("hosted", {}).get("port")]), *declared.get("listens", {}).values()]


def test_a_service_comes_after_what_it_needs() -> None:
    """And what it needs is there."""
    order = [service.element for service in services()]
    assert sorted(order) == sorted(declarations())
    for element, declared in declarations().items():
        for needed in declared.get("needs", ()):
            assert needed in order, f"{element} needs {needed}, which declares nothing"
            assert order.index(needed) < order.index(element)


def test_nothing_is_claimed_twice() -> None:
    """A database, a user, a port and a place in the catalogue are one service's alone."""
    claims: Counter[object] = Counter()
    for service in services():
        claims.update(("schema", schema.name) for schema in service.schemas)
        claims.update(("user", user) for user in service.users)
        claims.update(("hosted", service.hosted_as) for _ in [0] if service.hosted_as and service.port)
        claims.update(("queues", service.messaging) for _ in [0] if service.messaging)
        claims.update(("port", port) for port in list_ports(service.element))
        claims.update(("type", service.endpoint.type) for _ in [0] if service.endpoint)
    assert len(claims) > 15
    assert [claim for claim, count in claims.items() if count > 1] == []


def test_urls_are_those_of_the_services() -> None:
    """Of Nova 31, Placement 13, Glance 30 and Neutron 26, as their packages have them."""
    assert [(one.type, url) for one, url in load_cluster(None).catalog] == [
        ("image", "http://192.168.56.11:9292"),
        ("network", "http://192.168.56.11:9696"),
        ("compute", "http://192.168.56.11:8774/v2.1"),
        ("placement", "http://192.168.56.11:8778"),
    ]
    assert [hosted_port(name) for name in ("identity", "cache", "image", "network")] == [5000, 11211, 9292, 9696]
    assert listening_port("OVN southbound") == 6642


def test_what_controllers_can_host_is_declared() -> None:
    """By the names of the cluster file."""
    assert {service.hosted_as for service in services()} - {None} == set(hosted_services())


def test_the_threat_model_names_every_port() -> None:
    """Its table says what is in clear there, and its list what a firewall lets through."""
    page = (ROOT / "docs/threat-model.md").read_text()
    ports = [port for one in services() for port in list_ports(one.element)]
    assert len(ports) > 6
    assert [port for port in ports if not re.search(rf"\b{port}\b", page)] == []
