"""What a node does: roles, and the services that they can host, as elements declare them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from imagegen.model.declarations import declarations


@dataclass(frozen=True)
class Role:
    """What a node does; each role is one image. Memory is in bytes.

    `services` and `hosts` are elements: the image is built of them, and of what they name in element-deps.
    """

    name: str
    services: tuple[str, ...]  # at work on each of its nodes, where the cluster has a use for them
    hosts: tuple[str, ...]  # at work on those of its nodes that the cluster file names
    container_memory: int
    machine_memory: int
    processors: int

    def __str__(self) -> str:
        return self.name

    @property
    def controls(self) -> bool:
        """Whether its nodes are controllers."""
        return self.runs("nova-controller")

    @property
    def hosted(self) -> tuple[str, ...]:
        """The services that its nodes can host, by their names in the cluster file."""
        return tuple(dict.fromkeys(declarations()[element]["hosted"]["as"] for element in self.hosts))

    def runs(self, element: str) -> bool:
        """Whether the element is among what its nodes run."""
        return element in self.services


class UnknownRole(ValueError):
    """No element declares the role."""


@cache
def roles() -> tuple[Role, ...]:
    """Every role: those that can host something first, then by name."""
    found = (_read_role(element) for element, declared in declarations().items() if "role" in declared)
    return tuple(sorted(found, key=lambda role: (not role.hosts, role.name)))


def find_role(name: str) -> Role:
    """The role of that name. Raises UnknownRole, which names the known ones."""
    for role in roles():
        if role.name == name:
            return role
    raise UnknownRole(f"there is no role `{name[:40]}`; choose one of {', '.join(map(str, roles()))}")


def hosted_services() -> tuple[str, ...]:
    """The services that some role can host, by their names in the cluster file, in the order of the seeds."""
    return tuple(dict.fromkeys(service for role in roles() for service in role.hosted))


def _read_role(element: str) -> Role:
    declared = declarations()[element]["role"]
    return Role(
        declared["name"],
        tuple(declared["services"]),
        tuple(declared.get("hosts", ())),
        declared["container"]["memory"] << 20,
        declared["machine"]["memory"] << 20,
        declared["machine"]["processors"],
    )
