"""qemu.py: what is decided without starting anything."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import qemu
from imagegen.model.cluster import Cluster
from imagegen.model.roles import find_role

CLUSTER = load_cluster(None)
CONTROLLER, COMPUTE = CLUSTER.nodes[0], CLUSTER.nodes[1]
PORTS = {CONTROLLER: 40001, COMPUTE: 40002}
KEY = "ssh-ed25519 AAAAC3 imagegen-0011"


def values(argv: list[str], option: str) -> list[str]:
    """Every value that the option has in a command."""
    return [word for before, word in itertools.pairwise(argv) if before == option]


def with_network(**changes: object) -> Cluster:
    return dataclasses.replace(CLUSTER, network=dataclasses.replace(CLUSTER.network, **changes))  # type: ignore[arg-type]


def test_the_gateway_is_one_port_of_the_switch() -> None:
    """A QEMU without a machine joins the user network and the switch, and both ends name the same hub."""
    argv = qemu.gateway_command("run", CLUSTER, qemu.plan_outside(CLUSTER), PORTS)
    netdevs = values(argv, "-netdev")
    assert netdevs[0] == "stream,id=lan,server=off,addr.type=unix,addr.path=run-lan"
    hub = [netdev for netdev in netdevs if netdev.startswith("hubport,")]
    assert [port.split("netdev=")[1] for port in hub] == ["lan", "outside"]
    assert all(",hubid=0," in port for port in hub)
    assert values(argv, "-machine") == ["none"]
    assert qemu.switch_command("run")[-1] == "run-lan"


def test_the_user_network_is_the_seeds_gateway_and_forwards_ssh() -> None:
    """It answers as the gateway in the cluster's own network and leads one local port to each node."""
    argv = qemu.gateway_command("run", CLUSTER, qemu.plan_outside(CLUSTER), PORTS)
    [user] = [netdev.split(",") for netdev in values(argv, "-netdev") if netdev.startswith("user,")]
    assert {"net=192.168.56.0/24", "host=192.168.56.1", "restrict=on", "ipv6=off"} <= set(user)
    assert "hostfwd=tcp:127.0.0.1:40001-192.168.56.11:22" in user
    assert "hostfwd=tcp:127.0.0.1:40002-192.168.56.12:22" in user


@given(st.integers(min_value=8, max_value=29), st.sets(st.integers(min_value=1, max_value=6), max_size=3))
def test_the_user_networks_own_addresses_are_nobodys(prefix: int, taken: set[int]) -> None:
    """QEMU answers ARP for its addresses, so none may be a node's; all lie in the network."""
    cidr = IPv4Network(f"10.0.0.0/{prefix}")
    nodes = tuple(dataclasses.replace(CONTROLLER, address=cidr[number]) for number in sorted(taken))
    cluster = dataclasses.replace(with_network(cidr=cidr, gateway=None), nodes=nodes)
    outside = qemu.plan_outside(cluster)
    chosen = [outside.gateway, outside.dns, outside.dhcp]
    assert len(set(chosen)) == 3
    assert not set(chosen) & {node.address for node in nodes}
    assert all(address in cidr and address not in (cidr[0], cidr[-1]) for address in chosen)


def test_a_network_too_small_for_qemu_is_refused() -> None:
    """A /30 that its node and gateway fill has nothing left for the user network."""
    cluster = dataclasses.replace(
        with_network(cidr=IPv4Network("10.0.0.0/30"), gateway=IPv4Address("10.0.0.1")),
        nodes=(dataclasses.replace(CONTROLLER, address=IPv4Address("10.0.0.2")),),
    )
    with pytest.raises(BadUsage, match="three free addresses"):
        qemu.plan_outside(cluster)


def test_nodes_reach_out_only_when_their_cluster_needs_it() -> None:
    """Services on nodes of the cluster keep the network closed; one elsewhere, by name or address, opens it."""
    assert not qemu.needs_outside(CLUSTER)
    for host in ("10.0.0.5", "db.example.com"):
        place = dataclasses.replace(CLUSTER.services.database, host=host, node=None)
        services = dataclasses.replace(CLUSTER.services, database=place)
        assert qemu.needs_outside(dataclasses.replace(CLUSTER, services=services))
    services = dataclasses.replace(CLUSTER.services, image_endpoint="http://glance.example.com:9292")
    assert qemu.needs_outside(dataclasses.replace(CLUSTER, services=services))
    assert qemu.needs_outside(with_network(ntp=("ntp.example.com",)))
    assert not qemu.needs_outside(with_network(ntp=("192.168.56.11",)))


def test_a_node_has_the_one_nic_of_its_seed() -> None:
    """One NIC with the seed's MAC on the switch, and no user network of its own."""
    argv = qemu.node_command("run", COMPUTE, memory=2 << 30, accelerated=False, firmware=None)
    devices = values(argv, "-device")
    assert [d for d in devices if "net" in d] == [f"virtio-net-pci,netdev=lan,mac={COMPUTE.mac},romfile="]
    assert values(argv, "-netdev") == ["stream,id=lan,server=off,addr.type=unix,addr.path=run-lan"]


def test_a_node_boots_its_disk_and_cannot_write_its_seed() -> None:
    """The overlay comes first in the boot order; the seed is read-only; both logs survive a second start."""
    argv = qemu.node_command("run", COMPUTE, memory=2 << 30, accelerated=False, firmware=None)
    root, seed = values(argv, "-drive")
    assert "file=linux-node2/disk.qcow2,format=qcow2" in root
    assert "file=linux-node2/seed.iso" in seed and "readonly=on" in seed
    assert [d for d in values(argv, "-device") if "bootindex" in d] == [
        "virtio-blk-pci,drive=root,serial=linux-node2,bootindex=1"
    ]
    assert all(chardev.endswith(",append=on") for chardev in values(argv, "-chardev"))
    assert "virtserialport,chardev=status,name=org.imagegen.status" in values(argv, "-device")
    assert values(argv, "-m") == ["2048M"]


@pytest.mark.parametrize(("firmware", "rom"), [(None, ""), (Path("/f/OVMF.fd"), ",romfile=")])
def test_a_blank_machine_boots_over_the_network_first(firmware: Path | None, rom: str) -> None:
    """On a tap, without a seed's medium. BIOS needs the card's own iPXE; UEFI has PXE itself."""
    argv = qemu.node_command(
        "run", COMPUTE, memory=2 << 30, accelerated=False, firmware=firmware, tap="tap0", blank=True
    )
    assert values(argv, "-netdev") == ["tap,id=lan,ifname=tap0,script=no,downscript=no"]
    assert [d for d in values(argv, "-device") if "bootindex" in d] == [
        "virtio-blk-pci,drive=root,serial=linux-node2,bootindex=2",
        f"virtio-net-pci,netdev=lan,mac={COMPUTE.mac}{rom},bootindex=1",
    ]
    assert len(values(argv, "-drive")) == 1


def test_a_disk_bears_the_serial_number_that_is_looked_for() -> None:
    """So that a root_device hint finds it; virtio takes 20 characters."""
    hinted = dataclasses.replace(COMPUTE, root_device={"serial": "WD-" + "1" * 30})
    argv = qemu.node_command("run", hinted, memory=1 << 30, accelerated=False, firmware=None)
    assert f"virtio-blk-pci,drive=root,serial=WD-{'1' * 17},bootindex=1" in values(argv, "-device")


def test_sockets_are_relative_because_their_paths_must_be_short() -> None:
    """A socket's path has 108 bytes; the longest node name fits whatever the output directory is."""
    long = dataclasses.replace(COMPUTE, name="n" * 63)
    argv = qemu.node_command("run", long, memory=1 << 30, accelerated=False, firmware=None)
    argv += qemu.gateway_command("run", CLUSTER, qemu.plan_outside(CLUSTER), {long: 1})
    paths = [word.split("=")[1] for words in argv for word in words.split(",") if word.startswith("addr.path=")]
    paths += [value.removeprefix("unix:").split(",")[0] for value in values(argv, "-qmp")]
    assert len(paths) == 3
    assert all(len(path) < 108 and not path.startswith("/") for path in paths)


@pytest.mark.parametrize(
    ("accelerated", "accel", "cpu"), [(True, "kvm", "host"), (False, "tcg,thread=multi", "max,cx16=off")]
)
def test_without_kvm_the_broken_cmpxchg16b_is_hidden(accelerated: bool, accel: str, cpu: str) -> None:
    """QEMU 7.2 emulates it wrongly, and kernel 6.12 dies of it."""
    argv = qemu.node_command("run", CONTROLLER, memory=1 << 30, accelerated=accelerated, firmware=None)
    assert values(argv, "-accel") == [accel]
    assert values(argv, "-cpu") == [cpu]


def test_firmware_is_bios_unless_told() -> None:
    """QEMU's default is SeaBIOS."""
    assert "-bios" not in qemu.node_command("run", COMPUTE, memory=1 << 30, accelerated=False, firmware=None)
    uefi = qemu.node_command("run", COMPUTE, memory=1 << 30, accelerated=False, firmware=Path("/f/OVMF.fd"))
    assert values(uefi, "-bios") == ["/f/OVMF.fd"]


def test_each_machine_has_a_uuid_of_its_own() -> None:
    """As hardware has: the agent knows a copied disk by it. The same node has the same at every boot."""
    argv = [
        qemu.node_command("run", node, memory=1 << 30, accelerated=False, firmware=None)
        for node in (COMPUTE, CONTROLLER, COMPUTE)
    ]
    uuids = [values(each, "-uuid")[0] for each in argv]
    assert uuids[0] == uuids[2] != uuids[1]


def test_missing_uefi_firmware_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first place that has the firmware serves; none is the machine's lack."""
    monkeypatch.setattr(qemu, "OVMF", (tmp_path / "a.fd", tmp_path / "b.fd"))
    with pytest.raises(MachineLacks, match="package ovmf"):
        qemu.find_ovmf()
    (tmp_path / "b.fd").touch()
    assert qemu.find_ovmf() == tmp_path / "b.fd"


@pytest.mark.parametrize(
    ("flags", "access", "usable"),
    [("fpu vmx sse", True, True), ("svm", True, True), ("fpu sse", True, False), ("fpu vmx", False, False)],
)
def test_kvm_needs_the_processors_own_word(flags: str, access: bool, usable: bool) -> None:
    """/dev/kvm alone is no proof: it opens where guests hang. Neither is a flag of another line."""
    assert qemu.can_accelerate(f"model name\t: svm vmx\nflags\t\t: {flags}\nbugs\t\t: vmx\n", access) is usable


def test_vendor_data_leaves_the_seeds_keys_alone() -> None:
    """Its one key is bootcmd: any other could be user-data's, which would win and lose root's access."""
    data = qemu.vendor_data(KEY, slow=True)
    assert data.startswith("#cloud-config\n")
    assert list(yaml.safe_load(data)) == ["bootcmd"]


@given(st.text("abc'\"$`\\ %", min_size=1).map(lambda comment: f"ssh-ed25519 AAAA {comment}"))
def test_vendor_data_quotes_the_key(key: str) -> None:
    """The shell sees the key as one word, wherever the script uses it."""
    [[shell, option, script]] = yaml.safe_load(qemu.vendor_data(key, slow=False))["bootcmd"]
    assert [shell, option] == ["sh", "-c"]
    words = shlex.split(script, posix=True)
    assert words.count(key) == 2


def test_only_a_slow_machine_gets_patience() -> None:
    """Nova's time-outs are stretched under emulation, and stay as the image has them with KVM."""
    assert "60-slow-machine.conf" not in qemu.vendor_data(KEY, slow=False)
    [[_, _, script]] = yaml.safe_load(qemu.vendor_data(KEY, slow=True))["bootcmd"]
    assert qemu.SLOW_NOVA in shlex.split(script)
    assert "/etc/nova/nova.conf.d/60-slow-machine.conf" in script


def test_patience_connects_to_nothing() -> None:
    """A compute reads it too, and has no database; a service is down only after several missed reports."""
    settings = dict(line.split(" = ") for line in qemu.SLOW_NOVA.splitlines() if " = " in line)
    assert "connection" not in qemu.SLOW_NOVA and "database" not in qemu.SLOW_NOVA
    assert int(settings["service_down_time"]) >= 3 * int(settings["report_interval"])


def test_ssh_never_asks_and_reads_no_configuration() -> None:
    """No prompt, no key but boot's own, nothing from or for the user's files."""
    options = qemu.ssh_options(Path("/out/boot/ssh_key"), 40001)
    assert values(options, "-i") == ["/out/boot/ssh_key"]
    assert values(options, "-p") == ["40001"]
    assert values(options, "-F") == ["none"]
    assert {"BatchMode=yes", "IdentitiesOnly=yes", "UserKnownHostsFile=/dev/null"} <= set(values(options, "-o"))


def test_a_controller_gets_more_than_a_compute() -> None:
    """One controller and two computes fit a machine of 24 GiB, with a third of it to spare."""
    controller, compute = (find_role(name).machine_memory for name in ("controller", "compute"))
    assert controller > compute
    assert controller + 2 * compute <= 16 << 30


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids that would have been killed, of a /proc below tmp_path."""
    seen: list[int] = []
    monkeypatch.setattr(qemu, "kill_process", lambda number, check: seen.append(number) if check() else None)
    for pid, words in {
        "self": "qemu-system-x86_64 -name imagegen-00000001-linux-node1",
        "11": "qemu-system-x86_64 -name imagegen-00000001-linux-node1",
        "12": "qemu-system-x86_64 -name imagegen-00000001-gateway",
        "13": "qemu-system-x86_64 -name imagegen-00000002-linux-node1",
        "14": "less imagegen-00000001-lan",
        "15": "",
        "17": shlex.join(qemu.switch_command("imagegen-00000001")),
        "18": shlex.join(qemu.switch_command("imagegen-00000002")),
        "19": "dnsmasq --dhcp-leasefile=/out/boot/imagegen-00000001-lan.leases --conf-file=/out/pxe/dnsmasq.conf",
        "20": "dnsmasq --dhcp-leasefile=/out/boot/imagegen-00000002-lan.leases",
        "21": "dnsmasq --conf-file=/etc/dnsmasq.conf",
    }.items():
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cmdline").write_bytes("\0".join(shlex.split(words)).encode() + b"\0")
    (tmp_path / "proc" / "16").mkdir()  # ended meanwhile: no cmdline
    return seen


def test_leftovers_are_the_processes_of_the_last_run(tmp_path: Path, killed: list[int]) -> None:
    """The machines, gateway and switch; those of other runs and processes that only mention the name live on."""
    (tmp_path / qemu.STATE).write_text(json.dumps({"version": 1, "run": "imagegen-00000001"}))
    qemu.remove_leftovers(tmp_path, tmp_path / "proc")
    assert killed == [11, 12, 17, 19]


def test_leftovers_are_the_secrets_of_the_last_run(tmp_path: Path, killed: list[int]) -> None:
    """Disks and seeds of every node that it had, also of those that the cluster file has no more; logs stay."""
    node = tmp_path / "node-that-is-gone"
    node.mkdir()
    for name in ("disk.qcow2", "seed.iso", "console.log"):
        (node / name).touch()
    (tmp_path / qemu.SERVED).mkdir()
    (tmp_path / qemu.SERVED / "server.key").touch()
    (tmp_path / qemu.KEY).touch()
    (tmp_path / qemu.STATE).write_text(json.dumps({"version": 1, "run": "imagegen-00000001"}))
    qemu.remove_leftovers(tmp_path, tmp_path / "proc")
    assert sorted(path.name for path in tmp_path.iterdir()) == [node.name, "proc"]
    assert [path.name for path in node.iterdir()] == ["console.log"]


@pytest.mark.parametrize(
    "state",
    [
        None,
        *(b"", b"[]", b"{}", b"{", b"\xff", b"[" * 100_000),
        # Every process has an argument that begins with an empty name.
        *(json.dumps({"run": name}).encode() for name in ("", "imagegen", "imagegen-0", "../x", 7, None)),
    ],
)
def test_a_state_without_a_runs_name_kills_nothing(tmp_path: Path, killed: list[int], state: bytes | None) -> None:
    """Without a name there is nothing to look for, and names are those that imagegen gives."""
    if state is not None:
        (tmp_path / qemu.STATE).write_bytes(state)
    qemu.remove_leftovers(tmp_path, tmp_path / "proc")
    assert killed == []


class FakeProcess:
    """A process that ends when asked, or only when killed."""

    def __init__(self, stubborn: bool) -> None:
        self.stubborn = stubborn
        self.events: list[str] = []
        self.ended = False

    def terminate(self) -> None:
        self.events.append("terminate")
        self.ended = not self.stubborn

    def kill(self) -> None:
        if not self.ended:
            self.events.append("kill")
        self.ended = True

    def poll(self) -> int | None:
        return 0 if self.ended else None

    def wait(self) -> None:
        assert self.ended
        self.events.append("wait")


def test_processes_end_for_certain() -> None:
    """All are asked first; who does not listen is killed; each is collected."""
    polite, stubborn = FakeProcess(stubborn=False), FakeProcess(stubborn=True)
    qemu.end_processes([stubborn, polite], seconds=0)  # type: ignore[list-item]
    assert polite.events == ["terminate", "wait"]
    assert stubborn.events == ["terminate", "kill", "wait"]


def test_waiting_stops_when_the_process_has_ended() -> None:
    """A switch or an ssh that dies at once is not waited for."""
    process = FakeProcess(stubborn=False)
    process.ended = True
    assert not qemu.wait_until(lambda: False, process, 3600)  # type: ignore[arg-type]
    assert qemu.wait_until(lambda: True, process, 0)  # type: ignore[arg-type]


def test_a_recycled_process_number_is_not_killed() -> None:
    """The check comes after the process is held: this very test process survives a check that says no."""
    asked: list[int] = []
    qemu.kill_process(os.getpid(), lambda: bool(asked.append(1)))
    assert asked == [1]
