"""boot.py: watching, judging and cleaning up, with machines that play a script."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.booted import READY, FakeMachine, FakeNetwork, document
from fakes.world import make_secrets

from imagegen.base.commands import Completed
from imagegen.base.errors import BadUsage, CommandFailed, ExitCode, MachineLacks
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import boot
from imagegen.local.guest import Guest
from imagegen.local.instance import Login, Step
from imagegen.local.request import Boot
from imagegen.local.verify import Fault
from imagegen.model.cluster import Place
from imagegen.model.roles import roles

CLUSTER = load_cluster(None)
SECRETS = make_secrets()


def watch(machines: Sequence[FakeMachine], timeout: float = 100) -> tuple[list[boot.NodeResult], list[str]]:
    """Watches under a clock that each pause moves by a second."""
    clock, lines = [0.0], []

    def pause(seconds: float) -> None:
        clock[0] += 1

    results = boot.watch_machines(machines, timeout, lines.append, now=lambda: clock[0], pause=pause)
    return results, lines


def pair(first: Sequence[dict[str, Any] | None], second: Sequence[dict[str, Any] | None]) -> list[FakeMachine]:
    return [FakeMachine(node, script) for node, script in zip(CLUSTER.nodes, (first, second), strict=True)]


def test_watching_ends_when_all_are_ready() -> None:
    """Each node's seconds count until that node was ready, not until the last one was."""
    results, lines = watch(
        pair([{}, document("ready")], [{}, document("waiting", "peer", "its peer"), document("ready")])
    )
    assert [(r.name, r.state, r.seconds) for r in results] == [("linux-node1", "ready", 1), ("linux-node2", "ready", 2)]
    assert [line.split() for line in lines] == [
        ["linux-node1", "ready"],
        ["linux-node2", "peer", "waiting", "for", "its", "peer"],
        ["linux-node2", "ready"],
    ]


def test_a_failure_ends_the_watching_at_once() -> None:
    """Nobody waits 20 minutes for a compute whose controller has failed."""
    failed = document("failed", "api-schema", "no rights", {"name": "api-schema", "state": "failed", "rc": 255})
    results, _ = watch(pair([{}, failed], [document("waiting", "controller")]))
    assert [(r.state, r.step, r.rc, r.seconds) for r in results] == [
        ("failed", "api-schema", 255, 1),
        ("waiting", "controller", None, 1),
    ]


def test_a_machine_that_ends_has_failed() -> None:
    """Also one that had said that it was ready."""
    results, _ = watch(pair([document("ready"), None], [document("waiting", "controller")]))
    assert (results[0].state, results[0].detail) == ("failed", "the machine stopped by itself")


def test_time_ends_the_watching() -> None:
    """A silent node has no state, and a node that was ready once and is not any more is not ready."""
    results, _ = watch(pair([{}], [document("ready"), document("working", "discovery")]), timeout=7)
    assert [(r.state, r.step, r.seconds) for r in results] == [("", "", 7), ("working", "discovery", 7)]


def test_progress_tells_each_change_once() -> None:
    """A step's end with its time, then what goes on; an unchanged document tells nothing."""
    done = {"name": "database", "state": "done", "seconds": 12.34, "rc": 0}
    bad = {"name": "schemas", "state": "failed", "seconds": None, "rc": 2}
    first = document("working", "schemas", "api_db sync", done, {"name": "schemas", "state": "working", "seconds": 1})
    last = document("failed", "schemas", "stuck", done, bad)
    assert [line.split(maxsplit=3) for line in boot.progress_lines("n", {}, first)] == [
        ["n", "database", "done", "12.3 s"],
        ["n", "schemas", "working", "api_db sync"],
    ]
    assert boot.progress_lines("n", first, first) == []
    assert [line.split(maxsplit=3) for line in boot.progress_lines("n", first, last)] == [
        ["n", "schemas", "failed", "0.0 s, return code 2"],
        ["n", "schemas", "failed", "stuck"],
    ]


def test_a_nodes_words_do_not_steer_the_terminal() -> None:
    """Details come from a machine that may be broken in any way."""
    lines = boot.progress_lines("n", {}, document("waiting", "a\x1b[2J", "b\nc\x07"))
    assert len(lines) == 1
    assert lines[0].isprintable()


def explain(machines: list[FakeMachine], results: list[boot.NodeResult]) -> list[str]:
    return boot.explain_results(machines, results, 1200)


def result(number: int, state: str, step: str = "", detail: str = "", rc: int | None = None) -> boot.NodeResult:
    node = CLUSTER.nodes[number]
    return boot.NodeResult(node.name, node.role.name, state, step, detail, 83.2, "image", rc)


def test_nothing_is_said_of_ready_nodes() -> None:
    """No fault, no explanation."""
    assert explain(pair([], []), [result(0, "ready"), result(1, "ready")]) == []


@pytest.mark.parametrize(("bad", "left"), [(0, 0), (2, 0), (99, 1)])
def test_verification_has_a_minute_to_become_true(bad: int, left: int) -> None:
    """It ends with the first verification that finds nothing, or with what the last one found."""
    clock, verified, lines = [0.0], [], []

    def verify() -> list[Fault]:
        verified.append(clock[0])
        return [Fault("linux-node2", "nova-compute has never reported")] if len(verified) <= bad else []

    def pause(seconds: float) -> None:
        clock[0] += 10

    found = boot.verify_patiently(verify, 60, lines.append, now=lambda: clock[0], pause=pause)
    assert len(found) == left
    assert verified[-1] == min(10 * bad, 60)
    assert len(lines) == len(verified) - 1


def test_the_failed_node_is_explained_and_the_waiting_one_is_not() -> None:
    """Which node, which step, its return code, its last log lines."""
    machines = pair([], [])
    machines[0].journal = Completed([], 0, b"one\ntwo \x1b[1mthree\n", b"")
    faults = explain(machines, [result(0, "failed", "schemas", "no rights", 255), result(1, "waiting", "controller")])
    assert faults == [
        "linux-node1 failed in the step schemas (return code 255) after 83 s: no rights\n    one\n    two  [1mthree"
    ]


@pytest.mark.parametrize(
    "journal",
    [
        Completed([], 1, b"", b"no journal"),
        Completed([], 0, b"-- No entries --\n", b""),
        CommandFailed("it is not running"),
    ],
)
def test_a_node_without_a_log_shows_its_console(journal: Completed | Exception) -> None:
    """A node that hangs in its boot has no agent's log, and may not be reachable at all."""
    machines = pair([], [])
    for machine in machines:
        machine.journal = journal
    faults = explain(machines, [result(0, ""), result(1, "waiting", "controller", "linux-node1:5672")])
    assert faults == [
        "linux-node1 is not ready after 1200 s; it is in its boot, before the first step\n    login:",
        "linux-node2 is not ready after 1200 s; it is in the step controller: linux-node1:5672\n    login:",
    ]


# The whole of boot_cluster, on a network that plays.


Run = Callable[..., Sequence[boot.NodeResult]]


guests: list[Step] = []  # the steps of the guests in the run that ended well last


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """boot_cluster() of the default cluster on a FakeNetwork; the default finding of the verification is none."""
    findings: list[Fault] = []
    guests.clear()
    monkeypatch.setattr(boot, "POLL", 0)
    monkeypatch.setattr(boot, "VERIFY_SHARE", 1e9)
    monkeypatch.setattr(boot, "seed_tree", lambda *_: dict.fromkeys(("user-data", "meta-data", "network-config")))
    monkeypatch.setattr(boot, "verify_cluster", lambda *_: findings)

    def run(
        network: FakeNetwork, found: Sequence[Fault] = (), keep: bool = False, **more: Any
    ) -> Sequence[boot.NodeResult]:
        findings[:] = found
        monkeypatch.setattr(network, "way_in", more.pop("way_in", ""), raising=False)
        monkeypatch.setattr(boot, "open_backend", lambda *_: network)
        images = dict.fromkeys(roles(), tmp_path)
        lines: list[str] = more.pop("lines", [])
        nodes = more.pop("nodes", CLUSTER.nodes)
        timeout = more.pop("timeout", None)
        asked = Boot(CLUSTER, SECRETS, tmp_path, nodes, "nspawn", timeout=timeout, keep=keep, images=images)
        booted = boot.boot_cluster(replace(asked, **more), lines.append)
        guests.extend(booted.steps)
        return booted.nodes

    return run


def test_ready_and_verified_is_success(run: Run) -> None:
    """Every node was started, and nothing runs on."""
    network = FakeNetwork([READY, READY])
    assert [r.state for r in run(network)] == ["ready", "ready"]
    assert [machine.started for machine in network.machines] == [True, True]
    assert network.log == ["enter", "close"]


def test_ready_nodes_of_a_wrong_cluster_are_no_success(run: Run) -> None:
    """What nodes say of themselves does not count against what is seen from outside."""
    with pytest.raises(boot.ClusterNotReady, match="but cell cell1: is listed 2 times") as raised:
        run(FakeNetwork([READY, READY]), [Fault("cell cell1", "is listed 2 times, not once")])
    assert raised.value.exit_code is ExitCode.NODE_NOT_READY
    assert [r.state for r in raised.value.nodes] == ["ready", "ready"]


def test_a_failed_node_ends_everything_and_leaves_its_journal(run: Run, tmp_path: Path) -> None:
    """The error names node and step; the journal of each node that answers is beside its console, for root only."""
    network = FakeNetwork([[document("failed", "schemas", "no")], [document("waiting")]])
    with pytest.raises(boot.ClusterNotReady, match="linux-node1 failed in the step schemas after"):
        run(network)
    assert network.log == ["enter", "close"]
    assert (tmp_path / "boot/linux-node1/journal.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("scripts", [[READY, READY], [[document("failed")], [{}]]])
def test_kept_nodes_tell_how_to_log_in(run: Run, scripts: list[Any]) -> None:
    """With --keep they run on whether they are ready or not."""
    network, lines = FakeNetwork(scripts), []
    with suppress(boot.ClusterNotReady):
        run(network, keep=True, lines=lines)
    assert network.log == ["enter", "keep", "close"]
    assert [line.split(maxsplit=3)[3] for line in lines if " login " in line] == [
        "enter linux-node1",
        "enter linux-node2",
    ]


def test_kept_nodes_tell_how_to_get_into_their_network(run: Run) -> None:
    """Where they have one that this machine is not part of."""
    lines: list[str] = []
    run(FakeNetwork([READY, READY]), keep=True, lines=lines, way_in="sudo enter the-network")
    assert [line.split(maxsplit=3)[3] for line in lines if line.startswith("network ")] == ["sudo enter the-network"]


def test_too_little_memory_or_disk_starts_nothing(run: Run) -> None:
    """Both shortages are told together, before a machine is made."""
    network = FakeNetwork([READY, READY], needs=(1 << 60, 1 << 60))
    with pytest.raises(MachineLacks, match=r"(?s)of memory.*on the disk"):
        run(network)
    assert network.machines == []
    assert network.log == ["enter", "close"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_machines(run: Run, number: int) -> None:
    """--keep keeps nothing then; the handlers are those of before afterwards."""
    before = signal.getsignal(number)
    network = FakeNetwork([READY, READY])
    network.needs = lambda node, image: os.kill(os.getpid(), number) or (0, 0)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(network, keep=True)
    assert network.log == ["enter", "close"]
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_stop_the_clean_up() -> None:
    """An impatient Ctrl-C would otherwise leave containers running."""
    with pytest.raises(KeyboardInterrupt), boot.end_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    """The second says so; afterwards the directory is free again, and closed to others."""
    with boot.hold_directory(tmp_path / "boot", print):
        with pytest.raises(BadUsage, match="another `imagegen boot`"), boot.hold_directory(tmp_path / "boot", print):
            pass
    with boot.hold_directory(tmp_path / "boot", print):
        assert (tmp_path / "boot").stat().st_mode & 0o777 == 0o700


DONE = Step("linux-node2", "reach", "done", "10.254.0.5", 3.0)
FAILED = Step("linux-node2", "metadata", "failed", "no answer", 3.0)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the guests; what it was called with. The guest's image is made of nothing."""
    called: list[Any] = [[DONE]]

    def run_guests(*given: Any) -> list[Step]:
        called.append(given)
        return called[0]

    monkeypatch.setattr(boot, "find_tar", lambda out, role: Path(f"{role}.tar"))
    monkeypatch.setattr(boot, "make_guest", lambda tar: Guest(str(tar).encode(), b""))
    monkeypatch.setattr(boot, "run_guests", run_guests)
    return called


def test_guests_boot_after_the_verification(run: Run, called: list[Any]) -> None:
    """On each compute that was booted, as the administrator, from the controller; their steps are in the result."""
    network = FakeNetwork([READY, READY])
    run(network, instance=True)
    (cluster, login, computes, guest, there, seconds, _) = called[1]
    assert (cluster, guest.kernel, there) == (CLUSTER, b"compute.tar", network.machines[0])
    assert [node.name for node in computes] == ["linux-node2"]
    assert vars(login) == vars(Login("admin", SECRETS["identity_admin"], "admin", "Default"))
    assert seconds > 0 and guests == [DONE]
    run(FakeNetwork([READY, READY]))
    assert len(called) == 2


@pytest.mark.parametrize("scripts", [[READY, [document("failed", "nova", "no")]], [READY, READY]])
def test_no_guest_boots_on_a_cluster_that_is_not_good(run: Run, called: list[Any], scripts: list[Any]) -> None:
    with pytest.raises(boot.ClusterNotReady):
        run(FakeNetwork(scripts), [Fault("cell cell1", "is listed 2 times, not once")], instance=True)
    assert len(called) == 1


def test_a_guest_that_failed_is_no_success(run: Run, called: list[Any], tmp_path: Path) -> None:
    """Which compute and which step; journals are kept as for any other fault, and nothing runs on."""
    called[0] = [DONE, FAILED]
    network = FakeNetwork([READY, READY])
    with pytest.raises(boot.ClusterNotReady, match=r"^linux-node2: metadata: no answer$") as raised:
        run(network, instance=True)
    assert [r.state for r in raised.value.nodes] == ["ready", "ready"]
    assert network.log == ["enter", "close"] and (tmp_path / "boot/linux-node2/journal.log").exists()


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"nodes": CLUSTER.nodes[:1]}, "none of these nodes is a compute"),
        ({"cluster": replace(CLUSTER, services=replace(CLUSTER.services, network_endpoint=None))}, "have no network"),
    ],
)
def test_what_no_guest_can_say_is_refused_at_once(run: Run, more: dict[str, Any], said: str) -> None:
    """Before a machine is made."""
    network = FakeNetwork([READY, READY])
    with pytest.raises(BadUsage, match=said):
        run(network, instance=True, **more)
    assert network.log == []


def test_nodes_without_their_controller_are_refused(run: Run) -> None:
    """A compute alone would wait until the timeout."""
    with pytest.raises(BadUsage, match="without linux-node1") as raised:
        run(FakeNetwork([]), nodes=CLUSTER.nodes[1:])
    assert "linux-node1" in raised.value.hint


def test_the_first_controller_is_needed_when_all_services_are_elsewhere() -> None:
    """It has the endpoints and answers the verification."""
    outside = Place("10.0.0.5", 1)
    services = replace(CLUSTER.services, database=outside, messaging=outside, cache=outside, identity=outside)
    cluster = replace(CLUSTER, services=services)
    boot.check_nodes(cluster, cluster.nodes[:1])
    with pytest.raises(BadUsage):
        boot.check_nodes(cluster, cluster.nodes[1:])


@pytest.mark.parametrize(("backend", "made"), [("nspawn", "Nspawn"), ("qemu", "Qemu")])
def test_a_backend_starts_without_the_leftovers_of_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, made: str
) -> None:
    """Nodes that were kept in containers would have the addresses of those that now come up in QEMU."""
    log: list[str] = []
    for module, name in ((boot.nspawn, "Nspawn"), (boot.qemu, "Qemu")):
        monkeypatch.setattr(module, "remove_leftovers", lambda directory, name=name: log.append(f"clean {name}"))
        monkeypatch.setattr(module, name, lambda cluster, directory, name=name: log.append(name))
    boot.open_backend(backend, CLUSTER, tmp_path)
    assert log == ["clean Nspawn", "clean Qemu", made]


@pytest.mark.usefixtures("root")
def test_another_users_directory_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run as root, a run without root gets a sentence and not a traceback."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1000)
    with pytest.raises(MachineLacks, match="belongs to another user"), boot.hold_directory(tmp_path / "boot", print):
        pass


def test_an_unknown_backend_is_bad_usage(tmp_path: Path) -> None:
    """The message lists those there are."""
    with pytest.raises(BadUsage) as raised:
        boot.open_backend("docker", CLUSTER, tmp_path)
    assert raised.value.hint == "use one of qemu, nspawn"
