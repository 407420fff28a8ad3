"""What one user of Keystone's may do. Prints JSON: its roles in project service, and the status of each request."""

import json
import urllib.error
import urllib.request

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url, body=None, method=None, token=""):
    headers = {"Content-Type": "application/json", "X-Auth-Token": token, "OpenStack-API-Version": "compute 2.53"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with OPENER.open(request, timeout=60) as answer:
            return answer.status, answer.headers, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, {}, None


def main(auth_url, user, password, questions):
    domain = {"name": "Default"}
    identity = {"methods": ["password"], "password": {"user": {"name": user, "domain": domain, "password": password}}}
    body = {"auth": {"identity": identity, "scope": {"project": {"name": "service", "domain": domain}}}}
    _, headers, said = fetch(f"{auth_url}/auth/tokens", body)
    token = headers["X-Subject-Token"]
    statuses = {name: fetch(url, body, method, token)[0] for name, (method, url, body) in questions.items()}
    print(json.dumps({"roles": sorted(role["name"] for role in said["token"]["roles"]), "statuses": statuses}))
