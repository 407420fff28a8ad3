"""What elements declare of roles: which one is at the top of its image, and what a node gets where it boots here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from imagegen.model.cluster import Role
from imagegen.model.declarations import declarations


@dataclass(frozen=True)
class RoleFacts:
    """One role. Memory is in bytes."""

    element: str  # the rest of the image follows through its element-deps
    container_memory: int
    machine_memory: int
    processors: int


@cache
def roles() -> dict[Role, RoleFacts]:
    """Every role, in their order."""
    declared = {one["role"]["name"]: (element, one["role"]) for element, one in declarations().items() if "role" in one}
    found = {}
    for role in Role:
        element, facts = declared[role]
        machine = facts["machine"]
        found[role] = RoleFacts(
            element, facts["container"]["memory"] << 20, machine["memory"] << 20, machine["processors"]
        )
    return found
