"""`imagegen verify` from the nodes' network, and guests on every compute, whatever becomes of the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from deployment import Deployment, wait_for
from repository import ROOT

SECONDS = 600.0
SEEN = {"request", "active", "address", "metadata", "console", "reach"}
PROJECT = "imagegen-verify"
PLACES = {
    "projects": ("identity", "/projects"),
    "servers": ("compute", "/servers?all_tenants=1"),
    "networks": ("network", "/v2.0/networks"),
    "ports": ("network", "/v2.0/ports"),
    "images": ("image", "/v2/images"),
    "flavors": ("compute", "/flavors?is_public=None"),
}


def start(deployment: Deployment, *words: str) -> subprocess.Popen[bytes]:
    """`imagegen verify` on a machine that reaches the nodes, in a process group of its own."""
    command = [sys.executable, "-m", "imagegen", "verify", *words]
    return subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{deployment.hub}", *command],
        cwd=deployment.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={"PATH": os.environ["PATH"], "HOME": str(deployment.directory), "PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out.decode(), err.decode()


def list_remains(deployment: Deployment) -> dict[str, list[str]]:
    """What there is of the test in each API, as the administrator sees it."""
    return {kind: names for kind, names in ask_names(deployment).items() if names}


def ask_names(deployment: Deployment) -> dict[str, list[str]]:
    return {
        kind: [row["name"] for row in answer[kind] if row["name"].startswith(PROJECT)]
        for kind, answer in deployment.ask_apis(PLACES).items()
    }


def read_steps(out: str) -> Any:
    return [(row["node"], row["step"], row["state"]) for row in json.loads(out)["steps"]]


def test_a_cluster_is_verified_from_outside(deployment: Deployment) -> None:
    """By its APIs alone; that nobody could log in by ssh is said."""
    rc, out, err = finish(start(deployment))
    assert (rc, out.strip()) == (0, f"{deployment.cluster.name}: {len(deployment.nodes)} node(s) verified"), err
    assert "Nova's table of cells is not checked" in err


def test_an_interrupted_run_leaves_nothing(deployment: Deployment) -> None:
    """Interrupted as soon as there is a guest."""
    process = start(deployment, "--instance", deployment.computes[0].name)
    wait_for("a guest", lambda: ask_names(deployment)["servers"], SECONDS, pause=2)
    os.kill(process.pid, signal.SIGINT)
    rc, _, err = finish(process)
    assert rc == 130, err
    assert list_remains(deployment) == {}


def test_a_guest_boots_on_every_compute_whatever_a_killed_run_left(deployment: Deployment) -> None:
    """What is left is found by its project's name, once nobody gives a sign of life there any more. Then each guest
    gets its address, reads its metadata, reaches the guest on the other compute; and everything is gone again.
    """
    process = start(deployment, "--instance", deployment.computes[0].name)
    wait_for("a guest", lambda: ask_names(deployment)["servers"], SECONDS, pause=2)
    for pid in (process.pid, *find_children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    finish(process)
    assert list_remains(deployment)["servers"]

    rc, out, err = finish(start(deployment, "--instance", "--output", "json"))
    assert rc == 0, err
    first = json.loads(out)["steps"][0]
    assert (first["step"], first["detail"]) == ("project", "after removing what an earlier run left")
    steps = read_steps(out)
    for node in deployment.computes:
        assert {step for name, step, state in steps if (name, state) == (node.name, "done")} == SEEN, err
    assert steps[-1] == ("", "removed", "done")
    assert list_remains(deployment) == {}
    assert deployment.secrets["identity_admin"] not in out + err


def find_children(pid: int) -> list[int]:
    """All that a process has started, whatever group it is in."""
    text = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in text.splitlines()]
    found = [child for child, parent in pairs if parent == pid]
    return [*found, *(grandchild for child in found for grandchild in find_children(child))]
