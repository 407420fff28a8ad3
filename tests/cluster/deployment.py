"""The tier's cluster: its input files, its bring-up by imagegen's own commands, and its nodes, to be asked."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from canaries import CLUSTER_FILE, ENVIRONMENT_VARIABLES, KEY_COMMENT
from repository import ROOT

from imagegen.base.commands import run
from imagegen.base.lock import hold_lock
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets, load_secrets
from imagegen.local import nspawn
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import Role

T = TypeVar("T")

PROBES = Path(__file__).parent / "probes"

# In a fixed place, so that the next run ends and removes what a killed one left.
WORK = ROOT / "out/cluster-tier"

BUILD_MINUTES = 30
BOOT_MINUTES = 15
READY_SECONDS = 900  # for an agent that starts anew, beside other work

# Nothing as in the default cluster: names of services for nodes, a short prefix, a MAC in each notation.
CLUSTER = """\
name: polder
region: eu-west-9
network:
  cidr: 10.73.8.64/26
  gateway: 10.73.8.65
  dns: [10.73.8.65]
  ntp: [10.73.8.65]
flavors: [{{name: {canary}, vcpus: 1, ram: 64, disk: 0}}]
ssh_authorized_keys: ["{ssh_key}"]
status: {{url: "http://10.73.8.65:8099/status"}}
cells: [cell1, oost]
nodes:
  - {{name: rabbitmq, role: controller, mac: 52-54-00-A7-10-0A, address: 10.73.8.100}}
  - {{name: keystone, role: compute, mac: 5254.00a7.100b, address: 10.73.8.101}}
  - {{name: c-3, role: compute, mac: "525400A7100C", address: 10.73.8.126, cell: oost}}
"""

# What breaks the quoting of URLs, YAML, oslo.config, ConfigParser, str.format, SQL, JSON and shells; in words that no
# other cluster on this machine has, because processes are watched from outside.
PASSWORDS = {
    "database_nova": "p@ss/w:r%d\"$#{}\\''x of polder",
    "database_placement": "'both ends; # in quotes'",
    "database_keystone": "100%(host)s %25 & ${a} $b \\$c \\\\d",
    "database_imagegen": '"double; at # both ends"',
    "messaging_openstack": "#/?[]@!$&'()*+,;=:%2F\\$end\\",
    "identity_admin": "a  b`id`$(id)\\$HOME 'q' \"qq\"",
    "identity_nova": "; [DEFAULT] x = %(host)s {0} {host} $$ \\$$ |",
    "identity_placement": "$host ${my_ip} <&> \\n $",
    "identity_nova_compute": 'of polder\'s "computes" ${a} $b %(host)s; #\\',
    "database_glance": "glance's %(host)s @/:?#[] \\$x \\\\",
    "database_neutron": "neutron \"$a ${b} %41 '#",
    "identity_glance": "; [x] y = $z %(host)s glance",
    "identity_neutron": 'neutron\'s "own" ${a} %s; #\\',
    "messaging_neutron": "/#?%2f neutron@$ {host}",
    "neutron_metadata": 'shared $secret "of" %(both)s ; # polder',
    "messaging_compute_cell1": "%41/?#[computes]@:$ $$ of polder\\",  # the other cell's is derived
    "seed_key": '{{"seed": %s}} \\$ # key',
}


class BringUpFailed(Exception):
    """A command of imagegen did not do what it should; the text is what it said."""


@dataclass
class RunningNode:
    """One booted node. Commands run in it as root, until `timeout` seconds are over."""

    node: Node
    tree: Path
    login: str  # the command that `boot --keep` printed

    @property
    def name(self) -> str:
        return self.node.name

    def leader(self) -> int | None:
        """The host's pid of the container's init: process 1 of a pid namespace whose root is the node's tree."""
        root = self.tree.stat()
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if re.search(r"^NSpid:\t\d+(\t\d+)*\t1$", status.read_text(), re.MULTILINE):
                    found = (status.parent / "root/.").stat()
                    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino):
                        return int(status.parent.name)
            except OSError:  # ended meanwhile
                continue
        return None

    def execute(
        self, argv: Sequence[str], input: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command, whatever its return code."""
        leader = self.leader()
        assert leader is not None, f"{self.name} does not run"
        words = [*nspawn.enter_command(leader), *argv]
        return run(
            words,
            input=None if input is None else input.encode(),
            env={"HOME": "/root"},
            ok=range(-64, 256),
            timeout=timeout,
        )

    def ask(self, *argv: str, input: str | None = None, timeout: float = 120) -> str:
        """The stdout of a command, which must end with 0."""
        done = self.execute(argv, input, timeout)
        said = done.stderr.decode(errors="replace")[-2000:]
        assert done.returncode == 0, f"{self.name}: {shlex.join(argv)} ended with {done.returncode}: {said}"
        return done.stdout.decode(errors="replace")

    def ask_json(self, *argv: str, input: str | None = None, timeout: float = 120) -> Any:
        return json.loads(self.ask(*argv, input=input, timeout=timeout))

    def ask_as(self, user: str, *argv: str) -> str:
        return self.ask("runuser", "-u", user, "--", *argv)

    def probe(self, name: str, *arguments: object, user: str = "root", timeout: float = 180) -> Any:
        """What probes/NAME.py, sent to the node's Python by stdin, answers to main(*arguments)."""
        program = (PROBES / f"{name}.py").read_text() + f"\n\nmain(*{arguments!r})\n"
        argv = ("python3", "-") if user == "root" else ("runuser", "-u", user, "--", "python3", "-")
        return self.ask_json(*argv, input=program, timeout=timeout)

    def read(self, path: str) -> str:
        return self.ask("cat", path)

    def file_facts(self, *paths: str) -> dict[str, str]:
        """Path -> `OWNER:GROUP MODE` of each."""
        lines = self.ask("stat", "--format=%n\t%U:%G %04a", *paths).splitlines()
        return dict(line.split("\t") for line in lines)

    def status(self) -> dict[str, Any]:
        """The status document; empty while there is none."""
        done = self.execute(["cat", "/run/imagegen/status.json"])
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {}

    def unit_properties(self, *properties: str, pattern: str = "*.service") -> dict[str, dict[str, str]]:
        """Unit -> its properties, of every loaded unit that the pattern fits."""
        text = self.ask("systemctl", "show", pattern, "--all", f"--property=Id,{','.join(properties)}")
        blocks = [
            dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")
        ]
        return {block.pop("Id"): block for block in blocks if block}


@dataclass
class Deployment:
    """The files that imagegen was given, what it said, and the nodes that it booted."""

    directory: Path
    cluster: Cluster
    secrets: Secrets
    hub: str  # the network namespace of the bridge, where the gateway's address is
    verdict: dict[str, Any]  # `boot --output json`
    nodes: dict[str, RunningNode]
    watch: Any = None  # the ProcessWatch that saw the bring-up
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.directory / "out"

    def image(self, role: Role) -> Path:
        """The tar that this role's nodes were booted from."""
        directory = self.out / "images" / role.name
        return directory / f"{role}-{(directory / 'current').read_text().strip()}.tar"

    @property
    def controller(self) -> RunningNode:
        return next(node for node in self.nodes.values() if node.node.role.controls)

    def ask_apis(self, paths: Mapping[str, tuple[str, str]]) -> Any:
        """What the APIs answer the administrator; `paths`: name -> (service type, path)."""
        return self.controller.probe("api", self.cluster.services.auth_url, self.secrets["identity_admin"], paths)

    @property
    def computes(self) -> list[RunningNode]:
        return [node for node in self.nodes.values() if node.node.role.runs("nova-compute")]


def wait_for(what: str, look: Callable[[], T | None], seconds: float, pause: float = 0.2) -> T:
    """The first answer of look() that is true. Fails after so many seconds, saying what it waited for."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still waiting for {what}"
        time.sleep(pause)
    return found


def stop_agent(node: RunningNode) -> None:
    """Stops the agent; what it said last stays."""
    node.ask("systemctl", "stop", "imagegen-node.service")


def wait_ready(node: RunningNode) -> None:
    """Waits until a node that does something says that it is ready, whatever it said before."""
    wait_for(f"{node.name} to be ready again", lambda: node.status().get("state") == "ready", READY_SECONDS)


def start_agent(node: RunningNode) -> dict[str, Any]:
    """Starts a stopped agent; its status document when the node is ready again."""
    before = node.ask("stat", "--format=%y", "/run/imagegen/status.json")
    node.ask("systemctl", "start", "imagegen-node.service")

    def ready_again() -> dict[str, Any] | None:
        if node.ask("stat", "--format=%y", "/run/imagegen/status.json") == before:
            return None  # what the stopped agent wrote
        document = node.status()
        assert document.get("state") != "failed", document
        return document if document.get("state") == "ready" else None

    return wait_for(f"{node.name} to be ready again after its agent was restarted", ready_again, READY_SECONDS)


def quote_yaml(value: str) -> str:
    """The value in YAML's single-quoted style."""
    return "'" + value.replace("'", "''") + "'"


def write_inputs(directory: Path) -> None:
    """What `imagegen init` writes, then a cluster and passwords of our own; the generated keys stay."""
    imagegen(directory.parent, "init", os.fspath(directory))
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", KEY_COMMENT, "-f", directory / "id"])
    key = (directory / "id.pub").read_text().strip()
    (directory / "cluster.yaml").write_text(CLUSTER.format(ssh_key=key, canary=CLUSTER_FILE))
    secrets = directory / "secrets.yaml"
    lines = secrets.read_text().splitlines()
    kept = [line for line in lines if line.split(":")[0] not in PASSWORDS]
    secrets.write_text("\n".join([*kept, *(f"{name}: {quote_yaml(value)}" for name, value in PASSWORDS.items()), ""]))


def imagegen(directory: Path, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a command of imagegen as a user does, in that directory. Raises BringUpFailed with what it said.

    When the time is over it is asked to end, as Ctrl-C does, because it has things to clean up.
    """
    environment = {**os.environ, **ENVIRONMENT_VARIABLES, "PYTHONPATH": os.fspath(ROOT), "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "imagegen", *words],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException as error:
        process.terminate()
        try:
            out, err = process.communicate(timeout=300)  # where every freed block is discarded, removing trees is slow
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        err += f"\nended because it was not done after {seconds:.0f} s"
    if process.returncode:
        said = "\n".join([*out.splitlines()[-40:], *err.splitlines()[-60:]])
        raise BringUpFailed(f"`imagegen {' '.join(words)}` ended with {process.returncode}\n{said}")
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def prepare(directory: Path) -> dict[str, float]:
    """Inputs, images (from the cache when their content is known), texts and seeds; the seconds of each command."""
    seconds = {}
    write_inputs(directory)
    for words, limit in (
        (["validate"], 120),
        (["build", "--format", "tar"], BUILD_MINUTES * 60),
        (["generate"], 120),
        (["seed"], 120),
    ):
        begun = time.monotonic()
        imagegen(directory, *words, seconds=limit)
        seconds[words[0]] = round(time.monotonic() - begun, 1)
    return seconds


def boot(directory: Path) -> Deployment:
    """Boots every node with `imagegen boot --keep`, which returns when it has verified the cluster."""
    begun = time.monotonic()
    words = ["boot", "--backend", "nspawn", "--keep", "--timeout", str(BOOT_MINUTES), "--output", "json"]
    done = imagegen(directory, *words, seconds=(BOOT_MINUTES + 4) * 60)
    return read_deployment(directory, done.stdout, done.stderr, {"boot": round(time.monotonic() - begun, 1)})


def read_deployment(directory: Path, stdout: str, stderr: str, seconds: dict[str, float]) -> Deployment:
    """The running cluster, from what `boot --keep` printed and left."""
    cluster = load_cluster(directory / "cluster.yaml")
    state = json.loads((directory / "out/boot" / nspawn.STATE).read_bytes())
    logins = dict(re.findall(r"^(\S+) +login +kept +(.+)$", stderr, re.MULTILINE))
    if set(logins) != {node.name for node in cluster.nodes}:
        raise BringUpFailed(f"boot --keep did not print how to log in to every node:\n{stderr}")
    nodes = {
        node.name: RunningNode(node, directory / "out/boot" / node.name / "tree", logins[node.name])
        for node in cluster.nodes
    }
    return Deployment(
        directory=directory,
        cluster=cluster,
        secrets=load_secrets(cluster.secrets_path),
        hub=f"{state['run']}-hub",
        verdict=json.loads(stdout),
        nodes=nodes,
        seconds=seconds,
    )


def hold_work() -> Any:
    """The lock on the tier's directory: a second run on this machine waits for the first."""
    WORK.mkdir(parents=True, exist_ok=True)
    say = functools.partial(print, "waiting for another run of the cluster tier:", file=sys.stderr)
    return hold_lock(WORK / "lock", seconds=60 * (BUILD_MINUTES + BOOT_MINUTES), waiting=say)


def tear_down(directory: Path) -> None:
    """Ends the nodes and looks that nothing of them is left: no process, no namespace, no control group."""
    boot_directory = directory / "out/boot"
    state = boot_directory / nspawn.STATE
    name = json.loads(state.read_bytes())["run"] if state.is_file() else None
    nspawn.remove_leftovers(boot_directory)
    if name is None:
        return
    left = [os.fspath(path) for path in Path("/run/netns").glob(f"{name}-*")]
    left += [os.fspath(path) for path in boot_directory.glob("*/tree")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name in (process / "cgroup").read_text():
                left.append(f"{process}: {(process / 'comm').read_text().strip()}")
        except OSError:  # ended meanwhile
            continue
    assert not left, f"the nodes of {name} are ended, but these are left: {left}"
