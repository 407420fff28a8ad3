"""Real rows edited into every known sickness: the doctor names it with its cure, the agent stops where it must.

conftest.py puts this file after those about a cluster that nobody has touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from deployment import Deployment, RunningNode, start_agent, stop_agent, wait_for, wait_ready

STRANGER = "11111111-2222-4333-8444-555555555555"

# name -> (statement that makes sick, what undoes it, words of the finding, words of its cure)
SICKNESSES = {
    "duplicate cell": (
        "INSERT INTO nova_api.cell_mappings (uuid, name, transport_url, database_connection, disabled)"
        f" SELECT '{STRANGER}', name, transport_url, database_connection, 0 FROM nova_api.cell_mappings"
        " WHERE name = 'cell1'",
        f"DELETE FROM nova_api.cell_mappings WHERE uuid = '{STRANGER}'",
        "two rows for one cell",
        f"nova-manage cell_v2 delete_cell --cell_uuid {STRANGER}",
    ),
    "cell0 with a queue": (
        "UPDATE nova_api.cell_mappings SET transport_url = 'rabbit://x@192.0.2.1/' WHERE name = 'cell0'",
        "UPDATE nova_api.cell_mappings SET transport_url = 'none:///' WHERE name = 'cell0'",
        "cell0 has a message queue's URL",
        "imagegen-node retry cells",
    ),
    "schema ahead": (
        "UPDATE nova.alembic_version SET version_num = CONCAT('x', version_num)",
        "UPDATE nova.alembic_version SET version_num = SUBSTRING(version_num, 2)",
        "schema nova is ahead",
        "boot this node from the image of that release",
    ),
    "old compute": (
        "UPDATE nova_oost.services SET version = version - 40 WHERE `binary` = 'nova-compute'",
        "UPDATE nova_oost.services SET version = version + 40 WHERE `binary` = 'nova-compute'",
        "c-3 runs nova-compute version",
        "upgrade c-3",
    ),
    "unmapped compute": (
        "UPDATE nova_api.host_mappings SET host = CONCAT('x', host) WHERE host = 'c-3';"
        " UPDATE nova_oost.compute_nodes SET mapped = 0",
        "UPDATE nova_api.host_mappings SET host = SUBSTRING(host, 2) WHERE host = 'xc-3';"
        " UPDATE nova_oost.compute_nodes SET mapped = 1",
        "registered, but not mapped: c-3",
        "discover_hosts --cell_uuid",
    ),
}


def execute_sql(controller: RunningNode, statement: str) -> None:
    controller.ask("mariadb", "--execute", statement)


@contextmanager
def edited(deployment: Deployment, name: str) -> Iterator[None]:
    """The rows edited, and afterwards as they were. c-3's nova-compute is stopped meanwhile: one that has read its own
    row as too old never reports again."""
    change, undo, *_ = SICKNESSES[name]
    signal = ("systemctl", "kill", "nova-compute.service", "--signal")
    deployment.nodes["c-3"].ask(*signal, "STOP")
    try:
        execute_sql(deployment.controller, change)
        yield
    finally:
        execute_sql(deployment.controller, undo)
        deployment.nodes["c-3"].ask(*signal, "CONT")


@contextmanager
def made_sick(deployment: Deployment, name: str) -> Iterator[tuple[str, str]]:
    """Likewise, with the controller's agent stopped so that it cures nothing."""
    _, _, what, cure = SICKNESSES[name]
    stop_agent(deployment.controller)
    try:
        with edited(deployment, name):
            yield what, cure
    finally:
        start_agent(deployment.controller)


def examine(node: RunningNode, *words: str, input: str | None = None) -> list[dict[str, Any]]:
    """What `imagegen-node doctor` finds; its exit code says whether it found anything."""
    done = node.execute(["imagegen-node", "doctor", "--json", *words], input=input)
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert done.returncode == bool(findings), done.stderr
    return findings


def test_nothing_is_wrong_with_ready_nodes(deployment: Deployment) -> None:
    """No false alarm on any node; the names of all computes are known to the controller."""
    for node in deployment.nodes.values():
        assert examine(node) == [], node.name
    names = "\n".join(node.name for node in deployment.computes)
    assert examine(deployment.controller, "--expect", "-", input=names) == []


def test_a_compute_that_never_came_is_named(deployment: Deployment) -> None:
    """Its name comes from whoever asks: no seed holds the list."""
    found = examine(deployment.controller, "--expect", "-", input="c-3\nc-4\n")
    assert [finding["what"] for finding in found] == ["c-4 never registered"]


@pytest.mark.parametrize("name", SICKNESSES)
def test_the_doctor_names_a_sickness_and_its_cure(deployment: Deployment, name: str) -> None:
    """The edited row is found, and no secret is shown."""
    with made_sick(deployment, name) as (what, cure):
        found = examine(deployment.controller)
    assert [finding for finding in found if what in finding["what"] and cure in finding["cure"]], found
    assert deployment.secrets["database_nova"] not in json.dumps(found)


LOOK = """\
import sys
sys.path.insert(0, "/usr/lib/imagegen-node")
from imagegen_node import cli
from imagegen_node.node import metadata
from imagegen_node.engine.health import find_troubles
from imagegen_node.engine.status import Status
facts, node = metadata.read_facts(), metadata.read_node()
role = cli.make_role(facts, node, Status(node["node"], facts["role"]))
print(*find_troubles(role.list_looks()), sep="\\n", end="")
"""


def test_a_ready_node_sees_what_stops_working(deployment: Deployment) -> None:
    """No false alarm on real services; what the API says of a compute is said. The agent itself looks in minutes."""
    for node in deployment.nodes.values():
        assert node.ask("python3", "-c", LOOK) == "", node.name
    compute = deployment.nodes["c-3"]
    change = "UPDATE nova_oost.services SET disabled = {0}, forced_down = {0}, disabled_reason = {1} WHERE host = 'c-3'"
    try:
        execute_sql(deployment.controller, change.format(1, "'new memory'"))
        said = compute.ask("python3", "-c", LOOK).splitlines()
    finally:
        execute_sql(deployment.controller, change.format(0, "NULL"))
    assert said == ["nova-compute is forced down in the API", "nova-compute is disabled in the API (new memory)"]


def retry(node: RunningNode, step: str) -> tuple[int, str]:
    done = node.execute(["imagegen-node", "retry", step], timeout=240)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("duplicate cell", "cells", f"delete_cell --cell_uuid {STRANGER}"),
        ("schema ahead", "nova-api-schema", "boot the newer image"),
        ("old compute", "compute-versions", "c-3 (version"),
    ],
)
def test_the_agent_stops_before_it_would_do_harm(deployment: Deployment, name: str, step: str, words: str) -> None:
    """`retry` has the agent look again: it refuses, names the reason, and goes on by itself once that is mended."""
    controller = deployment.controller
    rows = controller.ask("mariadb", "--batch", "--execute=SELECT * FROM nova_api.cell_mappings")
    with edited(deployment, name):
        rc, said = retry(controller, step)
        assert (rc, words in said) == (2, True), said
        assert controller.status()["state"] == "failed"
    rc, said = retry(controller, step)
    assert rc == 0, said
    wait_ready(controller)
    assert controller.ask("mariadb", "--batch", "--execute=SELECT * FROM nova_api.cell_mappings") == rows


def test_a_stale_row_is_cured_by_a_retry(deployment: Deployment) -> None:
    """cell0 with a message queue's URL, which create_cell would take for cell1: both URLs are set right again."""
    controller = deployment.controller
    rows = controller.ask("mariadb", "--batch", "--execute=SELECT uuid, transport_url FROM nova_api.cell_mappings")
    execute_sql(controller, SICKNESSES["cell0 with a queue"][0])
    rc, said = retry(controller, "cells")
    assert rc == 0, said
    wait_ready(controller)
    assert (
        controller.ask("mariadb", "--batch", "--execute=SELECT uuid, transport_url FROM nova_api.cell_mappings") == rows
    )


@pytest.mark.parametrize("marked", [0, 1])
def test_an_unmapped_compute_is_mapped_within_seconds(deployment: Deployment, marked: int) -> None:
    """Discovery notices by its cheap query, also where Nova still marks as mapped what was deleted and came back."""
    controller = deployment.controller
    execute_sql(controller, "DELETE FROM nova_api.host_mappings WHERE host = 'c-3'")
    execute_sql(controller, f"UPDATE nova_oost.compute_nodes SET mapped = {marked}")
    query = "SELECT COUNT(*) FROM nova_api.host_mappings WHERE host = 'c-3'"
    count = ("mariadb", "--batch", "--skip-column-names", f"--execute={query}")
    wait_for("c-3 to be mapped again", lambda: controller.ask(*count).strip() == "1", 60)
