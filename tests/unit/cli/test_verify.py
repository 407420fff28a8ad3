"""imagegen verify: exit codes, what is said where, and what is asked of whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes.command_line import Output

from imagegen.base.commands import Completed
from imagegen.base.errors import CommandFailed, ExitCode, MachineLacks
from imagegen.cli import verify
from imagegen.cli.run import run_command
from imagegen.local.guest import Guest
from imagegen.local.instance import Step
from imagegen.local.reach import Here, Login
from imagegen.local.verify import Fault
from imagegen.model.json_schemas import json_schema

FAULTS = [Fault("cell cell1", "is disabled"), Fault("linux-node2", "its hypervisor is down")]
STEPS = [Step("", "image", "done", "2 MiB", 1.5), Step("linux-node2", "reach", "done", "10.254.0.5", 3.25)]
FAILED = Step("linux-node2", "metadata", "failed", "no answer", 300.0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, output: Output) -> dict[str, Any]:
    """Stand-ins for a cluster that is good; what they were asked, and what they answer."""
    calls: dict[str, Any] = {"ssh": Completed([], 0, b"", b""), "faults": [], "steps": STEPS, "order": []}

    def execute(login: Login, argv: list[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        calls["login"] = (str(login.node.address), argv)
        if isinstance(calls["ssh"], Exception):
            raise calls["ssh"]
        return calls["ssh"]

    def verify_cluster(*given: Any) -> list[Fault]:
        calls["order"].append("verify")
        calls["verify"] = given
        return calls["faults"]

    def run_guests(*given: Any) -> list[Step]:
        calls["order"].append("guests")
        calls["guests"] = given
        return calls["steps"]

    monkeypatch.setattr(Login, "execute", execute)
    monkeypatch.setattr(verify, "verify_cluster", verify_cluster)
    monkeypatch.setattr(verify, "run_guests", run_guests)
    monkeypatch.setattr(verify, "find_tar", lambda out, role: Path(f"{role}.tar"))
    monkeypatch.setattr(verify, "make_guest", lambda tar: Guest(str(tar).encode(), b""))
    run_command(["init", "-q"])
    output()
    return calls


Run = Callable[..., tuple[ExitCode, dict[str, Any]]]


@pytest.fixture
def run_json(output: Output) -> Run:
    """Runs it for JSON, which is by the schema."""

    def run(*words: str) -> tuple[ExitCode, dict[str, Any]]:
        output()
        code = run_command(["verify", *words, "--output", "json"])
        document = json.loads(output()[0])
        jsonschema.validate(document, json_schema("output"))
        return code, document

    return run


def test_a_good_cluster_is_one_line(calls: dict[str, Any], output: Output) -> None:
    """The APIs are asked from here, nova-manage on the first controller; minutes become seconds."""
    assert run_command(["verify", "--timeout", "1.5"]) == ExitCode.DONE
    out, err = output()
    assert out == "demo: 2 node(s) verified\n" and "Error" not in err and "Warning" not in err
    cluster, _, nodes, here, seconds, controller = calls["verify"]
    assert nodes == cluster.nodes and isinstance(here, Here) and seconds == 90
    assert isinstance(controller, Login) and controller.node.name == "linux-node1"
    assert calls["login"] == ("192.168.56.11", ["true"])
    assert calls["order"] == ["verify"]


def test_each_fault_is_said(calls: dict[str, Any], output: Output, run_json: Run) -> None:
    """On stderr, with exit code 1; stdout has nothing but JSON when that is asked for."""
    calls["faults"] = FAULTS
    assert run_command(["verify"]) == ExitCode.FAILED
    out, err = output()
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert said == ["Error: cell cell1: is disabled", "Error: linux-node2: its hypervisor is down"]
    code, document = run_json()
    assert (code, document["ok"]) == (ExitCode.FAILED, False)
    assert [problem["message"] for problem in document["problems"]] == [str(fault) for fault in FAULTS]
    assert "steps" not in document


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Completed([], 255, b"", b"banner\nroot@192.168.56.11: Permission denied (publickey).\n"), "Permission denied"),
        (Completed([], 255, b"", b""), "ssh failed"),
        (CommandFailed("`ssh` did not end within 30 seconds"), "did not end within 30 seconds"),
        (MachineLacks("ssh is missing: install the package openssh-client"), "ssh is missing"),
    ],
)
def test_without_ssh_the_rest_is_checked(
    calls: dict[str, Any], output: Output, run_json: Run, answer: Any, why: str
) -> None:
    """A warning says what is not checked, and why; the exit code is that of the rest."""
    calls["ssh"] = answer
    assert run_command(["verify"]) == ExitCode.DONE
    (said,) = [line for line in output()[1].splitlines() if line.startswith("Warning: ")]
    assert said.startswith("Warning: Nova's table of cells is not checked: ") and why in said
    assert calls["verify"][-1] is None
    code, document = run_json()
    assert code == ExitCode.DONE and why in document["warnings"][0]["message"]


def test_named_nodes_are_checked(calls: dict[str, Any], output: Output) -> None:
    """And no others; a name that none has is bad usage."""
    assert run_command(["verify", "linux-node2"]) == ExitCode.DONE
    assert [node.name for node in calls["verify"][2]] == ["linux-node2"]
    assert output()[0] == "demo: 1 node(s) verified\n"
    calls["order"].clear()
    assert run_command(["verify", "linux-node9"]) == ExitCode.BAD_INPUT
    assert "has no node `linux-node9`" in output()[1] and calls["order"] == []


def test_guests_boot_on_the_computes(calls: dict[str, Any], output: Output, run_json: Run) -> None:
    """After the checks, from the compute's image, as the administrator; each step is a line."""
    assert run_command(["verify", "--instance"]) == ExitCode.DONE
    assert calls["order"] == ["verify", "guests"]
    _, login, computes, guest, here, seconds, _ = calls["guests"]
    assert (login.user, login.project) == ("admin", "admin")
    assert ([node.name for node in computes], guest.kernel) == (["linux-node2"], b"compute.tar")
    assert isinstance(here, Here) and seconds == 300
    assert [line.split() for line in output()[0].splitlines()] == [
        ["NODE", "STEP", "STATE", "SECONDS", "DETAIL"],
        ["-", "image", "done", "2", "2", "MiB"],
        ["linux-node2", "reach", "done", "3", "10.254.0.5"],
    ]
    code, document = run_json("--instance")
    assert (code, document["steps"][1]["seconds"]) == (ExitCode.DONE, 3.25)


def test_a_guest_that_failed_is_a_fault(calls: dict[str, Any], output: Output, run_json: Run) -> None:
    calls["steps"] = [*STEPS, FAILED]
    assert run_command(["verify", "--instance"]) == ExitCode.FAILED
    out, err = output()
    assert "Error: linux-node2: metadata: no answer\n" in err and "failed" in out
    code, document = run_json("--instance")
    assert code == ExitCode.FAILED
    assert [len(document["steps"]), document["problems"][0]["message"]] == [3, "linux-node2: metadata: no answer"]


def test_no_guest_boots_on_a_cluster_with_faults(calls: dict[str, Any], output: Output, run_json: Run) -> None:
    calls["faults"] = FAULTS
    code, document = run_json("--instance")
    assert (code, document["steps"], calls["order"]) == (ExitCode.FAILED, [], ["verify"])


@pytest.mark.parametrize(
    ("before", "after", "words", "said"),
    [
        ("", "", ["linux-node1"], "none of these nodes is a compute"),
        ("network: {node: linux-node1}", "network: none", [], "have no network"),
    ],
)
def test_what_no_guest_can_say_is_bad_usage(
    calls: dict[str, Any], output: Output, before: str, after: str, words: list[str], said: str
) -> None:
    """Before anything is asked."""
    Path("cluster.yaml").write_text(Path("cluster.yaml").read_text().replace(before, after))
    assert run_command(["verify", "--instance", *words]) == ExitCode.BAD_INPUT
    assert said in output()[1] and calls["order"] == []
    assert run_command(["verify", *words]) == ExitCode.DONE


def test_a_keystone_outside_needs_its_administrator(
    calls: dict[str, Any], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said before the checks, not after them."""
    for name in ("OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME"):
        monkeypatch.delenv(name, raising=False)
    text = Path("cluster.yaml").read_text()
    text = text.replace("identity: {node: linux-node1}", 'identity: {auth_url: "http://10.0.0.5:5000/v3"}')
    Path("cluster.yaml").write_text(text)
    assert run_command(["verify", "--instance"]) == ExitCode.BAD_INPUT
    err = output()[1]
    assert "OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME are not set" in err and "openrc" in err
    assert calls["order"] == []
