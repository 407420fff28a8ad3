"""A small client of Keystone and of the APIs behind its catalogue, for questions that need no SDK."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from imagegen_node.engine.direct import OPENER
from imagegen_node.engine.errors import Waiting
from imagegen_node.node.clock import describe_skew

INTERFACES = ("public", "internal", "admin")


class Unauthorized(Exception):
    """Keystone does not accept these credentials."""


class TokenRefused(Waiting):
    """An API does not accept the token: it has expired, or the API cannot check it."""


class NotFound(Waiting):
    """The API answers, but does not have what was asked for."""


def fetch(url: str, *, token: str | None = None, body: dict[str, Any] | None = None) -> tuple[Any, dict[str, str]]:
    """(JSON answer, headers) of one request. Raises Waiting when nothing useful answers, Unauthorized for 401."""
    # From microversion 2.53 on a hypervisor's id is its uuid.
    headers = {"Content-Type": "application/json", "OpenStack-API-Version": "compute 2.53"}
    if token:
        headers["X-Auth-Token"] = token
    data = json.dumps(body).encode() if body is not None else None
    try:
        request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - its URLs come from the seed
        with OPENER.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null"), dict(answer.headers.items())
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise Unauthorized(f"{url} refuses the credentials") from error
        if error.code == 300:
            return json.loads(error.read()), {}
        raise (NotFound if error.code == 404 else Waiting)(f"{url} answers {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Waiting("{}: {}".format(url, getattr(error, "reason", error))) from error


def is_up(service: dict[str, Any]) -> bool:
    """Whether a row of /os-services is up and has reported since its start.

    Nova calls a service that never reported up for service_down_time (nova/servicegroup/drivers/db.py, is_up).
    """
    return service.get("state") == "up" and bool(service.get("updated_at"))


def has_reported(service: dict[str, Any], session: Session, seconds: float) -> bool:
    """Whether it is up and has reported within the last `seconds`, by the cluster's clock.

    What reported before a quick reboot also counts as up for service_down_time, whether it comes back or not.
    """
    if not is_up(service):
        return False
    reported = datetime.strptime(service["updated_at"], "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=timezone.utc)
    return session.issued - reported.timestamp() < seconds


def find_next(answer: dict[str, Any], key: str) -> str:
    """The query of the next page; empty on the last. Nova's next link is in KEY_links, Keystone's in links.

    Only the link's query counts: its host is what the API believes its own to be, and the token goes nowhere else.
    Raises Waiting for a list that Keystone cut off at its list_limit.
    """
    links = answer.get(f"{key}_links") or []
    link = next((item["href"] for item in links if item["rel"] == "next"), (answer.get("links") or {}).get("next"))
    if answer.get("truncated") and not link:
        raise Waiting(f"a complete list of {key}: the API cuts it off at its list_limit; raise that limit")
    return urlsplit(link).query if link else ""


class Session:
    """A token for one user of project `project`, and the catalogue that came with it."""

    def __init__(self, auth_url: str, user: str, password: str, project: str = "service") -> None:
        identity = {
            "methods": ["password"],
            "password": {"user": {"name": user, "domain": {"name": "Default"}, "password": password}},
        }
        scope = {"project": {"name": project, "domain": {"name": "Default"}}}
        answer, headers = fetch(
            auth_url.rstrip("/") + "/auth/tokens", body={"auth": {"identity": identity, "scope": scope}}
        )
        self._token = next(value for name, value in headers.items() if name.lower() == "x-subject-token")
        self._catalog: list[dict[str, Any]] = answer["token"]["catalog"]
        issued = datetime.strptime(answer["token"]["issued_at"], "%Y-%m-%dT%H:%M:%S.%fZ")
        self.issued = issued.replace(tzinfo=timezone.utc).timestamp()  # by Keystone's clock, seconds since 1970
        self.roles = {role["name"] for role in answer["token"]["roles"]}

    def endpoints(self, service_type: str, region: str) -> dict[str, list[str]]:
        """Interface (public, internal, admin) -> every URL of that service in that region."""
        found: dict[str, list[str]] = {}
        for service in self._catalog:
            if service["type"] == service_type:
                for endpoint in service["endpoints"]:
                    if endpoint["region_id"] == region:
                        found.setdefault(endpoint["interface"], []).append(endpoint["url"])
        return found

    def list_compute(self, region: str, path: str, key: str) -> list[dict[str, Any]]:
        """Every entry of a list of Nova's API, page by page: it gives at most max_limit at once, 1,000 by default.

        Raises Waiting as compute does, and when a page comes twice.
        """
        found: list[dict[str, Any]] = []
        base, asked = path.partition("?")[0], [path]
        while True:
            answer = self._get(region, asked[-1])
            found += answer[key]
            query = find_next(answer, key)
            if not query:
                return found
            if f"{base}?{query}" in asked:
                raise Waiting(f"the compute API to end its list {base}: it keeps sending the same page")
            asked.append(f"{base}?{query}")

    def compute(self, region: str, path: str) -> Any:
        """The one thing that Nova's API has at path; lists are for list_compute, and refused here.

        Raises Waiting, also while Nova cannot check the token.
        """
        answer = self._get(region, path)
        if any(isinstance(value, list) for value in answer.values()):
            raise ValueError(f"{path} is a list, which may have more pages: read it by list_compute")
        return answer

    def _get(self, region: str, path: str) -> Any:
        urls = self.endpoints("compute", region).get("public")
        if not urls:
            raise Waiting(f"an endpoint of type compute in region {region}")
        return self.get(urls[0].rstrip("/") + path, "the compute API")

    def get(self, url: str, what: str) -> Any:
        """What the API of that name has there. Raises Waiting, also while it cannot check the token."""
        try:
            return fetch(url, token=self._token)[0]
        except Unauthorized as error:
            raise TokenRefused(f"{what} to accept a token from Keystone: {error}") from error


def own_user(node: dict[str, Any]) -> dict[str, Any]:
    """Name, password and roles of the user as which this node's agent asks the APIs."""
    return next(dict(user) for user in node["identity"]["users"] if user["name"] == node["identity"]["user"])


def open_nova_session(node: dict[str, Any]) -> Session:
    """A session of the node's own user, as node.json names it.

    Raises Waiting until Keystone accepts its password, and while this node's clock differs from Keystone's: tokens
    would be expired here, and Nova would call this node's services down. chrony steps the clock when it can.
    """
    user = own_user(node)
    try:
        session = Session(node["auth_url"], user["name"], user["password"])
    except Unauthorized as error:
        raise Waiting("Keystone to accept the password of user {name}, set by a controller".format(**user)) from error
    skew = describe_skew(session.issued, "Keystone's")
    if skew:
        raise Waiting(f"the right time: {skew}; see chronyc sources")
    return session
