"""What Placement's API answers the administrator. Prints JSON: {versions, providers, candidates}."""

import json
import urllib.request

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url, headers, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "OpenStack-API-Version": "placement 1.29", **headers}
    with OPENER.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return answer.headers, json.load(answer)


def main(auth_url, password):
    domain = {"id": "default"}
    user = {"name": "admin", "domain": domain, "password": password}
    identity = {"methods": ["password"], "password": {"user": user}}
    scope = {"project": {"name": "admin", "domain": domain}}
    headers, token = fetch(f"{auth_url}/auth/tokens", {}, {"auth": {"identity": identity, "scope": scope}})
    login = {"X-Auth-Token": headers["X-Subject-Token"]}
    catalog = {service["type"]: service["endpoints"] for service in token["token"]["catalog"]}
    url = next(entry["url"] for entry in catalog["placement"] if entry["interface"] == "public")
    candidates = fetch(f"{url}/allocation_candidates?resources=VCPU:1", login)[1]
    print(
        json.dumps(
            {
                "versions": fetch(f"{url}/", {})[1]["versions"],
                "providers": fetch(f"{url}/resource_providers", login)[1]["resource_providers"],
                "candidates": sorted(candidates["provider_summaries"]),
            }
        )
    )
