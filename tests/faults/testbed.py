"""A cluster in containers whose nodes are killed, changed and started again at any time, and what is asked of it."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from imagegen.base.commands import run
from imagegen.base.errors import CommandFailed
from imagegen.base.machine import MIB
from imagegen.base.tree import write_tree
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets
from imagegen.local.guest import DISK, make_guest
from imagegen.local.nspawn import SEED, Nspawn, NspawnMachine
from imagegen.local.request import find_image
from imagegen.local.verify import verify_cluster
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import Role, find_role, roles
from imagegen.model.secret_keys import secret_kinds
from imagegen.seeds.seed import seed_tree

T = TypeVar("T")

CHECKOUT = Path(__file__).parents[2]
OUT = CHECKOUT / "out"
WORK = OUT / "faults"
POLL = 0.5  # seconds
COMMAND_SECONDS = 120.0
READY_SECONDS = 900.0  # after the last fault; a step that failed is tried again every 30 seconds
CHECK_SECONDS = 300.0  # until the cluster is right from outside: a service that reports late, an expired token
GUEST_SECONDS = 180.0  # for each thing that a guest is to do
WRITE_SECONDS = 120.0  # until Nova takes a write again, once all nodes are ready
VAR_MIB = 1536
FILLER = "filler"
UNITS = {
    "database": "mariadb.service",
    "messaging": "rabbitmq-server.service",
    "identity": "keystone.service",
    "southbound": "ovn-ovsdb-server-sb.service",
}

# Each row is something that must be there once and is there more often.
DOUBLED = """\
SELECT 'cell mapping', name, COUNT(*) AS n FROM nova_api.cell_mappings GROUP BY name HAVING n > 1
UNION SELECT 'host mapping', host, COUNT(*) AS n FROM nova_api.host_mappings GROUP BY host HAVING n > 1
UNION SELECT 'resource provider', name, COUNT(*) AS n FROM placement.resource_providers GROUP BY name HAVING n > 1
UNION SELECT 'user', name, COUNT(*) AS n FROM keystone.local_user GROUP BY name HAVING n > 1
UNION SELECT 'service', type, COUNT(*) AS n FROM keystone.service GROUP BY type HAVING n > 1
UNION SELECT 'endpoint', service_id, COUNT(*) AS n FROM keystone.endpoint GROUP BY service_id, interface HAVING n > 1
"""
DOUBLED_IN_CELL = """\
UNION SELECT 'compute node', host, COUNT(*) AS n FROM {0}.compute_nodes WHERE deleted = 0 GROUP BY host HAVING n > 1
UNION SELECT `binary`, host, COUNT(*) AS n FROM {0}.services WHERE deleted = 0 GROUP BY `binary`, host HAVING n > 1
"""


class Broken(Exception):
    """The cluster is not what it must be after a fault."""


@dataclass
class Event:
    """What is done so many seconds after the start; it returns what it did, None: not yet, try again."""

    seconds: float
    do: Callable[[], str | None]
    faults: int = 0
    starts: tuple[str, ...] = ()  # nodes that nobody else starts


def make_secrets(dice: random.Random) -> Secrets:
    """Secrets of the form that `imagegen init` makes, the same for the same dice."""
    values = {key: f"{dice.getrandbits(96):024x}" for key in secret_kinds()}
    values["messaging_cookie"] = values["messaging_cookie"].upper()
    for key in ("keystone_fernet_key", "keystone_credential_key"):
        values[key] = base64.urlsafe_b64encode(dice.randbytes(32)).decode()
    return Secrets(values)


def write_cluster(place: Path, controllers: int, computes: int, cells: Sequence[str] = ("cell1",)) -> Cluster:
    """A cluster of so many nodes, ctl-1 and so on; the last compute belongs to the last cell."""
    network = "network: {cidr: 10.44.0.0/24, gateway: 10.44.0.1}"  # the gateway is where the tests ask from
    lines = ["name: faults", network, f"cells: [{', '.join(cells)}]", "resume_guests: true", "nodes:"]
    for role, prefix, count, low in (
        (find_role("controller"), "ctl", controllers, 10),
        (find_role("compute"), "cpt", computes, 20),
    ):
        for number in range(1, count + 1):
            cell = cells[-1] if role.runs("nova-compute") and number == count else cells[0]
            last = low + number
            place_of = f'mac: "52:54:00:44:00:{last:02d}", address: 10.44.0.{last}, cell: {cell}'
            lines.append(f"  - {{name: {prefix}-{number}, role: {role}, {place_of}}}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("\n".join([*lines, ""]))
    return load_cluster(place)


def unpack_trees() -> dict[Role, Path]:
    """The OS tree of each role, unpacked once for all schedules that share an image."""
    trees = {}
    for role in roles():
        image = find_image(OUT, role, "nspawn")
        trees[role] = tree = WORK / "trees" / image.stem
        if not tree.is_dir():
            beside = tree.with_name(f".{tree.name}.new")
            run(["rm", "-rf", "--one-file-system", *tree.parent.glob(f"*{role}*")])
            beside.mkdir(parents=True)
            run(["tar", "-xpf", image, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", beside])
            beside.rename(tree)
    return trees


@dataclass
class Testbed:
    """The cluster and its machines. Leaving the context ends all."""

    cluster: Cluster
    secrets: Secrets
    trees: Mapping[Role, Path]
    machines: dict[str, NspawnMachine] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)  # names of flavors that Nova's API acknowledged
    guests: dict[str, str] = field(default_factory=dict)  # compute -> the id of the guest on it

    def __enter__(self) -> Self:
        self.network = Nspawn(self.cluster, WORK / "boot").__enter__()
        try:
            for node in self.cluster.nodes:
                self.machines[node.name] = self.network.add(node, self.trees[node.role], self.seed_of(node))
        except BaseException:
            self.network.close()
            raise
        self.begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.network.close()

    @property
    def seconds(self) -> float:
        """Since the nodes were made, or since pass_through() began."""
        return time.monotonic() - self.begun

    # the nodes

    @property
    def names(self) -> list[str]:
        return list(self.machines)

    @property
    def host(self) -> NspawnMachine:
        """The controller that hosts the backing services."""
        return self.machines["ctl-1"]

    def node(self, name: str) -> Node:
        return self.machines[name].node

    def seed_of(self, node: Node, secrets: Secrets | None = None) -> Any:
        return seed_tree(self.cluster, node, secrets or self.secrets)

    def start(self, *names: str) -> str:
        for name in names:
            self.machines[name].start()
        return f"{' and '.join(names)} started"

    def kill(self, name: str) -> str:
        said = f"{name} killed in {self.describe(name)}"
        self.machines[name].kill()
        return said

    def put_seed(self, name: str, secrets: Secrets | None = None) -> None:
        """Another seed for the next boot of a node."""
        place = self.machines[name].tree / SEED
        write_tree(self.seed_of(self.node(name), secrets), place, directory_mode=0o700)

    def ask(self, name: str, *argv: str, input: str | None = None) -> str:
        """The stdout of a command on a node; Broken when it fails."""
        done = self.machines[name].execute(argv, input.encode() if input else None, COMMAND_SECONDS)
        if done.returncode:
            raise Broken(f"{name}: {' '.join(argv)[:200]} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
        return done.stdout.decode()

    def status(self, name: str) -> dict[str, Any]:
        return self.machines[name].status() or {}

    def describe(self, name: str) -> str:
        """Where a node is, in words."""
        document = self.status(name)
        if not document:
            return "its boot"
        return "ready" if document["state"] == "ready" else f"{document['step']} ({document['state']})"

    def in_network(self, argv: Sequence[str]) -> list[str]:
        """A command of this machine, with the cluster's network instead of this machine's."""
        return [*self.network.bridge.prefix, *argv]

    # waiting

    def wait(self, what: str, look: Callable[[], T], seconds: float) -> T:
        """The first answer of look() that is true; Broken, with where each node is, when there is none in time."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise Broken(f"after {seconds:.0f} s still waiting for {what}: {self.describe_all()}")
            time.sleep(POLL)
        return found

    def describe_all(self) -> str:
        said = []
        for name in self.names:
            detail = str(self.status(name).get("detail", ""))[:300]
            said.append(f"{name} in {self.describe(name)}{': ' if detail else ''}{detail}")
        return "; ".join(said)

    def ready(self, names: Iterable[str]) -> bool:
        return all(self.status(name).get("state") == "ready" and self.machines[name].alive() for name in names)

    def wait_ready(self, *names: str, seconds: float = READY_SECONDS) -> None:
        wanted = names or tuple(self.names)
        self.wait(f"{', '.join(wanted)} to be ready", lambda: self.ready(wanted), seconds)

    def pass_through(self, events: Iterable[Event]) -> list[str]:
        """Does each event at its time, then waits until all nodes are ready; what was done, with the seconds."""
        left, said = sorted(events, key=lambda event: event.seconds), []
        self.begun = time.monotonic()
        while left:
            for event in [event for event in left if event.seconds <= self.seconds]:
                if (done := event.do()) is not None:
                    left.remove(event)
                    said.append(f"{self.seconds:.0f} s: {done}")
                elif self.seconds > READY_SECONDS:
                    raise Broken(f"what was planned for {event.seconds:.0f} s could not be done: {self.describe_all()}")
            time.sleep(POLL / 5)
        self.wait_ready()
        return said

    # faults

    def stop_service(self, service: str) -> str:
        """Its daemon is killed and cannot start."""
        unit = UNITS[service]
        self.ask("ctl-1", "systemctl", "mask", "--runtime", unit)
        for verb in ("kill --signal=KILL", "stop"):
            self.host.execute(["systemctl", *verb.split(), unit])
        return f"{service} killed ({self.describe_all()})"

    def unstop_service(self, service: str) -> str:
        self.ask("ctl-1", "systemctl", "unmask", "--runtime", UNITS[service])
        self.ask("ctl-1", "systemctl", "start", "--no-block", UNITS[service])
        return f"{service} let start"

    def freeze_service(self, service: str) -> str | None:
        """Its connections stay open, and nothing answers. None: it does not run yet."""
        if self.host.execute(["systemctl", "is-active", "--quiet", UNITS[service]]).returncode:
            return None
        self.ask("ctl-1", "systemctl", "freeze", UNITS[service])
        return f"{service} frozen ({self.describe_all()})"

    def thaw_service(self, service: str) -> str:
        self.ask("ctl-1", "systemctl", "thaw", UNITS[service])
        return f"{service} thawed"

    def shrink(self, name: str, free: int, path: str = "var") -> None:
        """Puts a directory of a node that is down on a small file system with so many MiB free, beside a filler."""
        place, var = WORK / "boot" / name / "small.img", self.machines[name].tree / path
        beside = place.with_name("small")
        beside.mkdir()
        run(["truncate", f"--size={VAR_MIB}M", place])
        run(["mkfs.ext4", "-q", "-m", "0", place])
        run(["mount", "-o", "loop", place, beside])
        run(["cp", "-a", f"{var}/.", beside])
        run(["umount", beside])
        run(["mount", "-o", "loop", place, var])
        room = shutil.disk_usage(var).free // MIB - free
        run(["fallocate", f"--length={room}M", var / FILLER])

    def grow(self, name: str, path: str = "var") -> str:
        (self.machines[name].tree / path / FILLER).unlink()
        return f"room on /{path} of {name} ({self.describe_all()})"

    # guests

    def as_client(self, what: str, **more: object) -> Any:
        """What guests.py answers; Broken with what it says when it fails."""
        given = {
            "run": "faults",
            "auth_url": self.cluster.services.auth_url,
            "region": self.cluster.region,
            "user": "admin",
            "password": self.secrets["identity_admin"],
            "project": "admin",
            "domain": "Default",
            "timeout": GUEST_SECONDS,
            "hosts": [],
            **more,
        }
        argv = self.in_network([sys.executable, str(Path(__file__).parent / "guests.py"), what])
        done = run(argv, input=json.dumps(given).encode(), ok=range(-64, 256), timeout=10 * GUEST_SECONDS)
        if done.returncode:
            raise Broken(f"guests.py {what}: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return json.loads(done.stdout)

    def start_guests(self) -> None:
        """A guest on every compute, which reaches the next one for ever."""
        guest = make_guest(find_image(OUT, find_role("compute"), "nspawn"))
        hosts = [node.name for node in self.cluster.nodes if node.role.runs("nova-compute")]
        parts = {"kernel": guest.kernel, "ramdisk": guest.ramdisk, "disk": DISK}
        encoded = {name: base64.b64encode(data).decode() for name, data in parts.items()}
        self.guests = self.as_client("boot", hosts=hosts, **encoded)

    def hear(self, name: str) -> list[str]:
        """What the guest on that compute has said on its console, a line each."""
        place = self.machines[name].tree / "var/lib/nova/instances" / self.guests[name] / "console.log"
        text = place.read_text(errors="replace") if place.exists() else ""
        return [line.partition("IMAGEGEN ")[2].strip() for line in text.splitlines() if "IMAGEGEN " in line]

    def heard(self) -> bool:
        """Whether every guest hears its peer now."""
        return all((said := self.hear(name)) and said[-1].startswith(("heard", "done")) for name in self.guests)

    def reinstall(self, name: str, *kept: str) -> str:
        """A fresh tree from the image, over what the node had in the kept directories, which bear other owners."""
        machine, safe = self.machines[name], WORK / "boot/kept"
        said = self.kill(name)
        safe.mkdir()
        for path in kept:
            run(["cp", "-a", machine.tree / path, safe / Path(path).name])
        machine.unpack(self.seed_of(machine.node))
        for path in kept:
            run(["rm", "-rf", machine.tree / path])
            run(["cp", "-a", safe / Path(path).name, machine.tree / path])
            if machine.node.role.controls:
                run(["chown", "--recursive", "4242:4242", machine.tree / path])
        shutil.rmtree(safe)
        machine.start()
        return f"{said}; image put anew, {len(kept)} directories kept"

    # what must be so

    def check(self) -> None:
        """Raises Broken unless the cluster is right from outside, has nothing twice and lost no flavor."""
        deadline = time.monotonic() + CHECK_SECONDS
        while wrong := self.find_wrong():
            if time.monotonic() > deadline:
                raise Broken("; ".join(wrong))
            time.sleep(10 * POLL)

    def find_wrong(self) -> list[str]:
        try:
            nodes, host = self.cluster.nodes, self.host
            found = verify_cluster(self.cluster, self.secrets, nodes, host, COMMAND_SECONDS, host)
            return [*map(str, found), *self.find_doubled(), *self.find_lost()]
        except (Broken, CommandFailed) as error:
            return [str(error)]

    def find_doubled(self) -> list[str]:
        schemas = ["nova", *(f"nova_{cell}" for cell in self.cluster.cells[1:])]
        query = DOUBLED + "".join(DOUBLED_IN_CELL.format(schema) for schema in schemas)
        rows = self.ask("ctl-1", "mariadb", "--batch", "--skip-column-names", input=query)
        return [f"doubled: {' '.join(row.split(chr(9)))}" for row in rows.splitlines()]

    def find_lost(self) -> list[str]:
        query = "SELECT name FROM nova_api.flavors"
        there = self.ask("ctl-1", "mariadb", "--batch", "--skip-column-names", input=query).split()
        lost = sorted(set(self.kept) - set(there))
        return [f"lost: flavor {name}" for name in lost]

    def write_flavors(self) -> Writer:
        """Makes flavors until the context is left; those that were acknowledged are `kept`."""
        return Writer(self)


class Writer:
    """A client of Nova's API in the cluster's network: it has written when the context begins and at its end."""

    def __init__(self, site: Testbed) -> None:
        self.site = site
        self.log = WORK / "boot/acknowledged"

    def __enter__(self) -> Self:
        site = self.site
        given = {
            "auth_url": site.cluster.services.auth_url,
            "compute_url": f"http://{site.node('ctl-1').address}:8774/v2.1",
            "password": site.secrets["identity_admin"],
        }
        with self.log.open("wb") as output:
            program = [sys.executable, str(Path(__file__).parent / "writer.py")]
            self.process = subprocess.Popen(site.in_network(program), stdin=subprocess.PIPE, stdout=output)
        assert self.process.stdin
        self.process.stdin.write(json.dumps(given).encode())
        self.process.stdin.close()
        try:
            self.wait_for_more()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait_for_more()
        finally:
            self.close()

    def wait_for_more(self) -> None:
        """Until Nova has acknowledged one more."""
        there = self.log.stat().st_size
        self.site.wait("Nova to take a flavor", lambda: self.log.stat().st_size > there, WRITE_SECONDS)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.site.kept += self.log.read_text().split()
