"""instance.py: who makes the test's project, what is reported, and that what is cut off is removed."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from fakes.world import make_secrets

from imagegen.base.commands import Completed
from imagegen.base.errors import BadUsage, CommandFailed
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import instance
from imagegen.local.guest import DISK, Guest
from imagegen.local.instance import Login, Step, explain_steps, find_administrator, find_hosts, run_guests
from imagegen.model.cluster import Place

CLUSTER = load_cluster(None)
SECRETS = make_secrets(identity_admin="Canary-p@ss\"'$")
COMPUTES = CLUSTER.nodes[1:]
OUTSIDE = replace(CLUSTER, services=replace(CLUSTER.services, identity=Place("10.0.0.5", 5000)))
OS = {"OS_USERNAME": "root", "OS_PASSWORD": "x y", "OS_PROJECT_NAME": "ops"}
LOGIN = Login("admin", "Canary-p@ss\"'$", "admin", "Default")


def values(login: Login) -> tuple[str, ...]:
    return (login.user, login.password, login.project, login.domain)


def test_the_clusters_own_administrator_is_known() -> None:
    """Whatever the environment says of another cloud."""
    assert values(find_administrator(CLUSTER, SECRETS, OS)) == values(LOGIN)


def test_of_a_keystone_outside_the_environment_tells_it() -> None:
    """As openrc files set it; the domain has a default."""
    assert values(find_administrator(OUTSIDE, SECRETS, OS)) == ("root", "x y", "ops", "Default")
    assert values(find_administrator(OUTSIDE, SECRETS, OS | {"OS_USER_DOMAIN_NAME": "corp"}))[3] == "corp"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME are not set"),
        (OS | {"OS_PASSWORD": ""}, "Keystone is outside this cluster, and OS_PASSWORD is not set"),
    ],
)
def test_what_the_environment_lacks_is_named(environment: dict[str, str], said: str) -> None:
    with pytest.raises(BadUsage, match=said) as raised:
        find_administrator(OUTSIDE, SECRETS, environment)
    assert "openrc" in raised.value.hint


def test_guests_without_a_network_are_not_tested() -> None:
    assert find_hosts(CLUSTER, SECRETS, CLUSTER.nodes) == [node for node in CLUSTER.nodes if not node.role.controls]
    with pytest.raises(BadUsage, match="none of these nodes is a compute"):
        find_hosts(CLUSTER, SECRETS, CLUSTER.controllers)
    with pytest.raises(BadUsage, match="have no network") as raised:
        without = replace(CLUSTER, services=replace(CLUSTER.services, network_endpoint=None))
        find_hosts(without, SECRETS, CLUSTER.nodes)
    assert "--instance" in raised.value.hint


def row(step: str, state: str = "done", node: str = "", detail: str = "", seconds: float = 0.0) -> bytes:
    return json.dumps(dict(node=node, step=step, state=state, detail=detail, seconds=seconds)).encode() + b"\n"


class There:
    """Where the test runs: plays lines, and ends as it is told, each time that it is asked."""

    def __init__(self, *ends: tuple[Sequence[bytes], int | BaseException]) -> None:
        self.ends, self.asked, self.argv, self.seconds = list(ends), [], [], []

    def follow(
        self, argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float
    ) -> Completed:
        self.asked.append(json.loads(input)["request"])
        self.argv.append(list(argv))
        self.seconds.append(timeout)
        lines, end = self.ends.pop(0) if self.ends else ((), 0)
        for line in lines:
            each_line(line)
        if isinstance(end, BaseException):
            raise end
        return Completed(argv, end, b"", b"Traceback\nKeyError: 'servers'\n")


def run(there: There, lines: list[str] | None = None) -> list[Step]:
    report = [].append if lines is None else lines.append
    return run_guests(CLUSTER, LOGIN, COMPUTES, Guest(b"kernel", b"ramdisk"), there, 60.0, report)


def test_each_step_is_reported_as_it_ends() -> None:
    """What works is reported too, and is no step that ended."""
    lines: list[str] = []
    there = There(([row("image", "working"), row("image", detail="2 MiB", seconds=1.5), row("reach", node="n2")], 0))
    assert run(there, lines) == [Step("", "image", "done", "2 MiB", 1.5), Step("n2", "reach", "done", "", 0.0)]
    assert [line.split(maxsplit=3) for line in lines] == [
        ["cluster", "image", "working"],
        ["cluster", "image", "done", "1.5 s, 2 MiB"],
        ["n2", "reach", "done", "0.0 s"],
    ]


def test_what_the_program_is_asked_for() -> None:
    """Where Keystone is, who asks, which hosts, the guest's parts; no password is an argument. It may take its time."""
    there = There()
    run(there)
    (asked,) = there.asked
    assert (asked["auth_url"], asked["region"]) == ("http://192.168.56.11:5000/v3", "RegionOne")
    assert (asked["user"], asked["password"], asked["hosts"]) == ("admin", LOGIN.password, ["linux-node2"])
    assert [b64decode(asked[part]) for part in ("kernel", "ramdisk", "disk")] == [b"kernel", b"ramdisk", DISK]
    assert LOGIN.password not in " ".join(there.argv[0]) and there.argv[0][:2] == ["python3", "-c"]
    assert there.seconds[0] > asked["timeout"] == 60


def test_the_program_is_what_the_other_side_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words on the command line read source and request from standard input, and call its main()."""
    seen: list[Any] = []
    given = {"source": "def main(request): request['seen'].append(request['hosts'])", "request": {"hosts": ["n2"]}}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(given)))
    real = json.load
    monkeypatch.setattr(json, "load", lambda stream: (found := real(stream), found["request"].update(seen=seen))[0])
    exec(instance.PROGRAM, {})
    assert seen == [["n2"]]


def test_a_failed_step_is_a_result() -> None:
    """The return code says the same, so nothing is raised; the sentence has node, step and reason."""
    there = There(([row("image"), row("metadata", "failed", "n2", "no answer")], 1))
    steps = run(there)
    assert explain_steps(steps) == ["n2: metadata: no answer"]
    assert explain_steps([Step("", "network", "failed", "quota", 1.0)]) == ["cluster: network: quota"]
    assert len(there.asked) == 1


def test_a_program_that_dies_without_a_word_is_a_failure() -> None:
    """Never taken for success: its last lines are shown."""
    with pytest.raises(CommandFailed, match="the test of guests ended with 1") as raised:
        run(There(([row("image")], 1)))
    assert raised.value.last_lines[-1] == "KeyError: 'servers'"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), CommandFailed("`python3` did not end within 240 seconds")])
def test_what_a_run_that_is_cut_off_left_is_removed(end: BaseException) -> None:
    """By the same run's name, so that no other run's guests go."""
    there = There(([row("image")], end))
    with pytest.raises(type(end)):
        run(there)
    first, second = there.asked
    assert (second["hosts"], second["run"]) == ([], first["run"])
    assert "kernel" not in second
    other = There()
    run(other)
    assert other.asked[0]["run"] != first["run"]


@pytest.mark.parametrize("end", [CommandFailed("linux-node1 is not running"), 1])
def test_a_removal_that_fails_hides_nothing(end: int | CommandFailed) -> None:
    """An interruption stays one; that something may be left is said."""
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(There(([], KeyboardInterrupt()), ([], end)), lines)
    assert "what the test has made may be left" in lines[-1]


def test_a_line_that_is_no_row_ends_the_run() -> None:
    """Whatever prints it: what was made is removed."""
    there = There(([b"Warning: something\n"], 0))
    with suppress(ValueError):
        run(there)
    assert len(there.asked) == 2


def test_a_login_is_not_said() -> None:
    assert "Canary" not in repr(LOGIN)
