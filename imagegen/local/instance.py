"""The acceptance test of a cloud: a guest on each compute that says what it sees (data/instance.py does the work)."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol
from uuid import uuid4

from imagegen.base.commands import Completed
from imagegen.base.errors import BadUsage, CommandFailed, ImagegenError
from imagegen.base.streams import Say
from imagegen.inputs.secrets_file import Secrets
from imagegen.local.guest import DISK, Guest
from imagegen.model.cluster import Cluster, Node

# Reads a program and what it is asked for from its standard input: no password is an argument.
PROGRAM = (
    "import json, sys; given = json.load(sys.stdin); names = {'__name__': 'instance'}; "
    "exec(given['source'], names); names['main'](given['request'])"
)
STEP_COLUMNS = ("node", "step", "state", "seconds", "detail")
"""Of a table of steps."""


class Follower(Protocol):
    """Where the test runs: something that reaches the cluster's APIs."""

    def follow(
        self, argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float
    ) -> Completed: ...


@dataclass(frozen=True, repr=False)
class Login:
    """An administrator of Keystone."""

    user: str
    password: str
    project: str
    domain: str


@dataclass(frozen=True)
class Step:
    """One step of the test that ended."""

    node: str  # empty: it is about all
    step: str
    state: str  # done or failed
    detail: str
    seconds: float


def find_administrator(cluster: Cluster, secrets: Secrets, environment: Mapping[str, str] = os.environ) -> Login:
    """Who may make a project: the cluster's own administrator or, of a Keystone outside, the one in OS_*.

    Raises BadUsage when those variables are not set.
    """
    if cluster.services.identity.node is not None:
        return Login("admin", secrets["identity_admin"], "admin", "Default")
    names = ("OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME")
    if missing := [name for name in names if not environment.get(name)]:
        raise BadUsage(
            f"Keystone is outside this cluster, and {', '.join(missing)} {'are' if missing[1:] else 'is'} not set",
            "source an administrator's openrc first: the test makes a project of its own, and removes it",
        )
    domain = environment.get("OS_USER_DOMAIN_NAME") or "Default"
    user, password, project = (environment[name] for name in names)
    return Login(user, password, project, domain)


def find_hosts(cluster: Cluster, secrets: Secrets, nodes: Sequence[Node]) -> list[Node]:
    """The computes among the nodes. Raises BadUsage when guests could not boot there, or not say anything."""
    if cluster.services.network_endpoint is None:
        raise BadUsage(
            "guests of this cluster have no network, so they cannot be tested",
            "give services.network, or leave --instance out",
        )
    computes = [node for node in nodes if node.role.runs("nova-compute")]
    if not computes:
        raise BadUsage(
            "none of these nodes is a compute, so no guest can boot on them", "name a compute, or leave --instance out"
        )
    find_administrator(cluster, secrets)
    return computes


def run_guests(
    cluster: Cluster, login: Login, computes: Sequence[Node], guest: Guest, there: Follower, timeout: float, report: Say
) -> list[Step]:
    """Every step that ended, in their order; `report` hears of each at once. `timeout`: seconds for each.

    All that the test makes is removed, also after a failure and an interruption; what a killed one left, by the next.
    """
    common = _request(cluster, login, timeout)
    request = common | {
        "hosts": [node.name for node in computes],
        "kernel": b64encode(guest.kernel).decode(),
        "ramdisk": b64encode(guest.ramdisk).decode(),
        "disk": b64encode(DISK).decode(),
    }
    steps: list[Step] = []

    def hear(line: bytes) -> None:
        row = json.loads(line)
        if row["state"] != "working":
            steps.append(Step(**row))
        report(f"{row['node'] or 'cluster':<16} {row['step']:<24} {row['state']:<8} {_said(row)}".rstrip())

    whole = timeout * (2 + 2 * len(computes))
    try:
        done = there.follow(["python3", "-c", PROGRAM], hear, input=_input(request), timeout=whole)
    except BaseException:
        try:
            remove_remains(common, there)
        except ImagegenError as error:
            report(f"what the test has made may be left: {error.message}")
        raise
    if done.returncode and not any(step.state == "failed" for step in steps):
        lines = done.stderr.decode(errors="replace").splitlines()
        raise CommandFailed(f"the test of guests ended with {done.returncode}", last_lines=lines[-10:])
    return steps


def explain_steps(steps: Sequence[Step]) -> list[str]:
    """A sentence for each step that failed."""
    return [f"{step.node or 'cluster'}: {step.step}: {step.detail}" for step in steps if step.state == "failed"]


def remove_remains(request: Mapping[str, Any], there: Follower) -> None:
    """Removes what the test with that request has left when it was cut off, and no other's. Raises CommandFailed."""
    asked = {**request, "hosts": []}
    argv, timeout = ["python3", "-c", PROGRAM], 2 * request["timeout"]
    done = there.follow(argv, lambda line: None, input=_input(asked), timeout=timeout)
    if done.returncode:
        raise CommandFailed(f"removing it ended with {done.returncode}")


def _request(cluster: Cluster, login: Login, timeout: float) -> dict[str, Any]:
    return {
        "run": uuid4().hex,
        "auth_url": cluster.services.auth_url,
        "region": cluster.region,
        "user": login.user,
        "password": login.password,
        "project": login.project,
        "domain": login.domain,
        "timeout": timeout,
    }


def _input(request: Mapping[str, Any]) -> bytes:
    source = files("imagegen").joinpath("data/instance.py").read_text(encoding="utf-8")
    return json.dumps({"source": source, "request": request}).encode()


def _said(row: Mapping[str, Any]) -> str:
    if row["state"] == "working":
        return ""
    return f"{row['seconds']:.1f} s{', ' if row['detail'] else ''}{row['detail']}"
