"""One cluster for the whole session, what it is asked once for many tests, and what a failure shows of its nodes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import deployment as tier
import pytest
import watch
from answers import Answers, ask_everything
from canaries import CLUSTER_FILE
from deployment import Deployment, RunningNode
from secret_places import name_secrets

from imagegen.base.signals import end_on_signals
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import load_secrets

REPORTED_FAILURES = 3  # the nodes of one bring-up say much the same at every failure
JOURNAL_LINES = "25"

REPORTED = pytest.StashKey[int]()
SECONDS = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """The running cluster: brought up by `imagegen` alone, watched meanwhile, and ended whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("the cluster tier boots containers, which needs root")
    directory = tier.WORK / "cluster"
    with end_on_signals(), tier.hold_work():
        tier.tear_down(directory)
        shutil.rmtree(directory, ignore_errors=True)
        try:
            booted = bring_up(directory)
            request.config.stash[SECONDS] = booted.seconds
            yield booted
        except tier.BringUpFailed as error:
            # Once and not at each of the tests that now cannot run.
            request.session.shouldfail = "there is no cluster to test"
            pytest.fail(str(error), pytrace=False)
        finally:
            tier.tear_down(directory)


def bring_up(directory: Path) -> Deployment:
    """Everything between two input files and a cluster that is ready."""
    seconds = tier.prepare(directory)
    secrets = name_secrets(load_cluster(directory / "cluster.yaml"), load_secrets(directory / "secrets.yaml"))
    with watch.ProcessWatch(secrets | {"cluster file": CLUSTER_FILE}) as seen:
        booted = tier.boot(directory)
    booted.watch = seen
    booted.seconds = {**seconds, **booted.seconds}
    return booted


@pytest.fixture(scope="session")
def controller(deployment: Deployment) -> RunningNode:
    return deployment.controller


@pytest.fixture(scope="session")
def computes(deployment: Deployment) -> list[RunningNode]:
    return deployment.computes


@pytest.fixture(scope="session")
def answers(deployment: Deployment) -> Iterator[Answers]:
    """The real clients' answers and the daemons' effective options."""
    with ask_everything(deployment) as asked:
        yield asked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What meddles with rows, agents and nodes comes last: the other tests are about a cluster nobody has touched."""
    last = ["test_contract.py", "test_sickness.py", "test_restarts.py"]
    items.sort(key=lambda item: last.index(item.path.name) if item.path.name in last else -1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """A failure shows what each node says of itself."""
    report = yield
    running = getattr(item, "funcargs", {}).get("deployment")
    if report.failed and report.when == "call" and running is not None:
        count = item.config.stash.get(REPORTED, 0)
        if count < REPORTED_FAILURES:
            for node in running.nodes.values():
                report.sections.append((f"node {node.name}", describe_node(node)))
        item.config.stash[REPORTED] = count + 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long each command of the bring-up took, to be held against the tier's budget."""
    for command, seconds in terminalreporter.config.stash.get(SECONDS, {}).items():
        terminalreporter.line(f"imagegen {command:<10} {seconds:7.1f} s")


def describe_node(node: RunningNode) -> str:
    """A node's status and the end of its journal."""
    said = []
    for argv in (
        ["cat", "/run/imagegen/status.json"],
        ["systemctl", "--failed", "--no-legend", "--plain"],
        ["journalctl", "--boot", f"--lines={JOURNAL_LINES}", "--no-pager", "--output=short-monotonic"],
    ):
        try:
            done = node.execute(argv, timeout=30)
            said.append((done.stdout + done.stderr).decode(errors="replace").strip())
        except Exception as error:  # a report must not hide the failure that it is about
            said.append(f"{argv[0]}: {error}")
    return "\n".join(said)
