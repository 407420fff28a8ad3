"""What `imagegen-node doctor` finds: each known sickness once, with a cure, and nothing on a healthy node."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.pymysql import OperationalError
from fakes.world import World
from imagegen_node import cli
from imagegen_node.doctor import Patient, examine
from imagegen_node.engine import health
from imagegen_node.engine.errors import Refused

CONTROLLER, COMPUTE = "linux-node1", "linux-node2"


@pytest.fixture
def healthy(controller: World) -> World:
    """A controller that is ready, with one mapped compute."""
    controller.register_compute(COMPUTE)
    controller.map_host(COMPUTE)
    controller.register_chassis(COMPUTE)
    controller.forget()
    return controller


def look(world: World, *expected: str) -> list[str]:
    """The findings as `WHAT -> CURE`; looking changes nothing."""
    findings = examine(Patient(world.facts, world.node, expected))
    assert world.commands.log == [] and world.server.changes == []
    return [f"{finding.what} -> {finding.cure}" for finding in findings]


def cell(world: World, name: str) -> dict[str, Any]:
    return next(row for row in world.server.rows("nova_api", "cell_mappings") if row["name"] == name)


def test_nothing_is_wrong_with_a_healthy_controller(healthy: World) -> None:
    """No false alarm."""
    assert look(healthy, COMPUTE) == []


def copy_cell(world: World) -> None:
    world.server.rows("nova_api", "cell_mappings").append({**cell(world, "cell1"), "uuid": "random"})


def change_cell(name: str, **columns: str) -> Callable[[World], None]:
    return lambda world: cell(world, name).update(columns)


def forget_cell(world: World) -> None:
    world.server.rows("nova_api", "cell_mappings").remove(cell(world, "cell1"))


def stamp(version: str | None) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.server.rows("nova", "alembic_version")[:] = [{"version_num": version}] if version else []

    return change


def stop(unit: str) -> Callable[[World], None]:
    return lambda world: setattr(world.units[unit], "state", "failed")


def lose_compute(world: World) -> None:
    world.compute_services[COMPUTE] = "down"


def age_compute(world: World) -> None:
    world.server.rows("nova", "services").append({"host": COMPUTE, "version": 61})


def unstamp_keystone(world: World) -> None:
    world.server.rows("keystone", "alembic_version")[:] = [{"version_num": "k1"}]


def lose_endpoint(world: World) -> None:
    world.keystone.endpoints.pop()


def leave_undone(work: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.server.rows("imagegen", "done").remove({"name": f"{work} of 2025.1"})

    return change


def misplace_compute(world: World) -> None:
    world.server.rows("nova_api", "host_mappings")[0]["cell"] = "another-cell"


def shift_clock(seconds: float) -> Callable[[World], None]:
    return lambda world: setattr(world.server, "now", lambda: world.clock - seconds)


def bury_agent(world: World) -> None:
    world.agents[0]["alive"] = False


def lose_chassis(world: World) -> None:
    world.agents.clear()


def break_port(world: World) -> None:
    world.ports += [
        {"id": "port-1", "binding:host_id": COMPUTE, "binding:vif_type": "binding_failed"},
        {"id": "port-2", "binding:host_id": COMPUTE, "binding:vif_type": "ovs"},
    ]


def lose_service(kind: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.keystone.services[:] = [service for service in world.keystone.services if service.type != kind]

    return change


SICKNESSES: dict[str, tuple[Callable[[World], None], tuple[str, ...]]] = {
    "duplicate cells": (copy_cell, ("two rows for one cell", "delete_cell --cell_uuid random")),
    "stale database": (
        change_cell("cell1", database_connection="mysql+pymysql://nova:old@192.168.56.11/nova"),
        ("the row of cell1 differs from the seed in database_connection", "retry cells"),
    ),
    "stale queue": (
        change_cell("cell1", transport_url="rabbit://openstack:old@192.168.56.11/nova"),
        ("the row of cell1 differs from the seed in transport_url", "retry cells"),
    ),
    "cell0 with a queue": (
        change_cell("cell0", transport_url="rabbit://openstack:x@192.168.56.11/"),
        ("cell0 has a message queue's URL", "retry cells"),
    ),
    "cell0 with a stale database": (
        change_cell("cell0", database_connection="mysql+pymysql://nova:old@192.168.56.11/nova_cell0"),
        ("the row of cell0 differs from the seed in database_connection", "retry cells"),
    ),
    "no row": (forget_cell, ("cell1 has no row", "retry cells")),
    "schema ahead": (stamp("m9"), ("schema nova is ahead", "boot this node from the image of that release")),
    "schema behind": (stamp("m1"), ("schema nova is behind", "retry lease")),
    "schema absent": (stamp(None), ("schema nova is absent", "retry lease")),
    "unmapped compute": (
        lambda world: world.register_compute("new-1"),
        ("registered, but not mapped: new-1", "discover_hosts --cell_uuid"),
    ),
    "compute down": (lose_compute, (f"nova-compute on {COMPUTE} is down", f"delete id-of-{COMPUTE}")),
    "old compute": (age_compute, (f"{COMPUTE} runs nova-compute version 61", f"upgrade {COMPUTE}")),
    "misplaced compute": (
        misplace_compute,
        (
            f"{COMPUTE} registered in the cell",
            "mapped to the cell another-cell",
            "delete_host --cell_uuid another-cell",
        ),
    ),
    "Keystone's schema behind": (unstamp_keystone, ("schema keystone is behind", "retry lease")),
    "an endpoint lost": (lose_endpoint, ("Keystone lacks each endpoint of", "retry service-users")),
    "migrations not finished": (
        leave_undone("online_data_migrations"),
        ("online_data_migrations of 2025.1 was not finished", "retry lease"),
    ),
    "upgrade check not made": (leave_undone("upgrade_check"), ("upgrade_check of 2025.1 was not", "retry lease")),
    "cache away": (stop("memcached.service"), ("cache: memcached", "systemctl status memcached")),
    "database server failed": (
        stop("mariadb.service"),
        ("mariadb.service is failed", "journalctl -u mariadb.service", "retry database"),
    ),
    "clock ahead": (shift_clock(90), ("clock is 90 seconds ahead of the database server's", "chronyc makestep")),
    "clock behind": (shift_clock(-3600), ("clock is 3600 seconds behind the database server's", "chronyc makestep")),
    "unit down": (
        stop("nova-scheduler.service"),
        ("nova-scheduler.service is failed", "journalctl -u nova-scheduler.service", "retry services"),
    ),
    "silent port": (
        stop("nova-api-metadata.service"),
        ("metadata API at 192.168.56.11:8775: Connection refused", "journalctl", "nova-api-metadata.service"),
    ),
    "broker away": (stop("rabbitmq-server.service"), ("message queue: message queue at", "rabbitmq-server")),
    "Keystone away": (
        stop("keystone.service"),
        ("identity: http://192.168.56.11:5000", "status keystone"),
    ),
    "database away": (
        lambda world: setattr(world.server, "up", False),
        ("database: database keystone at 192.168.56.11:3306", "systemctl status mariadb"),
    ),
    "a dead chassis": (
        bury_agent,
        (f"OVN Controller agent on {COMPUTE} is dead", f"openstack network agent delete OVN Controller agent of {COMPUTE}"),
    ),
    "no chassis": (lose_chassis, (f"{COMPUTE} has no chassis in OVN", "see the step chassis")),
    "a port that is not bound": (
        break_port,
        (f"port port-1 could not be bound to {COMPUTE}", "openstack server reboot --hard"),
    ),
    "Glance silent": (
        lambda world: world.silent.add(9292),
        ("image and network: http://192.168.56.11:9292/v2/schemas/image", "imagegen-node doctor"),
    ),
    "Neutron silent": (
        lambda world: world.silent.add(9696),
        ("network agents: http://192.168.56.11:9696/v2.0/agents", "first Keystone and neutron-api"),
    ),
    "no image in the catalogue": (
        lose_service("image"),
        ("Keystone has no public endpoint of type image in RegionOne", "validate --explain"),
    ),
    "OVN's database down": (
        stop("ovn-ovsdb-server-sb.service"),
        ("OVN southbound at 192.168.56.11:6642: Connection refused", "systemctl restart"),
    ),
    "Glance's schema behind": (
        lambda world: world.server.rows("glance", "alembic_version").__setitem__(slice(None), [{"version_num": "g1"}]),
        ("schema glance is behind", "retry lease"),
    ),
    "changed file": (
        lambda world: world.put("/etc/nova/nova.conf.d/50-imagegen.conf", "[DEFAULT]\n"),
        ("50-imagegen.conf differs from the seed", "reboot (the seed's files are written again)"),
    ),
    "copied disk": (
        lambda world: world.put("/var/lib/imagegen/machine.json", '{"node": "linux-node1", "dmi_uuid": "other"}'),
        ("machine: this disk was first booted on machine other",),
    ),
}


@pytest.mark.parametrize("name", SICKNESSES)
def test_a_sickness_is_found_with_its_cure(healthy: World, name: str) -> None:
    """One finding says what is wrong and how it is cured; the node is not touched."""
    make_sick, words = SICKNESSES[name]
    make_sick(healthy)
    found = look(healthy, COMPUTE)
    assert any(all(word in line for word in words) for line in found), "\n".join(found)


def test_computes_that_never_came_are_named(healthy: World) -> None:
    """The cluster file's computes are given by the operator: no seed holds the list."""
    found = look(healthy, COMPUTE, "c-8", "c-9")
    assert [line.split(" ->")[0] for line in found] == ["c-8 never registered", "c-9 never registered"]


def test_a_full_disk_is_found(healthy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space and inodes are two things to run out of."""
    full = SimpleNamespace(f_blocks=1000, f_bavail=49, f_frsize=2**20, f_files=100, f_favail=4)
    monkeypatch.setattr(health, "os", SimpleNamespace(statvfs=lambda place: full))
    found = look(healthy, COMPUTE)
    assert any("is nearly full: 49 of 1000 MiB are free" in line and "vacuum" in line for line in found)
    assert any("has hardly any inodes left: 4 of 100" in line for line in found)


def test_one_failing_look_does_not_hide_the_others(healthy: World) -> None:
    """Whatever a check meets, the rest is still looked at."""
    stop("nova-scheduler.service")(healthy)
    healthy.server.faults.append(("SELECT UNIX_TIMESTAMP", OperationalError(2006, "gone away")))
    found = look(healthy, COMPUTE)
    assert any(line.startswith("database: ") and "gone away" in line for line in found)
    assert any(line.startswith("nova-scheduler.service is failed") for line in found)


# a compute


def test_nothing_is_wrong_with_a_healthy_compute(compute: World) -> None:
    assert look(compute) == []


def test_a_compute_that_is_not_up_or_not_mapped_says_so(compute: World) -> None:
    """Its own service and its mapping are asked of the API: it has no database."""
    compute.server.rows("nova_api", "host_mappings").clear()
    assert "registered, but not mapped -> imagegen-node doctor on a controller" in look(compute)[0]
    compute.units["nova-compute.service"].state = "failed"
    compute.compute_services[COMPUTE] = "down"
    found = "\n".join(look(compute))
    assert "this node's nova-compute is not up" in found
    assert "nova-compute.service is failed" in found and "retry compute-service" in found


def test_a_compute_that_is_deaf_or_without_libvirt_is_told(compute: World) -> None:
    """Up in the API, and no request reaches it."""
    compute.deaf.add("compute")
    compute.commands.fail("virsh", 1, "no connection")
    found = "\n".join(look(compute))
    assert "nova-compute is deaf" in found and "systemctl restart nova-compute" in found
    assert "libvirt: virsh" in found and "no connection" in found


def test_a_compute_without_its_network_is_told(compute: World) -> None:
    """Its chassis is cut off, or Neutron has not heard of an agent for too long."""
    there = set(compute.southbounds)
    compute.southbounds.clear()
    said = "chassis: ovn-controller to reach OVN's southbound database; it is not connected"
    assert any(line.startswith(said) and "ovs-vsctl show" in line for line in look(compute))
    compute.southbounds |= there
    assert look(compute) == []
    compute.units["neutron-ovn-metadata-agent.service"].state = "failed"
    compute.sleep(100)
    assert any(line.startswith("chassis: OVN Metadata agent alive in the network API") for line in look(compute))


def test_a_port_that_is_bound_is_no_finding(healthy: World) -> None:
    """Only what Neutron could not bind."""
    break_port(healthy)
    assert [line.split(" could")[0] for line in look(healthy, COMPUTE)] == ["port port-1"]


def test_a_compute_with_another_id_is_told(compute: World) -> None:
    """nova-compute would not start again with it."""
    compute.put("/var/lib/nova/compute_id", "11111111-2222-4333-8444-555555555555\n")
    assert any("was another node's" in line for line in look(compute))


# the command


def test_a_list_of_computes_that_is_not_there_is_told(healthy: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Like every other reason not to examine: one line, 3."""
    assert cli.main(["doctor", "--expect", str(healthy.at("/nowhere"))]) == 3
    assert "cannot be examined: [Errno 2] No such file or directory" in capsys.readouterr().err


def test_the_command_masks_and_counts(
    healthy: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 without findings, 1 with; passwords in an error are masked; names come by stdin."""
    assert cli.main(["doctor"]) == 0
    assert "nothing found on linux-node1 (controller)" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("c-8\n"))
    password = healthy.secrets["database_nova"]
    healthy.server.faults.append(("SELECT UNIX_TIMESTAMP", OperationalError(1, f"for mysql://nova:{password}@h")))
    assert cli.main(["doctor", "--json", "--expect", "-"]) == 1
    said = capsys.readouterr().out
    assert password not in said
    document = json.loads(said)
    assert document["node"] == "linux-node1"
    assert [finding["what"] for finding in document["findings"]][-1] == "c-8 never registered"


def test_a_node_without_a_role_says_so(healthy: World, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to compare with."""
    healthy.at("/run/cloud-init/instance-data.json").unlink()
    healthy.at("/var/lib/imagegen/seed.json").unlink()
    assert cli.main(["doctor"]) == 3
    assert "cannot be examined: cloud-init found no data source" in capsys.readouterr().err


def test_a_node_of_an_unknown_role_says_so(healthy: World, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not examined, nor retried, as if it were a compute."""
    data = {"ds": {"meta_data": {"imagegen": {"role": "storage"}}}}
    healthy.put("/run/cloud-init/instance-data.json", json.dumps(data))
    assert cli.main(["doctor"]) == 3
    assert "asks for role storage; the roles are controller, compute" in capsys.readouterr().err
    with pytest.raises(Refused, match="asks for role storage"):
        cli.list_step_names()


def test_who_is_not_root_is_told(
    healthy: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and an exit code, no traceback."""

    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/etc/imagegen/node.json")

    monkeypatch.setattr("imagegen_node.node.metadata.read_node", refuse)
    assert cli.main(["doctor"]) == 3
    assert "cannot be examined: [Errno 13] Permission denied: '/etc/imagegen/node.json'" in capsys.readouterr().err
