"""Service users, services and endpoints in Keystone, in one process; the wanted state comes as JSON on stdin."""

from __future__ import annotations

import json
import sys
from typing import Any


def ensure(wanted: dict[str, Any]) -> list[str]:
    """Makes what is missing and mends what differs; one line for each change."""
    import openstack

    cloud = openstack.connect(
        auth_url=wanted["auth_url"],
        username="admin",
        password=wanted["admin_password"],
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
        region_name=wanted["region"],
        load_yaml_config=False,
        load_envvars=False,
    )
    keystone = cloud.identity
    changes: list[str] = []
    project = keystone.find_project("service", domain_id="default")
    if project is None:
        project = keystone.create_project(name="service", domain_id="default", description="OpenStack services")
        changes.append("project service")
    for entry in wanted["users"]:
        user = keystone.find_user(entry["name"], domain_id="default")
        if user is None:
            user = keystone.create_user(name=entry["name"], domain_id="default", password=entry["password"])
            changes.append("user {}".format(entry["name"]))
        elif not takes_password(wanted["auth_url"], entry):
            keystone.update_user(user, password=entry["password"], is_enabled=True)
            changes.append("password of {}".format(entry["name"]))
        changes += ensure_roles(keystone, project, user, entry)
    for entry in wanted["services"]:
        changes += ensure_service(keystone, entry, wanted["region"])
    return changes


def ensure_roles(keystone: Any, project: Any, user: Any, entry: dict[str, Any]) -> list[str]:
    """Gives the user these roles in the project and no others; earlier versions gave it the administrator's."""
    wanted = {name: keystone.find_role(name) or keystone.create_role(name=name) for name in entry["roles"]}
    ids = {role.id: name for name, role in wanted.items()}
    there = {item.role["id"] for item in keystone.role_assignments(user_id=user.id, scope_project_id=project.id)}
    changes = []
    for one in sorted(ids.keys() - there):
        keystone.assign_project_role_to_user(project, user, wanted[ids[one]])
        changes.append("role {} of {}".format(ids[one], entry["name"]))
    for one in sorted(there - ids.keys()):
        role = keystone.get_role(one)
        keystone.unassign_project_role_from_user(project, user, role)
        changes.append("role {} taken from {}".format(role.name, entry["name"]))
    return changes


def takes_password(auth_url: str, entry: dict[str, Any]) -> bool:
    """Whether Keystone accepts the wanted password; asked without a project, which the user may not have yet."""
    from keystoneauth1 import exceptions, session
    from keystoneauth1.identity import v3

    auth = v3.Password(
        auth_url, username=entry["name"], password=entry["password"], user_domain_name="Default", unscoped=True
    )
    try:
        return bool(session.Session(auth).get_token())
    except exceptions.Unauthorized:
        return False


def ensure_service(keystone: Any, entry: dict[str, Any], region: str) -> list[str]:
    """The service by type, with its name, and its three endpoints with the wanted URL."""
    changes: list[str] = []
    # Two controllers that both saw none make two; both then keep the same one.
    service, *more = sorted(keystone.services(type=entry["type"]), key=lambda item: str(item.id)) or [None]
    for surplus in more:
        if surplus.name == entry["name"]:
            keystone.delete_service(surplus)
            changes.append("second service {} deleted".format(entry["name"]))
    if service is None:
        service = keystone.create_service(name=entry["name"], type=entry["type"], is_enabled=True)
        changes.append("service {}".format(entry["name"]))
    elif (service.name, service.is_enabled) != (entry["name"], True):
        keystone.update_service(service, name=entry["name"], is_enabled=True)
        changes.append("name of service {}".format(entry["name"]))
    there: dict[str, Any] = {}
    for item in sorted(keystone.endpoints(service_id=service.id), key=lambda e: (e.url != entry["url"], str(e.id))):
        if item.region_id == region and there.setdefault(item.interface, item) is not item and item.url == entry["url"]:
            keystone.delete_endpoint(item)
            changes.append("second {} endpoint of {} deleted".format(item.interface, entry["name"]))
    for interface in ("public", "internal", "admin"):
        if interface not in there:
            keystone.create_endpoint(service_id=service.id, interface=interface, url=entry["url"], region_id=region)
            changes.append("{} endpoint of {}".format(interface, entry["name"]))
        elif (there[interface].url, there[interface].is_enabled) != (entry["url"], True):
            keystone.update_endpoint(there[interface], url=entry["url"], is_enabled=True)
            changes.append("URL of the {} endpoint of {}".format(interface, entry["name"]))
    return changes


if __name__ == "__main__":
    for change in ensure(json.load(sys.stdin)):
        print(change)
