"""The agent as a compute: what it waits for, its compute_id, and when it is ready."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fakes.world import World, make_secrets
from imagegen_node.openstack.api import is_up

from imagegen.inputs.cluster_file import default_text

COMPUTE = "linux-node2"
SET = "ovs-vsctl --no-wait set Open_vSwitch ."
OTHER_ID = "99999999-8888-7777-6666-555555555555"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty compute with its seed, and a control plane that is ready for it."""
    made = World(tmp_path, monkeypatch)
    made.make_node(COMPUTE)
    made.put("/run/libvirt/libvirt-sock", "")
    made.make_control_plane()
    return made


def compute_id(world: World) -> Any:
    path = world.at("/var/lib/nova/compute_id")
    return path.read_text() if path.exists() else None


def details(world: World, step: str) -> list[str]:
    return [document["detail"] for document in world.documents if document["step"] == step]


# the whole way


def test_an_empty_compute_becomes_ready(world: World) -> None:
    """virt_type, compute_id, libvirt, nova-compute; ready when a controller mapped it."""
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    assert compute_id(world) == world.node["compute_id"] + "\n"
    assert world.commands.log == [
        "systemctl start --no-block libvirtd.service",
        "systemctl start --no-block ovsdb-server.service ovs-vswitchd.service",
        f"{SET} 'external_ids:ovn-encap-ip=\"192.168.56.12\"' 'external_ids:ovn-encap-type=\"geneve\"' "
        "'external_ids:ovn-remote=\"tcp:192.168.56.11:6642\"'",
        "ovs-vsctl --no-wait set-manager ptcp:6640:127.0.0.1",
        "systemctl start --no-block ovn-controller.service",
        "systemctl start --no-block nova-compute.service",
        "systemctl start --no-block neutron-ovn-metadata-agent.service",
    ]
    assert "a controller to map this host (registered, not mapped yet)" in details(world, "mapped")


def test_a_rerun_runs_no_command(world: World) -> None:
    """A compute whose agent starts again finds everything in its place."""
    world.answer_as_nova()
    world.run_compute()
    world.commands.log.clear()
    assert world.run_compute()["state"] == "ready"
    assert world.commands.log == []


@pytest.mark.parametrize(("ahead", "said"), [(31536000.0, "31536000 seconds ahead of"), (-20.0, "20 seconds behind")])
def test_a_clock_that_is_far_off_is_waited_for(world: World, ahead: float, said: str) -> None:
    """Before anything starts that would make tokens and reports of the wrong time."""
    world.clock_ahead = ahead
    world.later(100, lambda: setattr(world, "clock_ahead", 2.0))
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    assert any(f"this node's clock is {said} Keystone's" in text for text in details(world, "compute-id"))
    early = [document for document in world.documents if document["step"] == "compute-id"]
    assert {document["state"] for document in early} <= {"working", "waiting"}


def test_a_compute_waits_for_its_controller_however_long(world: World) -> None:
    """Broker, Keystone, the service user, and the mapping: each is named while it lacks, and nothing fails."""
    definitions = dict(world.broker["users"])
    user = world.keystone.users.pop("nova_compute")
    world.broker["users"].clear()
    world.later(1000, lambda: world.broker["users"].update(definitions))
    world.later(2000, lambda: world.keystone.users.update(nova_compute=user))
    world.answer_as_nova(mapped_after=3000)
    assert world.run_compute(10_000)["state"] == "ready"
    assert "failed" not in {document["state"] for document in world.documents}
    assert (
        "message queue at 192.168.56.11:5672 as user compute_cell1, virtual host nova"
        in details(world, "wait-messaging")[1]
    )
    assert "Keystone to accept the password of user nova_compute, set by a controller" in details(world, "compute-id")
    assert world.clock > 4000


def test_a_report_from_before_a_reboot_does_not_count(world: World) -> None:
    """Nova calls the service up for a minute after its last report, whether it comes back or not."""
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    world.documents.clear()
    world.units.clear()
    before = world.reports["nova-compute"]
    assert world.run_compute()["state"] == "ready"
    assert world.reports["nova-compute"] > before
    assert "nova-compute up in the compute API (now registered, first report due)" in [
        document["detail"] for document in world.documents
    ]


@pytest.mark.parametrize(("known", "state"), [({COMPUTE: "down"}, "down"), ({}, "not registered")])
def test_a_compute_whose_service_does_not_come_up_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, known: dict[str, str], state: str
) -> None:
    """The API's word counts, not systemd's."""
    monkeypatch.setattr(world, "works", lambda name: False)
    world.compute_services |= known
    world.put("/var/lib/nova/compute_id", world.node["compute_id"])
    last = world.run_compute(100)
    assert (last["state"], last["step"]) == ("waiting", "compute-service")
    assert last["detail"] == f"nova-compute up in the compute API (now {state})"


def test_a_new_seed_restarts_nova_compute(world: World) -> None:
    """Its configuration changed while it ran, so it is restarted; libvirt, which reads none of it, is not."""
    world.answer_as_nova()
    world.run_compute()
    world.commands.log.clear()
    world.secrets = make_secrets(identity_nova="another")  # of which the computes' is made
    world.keystone.users["nova_compute"]["password"] = world.secrets["identity_nova_compute"]
    world.make_node(COMPUTE)
    assert world.run_compute()["state"] == "ready"
    assert world.commands.log == ["systemctl restart --no-block nova-compute.service"]


# compute_id


def test_a_compute_id_in_place_is_kept(world: World) -> None:
    """The seed's own: nothing is written."""
    world.put("/var/lib/nova/compute_id", world.node["compute_id"] + "\n")
    assert world.compute().place_compute_id() == "in place"


def test_another_nodes_compute_id_is_refused(world: World) -> None:
    """A disk of another node, or a renamed node: never overwritten, and the text says what to do."""
    world.put("/var/lib/nova/compute_id", OTHER_ID + "\n")
    last = world.run_compute(100)
    assert (last["state"], last["step"]) == ("failed", "compute-id")
    assert f"holds {OTHER_ID!r}" in last["detail"]
    assert "Give the node its own disk, or its old name" in last["detail"]
    assert compute_id(world) == OTHER_ID + "\n"
    assert world.commands.log == []


def test_a_refused_compute_id_recovers_when_the_right_one_is_there(world: World) -> None:
    """failed is not for ever: the step looks again."""
    world.put("/var/lib/nova/compute_id", OTHER_ID)
    world.later(50, lambda: world.put("/var/lib/nova/compute_id", world.node["compute_id"]))
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    assert "failed" in {document["state"] for document in world.documents}


def test_a_host_that_nova_knows_keeps_its_id(world: World) -> None:
    """A compute that was installed anew, or came from an older release: Nova's id is written, not the seed's."""
    world.register_compute(COMPUTE, OTHER_ID)
    world.map_host(COMPUTE)
    assert world.run_compute()["state"] == "ready"
    assert compute_id(world) == OTHER_ID + "\n"
    assert "written, as Nova knows it" in details(world, "compute-id")


def test_a_host_on_a_later_page_is_found(world: World) -> None:
    """Nova gives 1,000 hypervisors at once: a rebuilt compute beyond them is no unknown one."""
    for number in range(5):
        world.register_compute(f"other-{number}", f"00000000-0000-0000-0000-00000000000{number}")
        world.map_host(f"other-{number}")
    world.register_compute(COMPUTE, OTHER_ID)
    world.map_host(COMPUTE)
    assert world.run_compute()["state"] == "ready"
    assert compute_id(world) == OTHER_ID + "\n"


def test_an_id_older_than_the_seed_is_no_other_node(world: World) -> None:
    """After such a recovery the next boot finds an id that is not the seed's, but Nova's for this very host."""
    world.register_compute(COMPUTE, OTHER_ID)
    world.map_host(COMPUTE)
    world.run_compute()
    world.units.clear()
    assert world.run_compute()["state"] == "ready"
    assert compute_id(world) == OTHER_ID + "\n"


def test_a_known_service_without_a_hypervisor_is_refused(world: World) -> None:
    """Its old id cannot be found: a wrong one would make a second compute node of the same host."""
    world.compute_services[COMPUTE] = "down"
    last = world.run_compute(100)
    assert (last["state"], last["step"]) == ("failed", "compute-id")
    assert f"`openstack compute service delete id-of-{COMPUTE}`" in last["detail"]
    assert compute_id(world) is None


def test_a_release_without_compute_id_gets_none(world: World) -> None:
    """Before 2023.1 Nova keeps the host's identity in its database."""
    world.node["compute_id"] = None
    assert world.compute().place_compute_id() == "this release has none"
    assert compute_id(world) is None


# virt_type


@pytest.mark.parametrize(
    ("flags", "device", "line", "why"),
    [
        ("fpu vmx", True, "virt_type = kvm", "virt_type kvm: the processor shows vmx, and {kvm} is there"),
        ("svm sse", True, "virt_type = kvm", "virt_type kvm: the processor shows svm, and {kvm} is there"),
        ("fpu vmx", False, "virt_type = qemu", "virt_type qemu: the processor shows vmx, but there is no {kvm}"),
        ("fpu", True, "virt_type = qemu", "virt_type qemu: the processor shows neither vmx nor svm"),
        ("svm_lock novmx", True, "virt_type = qemu", "virt_type qemu: the processor shows neither vmx nor svm"),
    ],
)
def test_virt_type_follows_the_processor(world: World, flags: str, device: bool, line: str, why: str) -> None:
    """Item 24: kvm when /proc/cpuinfo has vmx or svm and /dev/kvm is there, else qemu; and the node says why."""
    world.put("/proc/cpuinfo", f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: vmx\n")
    if device:
        world.put("/dev/kvm", "")
    world.answer_as_nova()
    world.run_compute()
    assert line in world.at("/etc/nova/nova.conf.d/40-virt-type.conf").read_text().splitlines()
    assert why.format(kvm=world.at("/dev/kvm")) in details(world, "configure")


def test_a_service_that_never_reported_is_not_up() -> None:
    """Nova calls a fresh row up for a minute, while its daemon may be ending at every start."""
    assert is_up({"state": "up", "updated_at": "2025-06-01T12:00:00.000000"})
    assert not is_up({"state": "up", "updated_at": None})
    assert not is_up({"state": "down", "updated_at": "2025-06-01T12:00:00.000000"})
    assert not is_up({})


# its network


def read_ids(world: World) -> dict[str, str]:
    return world.switch.external_ids


def test_a_compute_is_a_chassis_of_its_own_name(world: World) -> None:
    """Open vSwitch's database says who it is, where its tunnels end and where OVN is; os-vif may plug instances."""
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    ids = read_ids(world)
    assert {key: ids[key] for key in ("hostname", "ovn-encap-ip", "ovn-encap-type", "ovn-remote", "system-id")} == {
        "hostname": COMPUTE,
        "ovn-encap-ip": "192.168.56.12",
        "ovn-encap-type": "geneve",
        "ovn-remote": "tcp:192.168.56.11:6642",
        "system-id": world.node["chassis"]["name"],
    }
    assert "ovn-bridge-datapath-type" not in ids and world.switch.bridges == {}
    assert world.switch.managers == ["ptcp:6640:127.0.0.1"]
    said = details(world, "openvswitch")[-1]
    assert said == "set manager, ovn-encap-ip, ovn-encap-type, ovn-remote"


@pytest.mark.parametrize(
    ("key", "value"), [("ovn-remote", "tcp:10.9.9.9:6642"), ("system-id", "another"), ("hostname", "node.example")]
)
def test_what_differs_of_a_chassis_is_set(world: World, key: str, value: str) -> None:
    """Only that, and nothing is started again."""
    world.answer_as_nova()
    world.run_compute()
    right = read_ids(world)[key]
    read_ids(world)[key] = value
    world.forget()
    assert world.run_compute()["state"] == "ready"
    assert world.commands.log == [f"{SET} 'external_ids:{key}=\"{right}\"'"]
    assert read_ids(world)[key] == right


def test_another_ovn_is_followed(world: World) -> None:
    """A new seed with OVN elsewhere: the chassis is told, and the agent that reads its file is restarted."""
    world.answer_as_nova()
    world.run_compute()
    world.forget()
    there = "tcp:192.168.56.99:6642"
    world.southbounds = {there}
    world.node["chassis"]["southbound"] = there
    place = world.at("/etc/neutron/neutron.conf.d/50-imagegen.conf")
    world.put(
        "/etc/neutron/neutron.conf.d/60-other.conf",
        place.read_text().replace("tcp:192.168.56.11:6642", there),
    )
    place.unlink()
    world.facts["files"] = [file for file in world.facts["files"] if file["path"] != str(place)]
    assert world.run_compute()["state"] == "ready"
    assert world.commands.log == [
        f"{SET} 'external_ids:ovn-remote=\"{there}\"'",
        "systemctl restart --no-block neutron-ovn-metadata-agent.service",
    ]


def test_a_lost_manager_comes_back(world: World) -> None:
    """os-vif reaches Open vSwitch by it alone."""
    world.answer_as_nova()
    world.run_compute()
    world.switch.managers = ["ptcp:6640"]
    world.forget()
    assert world.run_compute()["state"] == "ready"
    assert world.commands.log == ["ovs-vsctl --no-wait set-manager ptcp:6640:127.0.0.1"]


def test_a_container_switches_in_a_program(world: World) -> None:
    """With tunnels through an interface of its own, as the file of `imagegen boot` asks."""
    asked = '{"datapath": "netdev", "interface": "tun0", "address": "192.0.2.7"}'
    world.put("/etc/imagegen/datapath.json", asked)
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    ids = read_ids(world)
    assert (ids["ovn-bridge-datapath-type"], ids["ovn-encap-ip"]) == ("netdev", "192.0.2.7")
    assert world.switch.bridges == {"br-tunnel": {"options": ["datapath_type=netdev"], "ports": ["tun0"]}}


def test_ovn_is_waited_for(world: World) -> None:
    """However long; and its chassis comes before nova-compute, which needs what the chassis makes."""
    there = set(world.southbounds)
    world.southbounds.clear()
    world.answer_as_nova()
    last = world.run_compute(100)
    assert (last["state"], last["step"]) == ("waiting", "chassis")
    assert last["detail"] == "ovn-controller to reach OVN's southbound database; it is not connected"
    assert "nova-compute.service" not in world.units
    world.southbounds |= there
    assert world.run_compute()["state"] == "ready"


@pytest.mark.parametrize(
    ("unit", "kind"),
    [("ovn-controller", "OVN Controller agent"), ("neutron-ovn-metadata-agent", "OVN Metadata agent")],
)
def test_a_dead_agent_keeps_the_compute_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch, unit: str, kind: str
) -> None:
    """systemd calls it active, Neutron does not: instances there would have no network, or no metadata."""
    agents = world.list_agents
    dumb = lambda: [agent for agent in agents() if agent["agent_type"] != kind]  # noqa: E731
    monkeypatch.setattr(world, "list_agents", dumb)
    world.answer_as_nova()
    last = world.run_compute(200)
    assert world.units[f"{unit}.service"].state == "active"
    assert (last["state"], last["step"], last["detail"]) == (
        "waiting",
        "network-agents",
        f"{kind} alive in the network API",
    )
    monkeypatch.setattr(world, "list_agents", agents)
    assert world.run_compute()["state"] == "ready"


def test_an_agent_that_was_alive_does_not_count(compute: World) -> None:
    """A chassis stays in OVN when its machine is gone: its last sign of life says."""
    compute.units["neutron-ovn-metadata-agent.service"].state = "failed"
    compute.watch(compute.compute(), 900)
    said = compute.documents[-1]["detail"]
    assert said.startswith("degraded: ")
    assert "neutron-ovn-metadata-agent.service is failed" in said
    assert "waiting for OVN Metadata agent alive in the network API" in said


def test_a_compute_without_ovn_has_no_such_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cluster has no network, or agents that somebody else brings."""
    path = tmp_path / "cluster.yaml"
    path.write_text(re.sub(r"network: \{node: linux-node1\} .*", "network: none", default_text()))
    world = World(tmp_path / "node", monkeypatch, path)
    world.make_node(COMPUTE)
    world.put("/run/libvirt/libvirt-sock", "")
    world.make_control_plane()
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    steps = {step["name"] for step in world.documents[-1]["steps"]}
    assert not steps & {"openvswitch", "chassis", "metadata-agent", "network-agents"}
    assert not [command for command in world.commands.log if "ovs" in command or "neutron" in command]
