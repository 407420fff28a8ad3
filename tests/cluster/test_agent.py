"""What the agent says of its node, and to whom."""

from __future__ import annotations

import re
import shlex
import subprocess
from datetime import datetime

from deployment import Deployment

from imagegen.model.roles import find_role

STEPS = {
    find_role("controller"): [
        *("role", "files", "machine", "configure", "start", "database", "messaging", "cache", "ovn", "wait-database"),
        *("wait-messaging", "identity", "wait-identity", "lease", "placement-schema", "nova-api-schema", "cells"),
        *(
            "nova-schema",
            "flavors",
            "service-users",
            "wait-schemas",
            "compute-versions",
            "services",
            "image",
            "network",
        ),
        *("verify", "seed"),
    ],
    find_role("compute"): [
        *("role", "files", "machine", "configure", "wait-messaging", "wait-identity", "compute-id", "libvirt"),
        *("openvswitch", "chassis", "compute-service", "metadata-agent", "mapped", "network-agents", "seed"),
    ],
}


def test_the_status_document_is_the_contracts(deployment: Deployment) -> None:
    """Its keys, its states, and one entry for each step, in the order in which they ran."""
    for node in deployment.nodes.values():
        document = node.status()
        assert set(document) == {"version", "node", "role", "state", "step", "detail", "since", "steps"}, node.name
        assert document["version"] == 1
        assert (document["node"], document["role"]) == (node.name, node.node.role.name)
        assert document["state"] == "ready"
        assert datetime.strptime(document["since"], "%Y-%m-%dT%H:%M:%SZ")
        names = [step["name"] for step in document["steps"]]
        assert [name for name in names if name != "upgrade-check"] == STEPS[node.node.role], node.name
        for step in document["steps"]:
            assert set(step) == {"name", "state", "seconds", "rc"}
            assert (step["state"], step["rc"]) == ("done", 0), step
            assert 0 <= step["seconds"] < 600, step


def test_the_status_is_for_everybody(deployment: Deployment) -> None:
    """Any user of the node may read it, by the command too, whose exit code 0 says ready."""
    for node in deployment.nodes.values():
        assert node.file_facts("/run/imagegen/status.json") == {"/run/imagegen/status.json": "root:root 0644"}
        said = node.ask_as("nobody", "imagegen-node", "status")
        assert said.startswith(f"{node.name} ({node.node.role.name}) is ready since "), said
        assert node.ask_json("imagegen-node", "status", "--json") == node.status()


def test_the_console_tells_the_steps(deployment: Deployment) -> None:
    """Whoever watches the console sees each step, the end, and a login prompt."""
    for node in deployment.nodes.values():
        console = (deployment.out / "boot" / node.name / "console.log").read_text(errors="replace")
        head = f"imagegen: {node.name} ({node.node.role.name})"
        for step in STEPS[node.node.role][1:]:
            assert re.search(rf"^{re.escape(head)} \w+ {step}\b", console, re.MULTILINE), f"{node.name}: {step}"
        assert re.search(rf"^{re.escape(head)} ready", console, re.MULTILINE), node.name
        assert "login:" in console, node.name


def test_boot_gives_the_verdict(deployment: Deployment) -> None:
    """`boot --output json` lists every node as ready, with its image and the seconds that it took."""
    verdict = deployment.verdict
    assert (verdict["version"], verdict["command"], verdict["ok"], verdict["problems"]) == (1, "boot", True, [])
    rows = {row["name"]: row for row in verdict["nodes"]}
    assert set(rows) == set(deployment.nodes)
    for node in deployment.nodes.values():
        row = rows[node.name]
        assert (row["role"], row["state"]) == (node.node.role.name, "ready")
        assert row["image"] == deployment.image(node.node.role).name
        assert 0 < row["seconds"] < deployment.seconds["boot"]


def test_the_printed_login_works(deployment: Deployment) -> None:
    """The command that `boot --keep` prints for a node gives a root shell on that node."""
    for node in deployment.nodes.values():
        words = shlex.split(node.login)
        assert words[0] == "sudo"
        done = subprocess.run([*words[1:], "-c", "id -un; hostname"], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["root", node.name], done.stderr


def test_the_lease_is_given_back(deployment: Deployment) -> None:
    """A ready controller leaves it to whoever has work; what was done once for this release stands beside it."""
    query = "SELECT COUNT(*) FROM imagegen.lease; SELECT name FROM imagegen.done ORDER BY name"
    said = deployment.controller.ask("mariadb", "--batch", "--skip-column-names", f"--execute={query}").splitlines()
    release = deployment.cluster.release.id
    assert said == ["0", "first flavors", f"online_data_migrations of {release}", f"upgrade_check of {release}"]
