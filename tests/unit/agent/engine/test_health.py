"""A ready node that stops working says so, stays ready, restarts nothing, and takes it back when it is over."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from fakes import amqp
from fakes.status import STATUS_SCHEMA
from fakes.world import World
from imagegen_node.engine import health
from imagegen_node.engine.errors import Waiting
from imagegen_node.engine.health import AGAIN, LOOK, Health, find_troubles

CONTROLLER, COMPUTE = "linux-node1", "linux-node2"
Change = Callable[[World], None]


def fail_unit(name: str) -> Change:
    return lambda world: setattr(world.units[name], "state", "failed")


def fill(place: str, **full: int) -> Change:
    roomy = {"f_blocks": 1000, "f_bavail": 500, "f_frsize": 2**20, "f_files": 100, "f_favail": 50}
    return lambda world: world.disks.update({world.at(place): SimpleNamespace(**{**roomy, **full})})


def forget_queue(world: World) -> None:
    def count(vhost: str, queue: str) -> int:
        raise amqp.NotFound(f"no queue {queue}")

    world.count_consumers = count  # type: ignore[method-assign]


def stop_keystone(world: World) -> None:
    world.remote_control_plane = False


COMPUTE_TROUBLES: dict[str, tuple[Change, str]] = {
    "deaf": (lambda world: world.deaf.add("compute"), "nova-compute is deaf: it does not read the queue compute."),
    "no queue": (forget_queue, "nova-compute is deaf"),
    "down": (lambda world: world.compute_services.update({COMPUTE: "down"}), "nova-compute is down in the API"),
    "forced": (lambda world: world.forced_down.add(COMPUTE), "nova-compute is forced down in the API"),
    "disabled": (
        lambda world: world.disabled.update({COMPUTE: "new memory"}),
        "nova-compute is disabled in the API (new memory)",
    ),
    "unmapped": (lambda world: world.server.rows("nova_api", "host_mappings").clear(), "no controller has mapped it"),
    "libvirt": (
        lambda world: world.commands.fail("virsh", 1, "failed to connect", times=99),
        "libvirt does not answer: virsh --connect qemu:///system version ended with 1: failed to connect",
    ),
    "unit": (fail_unit("libvirtd.service"), "libvirtd.service is failed (failed)"),
    "disk": (fill("/", f_bavail=49), " is nearly full: 49 of 1000 MiB are free"),
    "inodes": (fill("/", f_favail=4), " has hardly any inodes left: 4 of 100 are free"),
    "broker": (lambda world: world.broker["users"].clear(), "waiting for message queue at 192.168.56.11:5672"),
    "keystone": (stop_keystone, "waiting for http://192.168.56.11:5000/v3"),
}


def expect_trouble(world: World, agent: Any, make: Change, said: str) -> None:
    """Makes it so, and lets the agent watch: the status says it, and nothing is done about it."""
    world.later(1, lambda: make(world))
    world.watch(agent, LOOK + 2 * AGAIN)
    last = world.documents[-1]
    assert last["state"] == "ready" and last["detail"].startswith("degraded: ") and said in last["detail"]
    jsonschema.validate(last, STATUS_SCHEMA)
    assert world.commands.log == []


@pytest.mark.parametrize("name", COMPUTE_TROUBLES)
def test_a_compute_that_stops_working_says_why(compute: World, name: str) -> None:
    """Within six minutes. It stays ready, and nothing is started or restarted."""
    expect_trouble(compute, compute.compute(), *COMPUTE_TROUBLES[name])


CONTROLLER_TROUBLES: dict[str, tuple[Change, str]] = {
    "conductor": (fail_unit("nova-conductor.service"), "nova-conductor.service is failed (failed)"),
    "keystone": (fail_unit("keystone.service"), "keystone.service is failed (failed)"),
    "database": (lambda world: setattr(world.server, "up", False), "database nova at 192.168.56.11:3306"),
    "deaf": (lambda world: world.deaf.add("scheduler"), "waiting for a reader of the queue scheduler.linux-node1"),
    "port": (fail_unit("nova-novncproxy.service"), "noVNC proxy of cell1 at 192.168.56.11:6080"),
    "disk": (fill("/", f_bavail=1), " is nearly full: 1 of"),
    "endpoint": (lambda world: world.keystone.endpoints.pop() and None, "waiting for Keystone to have"),
}


@pytest.mark.parametrize("name", CONTROLLER_TROUBLES)
def test_a_controller_that_stops_working_says_why(controller: World, name: str) -> None:
    """The same: a service that goes down after ready is said, and not started again."""
    expect_trouble(controller, controller.controller(), *CONTROLLER_TROUBLES[name])


@pytest.mark.parametrize("role", ["compute", "controller"])
def test_a_healthy_node_says_nothing(role: str, request: pytest.FixtureRequest) -> None:
    """For two hours: no false alarm, and no word that would go to the console."""
    world: World = request.getfixturevalue(role)
    world.watch(world.compute() if role == "compute" else world.controller(), 7200)
    assert [(document["state"], document["detail"]) for document in world.documents] == [("ready", "")]


def test_trouble_that_is_over_leaves_the_status(compute: World) -> None:
    """By itself; what was degraded is ready again."""
    compute.deaf.add("compute")
    compute.later(LOOK + 200, compute.deaf.clear)
    compute.watch(compute.compute(), 4 * LOOK)
    assert [bool(document["detail"]) for document in compute.documents] == [False, True, False]


def test_a_restart_by_hand_is_no_trouble(compute: World) -> None:
    """What is over at the second look, half a minute later, was none."""
    looked: list[float] = []

    def answer(vhost: str, queue: str) -> int:
        looked.append(compute.clock)
        return int(len(looked) > 1)

    compute.count_consumers = answer  # type: ignore[method-assign]
    compute.watch(compute.compute(), LOOK + 2 * AGAIN)
    assert [document["detail"] for document in compute.documents] == [""]
    assert len(looked) > 1 and looked[1] - looked[0] <= AGAIN


def test_the_api_bears_a_thousand_computes(compute: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy compute asks it once in four to five minutes, by keys, and logs in once; a sick one hardly more."""
    asked: list[str] = []
    answer = compute._answer

    def note(port: Any, path: str, request: Any) -> Any:
        asked.append(path)
        return answer(port, path, request)

    monkeypatch.setattr(compute, "_answer", note)
    compute.watch(compute.compute(), 3600)
    assert asked.count("/v3/auth/tokens") == 1
    mine = {f"/v2.1/os-hypervisors/{compute.node['compute_id']}", "/v2.0/agents"}
    assert {path for path in asked if "auth" not in path} == mine
    assert 24 <= len(asked) - 1 <= 32
    asked.clear()
    compute.deaf.add("compute")
    compute.watch(compute.compute(), 3600)
    assert len(asked) < 40


def test_an_expired_token_is_no_trouble(compute: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nova refuses it after an hour: the node logs in again."""
    answer, logins = compute._answer, []

    def expire(port: Any, path: str, request: Any) -> Any:
        if path.endswith("/auth/tokens"):
            logins.append(compute.clock)
        elif compute.clock > logins[-1] + 3600:
            return 401, {}
        return answer(port, path, request)

    monkeypatch.setattr(compute, "_answer", expire)
    compute.watch(compute.compute(), 3 * 3600)
    assert [document["detail"] for document in compute.documents] == [""]
    assert len(logins) == 3


def test_looks_do_not_hide_each_other() -> None:
    """One that fails is trouble itself, and the next one still looks."""

    def wait() -> list[str]:
        raise Waiting("the broker")

    def fail() -> list[str]:
        raise OSError(5, "Input/output error")

    assert find_troubles([wait, fail, lambda: ["a", "b"]]) == [
        "waiting for the broker", "[Errno 5] Input/output error", "a", "b",
    ]  # fmt: skip


def test_the_looks_of_a_sick_node_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute, a minute, two, four, then every five minutes."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(health, "_jitter", lambda least, seconds: seconds)
    state = Health([lambda: ["sick"]])
    pauses = []
    for _ in range(7):
        pauses.append(state.seconds_left())
        clock.now += state.seconds_left()
        state.examine()
    assert pauses == [LOOK, 30, 60, 120, 240, LOOK, LOOK]
