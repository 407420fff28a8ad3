"""/usr/lib/imagegen-node/services.json: what the elements of an image declare, as the first-boot agent reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from imagegen.model.declarations import declarations
from imagegen.model.releases import Release
from imagegen.model.roles import Role, roles
from imagegen.model.services import services


def services_document(role: Role, release: Release) -> dict[str, Any]:
    """What the role's elements declare for the agent, with the units that the distro has in that release.

    `services` and `hosts` are in the declared order; `elements` has both, each after those that it needs. `roles` are
    the names of all roles.
    """
    order = [service.element for service in services() if service.element in {*role.services, *role.hosts}]
    reads = _read_by_units(order, release)
    return {
        "version": 1,
        "role": role.name,
        "roles": [one.name for one in roles()],
        "services": list(role.services),
        "hosts": list(role.hosts),
        "elements": [_element_document(element, declarations()[element], release, reads) for element in order],
    }


def _read_by_units(elements: Iterable[str], release: Release) -> dict[str, list[str]]:
    """Service's unit -> what it reads for all the services in it: some distros have several in one web server."""
    reads: dict[str, list[str]] = {}
    for element in elements:
        for service, facts in declarations()[element].get("runs", {}).items():
            if service in release.services:
                unit = reads.setdefault(release.services[service], [])
                unit += [path for path in facts.get("reads", ()) if path not in unit]
    return reads


def _element_document(
    element: str, declared: Mapping[str, Any], release: Release, reads: Mapping[str, list[str]]
) -> dict[str, Any]:
    hosted = declared.get("hosted", {})
    return {
        "element": element,
        "hosted": hosted.get("as"),
        "step": hosted.get("step", hosted.get("as")),
        "units": [
            {
                "service": service,
                "unit": f"{release.services[service]}.service",
                "reads": reads[release.services[service]],
                "step": facts.get("step", hosted.get("step", hosted.get("as", "services"))),
                "per_cell": facts.get("per") == "cell",
            }
            for service, facts in declared.get("runs", {}).items()
            if service in release.services
        ],
        "listens": declared.get("listens", {}),
        "schemas": [
            {
                "name": schema["name"],
                "per_cell": schema.get("per") == "cell",
                "account": schema.get("account"),
                "sync": schema.get("sync"),
                "revisions": schema["revisions"],
            }
            for schema in declared.get("schemas", [])
        ],
        "steps": declared.get("steps", []),
        "users": declared.get("users", []),
        "data": [{"path": one["path"], "account": one.get("account")} for one in declared.get("data", [])],
    }
