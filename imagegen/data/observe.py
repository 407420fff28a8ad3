"""Reads, with nothing but the standard library, what a cluster's APIs say of themselves; prints one JSON document.

`imagegen boot` sends this file and a call of main() to a node's python3 by standard input: no password is an argument.
"""

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

# A proxy in the node's environment must not stand between the node and its own cluster.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url: str, token: str = "", body: Any = None, timeout: float = 60) -> Any:
    """The response's headers and its JSON document."""
    headers = {"Accept": "application/json", "Content-Type": "application/json", "X-Auth-Token": token}
    data = None if body is None else json.dumps(body).encode()
    with OPENER.open(urllib.request.Request(url, data, headers), timeout=timeout) as response:  # noqa: S310 (http only)
        return response.headers, json.load(response)


def fetch_list(url: str, key: str, token: str) -> list[Any]:
    """Every entry of a list, page by page: Nova's next page is in KEY_links, Keystone's in links.

    Of a link only the query counts, so that the token goes to no other host. Raises ValueError for a list that
    does not end, or that Keystone cut off at its list_limit.
    """
    found: list[Any] = []
    asked = [url]
    while True:
        answer = fetch(asked[-1], token)[1]
        found += answer[key]
        links = answer.get(f"{key}_links") or []
        link = next((item["href"] for item in links if item["rel"] == "next"), (answer.get("links") or {}).get("next"))
        if not link and answer.get("truncated"):
            raise ValueError("the API cuts the list off at its list_limit")
        page = f"{url.partition('?')[0]}?{urlsplit(link).query}" if link else ""
        if page in asked:
            raise ValueError("the API keeps sending the same page of the list")
        if not page:
            return found
        asked.append(page)


def get_token(auth_url: str, user: str, password: str, project: str) -> str:
    """A token for the project. Source: Identity API v3, "Password authentication with scoped authorization"."""
    domain = {"id": "default"}
    body = {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"name": user, "domain": domain, "password": password}},
            },
            "scope": {"project": {"name": project, "domain": domain}},
        }
    }
    headers, _ = fetch(f"{auth_url}/auth/tokens", body=body)
    return str(headers["X-Subject-Token"])


def read_catalog(catalog: list[Any]) -> tuple[list[Any], list[Any]]:
    """(services, endpoints) of a token's catalogue, which holds the enabled ones, as Keystone's own lists show them."""
    endpoints = [
        {**endpoint, "service_id": service["id"], "enabled": True}
        for service in catalog
        for endpoint in service["endpoints"]
    ]
    return [{key: service[key] for key in ("id", "name", "type")} for service in catalog], endpoints


def main(
    auth_url: str, compute_url: str, image_url: str, network_url: str | None, user: str, password: str, project: str
) -> None:
    """Prints {services, endpoints, compute_services, hypervisors, agents, errors}; what cannot be read is null.

    `network_url` is where Neutron's agents are listed; None: nowhere.
    """
    errors: list[str] = []
    facts: dict[str, Any] = {"errors": errors, "services": None, "endpoints": None}
    token = ""
    try:
        token = get_token(auth_url, user, password, project)
    except (OSError, ValueError) as error:
        errors.append(f"no token for the user {user} from {auth_url}: {error}")
    for name, url, key in (
        ("catalog", f"{auth_url}/auth/catalog", "catalog"),
        ("compute_services", f"{compute_url}/os-services", "services"),
        ("hypervisors", f"{compute_url}/os-hypervisors/detail", "hypervisors"),
        ("agents", f"{network_url}/v2.0/agents" if network_url else "", "agents"),
    ):
        facts[name] = None
        if not url or not token:
            continue
        try:
            facts[name] = fetch_list(url, key, token)
        except (OSError, ValueError, KeyError) as error:
            errors.append(f"{url} cannot be read: {error}")
    try:
        if token:
            fetch(f"{image_url}/v2/schemas/image", token)
    except (OSError, ValueError) as error:
        errors.append(f"{image_url} does not answer: {error}")
    if catalog := facts.pop("catalog"):
        facts["services"], facts["endpoints"] = read_catalog(catalog)
    print(json.dumps(facts))
