"""What every daemon has in effect under the arguments that it really runs with: exactly the seed, nothing baked in."""

from __future__ import annotations

from typing import Any

import pytest
from answers import CONTROLLER_DAEMONS, Answers
from deployment import Deployment
from expected import NOVA_COMPUTE, list_cell_options, list_keystone_options, list_options, list_placement_options


def compare(said: dict[str, Any], wanted: dict[str, Any], unit: str) -> None:
    """The seed names exactly the wanted options, and the daemon has them with the wanted values."""
    assert sorted(said["seed"]) == sorted(wanted), f"{unit}: what the seed's drop-in names"
    different = {
        name: (said["options"].get(name), value) for name, value in wanted.items() if said["options"].get(name) != value
    }
    assert not different, f"{unit}: has, and should have: {different}"


def test_novas_daemons_have_the_seeds_options(deployment: Deployment, answers: Answers) -> None:
    """The uwsgi services and the others read the same files: API and conductor cannot be on different databases."""
    said = answers["options of nova"]
    assert sorted(said) == sorted(CONTROLLER_DAEMONS)
    wanted = list_options(deployment.cluster, deployment.secrets, deployment.controller.node)
    for unit in CONTROLLER_DAEMONS:
        compare(said[unit], wanted, unit)


@pytest.mark.parametrize("unit", ["nova-conductor@oost", "nova-novncproxy@oost"])
def test_a_further_cells_daemons_have_its_options(unit: str, deployment: Deployment, answers: Answers) -> None:
    """The cell's own database, message queue and port of its consoles, all else as on this node."""
    controller = deployment.controller.node
    wanted = list_options(deployment.cluster, deployment.secrets, controller)
    wanted |= list_cell_options(deployment.cluster, deployment.secrets, "oost")
    said = answers["options of oost"][unit]["options"]
    assert {name: said.get(name) for name in wanted} == wanted


def test_nova_compute_has_the_seeds_options(deployment: Deployment, answers: Answers) -> None:
    """The same on each compute, where nova-compute.conf is read as well."""
    for node in deployment.computes:
        said = answers[f"options on {node.name}"][NOVA_COMPUTE]
        compare(said, list_options(deployment.cluster, deployment.secrets, node.node), node.name)
        assert any("nova-compute.conf" in word for word in said["argv"])


def test_the_daemons_arguments_end_with_the_drop_ins(answers: Answers) -> None:
    """What stands later wins in oslo.config: --config-dir is the last argument where there is a --config-file."""
    for said in (answers["options of nova"], answers["options on c-3"]):
        for unit, daemon in said.items():
            if any(word.startswith("--config-file") for word in daemon["argv"]):
                assert daemon["argv"][-1] == "--config-dir=/etc/nova/nova.conf.d", unit


def test_keystone_has_the_seeds_options(deployment: Deployment, answers: Answers) -> None:
    """Keystone's connection, with the password as a parameter, and its cache."""
    wanted = list_keystone_options(deployment.cluster, deployment.secrets)
    compare(answers["options of keystone"]["keystone"], wanted, "keystone")


def test_placement_has_the_seeds_options(deployment: Deployment, answers: Answers) -> None:
    """Placement's connection and its login to Keystone."""
    wanted = list_placement_options(deployment.cluster, deployment.secrets)
    compare(answers["options of placement"]["placement-api"], wanted, "placement-api")


def test_every_login_carries_the_password_unchanged(deployment: Deployment, answers: Answers) -> None:
    """keystoneauth, given each section as the daemon has it, logs in with the password of secrets.yaml."""
    users = ("nova", "placement", "nova_compute")
    passwords = {user: deployment.secrets[f"identity_{user}"] for user in users}
    names = ["options of nova", "options of placement", *(f"options on {node.name}" for node in deployment.computes)]
    logins = [login for name in names for unit in answers[name].values() for login in unit["logins"].values()]
    assert len(logins) == 4 * len(CONTROLLER_DAEMONS) + 1 + 3 * len(deployment.computes)
    for login in logins:
        assert login["password"] == passwords[login["username"]]


def test_workers_follow_the_machine(deployment: Deployment, answers: Answers) -> None:
    """One worker a core, at most four, in Nova's daemons and in the uwsgi services."""
    workers = min(int(deployment.controller.ask("nproc")), 4)
    for unit, said in answers["options of nova"].items():
        counts = (said["options"]["conductor.workers"], said["options"]["scheduler.workers"])
        assert counts == (workers, workers), unit
    environment = deployment.controller.read("/run/imagegen/services.env").splitlines()
    assert f"IMAGEGEN_WORKERS={workers}" in environment
