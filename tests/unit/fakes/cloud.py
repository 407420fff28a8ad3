"""A cloud in memory that answers HTTP requests: Keystone, Glance, Neutron and Nova, as far as a guest's test asks."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEYSTONE = "http://192.168.56.11:5000/v3"
URLS = {
    "compute": "http://192.168.56.11:8774/v2.1",
    "image": "http://192.168.56.11:9292",
    "network": "http://192.168.56.11:9696/",
}
CONSOLE = "http://192.168.56.11:6080/vnc_auto.html"
USER = "u-admin"
GONE_AFTER = 2.0  # seconds that a guest takes to end
KINDS = ("images", "networks", "ports", "groups", "flavors", "servers")

Row = dict[str, Any]


class Clock:
    """Stands in for the module time; somebody else's deeds happen while one sleeps."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, happen in due:
            happen()

    def later(self, seconds: float, happen: Callable[[], None]) -> None:
        self.events.append((self.now + seconds, happen))


class Refusal(Exception):
    """An API's answer with a status that is no success."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class Answer(io.BytesIO):
    """What urllib's opener returns."""

    def __init__(self, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(b"" if body is None else json.dumps(body).encode())
        self.status, self.headers = 200, dict(headers or {})


class Cloud:
    """Its own state and, by host, what a guest there does otherwise than it should."""

    def __init__(self, clock: Clock, hosts: tuple[str, ...], password: str) -> None:
        self.clock, self.hosts, self.password = clock, hosts, password
        self.catalog = dict(URLS)
        self.projects: dict[str, Row] = {"p-admin": {"id": "p-admin", "name": "admin", "description": ""}}
        self.granted = {"p-admin"}
        self.tokens: dict[str, str] = {}  # token -> project
        self.count = 0
        self.things: dict[str, dict[str, Row]] = {kind: {} for kind in KINDS}
        self.add("flavors", "p-admin", name="m1.tiny")
        self.wrong: dict[str, Row] = {}  # host -> what its guest says instead, by the word before it
        self.faults: dict[str, str] = {}  # host -> why its guest is in ERROR
        self.without_addresses: set[str] = set()  # hosts whose guests Nova calls without one
        self.console_error: Exception | None = None
        self.asked: list[str] = []  # of the APIs
        self.pages: list[str] = []  # that were looked at without a token
        self.before: Callable[[str], None] = lambda asked: None
        self.after: Callable[[str], None] = lambda asked: None

    def add(self, kind: str, project: str, **values: Any) -> Row:
        self.count += 1
        row = {"id": f"{kind}-{self.count}", "project": project, **values}
        self.things[kind][row["id"]] = row
        return row

    def left(self) -> list[str]:
        """What is there that was not at the beginning."""
        self._bury()
        found = [row["id"] for rows in self.things.values() for row in rows.values() if row["project"] != "p-admin"]
        return found + [project["name"] for project in self.projects.values() if project["id"] != "p-admin"]

    # the door

    def open(self, request: Any, timeout: float) -> Answer:
        if isinstance(request, str):
            self.pages.append(request)
            if self.console_error:
                raise self.console_error
            return Answer()
        url, method = urlsplit(request.full_url), request.get_method()
        asked = f"{method} {request.full_url}"
        self.asked.append(asked)
        try:
            self.before(asked)
            answer = self._answer(method, url, request)
        except Refusal as refusal:
            body = io.BytesIO(f"<html><p>{refusal.text}</p></html>".encode())
            raise urllib.error.HTTPError(request.full_url, refusal.code, refusal.text, Message(), body) from None
        self.after(asked)
        return answer

    def _answer(self, method: str, url: Any, request: Any) -> Answer:
        headers = {name.lower(): value for name, value in request.header_items()}
        self._bury()
        if method == "POST" and url.path == "/v3/auth/tokens":
            return self._log_in(json.loads(request.data))
        project = self.tokens.get(headers.get("x-auth-token", ""))
        if project not in self.projects:
            raise Refusal(401, "The request you have made requires authentication.")
        body = request.data
        if headers["content-type"] == "application/json" and body is not None:
            body = json.loads(body)
        if url.port == 8774 and headers.get("openstack-api-version") != "compute 2.74":
            raise Refusal(400, "another microversion")
        for pattern, name in ROUTES:
            if found := re.fullmatch(pattern, f"{method} {url.port}{url.path}"):
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                return Answer(getattr(self, name)(project, body, query, *found.groups()))
        raise AssertionError(f"the fake cloud does not know {method} {url.geturl()}")

    # Keystone

    def _log_in(self, body: Any) -> Answer:
        person = body["auth"]["identity"]["password"]["user"]
        if (person["name"], person["password"]) != ("admin", self.password):
            raise Refusal(401, "The request you have made requires authentication.")
        name = body["auth"]["scope"]["project"]["name"]
        project = next((one["id"] for one in self.projects.values() if one["name"] == name), "")
        if project not in self.granted:
            raise Refusal(401, "no role there")
        token = f"t-{len(self.tokens)}"
        self.tokens[token] = project
        regions = ("RegionTwo", "RegionOne")
        catalog = [
            {
                "type": kind,
                "endpoints": [
                    {"interface": interface, "region_id": region, "url": url if interface == "public" else "http://no"}
                    for interface in ("admin", "internal", "public")
                    for region in regions
                ],
            }
            for kind, url in self.catalog.items()
        ]
        document = {"user": {"id": USER}, "project": {"id": project}, "catalog": catalog}
        return Answer({"token": document}, {"X-Subject-Token": token})

    def list_projects(self, project: str, body: Any, query: Row) -> Any:
        return {"projects": [dict(one) for one in self.projects.values() if one["name"] == query["name"]]}

    def make_project(self, project: str, body: Any, query: Row) -> Any:
        if any(one["name"] == body["project"]["name"] for one in self.projects.values()):
            raise Refusal(409, "Conflict occurred attempting to store project")
        self.count += 1
        row = {**body["project"], "id": f"p-{self.count}"}
        self.projects[row["id"]] = row
        return {"project": row}

    def change_project(self, project: str, body: Any, query: Row, wanted: str) -> Any:
        if wanted not in self.projects:
            raise Refusal(404, "no such project")
        self.projects[wanted].update(body["project"])

    def delete_project(self, project: str, body: Any, query: Row, wanted: str) -> None:
        del self.projects[wanted]
        self.granted.discard(wanted)

    def list_roles(self, project: str, body: Any, query: Row) -> Any:
        return {"roles": [{"id": f"r-{name}", "name": name} for name in ("reader", "member", "admin")]}

    def grant(self, project: str, body: Any, query: Row, wanted: str, user: str, role: str) -> None:
        assert user == USER
        if role == "r-admin":
            self.granted.add(wanted)

    # Glance

    def make_image(self, project: str, body: Any, query: Row) -> Any:
        for key in ("kernel_id", "ramdisk_id"):
            assert key not in body or self.things["images"][body[key]]["data"]
        return self.add("images", project, **body)

    def upload(self, project: str, body: bytes, query: Row, image: str) -> None:
        assert isinstance(body, bytes)
        self.things["images"][image]["data"] = body

    def list_images(self, project: str, body: Any, query: Row) -> Any:
        return {"images": self._rows("images", query["owner"])}

    # Neutron

    def make_network(self, project: str, body: Any, query: Row) -> Any:
        row = self.add("networks", project, mtu=1442, **body["network"])
        self.add("groups", project, name="default")
        self.add("ports", project, network_id=row["id"], device_owner="network:distributed")
        return {"network": row}

    def make_subnet(self, project: str, body: Any, query: Row) -> Any:
        assert body["subnet"]["network_id"] in self.things["networks"]
        return {"subnet": {}}

    def make_port(self, project: str, body: Any, query: Row) -> Any:
        address = f"10.254.0.{100 + self.count}"
        values = {"device_owner": "", "fixed_ips": [{"ip_address": address}], **body["port"]}
        return {"port": self.add("ports", project, **values)}

    def list_ports(self, project: str, body: Any, query: Row) -> Any:
        return {"ports": self._rows("ports", query["project_id"])}

    def list_networks(self, project: str, body: Any, query: Row) -> Any:
        return {"networks": self._rows("networks", query["project_id"])}

    def list_groups(self, project: str, body: Any, query: Row) -> Any:
        return {"security_groups": self._rows("groups", query["project_id"])}

    def delete_port(self, project: str, body: Any, query: Row, port: str) -> None:
        if self.things["ports"].get(port, {}).get("device_owner", "").startswith("network:"):
            raise Refusal(409, "Port cannot be deleted directly via the port API")
        self._delete("ports", port)

    def delete_network(self, project: str, body: Any, query: Row, network: str) -> None:
        ports = [row for row in self.things["ports"].values() if row["network_id"] == network]
        if any(not row["device_owner"].startswith("network:") for row in ports):
            raise Refusal(409, "There are one or more ports still in use on the network")
        for row in ports:
            del self.things["ports"][row["id"]]
        self._delete("networks", network)

    # Nova

    def make_flavor(self, project: str, body: Any, query: Row) -> Any:
        if any(row["name"] == body["flavor"]["name"] for row in self.things["flavors"].values()):
            raise Refusal(409, "Flavor with name imagegen-verify already exists.")
        return {"flavor": self.add("flavors", project, **body["flavor"])}

    def list_flavors(self, project: str, body: Any, query: Row) -> Any:
        assert query == {"is_public": "None"}
        return {"flavors": list(self.things["flavors"].values())}

    def give_flavor(self, project: str, body: Any, query: Row, flavor: str) -> Any:
        self.things["flavors"][flavor]["access"] = body["addTenantAccess"]["tenant"]
        return {}

    def make_server(self, project: str, body: Any, query: Row) -> Any:
        asked = body["server"]
        port = self.things["ports"][asked["networks"][0]["port"]]
        assert asked["host"] in self.hosts and self.things["images"][asked["imageRef"]]["data"]
        assert self.things["flavors"][asked["flavorRef"]]["access"] == project
        port["device_owner"] = "compute:nova"
        peer = base64.b64decode(asked["user_data"]).decode().strip()
        server = self.add("servers", project, host=asked["host"], begun=self.clock.now, ended=None, port=port["id"])
        said = {"address": port["fixed_ips"][0]["ip_address"], "metadata": server["id"], "reached": peer}
        server["says"] = {**said, **self.wrong.get(asked["host"], {})}
        return {"server": {"id": server["id"]}}

    def show_server(self, project: str, body: Any, query: Row, server: str) -> Any:
        row = self._own(project, server)
        if fault := self.faults.get(row["host"]):
            return {"server": {"status": "ERROR", "fault": {"message": fault}}}
        return {"server": {"status": "ACTIVE" if self.clock.now >= row["begun"] + 2 else "BUILD"}}

    def list_addresses(self, project: str, body: Any, query: Row, server: str) -> Any:
        """What Nova finds of the port's addresses, a second after the guest is ACTIVE."""
        row = self._own(project, server)
        shown = row["host"] not in self.without_addresses and self.clock.now >= row["begun"] + 3
        found = self.things["ports"][row["port"]]["fixed_ips"] if shown else []
        return {"addresses": {"imagegen-verify": [{"addr": one["ip_address"], "version": 4} for one in found]}}

    def list_servers(self, project: str, body: Any, query: Row) -> Any:
        return {"servers": self._rows("servers", project)}

    def delete_server(self, project: str, body: Any, query: Row, server: str) -> None:
        self._own(project, server)["ended"] = self.clock.now

    def act(self, project: str, body: Any, query: Row, server: str) -> Any:
        """The console: a line a second, of which the last is not whole yet."""
        assert body == {"os-getConsoleOutput": {"length": 200}}
        row = self._own(project, server)
        lines = ["Linux version 6.12", *(f"IMAGEGEN {word} {what}" for word, what in row["says"].items() if what)]
        whole = max(int(self.clock.now - row["begun"]) - 3, 0)
        text = "".join(f"{line}\r\n" for line in lines[:whole])
        return {"output": text + "".join(line[:-1] for line in lines[whole : whole + 1])}

    def open_console(self, project: str, body: Any, query: Row, server: str) -> Any:
        assert body == {"remote_console": {"protocol": "vnc", "type": "novnc"}}
        return {"remote_console": {"url": f"{CONSOLE}?path=%3Ftoken%3Dsecret"}}

    # all of them

    def _own(self, project: str, server: str) -> Row:
        row = self.things["servers"].get(server)
        if row is None or row["project"] != project:
            raise Refusal(404, "Instance could not be found.")
        return row

    def _rows(self, kind: str, project: str) -> list[Row]:
        rows = [row for row in self.things[kind].values() if row["project"] == project]
        return [{key: value for key, value in row.items() if key != "data"} for row in rows]

    def _delete(self, kind: str, wanted: str) -> None:
        if self.things[kind].pop(wanted, None) is None:
            raise Refusal(404, "gone")

    def delete_image(self, project: str, body: Any, query: Row, image: str) -> None:
        self._delete("images", image)

    def delete_group(self, project: str, body: Any, query: Row, group: str) -> None:
        self._delete("groups", group)

    def delete_flavor(self, project: str, body: Any, query: Row, flavor: str) -> None:
        self._delete("flavors", flavor)

    def _bury(self) -> None:
        """Guests that were deleted end a little later; their ports are free then."""
        for row in list(self.things["servers"].values()):
            if row["ended"] is not None and self.clock.now >= row["ended"] + GONE_AFTER:
                del self.things["servers"][row["id"]]
                if row["port"] in self.things["ports"]:
                    self.things["ports"][row["port"]]["device_owner"] = ""


ROUTES = (
    (r"GET 5000/v3/projects", "list_projects"),
    (r"POST 5000/v3/projects", "make_project"),
    (r"PATCH 5000/v3/projects/([^/]+)", "change_project"),
    (r"DELETE 5000/v3/projects/([^/]+)", "delete_project"),
    (r"GET 5000/v3/roles", "list_roles"),
    (r"PUT 5000/v3/projects/([^/]+)/users/([^/]+)/roles/([^/]+)", "grant"),
    (r"POST 9292/v2/images", "make_image"),
    (r"PUT 9292/v2/images/([^/]+)/file", "upload"),
    (r"GET 9292/v2/images", "list_images"),
    (r"DELETE 9292/v2/images/([^/]+)", "delete_image"),
    (r"POST 9696/v2.0/networks", "make_network"),
    (r"POST 9696/v2.0/subnets", "make_subnet"),
    (r"POST 9696/v2.0/ports", "make_port"),
    (r"GET 9696/v2.0/ports", "list_ports"),
    (r"GET 9696/v2.0/networks", "list_networks"),
    (r"GET 9696/v2.0/security-groups", "list_groups"),
    (r"DELETE 9696/v2.0/ports/([^/]+)", "delete_port"),
    (r"DELETE 9696/v2.0/networks/([^/]+)", "delete_network"),
    (r"DELETE 9696/v2.0/security-groups/([^/]+)", "delete_group"),
    (r"POST 8774/v2.1/flavors", "make_flavor"),
    (r"GET 8774/v2.1/flavors", "list_flavors"),
    (r"POST 8774/v2.1/flavors/([^/]+)/action", "give_flavor"),
    (r"DELETE 8774/v2.1/flavors/([^/]+)", "delete_flavor"),
    (r"POST 8774/v2.1/servers", "make_server"),
    (r"GET 8774/v2.1/servers/([^/]+)", "show_server"),
    (r"GET 8774/v2.1/servers/([^/]+)/ips", "list_addresses"),
    (r"GET 8774/v2.1/servers", "list_servers"),
    (r"DELETE 8774/v2.1/servers/([^/]+)", "delete_server"),
    (r"POST 8774/v2.1/servers/([^/]+)/action", "act"),
    (r"POST 8774/v2.1/servers/([^/]+)/remote-consoles", "open_console"),
)
