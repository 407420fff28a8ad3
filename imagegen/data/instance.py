"""Boots a guest on each compute of a cloud, has it say what it sees, and removes all of it again; stdlib only.

`imagegen verify --instance` runs this file with a call of main() behind it, here or on a controller: no password is an
argument. It prints a JSON document a line, for each step that ends: {node, step, state, detail, seconds}.
"""

import base64
import json
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

NAME = "imagegen-verify"  # of all that it makes
BEAT = 60.0  # seconds without a sign of life until another run's remains are taken for left behind
POLL = 1.0  # seconds between two looks
CONSOLE_LINES = 200
# A proxy in the environment must not stand between this machine and the cluster.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# The first in which a request may name the host (Nova's API history, 2.74).
MICROVERSION = "compute 2.74"


class Failed(Exception):
    """What went wrong, in a sentence."""


def say(node: str, step: str, state: str, detail: str = "", seconds: float = 0.0) -> None:
    row = {"node": node, "step": step, "state": state, "detail": detail, "seconds": round(seconds, 1)}
    print(json.dumps(row), flush=True)


class Cloud:
    """The APIs as one user of one project."""

    def __init__(self, auth_url: str, user: str, password: str, project: str, domain: str, region: str) -> None:
        self.auth_url, self.region = auth_url, region
        scope = {"project": {"name": project, "domain": {"name": domain}}}
        person = {"name": user, "password": password, "domain": {"name": domain}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": person}}, "scope": scope}}
        headers, answer = self._send("POST", f"{auth_url}/auth/tokens", body, {})
        if answer is None:
            raise Failed(f"there is no Keystone at {auth_url}")
        token = answer["token"]
        self.token = next(value for name, value in headers.items() if name.lower() == "x-subject-token")
        self.user_id, self.project_id = token["user"]["id"], token["project"]["id"]
        self.urls = {
            service["type"]: endpoint["url"].rstrip("/")
            for service in token["catalog"]
            for endpoint in service["endpoints"]
            if endpoint["interface"] == "public" and endpoint["region_id"] == region
        }

    def ask(self, method: str, service: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """The API's answer; None for 404 and what is empty. Raises Failed with what the API says."""
        roots = {"identity": self.auth_url, "image": "/v2", "network": "/v2.0"}
        if service == "identity":
            url = self.auth_url
        elif service in self.urls:
            url = self.urls[service] + roots.get(service, "")
        else:
            raise Failed(f"Keystone's catalogue has no public endpoint of type {service} in {self.region}")
        return self._send(method, url + path, body, {"X-Auth-Token": self.token}, kind)[1]

    def _send(self, method: str, url: str, body: Any, headers: dict[str, str], kind: str = "application/json") -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind, "Accept": "application/json", "OpenStack-API-Version": MICROVERSION, **headers}
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - of the cluster's catalogue
        try:
            with OPENER.open(request, timeout=120) as response:
                text = response.read()
                return dict(response.headers.items()), json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}, None
            said = " ".join(re.sub(r"<[^>]*>", " ", error.read().decode(errors="replace")).split())[:300]
            raise Failed(f"{method} {url} answers {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise Failed(f"{method} {url}: {getattr(error, 'reason', error)}") from None


class Test:
    """One run: what it is asked for, and what it has made so far."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.hosts: list[str] = request["hosts"]
        self.admin = self.log_in(request["project"])
        self.beat_at = 0.0
        self.asked = False  # for a project

    def log_in(self, project: str) -> Cloud:
        given = self.request
        login = (given["user"], given["password"])
        return Cloud(given["auth_url"], *login, project, given["domain"], given["region"])

    @contextmanager
    def step(self, node: str, name: str) -> Iterator[list[str]]:
        """Says how long it took, and the detail that is put into the list."""
        begin, detail = time.monotonic(), [""]
        say(node, name, "working")
        try:
            yield detail
        except Failed as error:
            say(node, name, "failed", str(error), time.monotonic() - begin)
            raise
        say(node, name, "done", detail[0], time.monotonic() - begin)

    def wait(self, what: str, look: Callable[[], Any]) -> Any:
        """The first true value of the look. Raises Failed when the time is over."""
        end = time.monotonic() + self.request["timeout"]
        while True:
            if found := look():
                return found
            if time.monotonic() > end:
                raise Failed(f"{what} did not come within {self.request['timeout']:.0f} seconds")
            self.beat()
            time.sleep(POLL)

    # the project, and what an earlier run left

    def find_project(self) -> Any:
        found = self.admin.ask("GET", "identity", f"/projects?name={NAME}")["projects"]
        return found[0] if found else None

    def beat(self) -> None:
        """A sign of life in the project's description, so that another run leaves this one's things alone."""
        if time.monotonic() > self.beat_at + BEAT / 6:
            self.beat_at = time.monotonic()
            body = {"project": {"description": self.sign_of_life()}}
            self.admin.ask("PATCH", "identity", f"/projects/{self.project_id}", body)

    def sign_of_life(self) -> str:
        return f"made by imagegen verify, run {self.request['run']}, at work at {time.time():.0f}"

    def take_project(self) -> None:
        """Makes the project; first removes what a run that was killed has left. Raises Failed while another works."""
        with self.step("", "project") as detail:
            if found := self.find_project():
                said, end = found["description"], time.monotonic() + BEAT
                while found and found["description"] == said and time.monotonic() < end:
                    age = time.time() - float((re.findall(r"[0-9]+$", said) or ["0"])[0])
                    if age > BEAT:
                        break
                    time.sleep(POLL)
                    found = self.find_project()
                if found and found["description"] != said:
                    raise Failed(f"another run is at work in the project {NAME}: wait for its end")
                self.remove_all()
                detail[0] = "after removing what an earlier run left"
            # At once with a sign of life: another run may look at it now.
            body = {"project": {"name": NAME, "domain_id": "default", "description": self.sign_of_life()}}
            self.asked = True
            self.project_id = self.admin.ask("POST", "identity", "/projects", body)["project"]["id"]
            self.own = self.enter_project()

    def enter_project(self) -> Cloud:
        """The APIs in the test's project, in which the administrator has a role then."""
        roles = {role["name"]: role["id"] for role in self.admin.ask("GET", "identity", "/roles")["roles"]}
        for name in ("admin", "member"):
            if name in roles:
                place = f"/projects/{self.project_id}/users/{self.admin.user_id}/roles/{roles[name]}"
                self.admin.ask("PUT", "identity", place)
        return self.log_in(NAME)

    def remove_own(self) -> None:
        """Everything, if this run has made it: another one may be at work."""
        project = self.find_project()
        if project and self.request["run"] in project["description"]:
            self.remove_all()

    def remove_all(self) -> None:
        """Everything of the project, then the project. What is gone already is no fault."""
        project = self.find_project()
        if project is None:
            return
        self.project_id = project["id"]
        own = self.enter_project()
        mine = f"project_id={self.project_id}"
        for server in own.ask("GET", "compute", "/servers")["servers"]:
            own.ask("DELETE", "compute", f"/servers/{server['id']}")
        self.wait("the end of the guests", lambda: not own.ask("GET", "compute", "/servers")["servers"])
        if "network" in own.urls:
            for port in own.ask("GET", "network", f"/ports?{mine}")["ports"]:
                if not port["device_owner"].startswith("network:"):
                    own.ask("DELETE", "network", f"/ports/{port['id']}")
            for network in own.ask("GET", "network", f"/networks?{mine}")["networks"]:
                own.ask("DELETE", "network", f"/networks/{network['id']}")
            for group in own.ask("GET", "network", f"/security-groups?{mine}")["security_groups"]:
                own.ask("DELETE", "network", f"/security-groups/{group['id']}")
        if "image" in own.urls:
            for image in own.ask("GET", "image", f"/images?owner={self.project_id}")["images"]:
                own.ask("DELETE", "image", f"/images/{image['id']}")
        flavors = own.ask("GET", "compute", "/flavors?is_public=None")["flavors"]
        for flavor in flavors:
            if flavor["name"] == NAME:
                own.ask("DELETE", "compute", f"/flavors/{flavor['id']}")
        self.admin.ask("DELETE", "identity", f"/projects/{self.project_id}")

    # what the guests need

    def upload_images(self) -> str:
        """The image that guests boot from; returns its id."""
        with self.step("", "image") as detail:
            ids: dict[str, str] = {}
            for name, form in (("kernel", "aki"), ("ramdisk", "ari"), ("disk", "raw")):
                data = base64.b64decode(self.request[name])
                body = {
                    "name": f"{NAME}-{name}",
                    "disk_format": form,
                    "container_format": form if form != "raw" else "bare",
                    "visibility": "private",
                }
                if name == "disk":
                    body |= {"kernel_id": ids["kernel"], "ramdisk_id": ids["ramdisk"], "hw_rng_model": "virtio"}
                    body["os_command_line"] = "console=ttyS0 rdinit=/init quiet"
                ids[name] = self.own.ask("POST", "image", "/images", body)["id"]
                self.own.ask("PUT", "image", f"/images/{ids[name]}/file", data, "application/octet-stream")
                self.beat()
            detail[0] = f"{len(base64.b64decode(self.request['ramdisk'])) / 2**20:.1f} MiB of initramfs"
            return str(ids["disk"])

    def make_network(self) -> list[Any]:
        """A port for each host."""
        with self.step("", "network") as detail:
            network = self.own.ask("POST", "network", "/networks", {"network": {"name": NAME}})["network"]
            subnet = {"network_id": network["id"], "ip_version": 4, "cidr": "10.254.0.0/16", "name": NAME}
            self.own.ask("POST", "network", "/subnets", {"subnet": subnet})
            ports = []
            for host in self.hosts:
                body = {"port": {"network_id": network["id"], "name": f"{NAME}-{host}"}}
                ports.append(self.own.ask("POST", "network", "/ports", body)["port"])
                self.beat()
            detail[0] = f"MTU {network['mtu']}"
            return ports

    def make_flavor(self) -> str:
        with self.step("", "flavor"):
            body = {"flavor": {"name": NAME, "ram": 128, "vcpus": 1, "disk": 0, "os-flavor-access:is_public": False}}
            flavor = str(self.own.ask("POST", "compute", "/flavors", body)["flavor"]["id"])
            access = {"addTenantAccess": {"tenant": self.project_id}}
            self.own.ask("POST", "compute", f"/flavors/{flavor}/action", access)
            return flavor

    def boot(self, host: str, image: str, flavor: str, port: Any, peer: str) -> str:
        """Asks for a guest on that host that looks for its peer; returns its id."""
        server = {
            "name": f"{NAME}-{host}",
            "imageRef": image,
            "flavorRef": flavor,
            "networks": [{"port": port["id"]}],
            "host": host,
            "user_data": base64.b64encode(f"{peer}\n".encode()).decode(),
        }
        return str(self.own.ask("POST", "compute", "/servers", {"server": server})["server"]["id"])

    # what they say

    def see_active(self, server: str) -> Any:
        answer = self.own.ask("GET", "compute", f"/servers/{server}")
        if answer is None:
            raise Failed("somebody has deleted the guest")
        found = answer["server"]
        if found["status"] == "ERROR":
            raise Failed("the guest is in ERROR: {}".format(found.get("fault", {}).get("message", "no reason given")))
        return found if found["status"] == "ACTIVE" else None

    def see_address(self, server: str, address: str) -> bool:
        """Whether Nova knows it, and so all who ask for the server."""
        answer = self.own.ask("GET", "compute", f"/servers/{server}/ips") or {"addresses": {}}
        return address in [one["addr"] for network in answer["addresses"].values() for one in network]

    def read_console(self, server: str) -> list[str]:
        body = {"os-getConsoleOutput": {"length": CONSOLE_LINES}}
        answer = self.own.ask("POST", "compute", f"/servers/{server}/action", body)
        return str((answer or {}).get("output", "")).split("\n")

    def hear(self, server: str, words: str) -> str:
        """What the guest says after IMAGEGEN and these words, once it does."""
        marks: list[str] = []

        def look() -> str:
            lines = self.read_console(server)
            marks[:] = [line.strip() for line in lines if line.strip()]
            # What stands after the last end of a line may be half of a word.
            said = [line.partition(f"IMAGEGEN {words} ")[2].strip() for line in lines[:-1]]
            return next(filter(None, said), "")

        try:
            return str(self.wait(f"the guest's word `{words}`", look))
        except Failed as error:
            raise Failed(f"{error}; its console ends with: {' | '.join(marks[-3:])}") from None

    def open_console(self, server: str) -> str:
        body = {"remote_console": {"protocol": "vnc", "type": "novnc"}}
        url = str(self.own.ask("POST", "compute", f"/servers/{server}/remote-consoles", body)["remote_console"]["url"])
        page = url.partition("?")[0]
        try:
            with OPENER.open(page, timeout=30) as response:
                return f"{page} answers {response.status}"
        except OSError as error:
            raise Failed(f"{page}: {getattr(error, 'reason', error)}") from None

    def run(self) -> None:
        image, ports, flavor = self.upload_images(), self.make_network(), self.make_flavor()
        addresses = [port["fixed_ips"][0]["ip_address"] for port in ports]
        servers = []
        for number, host in enumerate(self.hosts):
            # Each looks for the next; one that is alone looks for its own address.
            peer = addresses[(number + 1) % len(addresses)]
            with self.step(host, "request"):
                server = self.boot(host, image, flavor, ports[number], peer)
            servers.append((host, server, addresses[number], peer))
        for host, server, address, _ in servers:
            with self.step(host, "active"):
                self.wait("ACTIVE", partial(self.see_active, server))
            with self.step(host, "address") as detail:
                detail[0] = self.hear(server, "address")
                if detail[0] != address:
                    raise Failed(f"DHCP gave {detail[0]}, but the port has {address}")
                self.wait(f"{address} among the guest's addresses in Nova", partial(self.see_address, server, address))
            with self.step(host, "metadata") as detail:
                detail[0] = self.hear(server, "metadata")
                if detail[0] != server:
                    raise Failed(f"the metadata are of {detail[0]}, not of the guest {server}")
            with self.step(host, "console"):
                self.open_console(server)
        for host, server, _, peer in servers:
            with self.step(host, "reach") as detail:
                detail[0] = self.hear(server, "reached")
                if detail[0] != peer:
                    raise Failed(f"the guest reached {detail[0]}, not {peer}")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(request: dict[str, Any]) -> None:
    """Runs the test on request['hosts']; with none it only removes what the same run, cut off, has left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        test = Test(request)
        if not test.hosts:
            test.remove_own()
            return
    except Failed as error:
        say("", "login", "failed", str(error))
        sys.exit(1)
    code = 0
    try:
        test.take_project()
        test.run()
    except Failed:
        code = 1
    except KeyboardInterrupt:
        code = 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if test.asked:
            try:
                with test.step("", "removed"):
                    test.remove_own()
            except Failed:
                code = code or 1
    sys.exit(code)
