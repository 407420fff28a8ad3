"""No value of secrets.yaml stands where anybody but its user can read it: plain, percent-encoded or in base64."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from canaries import CLOSED
from deployment import Deployment
from secret_places import find_misplaced, name_secrets, secrets_of_compute
from watch import spell_secret

# Planted in every node, in a unit's arguments and environment and so in the journal: a scan that misses it is blind.
CANARY = "canary/in+a:mine=@?"
CANARY_UNIT = "imagegen-canary.service"

SEED = {r"/var/lib/cloud/seed/nocloud/user-data": "root:root 0600"}


@pytest.fixture(scope="module")
def scans(deployment: Deployment) -> Iterator[dict[str, Any]]:
    """Node -> where spellings of the secrets and of the canary stand in it."""
    named = name_secrets(deployment.cluster, deployment.secrets)
    secrets = {name: sorted(spell_secret(value)) for name, value in named.items()}
    secrets |= {name: sorted(spell_secret(value)) for name, value in {**CLOSED, "canary": CANARY}.items()}
    start = ["systemd-run", f"--unit={CANARY_UNIT}", f"--setenv=CANARY={CANARY}", "--quiet"]
    try:
        for node in deployment.nodes.values():
            node.ask(*start, "sh", "-c", "sleep infinity", CANARY)
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda node: node.probe("secrets", secrets, timeout=300), deployment.nodes.values())
            yield dict(zip(deployment.nodes, found, strict=True))
    finally:
        for node in deployment.nodes.values():
            node.execute(["systemctl", "stop", CANARY_UNIT])


def hits(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Where secrets stand, the canary of this test left out."""
    return {where: kept for where, names in found.items() if (kept := [name for name in names if name != "canary"])}


def test_the_scan_sees(scans: dict[str, Any]) -> None:
    """The canary is found in a file, in the journal, in arguments and in an environment of every node."""
    for name, scan in scans.items():
        assert scan["files seen"] > 20_000 and scan["files read"] > 100, name
        assert "canary" in scan["files"][f"/run/systemd/transient/{CANARY_UNIT}"][2], name
        assert "canary" in scan["journal"], name
        assert ["canary"] in scan["arguments"].values(), name
        assert ["canary"] in scan["environments"].values(), name


def test_secrets_stand_only_in_closed_files(deployment: Deployment, scans: dict[str, Any]) -> None:
    """root:SERVICE 0640 or root 0600, in files that are known to hold them; and each such file was found."""
    wrong = []
    for node in deployment.nodes.values():
        files = {path: facts for path, facts in scans[node.name]["files"].items() if hits({path: facts[2]})}
        wrong += [f"{node.name}: {fault}" for fault in find_misplaced(node.node.role, files, SEED)]
    assert not wrong, "\n".join(wrong)


def test_a_compute_gets_only_what_it_needs(deployment: Deployment, scans: dict[str, Any]) -> None:
    """Two passwords of its own: no controller's, no other cell's, no key reaches a compute, in whatever file."""
    for node in deployment.computes:
        names = {name for _, _, found in scans[node.name]["files"].values() for name in found}
        assert names - {"canary", "comment of a key"} == secrets_of_compute(node.node), node.name


def test_the_callers_environment_reaches_no_node(scans: dict[str, Any]) -> None:
    """What `imagegen` had in its own environment is nowhere on a node."""
    for name, scan in scans.items():
        everywhere = [*scan["files"].values(), [scan["journal"]], *([found] for found in scan["environments"].values())]
        assert not {"environment", "no_proxy"} & {found for one in everywhere for found in one[-1]}, name


def test_no_secret_is_logged(deployment: Deployment, scans: dict[str, Any]) -> None:
    """Neither the journal nor a file below /var/log holds one; consoles neither."""
    for node in deployment.nodes.values():
        assert set(scans[node.name]["journal"]) <= {"canary"}, node.name
        logs = {
            path: names for path, (_, _, names) in scans[node.name]["files"].items() if path.startswith("/var/log/")
        }
        assert hits(logs) == {}, node.name
        console = (deployment.out / "boot" / node.name / "console.log").read_bytes()
        named = {**name_secrets(deployment.cluster, deployment.secrets), **CLOSED}
        spelled = {name: spell_secret(value) for name, value in named.items()}
        assert [name for name, spellings in spelled.items() if any(s.encode() in console for s in spellings)] == []


def test_no_running_process_holds_a_secret(scans: dict[str, Any]) -> None:
    """Neither in the arguments nor in the environment of any process of a ready node."""
    for name, scan in scans.items():
        assert hits(scan["arguments"]) == {}, name
        assert hits(scan["environments"]) == {}, name


def test_no_process_of_the_bring_up_was_given_a_secret(deployment: Deployment) -> None:
    """Seen from outside while the nodes came up: no argument ever; an environment only for Keystone's bootstrap."""
    assert deployment.watch.rounds > 100
    given = deployment.watch.seen
    assert any("nova-manage" in word for one in given for word in one.argv), "the watch did not see the nodes"
    assert [one.argv for one in given if one.in_argv] == []
    lent = {(one.argv[:3], one.in_environment) for one in given if one.in_environment}
    # keystone-manage takes the first password from OS_BOOTSTRAP_PASSWORD or from an argument, from nowhere else.
    bootstrap = ("/usr/bin/python3", "/usr/bin/keystone-manage", "bootstrap")
    assert lent <= {(bootstrap, frozenset({"identity_admin"}))}
    passwd = deployment.controller.ask("id", "-u", "keystone").strip()
    assert {str(one.uid) for one in given if one.in_environment} <= {passwd}


def test_what_the_metadata_shows_everybody_is_public(deployment: Deployment) -> None:
    """instance-data.json is world-readable: it holds the facts of the metadata and no secret."""
    for node in deployment.nodes.values():
        assert node.file_facts("/run/cloud-init/instance-data.json") == {
            "/run/cloud-init/instance-data.json": "root:root 0644"
        }
        node.ask_as("nobody", "cat", "/run/cloud-init/instance-data.json")


def test_the_seeds_on_the_build_host_are_closed(deployment: Deployment) -> None:
    """seeds/ and the trees of booted nodes can be entered by root alone, ISOs read by root alone."""
    out = deployment.out
    for directory in (out / "seeds", out / "boot", *(out / "seeds" / name for name in deployment.nodes)):
        assert directory.stat().st_mode & 0o777 == 0o700, directory
    for path in (*out.glob("seeds/*.iso"), *out.glob("seeds/*/*")):
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert len(list(out.glob("seeds/*.iso"))) == len(deployment.nodes)
