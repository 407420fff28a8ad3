"""Stand-in for openstacksdk's identity proxy; `keystone` is that of the world that a test makes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from fakes.keystone import Keystone

keystone: Keystone = Keystone()


def connect(*, username: str, password: str, load_envvars: bool, load_yaml_config: bool, **options: Any) -> Any:
    assert not load_envvars
    assert not load_yaml_config
    if not keystone.knows(username, password):
        raise PermissionError("401")
    return SimpleNamespace(identity=Identity())


class Named:
    """Something with a name, which is its id as well."""

    def __init__(self, name: str) -> None:
        self.id = self.name = name


class Identity:
    """The calls that the agent uses, on the fake Keystone's state."""

    def find_project(self, name: str, domain_id: str) -> Named | None:
        return Named(name) if name in keystone.projects else None

    def create_project(self, *, name: str, domain_id: str, description: str) -> Named:
        keystone.projects.add(name)
        return Named(name)

    def find_user(self, name: str, domain_id: str) -> Named | None:
        return Named(name) if name in keystone.users else None

    def create_user(self, *, name: str, domain_id: str, password: str) -> Named:
        keystone.add_user(name, password)
        return Named(name)

    def update_user(self, user: Named, *, password: str, is_enabled: bool) -> None:
        keystone.users[user.id].update(password=password, enabled=is_enabled)

    def find_role(self, name: str) -> Named | None:
        return Named(name) if name in keystone.roles else None

    def get_role(self, one: str) -> Named:
        return Named(one)

    def create_role(self, *, name: str) -> Named:
        keystone.roles.add(name)
        return Named(name)

    def role_assignments(self, *, user_id: str, scope_project_id: str) -> Iterator[SimpleNamespace]:
        mine = sorted(role for project, role in keystone.users[user_id]["roles"] if project == scope_project_id)
        return (SimpleNamespace(role={"id": role}) for role in mine)

    def assign_project_role_to_user(self, project: Named, user: Named, role: Named) -> None:
        keystone.users[user.id]["roles"].add((project.id, role.id))

    def unassign_project_role_from_user(self, project: Named, user: Named, role: Named) -> None:
        keystone.users[user.id]["roles"].remove((project.id, role.id))

    def services(self, *, type: str) -> Iterator[SimpleNamespace]:
        return (item for item in keystone.services if item.type == type)

    def create_service(self, *, name: str, type: str, is_enabled: bool) -> SimpleNamespace:
        return keystone.add_service(name, type)

    def update_service(self, service: SimpleNamespace, **values: Any) -> None:
        vars(service).update(values)

    def endpoints(self, *, service_id: int) -> Iterator[SimpleNamespace]:
        return (item for item in keystone.endpoints if item.service_id == service_id)

    def create_endpoint(self, *, service_id: int, interface: str, url: str, region_id: str) -> None:
        keystone.add_endpoint(service_id, interface, url, region_id)

    def update_endpoint(self, endpoint: SimpleNamespace, **values: Any) -> None:
        vars(endpoint).update(values)

    def delete_service(self, service: SimpleNamespace) -> None:
        keystone.services.remove(service)
        keystone.endpoints[:] = [item for item in keystone.endpoints if item.service_id != service.id]

    def delete_endpoint(self, endpoint: SimpleNamespace) -> None:
        keystone.endpoints.remove(endpoint)
