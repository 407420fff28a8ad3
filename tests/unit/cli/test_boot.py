"""imagegen boot --instance: what is passed on, and what of the guests is said."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from fakes.command_line import Output

from imagegen.base.errors import ExitCode
from imagegen.cli.run import run_command
from imagegen.local.boot import Booted, ClusterNotReady, NodeResult
from imagegen.local.instance import Step
from imagegen.local.request import Boot
from imagegen.model.json_schemas import json_schema

STEPS = [Step("", "image", "done", "2 MiB", 1.5), Step("linux-node2", "reach", "done", "10.254.0.5", 3.0)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, output: Output) -> list[Boot]:
    """Stands in for what boots; what it was asked for. Guests are seen when they were asked for."""
    asked: list[Boot] = []

    def boot_cluster(boot: Boot, report: Any) -> Booted:
        asked.append(boot)
        nodes = [NodeResult(n.name, str(n.role), "ready", "serve", "", 61.4, "abc") for n in boot.nodes]
        return Booted(nodes, STEPS if boot.instance else ())

    monkeypatch.setattr("imagegen.cli.boot.boot_cluster", boot_cluster)
    run_command(["init", "-q"])
    output()
    return asked


def test_guests_are_a_table_of_their_own(asked: list[Boot], output: Output) -> None:
    """Below that of the nodes, and not there when none was asked for."""
    assert run_command(["boot", "--instance"]) == ExitCode.DONE
    assert [line.split() for line in output()[0].splitlines()] == [
        ["NAME", "ROLE", "STATE", "SECONDS", "IMAGE"],
        ["linux-node1", "controller", "ready", "61", "abc"],
        ["linux-node2", "compute", "ready", "61", "abc"],
        [],
        ["NODE", "STEP", "STATE", "SECONDS", "DETAIL"],
        ["-", "image", "done", "2", "2", "MiB"],
        ["linux-node2", "reach", "done", "3", "10.254.0.5"],
    ]
    assert run_command(["boot"]) == ExitCode.DONE
    assert "STEP" not in output()[0]
    assert [boot.instance for boot in asked] == [True, False]


@pytest.mark.usefixtures("asked")
def test_json_has_nodes_and_steps(output: Output) -> None:
    """By the schema; without guests there are no steps."""
    for words, steps in ((["--instance"], ["image", "reach"]), ([], None)):
        assert run_command(["boot", *words, "--output", "json"]) == ExitCode.DONE
        document = json.loads(output()[0])
        jsonschema.validate(document, json_schema("output"))
        assert (steps is None) == ("steps" not in document)
        assert [row["step"] for row in document.get("steps", [])] == (steps or [])


@pytest.mark.usefixtures("asked")
def test_a_guest_that_failed_fails_the_boot(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """With the same exit code as a node that is not ready."""

    def boot_cluster(boot: Boot, report: Any) -> None:
        nodes = [NodeResult(n.name, str(n.role), "ready", "serve", "", 61.4, "abc") for n in boot.nodes]
        raise ClusterNotReady("linux-node2: metadata: no answer", "look there", nodes)

    monkeypatch.setattr("imagegen.cli.boot.boot_cluster", boot_cluster)
    assert run_command(["boot", "--instance"]) == ExitCode.NODE_NOT_READY
    assert output()[1] == "Error: linux-node2: metadata: no answer\nlook there\n"
