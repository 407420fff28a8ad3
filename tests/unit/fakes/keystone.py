"""A Keystone in memory: users, roles, services and endpoints, and the catalogue that a token brings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

INTERFACES = ("public", "internal", "admin")


class Keystone:
    """What is in Keystone's database. Who reaches it is the world's matter."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.projects: set[str] = set()
        self.roles: set[str] = set()
        self.services: list[SimpleNamespace] = []
        self.endpoints: list[SimpleNamespace] = []

    def add_user(self, name: str, password: str) -> None:
        self.users[name] = {"password": password, "enabled": True, "roles": set()}

    def add_service(self, name: str, type: str) -> SimpleNamespace:
        service = SimpleNamespace(id=len(self.services) + 1, name=name, type=type, is_enabled=True)
        self.services.append(service)
        return service

    def add_endpoint(self, service_id: int, interface: str, url: str, region: str) -> None:
        endpoint = SimpleNamespace(
            id=len(self.endpoints) + 1,
            service_id=service_id,
            interface=interface,
            url=url,
            region_id=region,
            is_enabled=True,
        )
        self.endpoints.append(endpoint)

    def bootstrap(self, password: str, region: str, urls: dict[str, str]) -> None:
        """What `keystone-manage bootstrap` does: makes what is missing, sets the password and the URLs anew."""
        self.projects.add("admin")
        self.roles |= {"admin", "manager", "member", "reader", "service"}
        if "admin" not in self.users:
            self.add_user("admin", password)
        self.users["admin"].update(password=password, enabled=True)
        self.users["admin"]["roles"].add(("admin", "admin"))
        if not any(item.type == "identity" for item in self.services):
            self.add_service("keystone", "identity")
        service = next(item for item in self.services if item.type == "identity")
        for interface, url in urls.items():
            mine = [e for e in self.endpoints if (e.service_id, e.interface) == (service.id, interface)]
            if mine:
                mine[0].url = url
            else:
                self.add_endpoint(service.id, interface, url, region)

    def knows(self, name: str, password: str) -> bool:
        user = self.users.get(name)
        return user is not None and user["enabled"] and user["password"] == password

    def answer_login(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The body of the answer to POST /v3/auth/tokens; None for 401."""
        user = body["auth"]["identity"]["password"]["user"]
        project = body["auth"]["scope"]["project"]["name"]
        if not self.knows(user["name"], user["password"]):
            return None
        roles = sorted(role for where, role in self.users[user["name"]]["roles"] if where == project)
        if not roles:
            return None
        catalog = [
            {
                "type": service.type,
                "endpoints": [
                    {"interface": e.interface, "url": e.url, "region_id": e.region_id}
                    for e in self.endpoints
                    if e.service_id == service.id and e.is_enabled
                ],
            }
            for service in self.services
            if service.is_enabled
        ]
        return {"token": {"catalog": catalog, "roles": [{"name": role} for role in roles]}}

    def state(self) -> Any:
        """Everything, to be compared."""
        return (
            {name: (u["password"], u["enabled"], sorted(u["roles"])) for name, u in sorted(self.users.items())},
            sorted(self.projects),
            sorted((s.type, s.name, s.is_enabled) for s in self.services),
            sorted((e.interface, e.url, e.region_id, e.is_enabled) for e in self.endpoints),
        )
