"""The agent as a controller: from an empty node to ready, again without a change, and through every known fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fakes import nova, pymysql
from fakes.commands import Crash
from fakes.mariadb import right_on
from fakes.nova_manage import HALF_MADE
from fakes.pymysql import OperationalError
from fakes.status import STATUS_SCHEMA
from fakes.world import World, make_secrets
from imagegen_node.openstack import lease

from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.secret_keys import secret_kinds

CONTROLLER = "linux-node1"
SHARED = [
    "placement-manage db sync",
    "nova-manage api_db sync",
    "cell_mappings.py",
    "nova-manage db sync",
    "identity_objects.py",
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty controller with its seed."""
    made = World(tmp_path, monkeypatch)
    made.make_node(CONTROLLER)
    return made


@pytest.fixture
def ready(controller: World) -> World:
    return controller


def reboot(world: World) -> None:
    """Ends every process of the node and empties /run."""
    world.units.clear()
    world.server.up = False
    for path in world.at("/run/imagegen/started").glob("*"):
        path.unlink()


def find_row(world: World, name: str) -> dict[str, Any]:
    return next(row for row in world.server.rows("nova_api", "cell_mappings") if row["name"] == name)


def step_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(step for step in document["steps"] if step["name"] == name)


# from empty to ready


def test_an_empty_controller_becomes_ready(world: World) -> None:
    """Backing services, schemas, cells, users, endpoints and Nova's services, with each tool run once."""
    assert world.run_controller()["state"] == "ready"
    assert [entry for entry in world.commands.log if entry in SHARED] == SHARED
    assert [row["name"] for row in world.server.rows("nova_api", "cell_mappings")] == ["cell0", "cell1"]
    assert find_row(world, "cell0")["transport_url"] == "none:///"
    assert {unit for unit in world.units if not world.works(unit)} == set()


def test_every_tool_runs_as_its_own_user(world: World) -> None:
    """Nova's, Keystone's and Placement's tools never run as root."""
    world.run_controller()
    users = {command.split()[0]: user for command, user in world.commands.users.items()}
    assert users == {
        "systemctl": "root",
        "glance-manage": "glance",
        "keystone-manage": "keystone",
        "neutron-db-manage": "neutron",
        "ovn-nbctl": "root",
        "ovn-sbctl": "root",
        "placement-manage": "placement",
        "nova-manage": "nova",
        "nova-status": "nova",
        "cell_mappings.py": "nova",
        "identity_objects.py": "root",
    }


def test_no_secret_is_in_a_command_or_a_status(world: World) -> None:
    """argv, the status documents and the console show none of the seed's secrets."""
    world.run_controller()
    said = "\n".join([*world.commands.log, *world.console, *map(str, world.documents)])
    names = (*secret_kinds(), "identity_nova_compute", "messaging_compute_cell1")
    assert [name for name in names if world.secrets[name] in said] == []


def test_every_status_document_has_the_promised_shape(world: World) -> None:
    """Waiting, working and ready alike; and each change is one line on the console."""
    world.run_controller()
    for document in world.documents:
        jsonschema.validate(document, STATUS_SCHEMA)
    assert len(world.console) == len(world.documents)
    assert all(line.count("\n") == 1 for line in world.console)
    assert {document["state"] for document in world.documents} == {"waiting", "working", "ready"}
    assert {step["state"] for step in world.documents[-1]["steps"]} == {"done"}


def test_a_rerun_changes_nothing(ready: World) -> None:
    """An agent that starts again on a ready node runs no command and writes nothing into a database."""
    before = ready.state()
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == []
    assert ready.server.changes == []
    assert ready.state() == before


def test_a_reboot_only_starts_units(ready: World) -> None:
    """After a reboot everything is started again, and nothing is made again."""
    before = ready.state()
    reboot(ready)
    assert ready.run_controller()["state"] == "ready"
    assert {command.split(" --")[0] for command in ready.commands.log} == {"systemctl start"}
    assert ready.state() == before


def test_users_have_rights_on_their_own_schemas_only(ready: World) -> None:
    """One user for Nova's schemas, one for each other schema, each from the one controller's address."""
    assert {host for _, host in ready.server.users} == {"192.168.56.11"}
    rights = {name: user["rights"] for (name, _), user in ready.server.users.items()}
    assert rights["nova"] == {right_on(name) for name in ("nova", "nova_api", "nova_cell0")}
    assert rights["placement"] == {right_on("placement")}
    assert set(rights) == {"glance", "imagegen", "keystone", "neutron", "nova", "placement"}
    assert rights["neutron"] == {right_on("neutron")}


def test_backing_services_elsewhere_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With database, messaging, cache and identity outside, nothing of them is started; what lacks is named."""
    cluster = write_cluster(
        tmp_path / "cluster.yaml",
        services={
            "database": {"host": "10.0.0.5"},
            "messaging": {"host": "10.0.0.6"},
            "cache": {"host": "10.0.0.7"},
            "identity": {"auth_url": "http://10.0.0.8:5000/v3"},
            "image": {"endpoint": "http://10.0.0.9:9292"},
            "network": {"endpoint": "http://10.0.0.10:9696"},
        },
    )
    world = World(tmp_path, monkeypatch, cluster)
    world.make_node(CONTROLLER)
    last = world.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "wait-database")
    assert last["detail"].startswith("database placement at 10.0.0.5:3306 as user placement: ")
    assert world.commands.log == []


def write_cluster(path: Path, **changes: Any) -> Path:
    """A cluster file of one controller and one compute, changed at its top."""
    document: dict[str, Any] = {
        "name": "other",
        "network": {"cidr": "192.168.56.0/24"},
        "nodes": [
            {"name": "linux-node1", "role": "controller", "mac": "52:54:00:56:00:11", "address": "192.168.56.11"},
            {"name": "linux-node2", "role": "compute", "mac": "52:54:00:56:00:12", "address": "192.168.56.12"},
        ],
    }
    path.write_text(yaml.safe_dump(document | changes))
    return path


def test_identity_elsewhere_is_named_user_by_user(ready: World) -> None:
    """Without an administrator's password the node says what must exist, and goes on when it does."""
    ready.node["identity"]["admin_password"] = None
    ready.node["hosts"].remove("identity")
    ready.node["elements"].remove("keystone")
    roles = ready.keystone.users["nova"]["roles"]
    roles.symmetric_difference_update({("service", "service"), ("service", "reader")})
    last = ready.run_controller(100)
    assert (last["state"], last["step"]) == ("waiting", "service-users")
    assert last["detail"] == "Keystone, which is outside this cluster, to have user nova with the roles service"
    roles.add(("service", "service"))  # one too many is not ours to judge there
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == []


def test_a_role_too_many_is_taken_away(ready: World) -> None:
    """An earlier version made administrators of Nova and Placement, and of computes, which logged in as they."""
    for name in ("nova", "placement"):
        ready.keystone.users[name]["roles"].add(("service", "admin"))
    del ready.keystone.users["nova_compute"]
    assert ready.run_controller()["state"] == "ready"
    roles = {name: user["roles"] for name, user in ready.keystone.users.items()}
    assert roles == {
        "admin": {("admin", "admin")},
        "neutron": {("service", "admin"), ("service", "service")},
        **{name: {("service", "service")} for name in ("glance", "nova", "placement", "nova_compute")},
    }
    details = [document["detail"] for document in ready.documents if document["step"] == "service-users"]
    assert any("role admin taken from nova" in detail for detail in details)


def test_accounts_of_other_hosts_go(ready: World) -> None:
    """Those of any host, which an earlier version made, and those of a controller that is no more."""
    for host in ("%", "192.168.56.99"):
        ready.server.users["nova", host] = {"password": "old", "rights": {"ALL PRIVILEGES ON *.*"}}
    ready.server.users["operator", "%"] = {"password": "theirs", "rights": set()}
    assert ready.run_controller()["state"] == "ready"
    assert {host for name, host in ready.server.users if name != "operator"} == {"192.168.56.11"}
    assert ("operator", "%") in ready.server.users
    assert sum(change.startswith("DROP USER") for change in ready.server.changes) == 2


def test_a_new_controller_gets_accounts(ready: World) -> None:
    """When the seed of the databases' host names one more."""
    ready.node["database"]["clients"].append("192.168.56.13")
    assert ready.run_controller()["state"] == "ready"
    assert {host for name, host in ready.server.users if name == "nova"} == {"192.168.56.11", "192.168.56.13"}
    new, own = (ready.server.users["nova", f"192.168.56.{last}"] for last in (13, 11))
    assert new == own


@pytest.fixture
def two_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A controller of a cluster with two cells."""
    world = World(tmp_path, monkeypatch, write_cluster(tmp_path / "cluster.yaml", cells=["cell1", "cell2"]))
    world.make_node(CONTROLLER)
    return world


def test_a_further_cell_gets_its_own_schema_row_and_conductor(two_cells: World) -> None:
    """The second cell is synced with the seed's drop-in for it, and its conductor reads its queue."""
    two_cells.deaf.add("conductor")
    assert two_cells.run_controller(100)["detail"] == "a reader of the queue conductor.linux-node1"
    two_cells.deaf.clear()
    assert two_cells.run_controller()["state"] == "ready"
    assert find_row(two_cells, "cell2")["database_connection"].endswith("/nova_cell2")
    assert two_cells.server.rows("nova_cell2", "alembic_version") == [{"version_num": "m3"}]
    assert two_cells.works("nova-conductor@cell2.service")


def test_a_cell_that_is_added_later_is_read_by_the_running_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nova's services read the table of cells when they start: with one row more they start anew."""
    world = World(tmp_path, monkeypatch, write_cluster(tmp_path / "cluster.yaml"))
    world.make_node(CONTROLLER)
    assert world.run_controller()["state"] == "ready"
    world.commands.log.clear()
    world.cluster = load_cluster(write_cluster(tmp_path / "cluster.yaml", cells=["cell1", "cell2"]))
    world.make_node(CONTROLLER)
    assert world.run_controller()["state"] == "ready"
    restarted = next(command for command in world.commands.log if command.startswith("systemctl restart"))
    assert {"nova-api.service", "nova-scheduler.service"} <= set(restarted.split())


# versions


@pytest.mark.parametrize("cell", ["nova", "nova_cell2"])
def test_computes_that_are_too_old_are_named_before_services_start(two_cells: World, cell: str) -> None:
    """Beside computes older than the release before the last long one Nova's services end with a traceback."""
    assert two_cells.run_controller()["state"] == "ready"
    rows = two_cells.server.rows(cell, "services")
    rows += [{"host": "old-1", "version": 65}, {"host": "fine", "version": 66}]
    reboot(two_cells)
    last = two_cells.run_controller(100)
    assert (last["state"], last["step"]) == ("failed", "compute-versions")
    assert "old-1 (version 65)" in last["detail"] and "fine" not in last["detail"]
    assert "nova-conductor.service" not in two_cells.units
    rows.pop(0)
    assert two_cells.run_controller()["state"] == "ready"


def test_an_old_compute_that_was_forced_down_is_let_be(ready: World) -> None:
    """Nova leaves it out of its minimum: an operator said that it is gone."""
    ready.server.rows("nova", "services").append({"host": "old-1", "version": 65, "forced_down": 1})
    assert ready.run_controller()["state"] == "ready"


# crashes


def count_commands(root: Path) -> int:
    """How many commands a whole run takes."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(root, patch)
        world.make_node(CONTROLLER)
        world.run_controller()
        return len(world.commands.log)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rebooted", [True, False], ids=["machine", "agent"])
def test_a_crash_at_any_command_is_made_good(when: str, rebooted: bool, tmp_path: Path) -> None:
    """Wherever agent or machine die, before a command's work or after it, the next run ends where it should."""
    number = count_commands(tmp_path)
    assert number > len(SHARED)
    for crash in range(number):
        with pytest.MonkeyPatch.context() as patch:
            world = World(tmp_path / str(crash), patch)
            world.make_node(CONTROLLER)
            world.commands.crash_at = (crash, when)
            with pytest.raises(Crash):
                world.run_controller()
            world.commands.crash_at = None
            if rebooted:
                reboot(world)
            assert world.run_controller()["state"] == "ready", f"crash {when} command {crash}"
            assert {row["name"] for row in world.server.rows("nova_api", "cell_mappings")} == {"cell0", "cell1"}
            assert {unit for unit in world.units if not world.works(unit)} == set()
            world.forget()
            assert world.run_controller()["state"] == "ready"
            assert world.commands.log == []


# commands that fail


@pytest.mark.parametrize("command", SHARED)
@pytest.mark.parametrize("rc", [1, 255])
def test_a_command_that_fails_once_is_tried_again(command: str, rc: int, world: World) -> None:
    """A transient fault (255: an exception that nova-manage did not expect) does not make the node say failed."""
    world.commands.fail(command, rc, "boom")
    assert world.run_controller()["state"] == "ready"
    assert world.commands.log.count(command) == 2
    assert {document["state"] for document in world.documents} == {"waiting", "working", "ready"}


@pytest.mark.parametrize("command", SHARED)
def test_a_command_that_keeps_failing_makes_the_node_say_so(command: str, world: World) -> None:
    """failed, with the command, its return code and its last lines; and by itself ready when the cause is gone."""
    world.commands.fail(command, 255, "one\ntwo\nthree\nfour\n", times=6)
    assert world.run_controller()["state"] == "ready"
    failed = [document for document in world.documents if document["state"] == "failed"]
    assert "ended with 255: two | three | four" in failed[0]["detail"]
    assert step_of(failed[0], failed[0]["step"])["rc"] == 255
    for document in failed:
        jsonschema.validate(document, STATUS_SCHEMA)


def test_the_last_lines_of_a_command_show_no_password(world: World) -> None:
    """nova-manage's errors can print URLs: what is in the status is masked."""
    url = world.node["cells"][1]["database_connection"]
    world.commands.fail(
        "nova-manage api_db sync", 1, f"cannot reach {url} with {world.secrets['database_nova']}", times=99
    )
    last = world.run_controller(60)
    assert last["state"] == "failed"
    assert "cannot reach mysql+pymysql://nova:***@192.168.56.11:3306/nova with ***" in last["detail"]


def test_a_sync_that_reaches_no_head_is_not_believed(world: World) -> None:
    """A return code of 0 is not enough: the schema is read again, and the command run again."""
    world.commands.fail("nova-manage api_db sync", 0)
    assert world.run_controller()["state"] == "ready"
    assert world.commands.log.count("nova-manage api_db sync") == 2


# databases and the broker


def test_a_database_that_is_away_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status says where it should be; the node goes on when it is there."""
    refusals = [OperationalError(2002, "Can't connect to local server through socket")] * 5

    def connect(**options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return world.server.connect(**options)

    monkeypatch.setattr(pymysql, "connect", connect)
    assert world.run_controller()["state"] == "ready"
    details = [document["detail"] for document in world.documents if document["step"] == "database"]
    assert "MariaDB on this node: Can't connect to local server through socket" in details


def test_changed_rights_converge(ready: World) -> None:
    """Too many rights are taken away, missing ones given; who has the right ones keeps them untouched."""
    here = "192.168.56.11"
    ready.server.users["nova", here]["rights"] = {"ALL PRIVILEGES ON *.* WITH GRANT OPTION", right_on("nova")}
    ready.server.users["placement", here]["rights"] = set()
    del ready.server.users["imagegen", here]
    assert ready.run_controller()["state"] == "ready"
    rights = {name: user["rights"] for (name, _), user in ready.server.users.items()}
    assert rights["nova"] == {right_on(name) for name in ("nova", "nova_api", "nova_cell0")}
    assert rights["placement"] == {right_on("placement")}
    assert rights["imagegen"] == {right_on("imagegen")}
    assert sum(change.startswith("REVOKE") for change in ready.server.changes) == 1
    assert not [change for change in ready.server.changes if change.startswith("ALTER")]


@pytest.mark.parametrize("rebooted", [True, False], ids=["reboot", "agent restarted"])
def test_a_new_seed_with_other_passwords_converges(ready: World, rebooted: bool) -> None:
    """Every password changed: users, broker, Keystone and cell rows follow, and daemons read their new files."""
    names = ["database_nova", "database_placement", "database_keystone", "database_imagegen", "messaging_openstack"]
    names += ["identity_admin", "identity_nova", "identity_placement", "messaging_neutron"]
    names += [f"{where}_{name}" for where in ("database", "identity") for name in ("glance", "neutron")]
    ready.secrets = make_secrets(**{name: f"new {name} %$'" for name in names})
    ready.make_node(CONTROLLER)
    if rebooted:
        reboot(ready)
    assert ready.run_controller()["state"] == "ready"
    assert {name: user["password"] for (name, _), user in ready.server.users.items()} == {
        name: f"new database_{name} %$'"
        for name in ("glance", "imagegen", "keystone", "neutron", "nova", "placement")
    }
    assert ready.takes("openstack", "new messaging_openstack %$'")
    assert ready.takes("compute_cell1", ready.secrets["messaging_compute_cell1"]), "made from the new one"
    assert [row["uuid"] for row in ready.server.rows("nova_api", "cell_mappings")] == [
        cell["uuid"] for cell in ready.node["cells"]
    ]
    assert find_row(ready, "cell1")["transport_url"] == ready.node["cells"][1]["transport_url"]
    assert find_row(ready, "cell0")["transport_url"] == "none:///"
    assert {unit for unit in ready.units if not ready.works(unit)} == set()
    assert not any("delete" in command or "sync" in command for command in ready.commands.log)


def test_only_daemons_whose_files_changed_are_restarted(ready: World) -> None:
    """A new password of Nova's in Keystone restarts Nova's services and nothing else."""
    ready.secrets = make_secrets(identity_nova="another")
    ready.make_node(CONTROLLER)
    assert ready.run_controller()["state"] == "ready"
    nova_units = " ".join(
        f"nova-{name}.service" for name in ("api", "api-metadata", "conductor", "scheduler", "novncproxy")
    )
    assert [command for command in ready.commands.log if command.startswith("systemctl")] == [
        f"systemctl restart --no-block {nova_units}"
    ]


def test_a_broker_that_refuses_the_login_gets_its_definitions(ready: World) -> None:
    """Somebody changed the broker's password: the seed's definitions are imported, once."""
    ready.broker["users"]["openstack"] = "AAAAAAAA"
    assert ready.run_controller()["state"] == "ready"
    assert [command.split()[1] for command in ready.commands.log] == ["import_definitions"]


def test_a_broker_without_the_computes_user_gets_its_definitions(ready: World) -> None:
    """As one has that an earlier version made, though it lets the controller in."""
    del ready.broker["users"]["compute_cell1"]
    assert ready.run_controller()["state"] == "ready"
    assert [command.split()[1] for command in ready.commands.log] == ["import_definitions"]
    assert ready.takes("compute_cell1", ready.secrets["messaging_compute_cell1"])


def test_a_daemon_that_reads_no_queue_is_not_ready(ready: World) -> None:
    """The API calls a conductor up that cannot reach the broker: its own queue tells."""
    ready.deaf.add("conductor")
    last = ready.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "verify")
    assert last["detail"] == "a reader of the queue conductor.linux-node1"
    ready.deaf.clear()
    assert ready.run_controller()["state"] == "ready"


def test_a_unit_that_failed_is_started_again(ready: World) -> None:
    """systemd gave it up; the agent resets and starts it."""
    ready.units["nova-conductor.service"].state = "failed"
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == [
        "systemctl reset-failed nova-conductor.service",
        "systemctl start --no-block nova-conductor.service",
    ]


# cells


@pytest.mark.parametrize(
    "change",
    [
        {"name": "cell1"},
        {"name": None},
        {"name": "renamed"},
    ],
)
def test_a_second_row_for_a_cell_is_refused_until_it_is_gone(ready: World, change: dict[str, Any]) -> None:
    """By name or by database: the node says what to look at and how to delete it, and deletes nothing itself."""
    rows = ready.server.rows("nova_api", "cell_mappings")
    uuid = "99999999-0000-0000-0000-000000000001"
    rows.append(find_row(ready, "cell1") | {"uuid": uuid} | change)
    last = ready.run_controller(100)
    assert (last["state"], last["step"]) == ("failed", "cells")
    assert f"nova-manage cell_v2 list_hosts --cell_uuid {uuid}" in last["detail"]
    assert f"nova-manage cell_v2 delete_cell --cell_uuid {uuid}" in last["detail"]
    assert all(
        code in last["detail"] for code in ("0 (deleted)", "1 (not found)", "2 (it has hosts)", "3 (it has", "4 (")
    )
    assert ready.commands.log == []
    ready.later(0, lambda: rows.pop())
    assert ready.run_controller()["state"] == "ready"


def test_a_cell_that_is_not_ours_is_let_be(ready: World) -> None:
    """A row with another name and another database is somebody's further cell."""
    rows = ready.server.rows("nova_api", "cell_mappings")
    rows.append(
        {
            "name": "far",
            "uuid": "99999999-0000-0000-0000-000000000001",
            "transport_url": "rabbit://x:y@10.9.9.9/far",
            "database_connection": "mysql+pymysql://x:y@10.9.9.9/nova",
        }
    )
    assert ready.run_controller()["state"] == "ready"
    assert len(rows) == 3


def test_a_row_that_another_makes_first_is_no_second_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our read and our insert another controller creates cell1: its row is taken, and mended if it differs."""

    def create_first() -> None:
        monkeypatch.setattr(nova, "before_create", None)
        nova.rows.extend(dict(cell, transport_url="rabbit://old") for cell in world.node["cells"])

    monkeypatch.setattr(nova, "before_create", create_first)
    assert world.run_controller()["state"] == "ready"
    assert sorted(row["name"] for row in nova.rows) == ["cell0", "cell1"]
    assert find_row(world, "cell1") == world.node["cells"][1]


@pytest.mark.parametrize("key", ["transport_url", "database_connection", "name"])
@pytest.mark.parametrize("cell", [0, 1])
def test_a_row_that_differs_is_mended(ready: World, cell: int, key: str) -> None:
    """A wrong URL or name, of cell0 too (update_cell with one URL writes the other from nova.conf)."""
    ready.server.rows("nova_api", "cell_mappings")[cell][key] = "rabbit://other@host/elsewhere"
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == ["cell_mappings.py"]
    assert ready.server.rows("nova_api", "cell_mappings") == ready.node["cells"]


# versions


@pytest.mark.parametrize(
    ("schema", "step"),
    [
        ("keystone", "identity"),
        ("placement", "placement-schema"),
        ("nova_api", "nova-api-schema"),
        ("nova", "nova-api-schema"),
        ("nova_cell0", "nova-api-schema"),
    ],
)
def test_a_schema_of_a_newer_release_is_let_be(ready: World, schema: str, step: str) -> None:
    """An older image against a migrated database: refused, no command runs, and it recovers with the right image."""
    versions = ready.server.rows(schema, "alembic_version")
    before = list(versions)
    versions[:] = [{"version_num": "fromthefuture"}]
    last = ready.run_controller(100)
    assert (last["state"], last["step"]) == ("failed", step)
    assert last["detail"] == f"schema {schema} was made by a newer release than this image holds: boot the newer image"
    assert ready.commands.log == []
    ready.later(0, lambda: versions.__setitem__(slice(None), before))
    assert ready.run_controller()["state"] == "ready"


def test_an_older_schema_is_brought_to_its_head_and_its_data_migrated(ready: World) -> None:
    """After `db sync` online_data_migrations runs until it ends with 0; 1 is: again."""
    ready.server.rows("nova", "alembic_version")[:] = [{"version_num": "m2"}]
    ready.commands.fail("nova-manage db online_data_migrations", 1, times=2)
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == [
        "nova-manage db sync",
        *["nova-manage db online_data_migrations"] * 3,
        "nova-status upgrade check",
    ]


@pytest.mark.parametrize("schema", ["nova_api", "nova", "nova_cell0"])
def test_a_first_sync_that_was_cut_off_is_repaired(world: World, schema: str) -> None:
    """Tables and no version: no sync would go on from there. Who is still at work in the schema is disconnected."""
    world.server.schemas[schema] = {HALF_MADE: [], "alembic_version": []}
    world.server.threads[schema] = [7]
    assert world.run_controller()["state"] == "ready"
    assert HALF_MADE not in world.server.schemas[schema]
    assert world.server.threads[schema] == []


def test_a_schema_with_data_and_no_version_is_let_be(world: World) -> None:
    """It is somebody's: the node refuses and drops nothing."""
    world.server.schemas["nova_api"] = {HALF_MADE: [{}, {}]}
    last = world.run_controller(200)
    assert (last["state"], last["step"]) == ("failed", "nova-api-schema")
    assert "schema nova_api has tables, but no alembic version, and holds data in half_made" in last["detail"]
    assert world.server.schemas["nova_api"][HALF_MADE] == [{}, {}]


def test_an_upgrade_that_was_cut_off_is_explained(ready: World) -> None:
    """Half of one change is there, which MariaDB cannot take back: nobody guesses."""
    ready.server.rows("nova", "alembic_version")[:] = [{"version_num": "m2"}]
    ready.commands.fail("nova-manage db sync", 255, "(1060, \"Duplicate column name 'x'\")", times=9)
    last = ready.run_controller(100)
    assert (last["state"], last["step"]) == ("failed", "nova-schema")
    assert "interrupted in the middle of a change" in last["detail"] and "Duplicate column name" in last["detail"]


def test_the_data_of_every_cell_is_migrated(two_cells: World) -> None:
    """online_data_migrations works on [database] only: it runs once more with each further cell's."""
    assert two_cells.run_controller()["state"] == "ready"
    two_cells.commands.log.clear()
    two_cells.server.rows("nova_cell2", "alembic_version")[:] = [{"version_num": "m2"}]
    assert two_cells.run_controller()["state"] == "ready"
    further = "--config-dir /etc/nova/nova.conf.d --config-file {} ".format(two_cells.at("/etc/nova/cells/cell2.conf"))
    assert two_cells.commands.log == [
        f"nova-manage {further}db sync --local_cell",
        "nova-manage db online_data_migrations",
        f"nova-manage {further}db online_data_migrations",
        "nova-status upgrade check",
    ]


def test_migrations_that_are_stuck_make_the_node_say_so(ready: World) -> None:
    """2: they need help. They are not forgotten, although the schema is at its head by then."""
    ready.server.rows("nova", "alembic_version")[:] = [{"version_num": "m2"}]
    ready.commands.fail("nova-manage db online_data_migrations", 2, "cannot migrate", times=20)
    last = ready.run_controller(100)
    assert (last["state"], last["step"], step_of(last, "nova-schema")["rc"]) == ("failed", "nova-schema", 2)
    ready.commands.faults.clear()
    ready.commands.log.clear()
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == ["nova-manage db online_data_migrations", "nova-status upgrade check"]
    done = {row["name"] for row in ready.server.rows("imagegen", "done")}
    assert done == {"online_data_migrations of 2025.1", "upgrade_check of 2025.1", "first flavors"}


def test_computes_that_come_before_their_mapping_do_not_fail_the_upgrade_check(world: World) -> None:
    """`nova-status upgrade check` ends with 2 while there are computes and no host mapping: they are mapped first."""

    def register() -> None:
        if "compute_nodes" in world.server.schemas.get("nova", {}):
            world.register_compute("linux-node2")
        else:
            world.later(1, register)

    world.later(1, register)
    assert world.run_controller()["state"] == "ready"
    assert {document["state"] for document in world.documents} == {"waiting", "working", "ready"}
    assert [row["host"] for row in world.server.rows("nova_api", "host_mappings")] == ["linux-node2"]


def test_an_upgrade_check_that_fails_makes_the_node_say_so(world: World) -> None:
    """2 is a failure; 1 is a warning and passes, as every other test of this file has it."""
    world.commands.fail("nova-status upgrade check", 2, "too old computes", times=20)
    last = world.run_controller(200)
    assert (last["state"], last["step"]) == ("failed", "upgrade-check")
    assert "too old computes" in last["detail"]


# Keystone


def change_user(**values: Any) -> Callable[[World], None]:
    return lambda world: world.keystone.users["nova"].update(values)


def change_endpoint(**values: Any) -> Callable[[World], None]:
    def change(world: World) -> None:
        service = next(item for item in world.keystone.services if item.type == "compute")
        endpoint = next(item for item in world.keystone.endpoints if item.service_id == service.id)
        vars(endpoint).update(values)

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_user(password="other"),
        change_user(enabled=False),
        change_user(roles=set()),
        change_user(roles={("service", "admin")}),
        change_endpoint(url="http://elsewhere:8774/v2.1"),
        change_endpoint(is_enabled=False),
        lambda world: world.keystone.users.pop("placement"),
        lambda world: world.keystone.endpoints.pop(),
        lambda world: world.keystone.services.pop(),
    ],
)
def test_what_differs_in_keystone_is_mended(ready: World, change: Callable[[World], None]) -> None:
    """Users with passwords and roles, services, endpoints: one process mends them, and nothing else changes."""
    before = ready.keystone.state()
    change(ready)
    assert ready.keystone.state() != before
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == ["identity_objects.py"]
    assert ready.keystone.state() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.keystone.users["admin"].update(password="other"),
        lambda world: vars(world.keystone.endpoints[0]).update(url="http://old:5000/v3"),
    ],
)
def test_a_changed_administrator_is_bootstrapped_again(ready: World, change: Callable[[World], None]) -> None:
    """The administrator's password and Keystone's own endpoints are keystone-manage's to set."""
    before = ready.keystone.state()
    change(ready)
    assert ready.run_controller()["state"] == "ready"
    assert [command.split(" --")[0] for command in ready.commands.log] == ["keystone-manage bootstrap"]
    assert ready.keystone.state() == before


def test_what_two_controllers_made_at_once_is_made_one(ready: World) -> None:
    """A second service of ours with endpoints, and a second endpoint at our URL: Keystone has no key against them."""
    before = ready.keystone.state()
    url = "http://192.168.56.11:8774/v2.1"
    second = ready.keystone.add_service("nova", "compute")
    for interface in ("public", "internal"):
        ready.keystone.add_endpoint(second.id, interface, url, "RegionOne")
    first = next(item for item in ready.keystone.services if item.type == "compute")
    ready.keystone.add_endpoint(first.id, "admin", url, "RegionOne")
    assert ready.run_controller()["state"] == "ready"
    assert ready.keystone.state() == before


def test_two_endpoints_of_one_kind_are_named(ready: World) -> None:
    """Which of the two is right, the agent cannot know: it says what it waits for."""
    service = next(item for item in ready.keystone.services if item.type == "compute")
    ready.keystone.add_endpoint(service.id, "public", "http://other:8774/v2.1", "RegionOne")
    last = ready.run_controller(30)
    assert (last["state"], last["step"]) == ("waiting", "service-users")
    assert "each endpoint of compute in RegionOne exactly once, at http://192.168.56.11:8774/v2.1" in last["detail"]


# the lease


def other_holds(world: World, seconds: float) -> dict[str, Any]:
    """Another controller has the lease for so long, and renews it as long as it lives."""
    row = {"name": "cluster", "holder": "linux-node9"}
    end = world.clock + seconds

    def renew() -> None:
        row["expires"] = min(end, world.clock + lease.SECONDS)
        if row["expires"] < end:
            world.later(lease.HEARTBEAT, renew)

    renew()
    world.server.rows("imagegen", "lease")[:] = [row]
    return row


def test_who_does_not_hold_the_lease_waits_for_the_schemas(ready: World) -> None:
    """The other controller makes them; this one runs no tool of Nova's, and becomes ready."""
    row = other_holds(ready, 10_000)
    versions = ready.server.rows("nova", "alembic_version")
    versions[:] = [{"version_num": "m2"}]
    ready.later(60, lambda: versions.__setitem__(0, {"version_num": "m3"}))
    assert ready.run_controller()["state"] == "ready"
    details = {document["detail"] for document in ready.documents if document["step"] == "lease"}
    assert {"schema nova, which is behind", "held by another controller, which has done the work"} <= details
    assert ready.commands.log == []
    assert row["holder"] == "linux-node9"


def test_who_does_not_hold_the_lease_waits_for_the_cells(ready: World) -> None:
    """Schemas at their heads are not enough: the rows must be as the seed describes them."""
    other_holds(ready, 10_000)
    find_row(ready, "cell1")["transport_url"] = "rabbit://old"
    last = ready.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "lease")
    assert last["detail"] == "cell mappings as the seed describes them; not yet right: cell1"


def test_who_does_not_hold_the_lease_waits_for_all_of_the_work(ready: World) -> None:
    """Not for schemas only: a holder that dies before the service users are made is replaced too."""
    other_holds(ready, 45)
    user = ready.keystone.users.pop("placement")
    assert ready.run_controller()["state"] == "ready"
    assert "identity_objects.py" in ready.commands.log
    assert ready.keystone.users["placement"]["password"] == user["password"]


def test_the_lease_is_held_for_work_only(ready: World) -> None:
    """A ready controller, and one that cannot go on, leave it to others."""
    assert ready.server.rows("imagegen", "lease") == []
    ready.server.rows("nova_api", "alembic_version")[:] = [{"version_num": "fromthefuture"}]
    assert ready.run_controller(100)["state"] == "failed"
    assert ready.server.rows("imagegen", "lease") == []


def test_a_holder_that_died_is_replaced_when_its_lease_expires(ready: World) -> None:
    """By the database's clock; the work goes on from what is there."""
    other_holds(ready, 45)
    ready.server.rows("nova", "alembic_version").clear()
    started = ready.clock
    assert ready.run_controller()["state"] == "ready"
    assert ready.clock - started > 45
    assert "nova-manage db sync" in ready.commands.log


def test_a_lease_that_is_lost_in_the_middle_stops_the_work(ready: World) -> None:
    """A step that is tried again first looks whether the node still holds the lease; if not, it begins again."""
    ready.server.rows("nova", "alembic_version").clear()
    ready.commands.fail("nova-manage db sync", 255, times=99)
    ready.later(10, lambda: other_holds(ready, 10_000))
    last = ready.run_controller(300)
    assert (last["state"], last["step"]) == ("waiting", "lease")
    assert last["detail"] == "schema nova, which is absent"
    assert [step["name"] for step in last["steps"]][-1] == "lease"
    assert "nova-schema" not in [step["name"] for step in last["steps"]]
    assert 1 < ready.commands.log.count("nova-manage db sync") < 5


@pytest.mark.parametrize("code", [1062, 1205, 1213])
def test_a_lost_race_for_the_lease_is_no_error(world: World, code: int) -> None:
    """Duplicate key, lock wait timeout, and Galera's deadlock at commit: somebody else has it, so look again."""
    world.server.faults.append(("INSERT IGNORE INTO lease", OperationalError(code, "lost")))
    assert world.run_controller()["state"] == "ready"


# flavors


def list_flavors(world: World) -> list[str]:
    return [row["name"] for row in world.server.rows("nova_api", "flavors")]


def test_the_first_flavors_are_written_once(world: World) -> None:
    """What an operator makes of them later stays, even if that is none."""
    assert world.run_controller()["state"] == "ready"
    assert list_flavors(world) == ["m1.tiny", "m1.small", "m1.medium", "m1.large"]
    world.server.rows("nova_api", "flavors").clear()
    assert world.run_controller()["state"] == "ready"
    assert list_flavors(world) == []


def test_flavors_that_are_there_are_enough(ready: World) -> None:
    """A database that had a life before this cluster."""
    ready.server.rows("nova_api", "flavors")[:] = [{"name": "theirs"}]
    ready.server.rows("imagegen", "done").remove({"name": "first flavors"})
    assert ready.run_controller()["state"] == "ready"
    assert list_flavors(ready) == ["theirs"]


# discovery


def test_a_compute_that_comes_late_is_mapped(ready: World) -> None:
    """A ready controller asks the database, and runs nova-manage only when a host is unmapped."""
    agent = ready.controller()
    ready.watch(agent, 30)
    assert ready.commands.log == []
    ready.register_compute("linux-node2")
    ready.watch(agent, 10)
    cell = ready.node["cells"][1]["uuid"]
    assert ready.commands.log == [f"nova-manage cell_v2 discover_hosts --cell_uuid {cell}"]
    assert ready.documents[-1]["detail"] == "mapped linux-node2"
    assert ready.documents[-1]["state"] == "ready"


def test_a_compute_whose_mapping_was_deleted_is_mapped_again(ready: World) -> None:
    """`openstack compute service delete` takes the mapping; Nova's own mark stays when the compute comes back."""
    agent = ready.controller()
    ready.register_compute("linux-node2")
    ready.server.rows("nova", "compute_nodes")[0]["mapped"] = 1
    ready.watch(agent, 10)
    assert [row["host"] for row in ready.server.rows("nova_api", "host_mappings")] == ["linux-node2"]
    assert ready.commands.log[-1].endswith(" --by-service")


def test_a_mapping_that_another_made_meanwhile_is_tried_again(ready: World) -> None:
    """discover_hosts ends with 2: safe to retry, and no trouble to report."""
    ready.register_compute("linux-node2")
    ready.commands.fail("nova-manage cell_v2 discover_hosts", 2)
    ready.watch(ready.controller(), 20)
    assert [row["host"] for row in ready.server.rows("nova_api", "host_mappings")] == ["linux-node2"]
    assert [document["detail"] for document in ready.documents] == ["", "mapped linux-node2"]


def test_a_host_with_a_mapping_is_not_discovered_for_ever(ready: World) -> None:
    """Nova leaves compute_nodes.mapped at 0 when the host's mapping is there already."""
    ready.register_compute("linux-node2")
    ready.server.rows("nova_api", "host_mappings").append({"host": "linux-node2"})
    ready.watch(ready.controller(), 30)
    assert ready.commands.log == []


def test_a_cell_that_fails_does_not_keep_the_others_waiting(two_cells: World) -> None:
    """The computes of the second cell are mapped while discovery in the first fails; the trouble is said."""
    assert two_cells.run_controller()["state"] == "ready"
    two_cells.register_compute("one-1")
    two_cells.server.rows("nova_cell2", "compute_nodes").append({"host": "two-1", "mapped": 0, "deleted": 0})
    first = find_row(two_cells, "cell1")["uuid"]
    two_cells.commands.fail(f"nova-manage cell_v2 discover_hosts --cell_uuid {first}", 255, "boom", times=99)
    two_cells.watch(two_cells.controller(), 60)
    assert [row["host"] for row in two_cells.server.rows("nova_api", "host_mappings")] == ["two-1"]
    assert two_cells.documents[-1]["detail"].startswith(
        "degraded: discovery failed: nova-manage cell_v2 discover_hosts"
    )


def test_a_console_that_was_full_gets_its_line_later(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ready controller says nothing for days: what a device did not take is given to it again each round."""
    agent = ready.controller()
    flushed = []
    monkeypatch.setattr(agent.status, "flush", lambda: flushed.append(ready.clock))
    ready.watch(agent, 30)
    assert len(flushed) >= 30 / (1.2 * 3)


def test_discovery_that_fails_is_said_and_ends_by_itself(ready: World) -> None:
    """The node stays ready, the tries become rarer, and the trouble leaves the status when it is over."""
    agent = ready.controller()
    ready.register_compute("linux-node2")
    ready.commands.fail("nova-manage cell_v2 discover_hosts", 255, "boom", times=99)
    ready.watch(agent, 300)
    assert "degraded: discovery failed: nova-manage cell_v2 discover_hosts" in ready.documents[-1]["detail"]
    assert len(ready.commands.log) < 12
    ready.commands.faults.clear()
    ready.server.up = False
    ready.watch(agent, 100)
    assert ready.documents[-1]["detail"].startswith("degraded: discovery waits for database nova at 192.168.56.11:3306")
    ready.server.up = True
    ready.watch(agent, 100)
    assert ready.documents[-1]["detail"] == "mapped linux-node2"
    assert {document["state"] for document in ready.documents} == {"ready"}


def test_only_the_holder_of_the_lease_discovers(ready: World) -> None:
    """Two discoverers collide; the other controller maps."""
    other_holds(ready, 10_000)
    ready.register_compute("linux-node2")
    ready.watch(ready.controller(), 60)
    assert ready.commands.log == []


# Glance and Neutron


def details(world: World, step: str) -> list[str]:
    return [document["detail"] for document in world.documents if document["step"] == step]


def test_glance_and_neutron_come_after_the_users_that_they_log_in_as(world: World) -> None:
    """Each under the lease syncs its schema, as its own account, and only then starts."""
    assert world.run_controller()["state"] == "ready"
    names = [step["name"] for step in world.documents[-1]["steps"]]
    assert names[names.index("services") :] == ["services", "image", "network", "verify", "upgrade-check", "seed"]
    assert names.index("ovn") < names.index("wait-database")
    log = [command.split(" --config")[0] for command in world.commands.log]
    order = ["identity_objects.py", "glance-manage db sync", "systemctl start --no-block glance-api.service"]
    assert [command for command in log if command in order] == order
    synced = log.index("neutron-db-manage")
    assert log.index("systemctl start --no-block glance-api.service") < synced
    assert log[synced + 1].startswith("systemctl start --no-block neutron-api.service neutron-rpc-server.service ")
    assert world.server.rows("glance", "alembic_version") == [{"version_num": "g2contract"}]
    assert {"version_num": "n3expand"} in world.server.rows("neutron", "alembic_version")
    assert world.server.rows("imagegen", "lease") == []


def test_ovn_listens_on_the_nodes_address_alone(world: World) -> None:
    """Its databases are told once; one that somebody opened to all is closed again."""
    assert world.run_controller()["state"] == "ready"
    assert {port: database.targets for port, database in world.ovn.items()} == {
        port: [f"ptcp:{port}:192.168.56.11"] for port in (6641, 6642)
    }
    assert details(world, "ovn")[-1] == "now at ptcp:6641:192.168.56.11, ptcp:6642:192.168.56.11"
    world.ovn[6642].targets = ["ptcp:6642"]
    world.forget()
    assert world.run_controller()["state"] == "ready"
    assert world.commands.log == ["ovn-sbctl set-connection ptcp:6642:192.168.56.11"]
    world.ovn[6642].before = 'read-only role="" '
    world.forget()
    last = world.run_controller(60)
    assert "ovn-sbctl set-connection ptcp:6642:192.168.56.11" in world.commands.log, "nobody could register"
    assert last["state"] == "ready"


@pytest.mark.parametrize(("port", "path"), [(9292, "/v2/schemas/image"), (9696, "/v2.0/networks?limit=1&fields=id")])
def test_an_api_that_does_not_answer_is_waited_for(ready: World, port: int, path: str) -> None:
    """Its unit and its port are not enough; and a ready controller says so when it is lost."""
    ready.silent.add(port)
    last = ready.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "verify")
    assert last["detail"] == f"http://192.168.56.11:{port}{path}: [Errno 111] Connection refused"
    ready.silent.clear()
    agent = ready.controller()
    assert ready.run_controller()["state"] == "ready"
    ready.silent.add(port)
    ready.watch(agent, 900)
    assert f"degraded: waiting for http://192.168.56.11:{port}" in ready.documents[-1]["detail"]


@pytest.mark.parametrize(("name", "step"), [("glance", "image"), ("neutron", "network")])
def test_a_schema_of_theirs_that_is_newer_is_let_be(ready: World, name: str, step: str) -> None:
    ready.server.rows(name, "alembic_version")[:] = [{"version_num": "fromthefuture"}]
    last = ready.run_controller(100)
    assert (last["state"], last["step"]) == ("failed", step)
    assert last["detail"] == f"schema {name} was made by a newer release than this image holds: boot the newer image"
    assert ready.commands.log == []


def test_a_branch_that_another_needs_is_no_head(ready: World) -> None:
    """Between expand and contract Glance has a row for each; at the end alembic keeps the last one alone."""
    rows = ready.server.rows("glance", "alembic_version")
    rows[:] = [{"version_num": "g1"}, {"version_num": "g2expand"}]
    assert ready.run_controller()["state"] == "ready"
    assert ready.commands.log == ["glance-manage db sync"]
    assert rows == [{"version_num": "g2contract"}]


@pytest.mark.parametrize("name", ["glance", "neutron"])
def test_a_first_sync_of_theirs_that_was_cut_off_is_repaired(world: World, name: str) -> None:
    world.server.schemas[name] = {HALF_MADE: [], "alembic_version": []}
    assert world.run_controller()["state"] == "ready"
    assert HALF_MADE not in world.server.schemas[name]


def test_a_lease_that_another_holds_does_not_keep_them_down(ready: World) -> None:
    """After a reboot there is nothing to sync; but an old schema waits for the lease."""
    other_holds(ready, 10_000)
    reboot(ready)
    assert ready.run_controller()["state"] == "ready"
    ready.server.rows("glance", "alembic_version")[:] = [{"version_num": "g1"}]
    last = ready.run_controller(60)
    assert (last["state"], last["step"]) == ("waiting", "image")
    assert last["detail"] == "the lease, under which schemas are synced"


def test_images_that_outlived_their_image_are_glances(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kept disk they may bear a uid that is another account's now."""
    owned: list[tuple[str, str]] = []
    note = lambda place, account: owned.append((place.name, account))  # noqa: E731
    monkeypatch.setattr(world.agent["backing"], "own_tree", note)
    world.run_controller()
    assert ("glance", "glance") in owned


def test_apis_elsewhere_are_asked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them is started here, and the node waits until they answer."""
    services = {"image": {"endpoint": "http://10.0.0.9:9292"}, "network": {"endpoint": "http://10.0.0.10:9696"}}
    world = World(tmp_path, monkeypatch, write_cluster(tmp_path / "cluster.yaml", services=services))
    world.make_node(CONTROLLER)
    last = world.run_controller(400)
    assert (last["state"], last["step"]) == ("waiting", "verify")
    assert last["detail"] == "http://10.0.0.9:9292/v2/schemas/image: [Errno 110] Connection timed out"
    assert not [unit for unit in world.units if unit.startswith(("glance", "neutron", "ovn"))]
    world.outside = {"10.0.0.9", "10.0.0.10"}
    assert world.run_controller()["state"] == "ready"
