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
    port: int | None  # where a hosted service answers; None: another of the same name does
    loss: str | None  # what is so while a hosted service is down; None: each controller has its own
    schemas: tuple[Schema, ...]
    messaging: str | None  # a user of the message queue, and the virtual host that it has for itself
    users: tuple[str, ...]  # of Keystone
    administrators: tuple[str, ...]  # those of them who have the role admin
    endpoint: Endpoint | None


@cache
def services() -> tuple[Service, ...]:
    """Every service, after those that it needs."""
    needs = {element: declared.get("needs", ()) for element, declared in sorted(declarations().items())}
    return tuple(_read_service(element) for element in TopologicalSorter(needs).static_order())


def hosted_port(name: str) -> int:
    """The port of a service that a controller can host, by its name in the cluster file."""
    (port,) = (service.port for service in services() if service.hosted_as == name and service.port)
    return port


def listening_port(what: str) -> int:
    """The port of what is declared to listen by that name."""
    (port,) = (declared["listens"][what] for declared in declarations().values() if what in declared.get("listens", {}))
    return int(port)


def _read_service(element: str) -> Service:
    declared = declarations()[element]
    hosted, endpoint = declared.get("hosted", {}), None
    if "endpoint" in declared:
        facts = {"path": "", **declared["endpoint"]}
        endpoint = Endpoint(facts["service"], facts["type"], declared["listens"][facts["at"]], facts["path"])
    return Service(
        element,
        hosted.get("as"),
        hosted.get("port", declared["listens"][hosted["at"]] if "at" in hosted else None),
        hosted.get("loss"),
        tuple(Schema(one["name"], one["user"], one.get("per") == "cell") for one in declared.get("schemas", ())),
        declared.get("messaging"),
        tuple(declared.get("users", ())),
        tuple(declared.get("administrators", ())),
        endpoint,
    )
