"""What APIs answer the administrator. `paths`: name -> (service type, path). Prints JSON: {name: answer}."""

import json
import urllib.request

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url, headers, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "OpenStack-API-Version": "placement 1.29", **headers}
    with OPENER.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return answer.headers, json.load(answer)


def main(auth_url, password, paths):
    domain = {"id": "default"}
    user = {"name": "admin", "domain": domain, "password": password}
    identity = {"methods": ["password"], "password": {"user": user}}
    scope = {"project": {"name": "admin", "domain": domain}}
    headers, token = fetch(f"{auth_url}/auth/tokens", {}, {"auth": {"identity": identity, "scope": scope}})
    login = {"X-Auth-Token": headers["X-Subject-Token"]}
    urls = {
        service["type"]: next(one["url"] for one in service["endpoints"] if one["interface"] == "public")
        for service in token["token"]["catalog"]
    }
    print(json.dumps({name: fetch(urls[service] + path, login)[1] for name, (service, path) in paths.items()}))
