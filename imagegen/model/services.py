"""The services that elements declare: what they are called, where they answer, which databases and users they have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter

from imagegen.model.declarations import declarations


@dataclass(frozen=True)
class Schema:
    """A database and the user that owns it; with `per_cell` one for each cell."""

    name: str
    user: str
    per_cell: bool


@dataclass(frozen=True)
class Endpoint:
    """A service in Keystone's catalogue."""

    service: str
    type: str
    port: int
    path: str

    def url(self, host: object) -> str:
        return f"http://{host}:{self.port}{self.path}"


@dataclass(frozen=True)
class Service:
    """What one element declares, as far as it is a service."""

    element: str
    hosted_as: str | None  # in the cluster file's `services`
    port: int | None  # where a hosted service answers
    loss: str | None  # what is so while a hosted service is down; None: each controller has its own
    schemas: tuple[Schema, ...]
    users: tuple[str, ...]  # of Keystone
    endpoint: Endpoint | None


@cache
def services() -> tuple[Service, ...]:
    """Every service, after those that it needs."""
    needs = {element: declared.get("needs", ()) for element, declared in sorted(declarations().items())}
    return tuple(_read_service(element) for element in TopologicalSorter(needs).static_order())


def endpoints() -> tuple[Endpoint, ...]:
    """Keystone's catalogue, by service; Keystone's own endpoint is Keystone's to make."""
    found = (service.endpoint for service in services())
    return tuple(sorted((one for one in found if one), key=lambda endpoint: endpoint.service))


def hosted_port(name: str) -> int:
    """The port of a service that a controller can host, by its name in the cluster file."""
    (port,) = (service.port for service in services() if service.hosted_as == name)
    assert port is not None  # noqa: S101 - the schema of declarations
    return port


def _read_service(element: str) -> Service:
    declared = declarations()[element]
    hosted, endpoint = declared.get("hosted", {}), None
    if "endpoint" in declared:
        facts = {"path": "", **declared["endpoint"]}
        endpoint = Endpoint(facts["service"], facts["type"], declared["listens"][facts["at"]], facts["path"])
    return Service(
        element,
        hosted.get("as"),
        hosted.get("port"),
        hosted.get("loss"),
        tuple(Schema(one["name"], one["user"], one.get("per") == "cell") for one in declared.get("schemas", ())),
        tuple(declared.get("users", ())),
        endpoint,
    )
