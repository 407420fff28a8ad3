"""A whole cluster in memory: several nodes, each with an agent of its own in a thread, of which one runs at a time.

Whoever drives says which agent goes on, when the clock does, and what fails. An agent gives up the control where it
sleeps, around every command, every change of the database and every file that it writes.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes import amqp
from fakes.commands import Commands, Crash
from fakes.keystone import Keystone
from fakes.mariadb import Server
from fakes.nova_manage import HALF_MADE
from fakes.world import World, heads_of, import_agent, make_secrets
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets

TICK = 1.0  # seconds of the clock between two looks at units and registrations
HEARTBEAT = 15.0
RESTART = 5.0  # seconds until systemd starts an agent that died
# By one controller at a time.
SHARED = (
    *("nova-manage", "placement-manage", "glance-manage", "neutron-db-manage"),
    *("cell_mappings.py", "identity_objects.py"),
)
SLOW = (*SHARED, "keystone-manage", "nova-status")
COMMAND_SECONDS = 6.0
SYNCS = {
    "nova-manage api_db sync": "nova_api",
    "nova-manage db sync": "nova",
    "glance-manage db sync": "glance",
    "neutron-db-manage": "neutron",
}
GIVE_UP = 20.0  # real seconds until a thread that does not answer is a defect of the test


def copy_agent() -> dict[str, ModuleType]:
    """The agent's modules once more, with globals of their own: one set a node."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "imagegen_node"}
    for name in kept:
        del sys.modules[name]
    try:
        return import_agent()
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "imagegen_node"]:
            del sys.modules[name]
        sys.modules.update(kept)


class Broken(AssertionError):
    """What must never happen happened."""


class SlowCommands(Commands):
    """Commands that take their time, in which others run, and around which the machine may die."""

    world: SiteNode

    def __init__(self, world: SiteNode) -> None:
        super().__init__(world)
        self.begun: list[str] = []  # those that take their time

    def run(self, argv: list[str], **options: Any) -> Any:
        self.world.reach(f"before {argv[0]}")
        program = Path(argv[-1] if argv[-1].endswith(".py") else argv[0]).name
        if program in SHARED:
            self._check_lease(program)
        if program in SLOW:
            self.begun.append(" ".join(Path(word).name for word in argv))
            try:
                self.world.sleep(COMMAND_SECONDS)
            except Crash:
                self._leave_half(argv)
                raise
        if argv[0] == "systemctl":
            self._check_start(argv)
        done = super().run(argv, **options)
        self.world.reach(f"after {argv[0]}")
        return done

    def _leave_half(self, argv: list[str]) -> None:
        """What a first sync leaves that dies with its node: a table, and no version."""
        schemas = self.world.server.schemas
        for command, schema in SYNCS.items():
            if command in " ".join(argv) and schema in schemas and not schemas[schema].get("alembic_version"):
                schemas[schema][HALF_MADE] = []

    def _check_lease(self, program: str) -> None:
        """Raises Crash, and keeps the reason, when a controller that does not hold the lease begins shared work."""
        site, name = self.world.site, self.world.node_name
        rows = site.server.schemas.get("imagegen", {}).get("lease", [])
        if [row["holder"] for row in rows if row["expires"] >= site.clock] != [name]:
            site.faults.append(Broken(f"{name} runs {program} without the lease: {rows}"))
            raise Crash

    def _check_start(self, argv: list[str]) -> None:
        """Raises Crash, and keeps the reason, when services of a controller start before schema-ready."""
        own = {word.partition("-")[0] for word in argv if word.startswith(("glance-", "neutron-")) and "ovn" not in word}
        for schema in own if argv[1] in ("start", "restart") else ():
            if not self.world.site.is_at_head(schema, schema):
                self.world.site.faults.append(Broken(f"{self.world.node_name} starts {argv} before schema {schema}"))
                raise Crash
        started = [word for word in argv if word.startswith(("nova-", "placement-")) and "compute" not in word]
        if argv[1] in ("start", "restart") and started and (missing := self.world.site.find_missing(self.world)):
            name = self.world.node_name
            self.world.site.faults.append(Broken(f"{name} starts {started[0]} before schema-ready: {missing}"))
            raise Crash


class SiteNode(World):
    """One node of the site. What all share is the site's."""

    def __init__(self, site: Site, root: Path, monkeypatch: pytest.MonkeyPatch, agent: dict[str, ModuleType]) -> None:
        self.site = site
        self.thread: threading.Thread | None = None
        self.go = threading.Semaphore(0)
        self.wake_at = 0.0
        self.crash_in: int | None = None  # so many points later the machine dies
        self.dying = False  # the next resume ends the agent's thread
        self.running: Any = None  # the agent's role object
        self.powered = False
        super().__init__(root, monkeypatch, site.path, agent)
        self.commands = SlowCommands(self)
        write = agent["files"].write_atomically

        def write_atomically(path: Path, *more: Any) -> None:
            self.reach(f"before {path.name}")
            write(path, *more)
            self.reach(f"after {path.name}")

        monkeypatch.setattr(agent["files"], "write_atomically", write_atomically)
        monkeypatch.setattr(agent["system"].subprocess, "run", self.commands.run)

    # what belongs to the site; World's own constructor may set them in vain

    clock = property(lambda self: self.site.clock, lambda self, value: None)
    server = property(lambda self: self.site.server, lambda self, value: None)
    keystone = property(lambda self: self.site.keystone, lambda self, value: None)
    broker = property(lambda self: self.site.broker, lambda self, value: None)
    cluster = property(lambda self: self.site.cluster, lambda self, value: None)
    secrets = property(lambda self: self.site.secrets, lambda self, value: None)

    # the agent's thread

    def start_agent(self) -> None:
        """A fresh agent, which runs when the site lets it."""
        self.crash_in = None
        self.wake_at = self.clock
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        self.go.acquire()
        try:
            if self.dying:
                raise Crash
            role = self.facts["role"]
            self.running = self.controller() if role == "controller" else self.compute()
            self.running.run()
        except Crash:
            pass
        except BaseException as error:
            self.site.faults.append(error)
        self.thread = None
        self.site.back.release()

    def resume(self) -> None:
        """Lets the agent go on until it gives up the control again."""
        self.site.current = self
        self.go.release()
        if not self.site.back.acquire(timeout=GIVE_UP):
            raise Broken(f"the agent of {self.node_name} does not come back")

    def sleep(self, seconds: float) -> bool:
        self.wake_at = self.clock + seconds
        self.site.back.release()
        self.go.acquire()
        if self.dying:
            raise Crash
        return False

    def reach(self, what: str) -> None:
        """A point at which the machine may die, and others may come first."""
        if threading.current_thread() is not self.thread:
            return
        self.site.points.add(what)
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                self.cut_power()
                raise Crash
        if self.site.random.random() < 0.2:
            self.sleep(0)

    def kill_agent(self) -> None:
        """SIGKILL: the thread ends at the point where it is, systemd starts another."""
        if self.thread is not None:
            self.dying = True
            self.resume()
            self.dying = False
        self.running = None

    def cut_power(self) -> None:
        """Every process is gone and /run is empty; the disk is as it was."""
        self.powered = False
        self.units.clear()
        self.running = None
        for path in (*self.at("/run/imagegen").rglob("*"), *self.at("/run/libvirt").glob("*")):
            if path.is_file():
                path.unlink()
        self.site.refresh()

    # units

    def activate(self, name: str) -> None:
        super().activate(name)
        if name == "libvirtd.service":
            self.put("/run/libvirt/libvirt-sock", "")
        self.site.refresh()

    def tick(self) -> None:
        """What happens by itself: units come up, nova-compute registers through a conductor of its cell."""
        for name, unit in self.units.items():
            if unit.state in ("activating", "restarting"):
                self.activate(name)
        if self.facts["role"] == "compute" and self.works("nova-compute.service") and self.site.conducts(self):
            schema = self.site.schema_of(self.facts["cell"])
            rows = self.server.rows(schema, "compute_nodes")
            if self.node_name not in [row["host"] for row in rows]:
                uuid = self.at("/var/lib/nova/compute_id").read_text().strip()
                self.register_compute(self.node_name, uuid, schema)

    # the others

    def connect_port(self, address: tuple[str, int], timeout: float) -> Any:
        node = self if address[0] == "127.0.0.1" else self.site.node_at(address[0])
        return World.connect_port(node, address, timeout)

    def open(self, request: Any, timeout: float) -> Any:
        return World.open(self.site.node_at(urlsplit(request.full_url).hostname or ""), request, timeout)

    def find_southbounds(self) -> set[str]:
        return set().union(*(World.find_southbounds(node) for node in self.site.nodes.values()))

    def list_agents(self) -> list[dict[str, Any]]:
        return [agent for node in self.site.nodes.values() for agent in node.list_own_agents()]

    def list_services(self) -> list[dict[str, str]]:
        found = []
        for node in self.site.nodes.values():
            node.compute_services.clear()
            found += World.list_services(node)
        return found


class Site:
    """The cluster, its clock and its faults."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, path: Path, seed: int) -> None:
        self.path = path
        self.cluster = load_cluster(path)
        self.secrets: Secrets = make_secrets()
        self.clock = 1000.0
        self.random = random.Random(seed)
        self.server = Server(lambda: self.clock)
        self.keystone = Keystone()
        self.broker: dict[str, Any] = {"users": {}, "vhosts": [], "places": []}
        self.away: dict[str, float] = {}  # backing service -> until when nobody reaches it
        self.back = threading.Semaphore(0)
        self.faults: list[BaseException] = []
        self.points: set[str] = set()
        self.lost: set[str] = set()  # nodes that never come back
        self.starts: dict[str, float] = {}  # node -> when its agent starts
        self.current: SiteNode | None = None
        self._beat = self.clock + HEARTBEAT
        self.nodes = {
            node.name: SiteNode(self, root / node.name, monkeypatch, copy)
            for node, copy in zip(self.cluster.nodes, agent_copies(len(self.cluster.nodes)), strict=True)
        }
        for name, node in self.nodes.items():
            node.make_node(name)
        monkeypatch.setattr(amqp, "broker", self)
        self.server.before_connect = self._refuse_the_dead
        self.server.before_change = self._reach_change

    def _refuse_the_dead(self) -> None:
        """Raises Crash: what Python still runs of an agent that dies (finally) never reaches the database."""
        node = self.current
        if node and node.thread is threading.current_thread() and (node.dying or not node.powered):
            raise Crash
        if node:
            self.server.client = str(self.cluster.node(node.node_name).address)

    def _reach_change(self) -> None:
        if self.current is not None:
            self.current.reach("before a change of the database")

    # who is where

    def node_at(self, address: str) -> SiteNode:
        return next(self.nodes[node.name] for node in self.cluster.nodes if str(node.address) == address)

    def host_of(self, service: str) -> SiteNode:
        return self.nodes[getattr(self.cluster.services, service).node]

    def schema_of(self, cell: str) -> str:
        return "nova" if cell == self.cluster.cells[0] else f"nova_{cell}"

    def is_away(self, service: str) -> bool:
        return self.clock < self.away.get(service, 0.0)

    def refresh(self) -> None:
        """Whether the database can be reached now."""
        unit = self.host_of("database").units.get("mariadb.service")
        self.server.up = unit is not None and unit.state == "active" and not self.is_away("database")

    def conducts(self, compute: SiteNode) -> bool:
        """Whether some conductor of this compute's cell works."""
        cell = compute.facts["cell"]
        return any(
            node.works("nova-conductor.service" if node.facts["cell"] == cell else f"nova-conductor@{cell}.service")
            for node in self.nodes.values()
        )

    # what amqp asks of its broker

    def log_in(self, where: str, user: str, password: str, vhost: str) -> None:
        if self.is_away("messaging"):
            raise ConnectionRefusedError(111, "Connection refused")
        self.host_of("messaging").log_in(where, user, password, vhost)

    def count_consumers(self, vhost: str, queue: str) -> int:
        return self.nodes[queue.partition(".")[2]].count_consumers(vhost, queue)

    # the state, as the truth knows it

    def find_missing(self, node: SiteNode) -> str:
        """What is missing to schema-ready in the eyes of that node's seed; empty: nothing."""
        kinds = {"placement": "placement", "nova_api": "nova_api", "nova_cell0": "nova"}
        kinds |= {self.schema_of(cell): "nova" for cell in self.cluster.cells}
        for schema, kind in kinds.items():
            if not self.is_at_head(schema, kind):
                return f"schema {schema}"
        rows = self.server.rows("nova_api", "cell_mappings")
        missing = [cell["name"] for cell in node.node["cells"] if cell not in rows]
        return f"rows of {missing}" if missing else ""

    def is_at_head(self, schema: str, kind: str) -> bool:
        rows = self.server.schemas.get(schema, {}).get("alembic_version", [])
        return sorted(row["version_num"] for row in rows) == sorted(heads_of(kind))

    def check(self) -> None:
        """Raises Broken for what must never be."""
        if self.faults:
            raise self.faults[0]
        if "nova_api" in self.server.schemas:
            rows = self.server.rows("nova_api", "cell_mappings")
            names = [row["name"] for row in rows]
            if len(set(names)) != len(names):
                raise Broken(f"two rows for one cell: {rows}")
        for node in self.nodes.values():
            if node.facts["role"] == "compute":
                self._check_compute(node)

    def _check_compute(self, node: SiteNode) -> None:
        words = [self.secrets["database_nova"], self.secrets["database_imagegen"], self.secrets["database_placement"]]
        for path in (*node.at("/etc").rglob("*"), *node.at("/run").rglob("*"), *node.at("/var/lib/nova").rglob("*")):
            if path.is_file() and any(word in path.read_text() for word in words):
                raise Broken(f"{node.node_name} has a password of the database in {path}")

    def ready(self) -> dict[str, str]:
        """The nodes that are not ready, with what they say; those that are lost for good left out."""
        states = {}
        for name, node in self.nodes.items():
            if name in self.lost:
                continue
            last = node.documents[-1] if node.documents else {"state": "off", "step": "", "detail": ""}
            if last["state"] != "ready" or not node.powered:
                states[name] = "{state} {step}: {detail}".format(**last)
        return states

    # driving

    def power_on(self, name: str) -> None:
        node = self.nodes[name]
        if not node.powered and name not in self.lost:
            node.powered = True
            node.documents.clear()
            self.starts[name] = self.clock

    def power_off(self, name: str) -> None:
        node = self.nodes[name]
        node.kill_agent()
        node.cut_power()
        self.starts.pop(name, None)

    def kill_agent(self, name: str) -> None:
        node = self.nodes[name]
        if node.powered and node.thread is not None:
            node.kill_agent()
            self.starts[name] = self.clock + RESTART

    def run(self, seconds: float) -> None:
        """Lets so much time pass."""
        end = self.clock + seconds
        while True:
            for name, begin in list(self.starts.items()):
                if begin <= self.clock:
                    del self.starts[name]
                    self.nodes[name].start_agent()
            alive = [node for node in self.nodes.values() if node.thread is not None]
            due = [node for node in alive if node.wake_at <= self.clock]
            if due:
                node = self.random.choice(due)
                node.resume()
                self.check()
                continue
            if self.clock >= end:
                return
            times = [node.wake_at for node in alive] + list(self.starts.values()) + [self.clock + TICK, end]
            self.clock = min(time for time in times if time > self.clock)
            self._pass_time()

    def _pass_time(self) -> None:
        self.refresh()
        for node in self.nodes.values():
            if node.powered:
                node.tick()
        if self.clock >= self._beat:
            self._beat = self.clock + HEARTBEAT
            for node in self.nodes.values():
                lease = getattr(node.running, "lease", None)
                if lease is not None and node.thread is not None and lease.held:
                    try:
                        lease._renew(only_held=True)
                    except Exception:
                        continue

    def close(self) -> None:
        """Ends every thread."""
        for name in self.nodes:
            self.power_off(name)


COPIES: list[dict[str, ModuleType]] = []


def agent_copies(count: int) -> list[dict[str, ModuleType]]:
    """So many copies of the agent's modules; they are made once a process."""
    while len(COPIES) < count:
        COPIES.append(copy_agent())
    return COPIES[:count]


@contextmanager
def make_site(root: Path, path: Path, seed: int) -> Iterator[Site]:
    """A site whose nodes are off; ended whatever happens."""
    with pytest.MonkeyPatch.context() as patch:
        site = Site(root, patch, path, seed)
        try:
            yield site
        finally:
            site.close()
