"""One node and the cluster around it: its files, its units, its commands, the APIs it asks, and a clock of its own."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import re
import urllib.error
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from subprocess import TimeoutExpired
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import yaml
from imagegen_node.engine.mask import find_secrets

from fakes import amqp, nova, openstack, ovn, pymysql
from fakes.commands import Commands
from fakes.keystone import Keystone
from fakes.mariadb import Server
from imagegen.images.services_json import services_document
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster
from imagegen.model.declarations import declarations
from imagegen.model.secret_keys import secret_kinds
from imagegen.seeds.rabbitmq import hash_rabbitmq_password
from imagegen.seeds.seed import seed_tree

AGENT_MODULES = (
    "engine.files",
    "engine.health",
    "engine.retry",
    "engine.status",
    "engine.system",
    "node.clock",
    "node.configure",
    "node.declared",
    "node.machine",
    "node.metadata",
    "node.seed",
    "openstack.api",
    "openstack.backing",
    "openstack.cells",
    "openstack.cloud",
    "openstack.database",
    "openstack.discovery",
    "openstack.flavors",
    "openstack.lease",
    "openstack.ovn",
    "openstack.upgrade",
    "roles.compute",
    "roles.controller",
    "cli",
)
HOMES = {name: f"/var/lib/{name}" for name in ("glance", "keystone", "neutron", "nova", "placement")}
OWNER = "tester:testers"  # what every file of the make-believe node belongs to

# Alembic scripts as the packages bring them: schema kind -> revision -> the one before.
REVISIONS: dict[str, dict[str, str | None]] = {
    "glance": {"g1": None, "g2expand": "g1", "g2contract": "g1"},
    "keystone": {"k1": None, "k2expand": "k1", "k2contract": "k1"},
    "neutron": {"n1": None, "n2expand": "n1", "n2contract": "n1", "n3expand": "n2expand"},
    "placement": {"p1": None, "p2": "p1"},
    "nova_api": {"a1": None, "a2": "a1"},
    "nova": {"m1": None, "m2": "m1", "m3": "m2"},
}
# Revision -> one of another branch that must be there before it: alembic then has no row for that one any more.
DEPENDS_ON = {"g2contract": "g2expand", "n2contract": "n2expand"}
# nova/objects/service.py of Nova 31, as far as it says which computes are too old.
SERVICE_VERSIONS = """\
OLDEST_SUPPORTED_SERVICE_VERSION = 'Caracal'
SERVICE_VERSION_ALIASES = {
    'Bobcat': 65,
    'Caracal': 66,
    'Epoxy': 68,
}
"""

PAGE = 2  # what the APIs give of a list at once; Nova's max_limit is 1,000
FIRST_REPORT = 5.0  # seconds after the start of one of Nova's services
CONNECTS = 2.0  # seconds after its start, ovn-controller to OVN
FIRST_SIGN = 10.0  # seconds after the start of one of OVN's agents
AGENT_DOWN_TIME = 75.0  # seconds after its last sign of life, Neutron's default
AGENT_UNITS = {
    "OVN Controller agent": "ovn-controller.service",
    "OVN Metadata agent": "neutron-ovn-metadata-agent.service",
}
# Port -> the unit that answers HTTP there.
APIS = {
    5000: "keystone.service",
    8774: "nova-api.service",
    9292: "glance-api.service",
    9696: "neutron-api.service",
}


ROOMY = SimpleNamespace(f_blocks=1000, f_bavail=500, f_files=1000, f_favail=500, f_frsize=2**20)

DMI_UUID = "8C6B1A2E-0000-4000-8000-0000000000AA"


def import_agent() -> dict[str, ModuleType]:
    """The agent's modules by their own names, as the process has them."""
    return {name.rpartition(".")[2]: importlib.import_module(f"imagegen_node.{name}") for name in AGENT_MODULES}


class Stuck(BaseException):
    """The agent waited longer than the test allows; carries the last status document."""


class Unit:
    """A systemd unit. What it read when it started is kept, as a real daemon keeps its configuration."""

    def __init__(self) -> None:
        self.state = "inactive"
        self.since = 0.0
        self.read: dict[str, str] = {}


class World:
    """Everything outside the agent. `make_node` chooses which node of the cluster this is."""

    def __init__(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        cluster: Path | None = None,
        agent: dict[str, ModuleType] | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.agent = agent or import_agent()
        self.root = root
        self.cluster: Cluster = load_cluster(cluster)
        self.secrets = make_secrets()
        self.clock = 1000.0
        self.clock_ahead = 0.0  # seconds, of this node's clock
        self.patience = self.clock + 600  # a test that waits longer is stuck
        self.events: list[tuple[float, Callable[[], None]]] = []
        self.documents: list[dict[str, Any]] = []  # every status that went out
        self.console: list[str] = []
        self.units: dict[str, Unit] = {}
        self.server = Server(lambda: self.clock)
        self.keystone = Keystone()
        self.disks: dict[Path, Any] = {}  # what statvfs says of a place
        self.broker: dict[str, Any] = {"users": {}, "vhosts": [], "places": []}
        self.deaf: set[str] = set()  # daemons that are up and do not reach the broker
        self.compute_services: dict[str, str] = {}  # host -> state, of other nodes
        self.disabled: dict[str, str] = {}  # host -> why its nova-compute is disabled
        self.forced_down: set[str] = set()  # hosts
        self.reports: dict[str, float] = {}  # service of this node -> when it last reported
        self.listeners = {
            6641: "ovn-ovsdb-server-nb.service",
            6642: "ovn-ovsdb-server-sb.service",
            8778: "placement-api.service",
            8774: "nova-api.service",
            8775: "nova-api-metadata.service",
            9292: "glance-api.service",
            9696: "neutron-api.service",
            11211: "memcached.service",
        }
        self.silent: set[int] = set()  # ports at which no API answers, though its unit is up
        self.outside: set[str] = set()  # hosts outside the cluster at which its APIs answer
        self.switch = ovn.OpenVSwitch()
        self.ovn = {6641: ovn.northbound(), 6642: ovn.southbound()}  # port -> the database
        self.southbounds: set[str] = set()  # where somebody else's OVN answers, as in `tcp:HOST:PORT`
        self.signs: dict[str, float] = {}  # this node's agent -> when it last gave a sign of life
        self.agents: list[dict[str, Any]] = []  # of other nodes, as Neutron lists them
        self.ports: list[dict[str, Any]] = []  # of instances, as Neutron lists them
        self.remote_control_plane = False  # the APIs are up, and no unit of this node stands behind them
        self.commands = Commands(self)
        self._patch(monkeypatch)
        self._install_packages()

    # the node

    def make_node(self, name: str) -> None:
        """Puts the seed of that node in place, as cloud-init does; once more for a new seed."""
        self.node_name = name
        node = next(node for node in self.cluster.nodes if node.name == name)
        seed = seed_tree(self.cluster, node, self.secrets)
        user_data = yaml.safe_load(seed["user-data"].data)
        self.facts = yaml.safe_load(seed["meta-data"].data)["imagegen"]
        for entry in self.facts["files"]:
            entry |= {"owner": OWNER, "path": str(self.at(entry["path"]))}
        for file in user_data["write_files"]:
            path = self.at(file["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_text(file["content"])
            path.chmod(int(file["permissions"], 8))
        self.node: dict[str, Any] = json.loads(self.at("/etc/imagegen/node.json").read_text())
        self.put("/run/cloud-init/instance-data.json", json.dumps({"ds": {"meta_data": {"imagegen": self.facts}}}))
        self.put("/etc/imagegen/image.json", json.dumps({"version": 1, "roles": [node.role.name], "release": "2025.1"}))
        self.install_services(services_document(node.role, self.cluster.release))
        self.put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        self.put("/etc/ssh/ssh_host_ed25519_key", "key")
        self.put("/sys/class/dmi/id/product_uuid", f"{DMI_UUID}\n")
        self.put("/proc/cpuinfo", "flags\t\t: fpu vme svm\n")
        for directory in ("/var/lib/glance", "/var/lib/mysql", "/var/lib/rabbitmq"):
            self.at(directory).mkdir(parents=True, exist_ok=True)

    def install_services(self, document: dict[str, Any]) -> None:
        """Puts what the elements declare where the image has it."""
        self.put("/usr/lib/imagegen-node/services.json", json.dumps(self._move(document)))

    def _move(self, value: Any) -> Any:
        """JSON with its absolute paths below the node's root."""
        if isinstance(value, dict):
            return {key: self._move(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._move(item) for item in value]
        return str(self.at(value)) if isinstance(value, str) and value.startswith("/") else value

    def at(self, path: str) -> Path:
        """Where a path of the node is on this machine."""
        return self.root / path.lstrip("/")

    def put(self, path: str, text: str) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)

    def controller(self) -> Any:
        """An agent that has just started on this node."""
        return self.agent["controller"].Controller(self.facts, self.node, self.make_status(), self.sleep)

    def compute(self) -> Any:
        return self.agent["compute"].Compute(self.facts, self.node, self.make_status(), self.sleep)

    def make_status(self) -> Any:
        made = self.agent["status"].Status(self.node_name, str(self.facts["role"]))
        made.secrets = find_secrets(self.node)
        return made

    def run_controller(self, seconds: float = 600) -> dict[str, Any]:
        """Runs a fresh agent until the node is ready or `seconds` are over; the last status document."""
        self.patience = self.clock + seconds
        agent = self.controller()
        agent.watch = lambda: None  # type: ignore[method-assign]
        return self._run(agent)

    def run_compute(self, seconds: float = 600) -> dict[str, Any]:
        """Likewise for a compute."""
        self.patience = self.clock + seconds
        agent = self.compute()
        agent.watch = lambda: None
        return self._run(agent)

    def _run(self, agent: Any) -> dict[str, Any]:
        with suppress(Stuck):
            agent.run()
        return self.documents[-1]

    def forget(self) -> None:
        """What was done so far is no longer in the logs."""
        self.commands.log.clear()
        self.server.changes.clear()
        self.documents.clear()

    def watch(self, agent: Any, seconds: float) -> None:
        """Lets a ready node go on for so long."""
        self.patience = self.clock + seconds
        with pytest.raises(Stuck):
            agent.watch()

    # time

    def sleep(self, seconds: float) -> None:
        """The clock goes on; units change their state; what a test planned happens."""
        self.clock += seconds
        for name, unit in self.units.items():
            if unit.state in ("activating", "restarting"):
                self.activate(name)
        for event in [event for event in self.events if event[0] <= self.clock]:
            self.events.remove(event)
            event[1]()
        if self.clock > self.patience:
            raise Stuck(json.dumps(self.documents[-1:]))

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        self.events.append((self.clock + seconds, event))

    # units

    def activate(self, name: str) -> None:
        unit = self.units[name]
        unit.state, unit.since = "active", self.clock
        unit.read = {str(path): path.read_text() for path in self.configuration_of(name) if path.is_file()}
        if name == "mariadb.service":
            self.server.up = True
        if name == "rabbitmq-server.service":
            self.import_definitions()
        if name == "ovsdb-server.service":
            place = self.at("/etc/openvswitch/system-id.conf")
            self.switch.start(self.node_name, place.read_text().strip() if place.exists() else None)

    def configuration_of(self, unit: str) -> list[Path]:
        if "@" in unit:
            further = self.at(f"/etc/nova/cells/{unit.split('@')[1].removesuffix('.service')}.conf")
            return [*self.configuration_of("nova-"), further]
        for directory in ("glance", "keystone", "neutron", "nova", "placement"):
            if unit.startswith(directory):
                return sorted(self.at(f"/etc/{directory}/{directory}.conf.d").glob("*"))
        return sorted(self.at("/etc/mysql").rglob("*")) if unit.startswith("mariadb") else []

    def works(self, name: str) -> bool:
        """Whether a daemon is up and every login of the configuration that it started with is taken."""
        unit = self.units.get(name)
        if unit is None or unit.state != "active":
            return False
        text = "\n".join(unit.read.values())
        found = re.findall(r"(rabbit|mysql\+pymysql)://(\w+):([^@\"]+)@", text)
        logins = [(scheme, user, unquote(word)) for scheme, user, word in found]
        passwords = re.findall(r"parameters = \"password=([^\"]+)\"", text)
        logins += [("mysql+pymysql", "keystone", unquote(word)) for word in passwords]
        accounts = {user: account["password"] for (user, _), account in self.server.users.items()}
        return all(
            self.takes(user, word) if scheme == "rabbit" else accounts.get(user) == word
            for scheme, user, word in logins
        )

    # the broker

    def import_definitions(self) -> None:
        definitions = json.loads(self.at("/etc/rabbitmq/definitions.json").read_text())
        self.broker["users"].update({user["name"]: user["password_hash"] for user in definitions["users"]})
        self.broker["vhosts"] = [vhost["name"] for vhost in definitions["vhosts"]]
        self.broker["places"] = [[may["user"], may["vhost"]] for may in definitions["permissions"]]

    def takes(self, user: str, password: str) -> bool:
        stored = base64.b64decode(self.broker["users"].get(user, ""))
        return stored[4:] == hashlib.sha256(stored[:4] + password.encode()).digest()

    def log_in(self, where: str, user: str, password: str, vhost: str) -> None:
        if not self.remote_control_plane and not self.works("rabbitmq-server.service"):
            raise ConnectionRefusedError(111, "Connection refused")
        if not self.takes(user, password):
            raise amqp.AccessRefused("(0, 0): (403) ACCESS_REFUSED - Login was refused")
        if vhost not in self.broker["vhosts"]:
            raise amqp.NotAllowed(f"Connection.open: (530) NOT_ALLOWED - vhost {vhost} not found")
        if [user, vhost] not in self.broker["places"]:
            raise amqp.NotAllowed(f"Connection.open: (530) NOT_ALLOWED - access to vhost '{vhost}' refused")

    def count_consumers(self, vhost: str, queue: str) -> int:
        """Who reads a queue: the daemon whose name it bears, if it works."""
        topic, _, host = queue.partition(".")
        assert host == self.node_name
        own = vhost == "nova" or topic == "compute"
        unit = f"nova-{topic}.service" if own else f"nova-{topic}@{vhost.removeprefix('nova_')}.service"
        if unit not in self.units:
            raise amqp.NotFound(f"Queue.declare: (404) NOT_FOUND - no queue '{queue}' in vhost '{vhost}'")
        return int(self.works(unit) and topic not in self.deaf)

    # ports and APIs

    def connect_port(self, address: tuple[str, int], timeout: float) -> Any:
        units = dict(self.listeners)
        for cell in self.cluster.cells:
            own = cell == self.facts["cell"]
            units[self.cluster.console_port(cell)] = f"nova-novncproxy{'' if own else f'@{cell}'}.service"
        database = self.ovn.get(address[1])
        nobody = database is not None and not database.listens(*address)
        if nobody or self.units.get(units[address[1]], Unit()).state != "active":
            raise ConnectionRefusedError(111, "Connection refused")
        return SimpleNamespace(close=lambda: None)

    def open(self, request: Any, timeout: float) -> Any:
        """What urllib's opener does."""
        url = urlsplit(request.full_url)
        if url.hostname not in {str(node.address) for node in self.cluster.nodes} | self.outside:
            raise urllib.error.URLError(TimeoutError(110, "Connection timed out"))
        body, headers = self._answer(url.port, url.path, request)
        if isinstance(body, int):
            raise urllib.error.HTTPError(request.full_url, body, "", Message(), io.BytesIO(b"{}"))
        answer = SimpleNamespace(read=lambda: json.dumps(body).encode(), headers=headers)
        return nullcontext(answer)

    def _answer(self, port: int | None, path: str, request: Any) -> tuple[Any, dict[str, str]]:
        unit, host = APIS[port or 0], urlsplit(request.full_url).hostname
        if port in self.silent:
            raise urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))
        if not self.remote_control_plane and host not in self.outside:
            if self.units.get(unit, Unit()).state != "active":
                raise urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))
            if not self.works(unit):
                return 500, {}
        if path == "/v3":
            return {"version": {}}, {}
        if path == "/v3/auth/tokens":
            body = self.keystone.answer_login(json.loads(request.data))
            if body is None:
                return 401, {}
            body["token"]["issued_at"] = f"{tell_time(self.clock)}Z"
            return body, {"X-Subject-Token": "token"}
        assert request.get_header("X-auth-token") == "token"
        if path == "/v2.1/os-services":
            return turn_page(request.full_url, "services", self.list_services()), {}
        if path == "/v2.1/os-hypervisors/detail":
            return turn_page(request.full_url, "hypervisors", self.list_hypervisors()), {}
        if path == "/v2/schemas/image":
            return {"name": "image", "properties": {}}, {}
        if path.startswith("/v2.0/"):
            lists = {"agents": self.list_agents, "networks": list, "ports": lambda: self.ports}
            key = path.removeprefix("/v2.0/")
            return {key: select(lists[key](), urlsplit(request.full_url).query)}, {}
        kind, uuid = path.rsplit("/", 1)
        assert kind == "/v2.1/os-hypervisors"
        found = next((item for item in self.list_hypervisors() if item["id"] == uuid), None)
        return ({"hypervisor": found}, {}) if found else (404, {})

    def list_services(self) -> list[dict[str, Any]]:
        found = []
        for name in ("nova-conductor", "nova-scheduler", "nova-compute"):
            if self.works(f"{name}.service"):
                if self.clock >= self.units[f"{name}.service"].since + FIRST_REPORT:
                    self.reports[name] = self.clock
                forced = name == "nova-compute" and self.node_name in self.forced_down
                row = {"id": f"{name} of {self.node_name}", "binary": name, "host": self.node_name}
                row |= {"state": "down" if forced else "up", "forced_down": forced}
                found.append({**row, "updated_at": tell_time(self.reports.get(name))})
        now = tell_time(self.clock)
        others = [
            {
                "id": f"id-of-{host}",
                "binary": "nova-compute",
                "host": host,
                "state": state,
                "updated_at": now,
                "forced_down": host in self.forced_down,
            }
            for host, state in self.compute_services.items()
            if host not in [item["host"] for item in found if item["binary"] == "nova-compute"]
        ]
        return found + others

    # OVN and Neutron's agents

    def find_southbounds(self) -> set[str]:
        """Where OVN's southbound database answers, for whoever would be a chassis."""
        address, up = self.node["address"], self.units.get(self.ovn[6642].unit, Unit()).state == "active"
        return self.southbounds | ({f"tcp:{address}:6642"} if up and self.ovn[6642].listens(address, 6642) else set())

    def is_connected(self) -> bool:
        """Whether ovn-controller is, to the database that Open vSwitch's database names."""
        unit = self.units.get("ovn-controller.service", Unit())
        there = self.switch.external_ids.get("ovn-remote") in self.find_southbounds()
        return unit.state == "active" and there and self.clock >= unit.since + CONNECTS

    def list_agents(self) -> list[dict[str, Any]]:
        """As Neutron has them of OVN: once a chassis is there it stays, dead or alive."""
        return self.list_own_agents() + self.agents

    def list_own_agents(self) -> list[dict[str, Any]]:
        connected = self.is_connected() and self.switch.is_chassis()
        for kind, name in AGENT_UNITS.items():
            unit = self.units.get(name, Unit())
            told = re.findall(r'^ovn_sb_connection = "?([^"\n]+)', "\n".join(unit.read.values()), re.M)
            reaches = connected and set(told) <= self.find_southbounds()
            if reaches and unit.state == "active" and self.clock >= unit.since + FIRST_SIGN:
                self.signs[kind] = self.clock
        return [
            describe_agent(self.switch.external_ids["hostname"], kind, self.clock - sign < AGENT_DOWN_TIME)
            for kind, sign in self.signs.items()
        ]

    def register_chassis(self, host: str, alive: bool = True) -> None:
        """What a compute's agents do when they start."""
        self.agents += [describe_agent(host, kind, alive) for kind in AGENT_UNITS]

    def list_hypervisors(self) -> list[dict[str, Any]]:
        hosts = {row["host"] for row in self.server.rows("nova_api", "host_mappings")}
        rows = [row for schema in self.cell_schemas() for row in self.server.rows(schema, "compute_nodes")]
        return [self._view_hypervisor(row) for row in rows if row["host"] in hosts]

    def _view_hypervisor(self, row: dict[str, Any]) -> dict[str, Any]:
        """As microversion 2.53 shows it."""
        host, forced = row["host"], row["host"] in self.forced_down
        disabled = self.disabled.get(host)
        return {
            "id": row["uuid"],
            "state": "down" if forced else self.compute_services.get(host, "up"),
            "status": "enabled" if disabled is None else "disabled",
            "service": {"host": host, "disabled_reason": disabled},
        }

    def cell_schemas(self) -> list[str]:
        """The schemas that are a cell's, cell0's left out."""
        return [name for name in self.server.schemas if name == "nova" or re.match(r"nova_(?!api$|cell0$)", name)]

    def register_compute(
        self, host: str, uuid: str = "11111111-2222-3333-4444-555555555555", schema: str = "nova"
    ) -> None:
        """What nova-compute does when it starts: a service, and a compute node that no cell mapping knows."""
        self.compute_services[host] = "up"
        self.server.rows(schema, "compute_nodes").append({"host": host, "uuid": uuid, "mapped": 0, "deleted": 0})

    def map_host(self, host: str) -> None:
        self.server.rows("nova_api", "host_mappings").append({"host": host})
        for schema in self.cell_schemas():
            for row in self.server.rows(schema, "compute_nodes"):
                row["mapped"] = row["mapped"] or int(row["host"] == host)

    def make_control_plane(self) -> None:
        """A controller elsewhere that is ready, for a compute."""
        self.remote_control_plane = True
        self.server.schemas = {"nova": {}, "nova_api": {}}
        self.broker["vhosts"] = ["nova"]
        self.broker["places"] = [["compute_cell1", "nova"]]
        password = self.secrets["messaging_compute_cell1"]
        self.broker["users"]["compute_cell1"] = hash_rabbitmq_password(password, b"salt")
        url = "http://192.168.56.11:5000/v3"
        self.keystone.bootstrap("x", "RegionOne", dict.fromkeys(("public", "internal", "admin"), url))
        self.keystone.add_user("nova_compute", self.secrets["identity_nova_compute"])
        self.keystone.users["nova_compute"]["roles"] = {("service", "service")}
        compute = self.keystone.add_service("nova", "compute")
        self.keystone.add_endpoint(compute.id, "public", "http://192.168.56.11:8774/v2.1", "RegionOne")
        for name, kind, port in (("glance", "image", 9292), ("neutron", "network", 9696)):
            service = self.keystone.add_service(name, kind)
            self.keystone.add_endpoint(service.id, "public", f"http://192.168.56.11:{port}", "RegionOne")
        self.southbounds.add("tcp:192.168.56.11:6642")

    def answer_as_nova(self, mapped_after: float = 20.0) -> None:
        """nova-compute registers when its unit is up; a controller maps the host a while later."""

        def look() -> None:
            if self.works("nova-compute.service"):
                uuid = self.at("/var/lib/nova/compute_id").read_text().strip()
                self.register_compute(self.node_name, uuid)
                self.later(mapped_after, lambda: self.map_host(self.node_name))
            else:
                self.later(1, look)

        self.later(1, look)

    def state(self) -> Any:
        """What a run leaves behind, to be compared: schemas, users, Keystone, the broker."""
        schemas = {
            name: {table: rows for table, rows in tables.items() if table not in ("lease", "done") and rows}
            for name, tables in self.server.schemas.items()
        }
        users = [(*name, u["password"], sorted(u["rights"])) for name, u in sorted(self.server.users.items())]
        return json.loads(json.dumps([schemas, users, self.keystone.state(), self.broker]))

    # patching

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        agent = self.agent
        for module in agent.values():
            for name, value in list(vars(module).items()):
                if not name.startswith("__") and name != "HERE" and (rebased := self._rebase(value)) is not value:
                    monkeypatch.setattr(module, name, rebased)
        clock = SimpleNamespace(monotonic=lambda: self.clock, sleep=self.sleep)
        accounts = SimpleNamespace(getpwnam=self._account, getpwuid=lambda _: SimpleNamespace(pw_name="tester"))
        groups = SimpleNamespace(
            getgrnam=lambda _: SimpleNamespace(gr_gid=self.root.stat().st_gid),
            getgrgid=lambda _: SimpleNamespace(gr_name="testers"),
        )
        uname = SimpleNamespace(uname=lambda: SimpleNamespace(nodename=self.node_name))
        thread = SimpleNamespace(start=lambda: None, is_alive=lambda: True)
        for module, name, value in (
            (agent["status"], "time", clock),
            (agent["lease"], "time", clock),
            (agent["system"], "time", clock),
            (agent["health"], "time", clock),
            (agent["health"], "os", SimpleNamespace(statvfs=lambda place: self.disks.get(place, ROOMY))),
            (agent["clock"], "time", SimpleNamespace(time=lambda: self.clock + self.clock_ahead)),
            (agent["lease"], "threading", SimpleNamespace(Thread=lambda **_: thread, Lock=lambda: nullcontext())),
            (agent["system"], "pwd", accounts),
            (agent["files"], "pwd", accounts),
            (agent["files"], "grp", groups),
            (agent["metadata"], "pwd", accounts),
            (agent["metadata"], "grp", groups),
            (agent["machine"], "os", uname),
            (agent["cli"], "os", uname),
            (
                agent["system"],
                "subprocess",
                SimpleNamespace(run=self.commands.run, DEVNULL=None, TimeoutExpired=TimeoutExpired),
            ),
            (agent["system"], "socket", SimpleNamespace(create_connection=self.connect_port)),
            (agent["system"].os, "getgrouplist", lambda *_: []),
            # Of a node's many words none needs to outlive this machine's power.
            (agent["files"].os, "fsync", lambda _: None),
            (agent["status"], "Outlet", self._make_outlet),
            (agent["api"], "OPENER", self),
            (pymysql, "connect", self.server.connect),
            (openstack, "keystone", self.keystone),
            (amqp, "broker", self),
            (nova, "before_create", None),
            (agent["retry"], "listen", lambda: None),
        ):
            monkeypatch.setattr(module, name, value)

    def _rebase(self, value: Any) -> Any:
        """Absolute paths, and what holds them, below the node's root."""
        if isinstance(value, dict):
            changed = {key: self._rebase(item) for key, item in value.items()}
            return changed if changed != value else value
        if isinstance(value, tuple):
            rebased = tuple(self._rebase(item) for item in value)
            return rebased if rebased != value else value
        return self.at(str(value)) if isinstance(value, Path) and value.is_absolute() else value

    def _account(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            pw_name=name,
            pw_uid=self.root.stat().st_uid,
            pw_gid=self.root.stat().st_gid,
            pw_dir=HOMES.get(name, "/root"),
        )

    def _make_outlet(self, path: Path) -> Any:
        def send(line: str) -> None:
            assert line.endswith("\n")
            if path.name == "console":
                self.console.append(line)
            else:
                self.documents.append(json.loads(line))

        return SimpleNamespace(send=send, flush=lambda: True, drain=lambda sleep: None)

    def _install_packages(self) -> None:
        for declared in declarations().values():
            for schema in declared.get("schemas", ()):
                self.install_revisions(schema["revisions"], REVISIONS.get(schema["name"], {}))
        self.put("/usr/lib/python3/dist-packages/nova/objects/service.py", SERVICE_VERSIONS)

    def install_revisions(self, place: str, revisions: dict[str, str | None]) -> None:
        """A schema's alembic scripts, below dist-packages."""
        for revision, before in revisions.items():
            text = f"revision = {revision!r}\ndown_revision = {before!r}\n"
            text += f"depends_on = {DEPENDS_ON.get(revision)!r}\n"
            self.put(f"/usr/lib/python3/dist-packages/{place}/{revision}_x.py", text)


def make_secrets(**changed: str) -> Secrets:
    """Secrets of which each is recognisable, and as nasty as a password may be."""
    values = {name: f"s3cret-{name}" for name in secret_kinds()}
    values |= {
        "database_nova": "p@ss/w:r%d\"$#{}'x",
        "messaging_openstack": "br%2Foker $1 @:/",
        "messaging_cookie": "ABCDEF",
        "seed_key": "a" * 64,
    }
    return Secrets(values | changed)


def heads_of(kind: str) -> list[str]:
    """The heads of a kind of schema."""
    revisions = REVISIONS[kind]
    needed = {DEPENDS_ON[revision] for revision in revisions if revision in DEPENDS_ON}
    return [revision for revision in revisions if revision not in {*revisions.values(), *needed}]


def describe_agent(host: str, kind: str, alive: bool) -> dict[str, Any]:
    """One of Neutron's agents, as far as anybody here asks."""
    return {"id": f"{kind} of {host}", "agent_type": kind, "host": host, "alive": alive, "admin_state_up": True}


def select(rows: list[dict[str, Any]], query: str) -> list[dict[str, Any]]:
    """The rows and the fields that a query of Neutron's API asks for."""
    wanted = parse_qs(query)
    fields, limit = wanted.pop("fields", []), int(wanted.pop("limit", ["1000"])[0])
    found = [row for row in rows if all(str(row[key]) in values for key, values in wanted.items())]
    return [{key: row[key] for key in fields or row} for row in found[:limit]]


def turn_page(url: str, key: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The page of a list that the URL asks for, with a link to the next as Nova gives it, at another address."""
    query = parse_qs(urlsplit(url).query)
    ids = [str(row["id"]) for row in rows]
    assert len(set(ids)) == len(ids), ids
    start = ids.index(query["marker"][0]) + 1 if "marker" in query else 0
    page: dict[str, Any] = {key: rows[start : start + PAGE]}
    if len(rows) > start + PAGE:
        link = f"http://balancer.invalid{urlsplit(url).path}?limit={PAGE}&marker={quote(ids[start + PAGE - 1])}"
        page[f"{key}_links"] = [{"rel": "next", "href": link}]
    return page


def tell_time(seconds: float | None) -> str | None:
    """Seconds since 1970 as Nova's and Keystone's APIs write them."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.%f}"
