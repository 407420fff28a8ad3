"""Boots a cluster's nodes on this machine: starts them, watches them until ready, verifies, leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from imagegen.base.commands import Completed
from imagegen.base.console import printable, read_steps
from imagegen.base.errors import BadUsage, CommandFailed, MachineLacks, NodeNotReady
from imagegen.base.handles import is_file, open_directory
from imagegen.base.lock import Held, hold_lock
from imagegen.base.machine import find_lacks
from imagegen.base.outdir import keep_closed, work_in
from imagegen.base.signals import end_on_signals
from imagegen.base.streams import Say
from imagegen.base.tree import File, Tree, write_file
from imagegen.local import nspawn, qemu
from imagegen.local.guest import Guest, make_guest
from imagegen.local.instance import Step, explain_steps, find_administrator, find_hosts, run_guests
from imagegen.local.network_boot import PxeQemu
from imagegen.local.request import IMAGE_SUFFIX, Boot, find_tar
from imagegen.local.verify import Fault, verify_cluster
from imagegen.model.cluster import Cluster, Node
from imagegen.seeds.seed import seed_tree

POLL = 0.5  # seconds between two checks of the nodes
VERIFY_SHARE = (
    20  # verification, and each of its commands, may take this fraction of the backend's time: a minute, natively
)
GUEST_SHARE = 5  # each step of a guest may take that many times as long
LAST_LINES = 15


class Machine(Protocol):
    """One node in a backend."""

    node: Node
    image: str

    @property
    def login(self) -> str: ...
    def start(self) -> None: ...
    def status(self) -> dict[str, Any] | None: ...
    def alive(self) -> bool: ...
    def console(self, lines: int = ...) -> list[str]: ...
    def execute(self, argv: Sequence[str], input: bytes | None = ..., timeout: float | None = ...) -> Completed: ...
    def follow(
        self, argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float
    ) -> Completed: ...


class Backend(Protocol):
    """A backend: the cluster's network and its machines. Leaving the context ends them, unless keep() was called."""

    timeout: float  # seconds until all nodes should be ready

    @property
    def way_in(self) -> str: ...  # the command that opens a shell in the nodes' network; empty: there is none
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def needs(self, node: Node, image: Path) -> tuple[int, int]: ...  # bytes of memory, of disk
    def add(self, node: Node, image: Path, seed: Tree) -> Machine: ...
    def keep(self) -> None: ...


@dataclass(frozen=True)
class NodeResult:
    """How far a node has come; all fields except rc are in `--output json`."""

    name: str
    role: str
    state: str  # waiting, working, ready or failed; empty: the node has never reported
    step: str
    detail: str
    seconds: float  # from the start until it was ready or given up
    image: str
    rc: int | None = None  # return code of the step


class ClusterNotReady(NodeNotReady):
    """A node did not become ready, or the cluster is not what its nodes say; `nodes` says how far each came."""

    def __init__(self, message: str, hint: str, nodes: Sequence[NodeResult]) -> None:
        super().__init__(message, hint)
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class Booted:
    """What became of a cluster whose nodes are all ready."""

    nodes: Sequence[NodeResult]
    steps: Sequence[Step] = ()  # of the guests


def boot_cluster(boot: Boot, report: Say) -> Booted:
    """Boots the nodes, waits until all are ready and verifies the cluster from outside; with guests, if asked for.

    Raises BadUsage, MachineLacks, CommandFailed; ClusterNotReady if a node failed, timed out or is not what it says.
    """
    cluster, secrets, directory = boot.cluster, boot.secrets, boot.directory
    check_nodes(cluster, boot.nodes)
    images, guest = boot.find_images(), find_guest(boot, report)
    steps: list[Step] = []
    with hold_directory(directory, report), end_on_signals(), choose_backend(boot, report) as backend:
        check_machine([backend.needs(node, images[node.role]) for node in boot.nodes], directory)
        limit = backend.timeout if boot.timeout is None else boot.timeout
        machines = []
        for node in boot.nodes:
            report(progress_line(node.name, "prepare", "working", images[node.role].name))
            machines.append(backend.add(node, images[node.role], seed_tree(cluster, node, secrets)))
        for machine in machines:
            machine.start()
        results = watch_machines(machines, limit, report)
        faults = explain_results(machines, results, limit)
        if not faults:
            report(progress_line("cluster", "verify", "working", "asking Nova and Keystone from outside"))
            controller = next(machine for machine in machines if machine.node.role.controls)
            limit = backend.timeout / VERIFY_SHARE
            found = verify_patiently(
                lambda: verify_cluster(cluster, secrets, boot.nodes, controller, limit, controller), limit, report
            )
            faults = [f"every node says that it is ready, but {finding}" for finding in found]
            if guest and not faults:
                login, computes = find_administrator(cluster, secrets), find_hosts(cluster, secrets, boot.nodes)
                steps = run_guests(cluster, login, computes, guest, controller, GUEST_SHARE * limit, report)
                faults = explain_steps(steps)
        if faults:
            save_journals(machines, directory)
        if boot.keep:
            backend.keep()
            if backend.way_in:
                report(progress_line("network", "enter", "kept", backend.way_in))
            for machine in machines:
                report(progress_line(machine.node.name, "login", "kept", machine.login))
    if faults:
        raise ClusterNotReady(
            "\n".join(faults), f"consoles and journals are in {directory}; --keep leaves nodes running", results
        )
    return Booted(results, steps)


def find_guest(boot: Boot, report: Say) -> Guest | None:
    """What boots on the computes at the end; None: nothing. Raises BadUsage, MachineLacks."""
    if not boot.instance:
        return None
    computes = find_hosts(boot.cluster, boot.secrets, boot.nodes)
    report(progress_line("guest", "make", "working", f"of the image of the role {computes[0].role}"))
    return make_guest(find_tar(boot.out, computes[0].role))


def choose_backend(boot: Boot, report: Say) -> Backend:
    """The backend that was asked for. Raises BadUsage, MachineLacks."""
    if boot.network is None:
        return open_backend(boot.backend, boot.cluster, boot.directory)
    remove_leftovers(boot.directory)
    return PxeQemu(boot, lambda line: report(progress_line("serve", "", "", line)))


def open_backend(name: str, cluster: Cluster, directory: Path) -> Backend:
    """The backend of that name, with nothing left of earlier runs. Raises BadUsage, MachineLacks and CommandFailed."""
    if name in IMAGE_SUFFIX:
        remove_leftovers(directory)
    if name == "nspawn":
        return nspawn.Nspawn(cluster, directory)
    if name == "qemu":
        return qemu.Qemu(cluster, directory)
    raise BadUsage(f"there is no backend {name!r}", f"use one of {', '.join(IMAGE_SUFFIX)}")


def remove_leftovers(directory: Path) -> None:
    """Ends what an earlier run of either backend left or kept in this directory. Raises CommandFailed."""
    for module in (nspawn, qemu):
        module.remove_leftovers(directory)


def check_nodes(cluster: Cluster, nodes: Sequence[Node]) -> None:
    """Raises BadUsage unless these nodes can become ready without the others."""
    names = {node.name for node in nodes}
    hosts = {node.name for node in cluster.controllers if cluster.serves_others(node)} or {cluster.controllers[0].name}
    if missing := sorted(hosts - names):
        raise BadUsage(
            f"no other node can become ready without {', '.join(missing)}",
            f"name {', '.join(missing)} as well, or name no node to boot all",
        )


def check_machine(needs: Sequence[tuple[int, int]], directory: Path) -> None:
    """Raises MachineLacks with everything that is missing unless memory and disk suffice for all nodes, in bytes."""
    memory, disk = (sum(column) for column in zip(*needs, strict=True))
    lacks = find_lacks("these nodes need", memory, {directory: disk})
    if lacks:
        raise MachineLacks("\n".join(lacks), "boot fewer nodes, or free some of it")


@contextmanager
def hold_directory(directory: Path, report: Say) -> Generator[None]:
    """Makes out/boot, closed to other users because trees hold secrets, and locks out a second run.

    What root made there stays root's while nodes keep running or a tree could not be removed. Raises BadUsage,
    MachineLacks.
    """

    def in_use() -> bool:
        return any(is_file(directory / backend.STATE) for backend in (nspawn, qemu))

    with work_in(directory.parent, [directory.name], "boot", lambda line: report(progress_line("boot", "", "", line))):
        pass  # nodes run long: let others work in out meanwhile
    try:
        with hold_lock(directory / "lock", "boot"), keep_closed(directory, in_use):
            yield
    except Held:
        raise BadUsage(
            f"another `imagegen boot` uses {directory}", "wait for it, or choose another directory with -o"
        ) from None


def watch_machines(
    machines: Sequence[Machine],
    timeout: float,
    report: Say,
    *,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[NodeResult]:
    """Reports each change until all machines are ready, one has failed or ended, or `timeout` seconds have passed."""
    begin = now()
    documents: dict[str, dict[str, Any]] = {machine.node.name: {} for machine in machines}
    ready: dict[str, float] = {}
    while True:
        running, elapsed = [], now() - begin
        for machine in machines:
            name, alive = machine.node.name, machine.alive()  # alive first: its last words still count
            if document := machine.status():
                for line in progress_lines(name, documents[name], document):
                    report(line)
                documents[name] = document
            state = documents[name].get("state") if alive else "ended"
            if state == "ready":
                ready.setdefault(name, elapsed)
            else:
                ready.pop(name, None)
            running.append(state not in ("failed", "ended"))
        if len(ready) == len(machines) or not all(running) or elapsed >= timeout:
            break
        pause(POLL)
    pairs = zip(machines, running, strict=True)
    return [read_result(m, documents[m.node.name], ready.get(m.node.name, elapsed), runs) for m, runs in pairs]


def verify_patiently(
    verify: Callable[[], list[Fault]],
    timeout: float,
    report: Say,
    *,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[Fault]:
    """The findings of the last verification, repeated for at most `timeout` seconds until there are none.

    A service that a node has just seen up may not have reported yet.
    """
    deadline = now() + timeout
    while (found := verify()) and now() < deadline:
        report(progress_line("cluster", "verify", "waiting", found[0]))
        pause(10 * POLL)
    return found


def read_result(machine: Machine, document: Mapping[str, Any], seconds: float, runs: bool) -> NodeResult:
    """A node's result, from its last status document."""
    state, detail = str(document.get("state", "")), printable(document.get("detail", ""))
    if not runs and state != "failed":
        state, detail = "failed", "the machine stopped by itself"
    step = str(document.get("step", ""))
    rc = next((s["rc"] for s in read_steps(document) if s["name"] == step), None)
    node = machine.node
    return NodeResult(node.name, node.role.name, state, step, detail, round(seconds, 1), machine.image, rc)


def progress_lines(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is new between two status documents of a node: steps that ended, and what it does now."""

    def ended(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {s["name"]: s for s in read_steps(document) if s["state"] not in ("waiting", "working")}

    lines, known = [], {step: s["state"] for step, s in ended(before).items()}
    for step, s in ended(after).items():
        if known.get(step) != s["state"]:
            rc = f", return code {s['rc']}" if s["rc"] else ""
            lines.append(progress_line(name, step, s["state"], f"{s['seconds']:.1f} s{rc}"))
    step, state, detail = now = [after.get(key, "") for key in ("step", "state", "detail")]
    if now != [before.get(key, "") for key in ("step", "state", "detail")]:
        lines.append(progress_line(name, step, state, f"for {detail}" if state == "waiting" else detail))
    return lines


def progress_line(name: str, step: object, state: object, detail: object) -> str:
    """`NODE  STEP  STATE  DETAIL`, in columns."""
    return f"{name:<16} {printable(step):<24} {printable(state):<8} {printable(detail)}".rstrip()


def explain_results(machines: Sequence[Machine], results: Sequence[NodeResult], timeout: float) -> list[str]:
    """For each node at fault: what happened, and its last log lines. Empty if all are ready.

    A node that only waits is not at fault if another has failed.
    """
    bad = [pair for pair in zip(machines, results, strict=True) if pair[1].state != "ready"]
    failed = [pair for pair in bad if pair[1].state == "failed"]
    faults = []
    for machine, result in failed or bad:
        where = f"the step {result.step}" if result.step else "its boot, before the first step"
        if result.state == "failed":
            rc = "" if result.rc is None else f" (return code {result.rc})"
            head = f"{result.name} failed in {where}{rc} after {result.seconds:.0f} s"
        else:
            head = f"{result.name} is not ready after {timeout:.0f} s; it is in {where}"
        head += f": {result.detail}" if result.detail else ""
        faults.append("\n".join([head, *(f"    {line}" for line in last_lines(machine))]))
    return faults


def last_lines(machine: Machine) -> list[str]:
    """The agent's last log lines; if the machine cannot be asked, its console's."""
    journal = ["journalctl", "--boot", "--unit=imagegen-node", f"--lines={LAST_LINES}", "--no-pager", "--output=cat"]
    try:
        done = machine.execute(journal, timeout=60)
        lines = [printable(line) for line in done.stdout.decode(errors="replace").splitlines()]
        if done.returncode == 0 and lines and lines != ["-- No entries --"]:
            return lines
    except CommandFailed:
        pass
    return machine.console(LAST_LINES)


def save_journals(machines: Sequence[Machine], directory: Path) -> None:
    """Writes each node's whole journal next to its console; a node that cannot be asked has only the console."""
    for machine in machines:
        try:
            done = machine.execute(["journalctl", "--boot", "--no-pager", "--output=short-monotonic"], timeout=120)
        except CommandFailed:
            continue
        with open_directory(directory / machine.node.name, make=True):
            write_file(directory / machine.node.name / "journal.log", File(done.stdout, 0o600))
