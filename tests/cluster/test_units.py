"""systemd on ready nodes: everything that runs is meant to, and what listens is known."""

from __future__ import annotations

import re
from functools import partial

from deployment import READY_SECONDS, Deployment, RunningNode, wait_for
from repository import ELEMENTS

from imagegen.model.roles import find_role

PRESET = ELEMENTS / "imagegen-base/static/etc/systemd/system-preset/00-imagegen.preset"

# What the agent starts, on nodes of each role, although it is not enabled.
AGENT_STARTS = {
    find_role("controller"): {
        *("mariadb", "rabbitmq-server", "epmd", "memcached", "keystone", "placement-api"),
        *("nova-api", "nova-api-metadata", "nova-conductor", "nova-scheduler", "nova-novncproxy"),
        *("nova-conductor@oost", "nova-novncproxy@oost"),
        *("glance-api", "ovn-ovsdb-server-nb", "ovn-ovsdb-server-sb", "ovn-northd"),
        *("neutron-api", "neutron-rpc-server", "neutron-periodic-workers", "neutron-ovn-maintenance-worker"),
    },
    find_role("compute"): {
        *("libvirtd", "nova-compute", "ovsdb-server", "ovs-vswitchd", "ovn-controller", "neutron-ovn-metadata-agent"),
    },
}
# What runs on every node: systemd's own, and the few that the image is for. chrony does not run in a container, which
# may not set the clock (its unit has ConditionCapability=CAP_SYS_TIME).
EVERYWHERE = {
    *("dbus", "ssh", "systemd-journald", "systemd-logind", "systemd-networkd", "systemd-resolved", "console-getty"),
    "imagegen-node",
}
# Started by others when they need them, and ended when idle.
ON_DEMAND = {"systemd-machined", "polkit", "systemd-hostnamed", "systemd-timedated", "virtlogd"}


def read_preset() -> set[str]:
    """The units that the preset enables."""
    return set(re.findall(r"^enable (\S+)$", PRESET.read_text(), re.MULTILINE))


def unit_files(node: RunningNode) -> dict[str, str]:
    """Unit -> state, of every unit file."""
    rows = node.ask_json("systemctl", "list-unit-files", "--output=json", "--no-pager")
    return {row["unit_file"]: row["state"] for row in rows}


def is_without_jobs(node: RunningNode) -> bool:
    return node.ask("systemctl", "list-jobs", "--no-legend") == ""


def test_the_system_runs(deployment: Deployment) -> None:
    """is-system-running says running: no unit failed. Every job ends; timers may start some meanwhile."""
    for node in deployment.nodes.values():
        assert node.execute(["systemctl", "is-system-running"]).stdout.decode().strip() == "running", node.name
        assert node.ask("systemctl", "list-units", "--failed", "--no-legend", "--plain") == "", node.name
        wait_for(f"the jobs of {node.name} to end", partial(is_without_jobs, node), READY_SECONDS)


def test_no_ordering_cycle(deployment: Deployment) -> None:
    """systemd dropped no job to break a cycle, and started no unit again and again."""
    for node in deployment.nodes.values():
        journal = node.ask("journalctl", "--boot", "--no-pager", "--output=cat", "_PID=1")
        assert "ordering cycle" not in journal, node.name
        restarts = {name: unit["NRestarts"] for name, unit in node.unit_properties("NRestarts").items()}
        assert {name: count for name, count in restarts.items() if count not in ("0", "")} == {}, node.name


def test_only_the_allow_list_is_enabled(deployment: Deployment) -> None:
    """Enabled are the units of the preset that the image has, and none else: the first boot enabled nothing more."""
    for node in deployment.nodes.values():
        states = unit_files(node)
        enabled = {name for name, state in states.items() if state == "enabled"}
        assert enabled <= read_preset(), f"{node.name}: {enabled - read_preset()}"
        # A template without a default instance, and units that are only alias or have no [Install], cannot be enabled.
        missing = {name for name in read_preset() & set(states) if states[name] == "disabled" and "@" not in name}
        assert missing == set(), node.name


def test_every_unit_is_accounted_for(deployment: Deployment) -> None:
    """A unit is on the allow-list, off, static, or one that systemd makes; masked ones are known by name."""
    for node in deployment.nodes.values():
        states = unit_files(node)
        known = {
            "enabled",
            "disabled",
            "static",
            "alias",
            "indirect",
            "masked",
            "generated",
            "transient",
            "enabled-runtime",
        }
        odd = {name: state for name, state in states.items() if state not in known}
        # Debian's systemd-timesyncd gives way to chrony: its alias points at a unit that is not installed.
        assert odd in ({}, {"dbus-org.freedesktop.timesync1.service": "bad"}), node.name
        for state, lawful in (
            # By cloud-init's and systemd's own generators, for this boot.
            ("enabled-runtime", {"cloud-init.target", "console-getty.service", "systemd-remount-fs.service"}),
            ("generated", {"sshd-unix-local.socket"}),
        ):
            found = {name for name, own in states.items() if own == state}
            assert found <= lawful, f"{node.name}: {state}: {found - lawful}"
        assert states["sshd-keygen.service"] == "masked", node.name


def test_only_known_services_run(deployment: Deployment) -> None:
    """Every service that runs is one of systemd's, of the image's few or of those that the agent starts."""
    for node in deployment.nodes.values():
        units = node.unit_properties("SubState")
        running = {name.removesuffix(".service") for name, unit in units.items() if unit["SubState"] == "running"}
        wanted = EVERYWHERE | AGENT_STARTS[node.node.role]
        assert wanted - running == set(), node.name
        assert running - wanted - ON_DEMAND == set(), node.name


def listening(node: RunningNode) -> set[tuple[str, str, int]]:
    """(protocol, address, port) of everything that waits for connections or datagrams."""
    found = set()
    for line in node.ask("ss", "-H", "--listening", "--tcp", "--udp", "--numeric").splitlines():
        protocol, _, _, _, local = line.split()[:5]
        address, _, port = local.rpartition(":")
        found.add((protocol, address.split("%")[0], int(port)))
    return found


def test_only_known_sockets_listen(deployment: Deployment) -> None:
    """ssh is the only one that any address reaches; the rest is at the node's own address or on loopback."""
    everywhere = {
        ("tcp", "0.0.0.0", 22),
        ("tcp", "[::]", 22),
        # systemd-resolved's stub and proxy, on loopback.
        *((protocol, address, 53) for protocol in ("tcp", "udp") for address in ("127.0.0.53", "127.0.0.54")),
    }
    address = str(deployment.controller.node.address)
    ports = (3306, 5000, 5672, 6080, 6081, 6641, 6642, 8774, 8775, 8778, 9292, 9696)
    # Erlang's port mapper and distribution, which only this node's own tools use.
    erlang = {("tcp", "127.0.0.1", 4369), ("tcp", "127.0.1.1", 4369), ("tcp", "127.0.1.1", 25672)}
    loopback = {*erlang, ("tcp", "127.0.0.1", 11211)}  # memcached knows no login
    assert listening(deployment.controller) == everywhere | {("tcp", address, port) for port in ports} | loopback
    # Open vSwitch's manager, for os-vif; Geneve, which Open vSwitch's program opens where the kernel has none.
    network = {("tcp", "127.0.0.1", 6640)}
    for node in deployment.computes:
        found = {one for one in listening(node) if one[2] != 6081}
        assert found == everywhere | network, node.name


def test_no_service_runs_as_root_needlessly(deployment: Deployment) -> None:
    """OpenStack's daemons, the database, the broker and the cache run as their own users."""
    names = ("nova", "keystone", "placement", "glance", "neutron", "mysql", "rabbitmq", "memcache")
    users = dict.fromkeys(names, 0)
    lines = deployment.controller.ask("ps", "-e", "-o", "user:20=,args=").splitlines()
    for line in lines:
        user, _, args = line.strip().partition(" ")
        if user in users:
            users[user] += 1
        elif user == "root":
            known = r"\b(nova|keystone|placement|glance|neutron|mariadbd|beam|memcached|uwsgi)"
            assert not re.search(known, args.strip()), line
    assert min(users.values()) > 0, users
