"""A machine that nobody touches: iPXE, the image's own initramfs, a blank disk, first boot. Power is cut in the middle.

Then its seed's media come and go: a newer one beside the seed in its partition, none, a newer one again. The tests
share one disk, in their order.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from uuid import UUID, uuid5

import bringup
import pytest
import yaml
from bringup import IMAGES, current_image, run_imagegen
from netboot_images import share_images

from imagegen.base.commands import run
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import load_secrets
from imagegen.local.hardware import can_accelerate, find_ovmf
from imagegen.local.qemu import free_port, ssh_options
from imagegen.model.cluster import NAMESPACE
from imagegen.seeds.seed import seed_tree
from imagegen.server.ledger import Ledger
from imagegen.server.provisioning import LEDGER, Serve, Window, provision

SECONDS = 1200.0  # for one boot, under TCG
LOGIN_SECONDS = 300.0  # until sshd answers; the agent may be there before it
POLL = 0.5
HERE = "127.0.0.1"
NODE = "linux-node2"
MACS = {NODE: "52:54:00:56:00:12", "linux-node3": "52:54:00:56:00:13"}
ADDRESSES = {NODE: "192.168.56.12", "linux-node3": "192.168.56.13"}
OTHER_MAC = "52:54:00:56:00:99"  # of a machine that is none of the cluster's
LIVE = {
    "name": "linux-node3",
    "role": "compute",
    "mac": MACS["linux-node3"],
    "address": ADDRESSES["linux-node3"],
    "deploy": {"mode": "live"},
}
ROTATED = ("identity_nova_compute", "messaging_compute_cell1")  # what a compute logs in with
HOLDERS = ("/etc/imagegen/node.json", "/etc/nova/nova.conf.d/50-imagegen.conf")  # the files with both, of a compute


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the tree of `imagegen pxe`, seed ISOs and a blank disk.

    The tree is served on 127.0.0.1, and so is the seed of the compute that is deployed: once, with its first passwords.
    """
    place = tmp_path_factory.mktemp("network")
    share_images(IMAGES, place / "out")
    run_imagegen(["init", str(place)])
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "id"])
    document = yaml.safe_load((place / "cluster.yaml").read_text())
    # The emulated network's gateway is this machine's loopback.
    document["pxe"] = {"url": f"http://192.168.56.1:{free_port()}"}
    document["ssh_authorized_keys"] = [(place / "id.pub").read_text().strip()]
    document["nodes"].append(LIVE)
    (place / "cluster.yaml").write_text(yaml.safe_dump(document))
    run_imagegen([*options(place), "pxe"])
    run_imagegen([*options(place), "seed", *MACS])
    run(["qemu-img", "create", "-q", "-f", "qcow2", place / "disk.qcow2", "10G"])
    cluster = load_cluster(place / "cluster.yaml")
    secrets = load_secrets(cluster.secrets_path)
    (place / "serve").mkdir(mode=0o700)
    asked = Serve(
        cluster,
        place / "out/pxe",
        place / "serve",
        lambda cluster, node: seed_tree(cluster, node, secrets),
        Window([NODE]),
        address=HERE,
        tls_port=0,
        any_address=True,  # QEMU's network translates the nodes' addresses
    )
    with provision(asked, print):
        yield place


@pytest.fixture(scope="module")
def passwords(site: Path) -> list[list[str]]:
    """The values of ROTATED, the newest last; rotate() adds some."""
    return [read_passwords(site)]


def options(site: Path) -> list[str]:
    return ["-c", str(site / "cluster.yaml"), "-o", str(site / "out")]


def read_passwords(site: Path) -> list[str]:
    document = yaml.safe_load((site / "secrets.yaml").read_text())
    return [document[name] for name in ROTATED]


def rotate(site: Path, passwords: list[list[str]]) -> None:
    """New passwords by the README's way: secrets.yaml is edited, and the ISOs are made anew."""
    path, medium = site / "secrets.yaml", site / f"out/seeds/{NODE}.iso"
    text, before = path.read_text(), medium.read_bytes()
    for old in passwords[-1]:
        assert text.count(old) == 1
        text = text.replace(old, token_urlsafe(24))
    path.write_text(text)
    passwords.append(read_passwords(site))
    run_imagegen([*options(site), "seed", *MACS])
    after = medium.read_bytes()
    for old, new in zip(passwords[-2], passwords[-1], strict=True):
        assert old.encode() in before and new.encode() not in before
        assert old.encode() not in after and new.encode() in after


def count_claims(site: Path) -> int:
    """How often the compute that is deployed has claimed its seed."""
    ledger = Ledger(site / "serve" / LEDGER)
    told = ledger.read()
    ledger.close()
    used: int = next(node["seed"]["used"] for node in told["nodes"] if node["name"] == NODE)
    return used


def find_uuid(mac: str) -> UUID:
    """The DMI UUID of the machine with that MAC address."""
    return uuid5(NAMESPACE, f"machine/{mac}")


@dataclass(frozen=True)
class Machine:
    """A machine that runs: its QEMU, what its console shows, and the way in by ssh."""

    node: str
    process: subprocess.Popen[bytes]
    console: Path
    key: Path
    port: int

    def wait_for(self, text: str) -> str:
        """What the console shows once it shows that text."""
        deadline = time.monotonic() + SECONDS
        while True:
            said = self.console.read_text(errors="replace") if self.console.exists() else ""
            if text in said:
                return said
            assert self.process.poll() is None, f"QEMU ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"the console does not show {text!r}:\n{said[-2000:]}"
            time.sleep(POLL)

    def execute(self, command: str, input: str = "") -> str:
        """The stdout of a shell command inside, which must succeed."""
        deadline = time.monotonic() + LOGIN_SECONDS
        while not greets(self.port):
            assert time.monotonic() < deadline, "no sshd answers"
            time.sleep(POLL)
        login = ["ssh", *ssh_options(self.key, self.port), f"root@{HERE}"]
        return bringup.execute(self.node, login, command, input)


def greets(port: int) -> bool:
    """Whether an sshd answers behind that port; QEMU itself takes every connection."""
    try:
        with socket.create_connection((HERE, port), 30) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@contextmanager
def machine(
    site: Path,
    console: Path,
    *,
    node: str = NODE,
    mac: str = "",
    medium: bool = True,
    network_first: bool = True,
    uefi: bool = False,
) -> Iterator[Machine]:
    """A compute: a disk, its seed on a medium, its one interface. Leaving the context cuts its power.

    The medium is /dev/vda and the disk /dev/vdb: of these cloud-init would take a seed on the disk. Without a medium
    the disk is /dev/vda.
    """
    fast = can_accelerate(Path("/proc/cpuinfo").read_text(), Path("/dev/kvm").exists())
    engine = ["-accel", "kvm", "-cpu", "host"] if fast else ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]
    order = (2, 1) if network_first else (1, 2)
    script = site / "out/pxe/mac" / f"{MACS[node].replace(':', '-')}.ipxe"
    base = script.read_text().split()[-1].partition("/nodes/")[0]
    mac, port = mac or MACS[node], free_port()
    seed = [
        *("-drive", f"if=none,id=seed,file={site}/out/seeds/{node}.iso,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=seed"),
    ]
    network = "user,id=lan,net=192.168.56.0/24,host=192.168.56.1,dhcpstart=192.168.56.100"
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", *engine),
        *(("-bios", str(find_ovmf())) if uefi else ()),
        *("-m", "4G", "-smp", "1", "-serial", f"file:{console}", "-uuid", str(find_uuid(mac))),
        *(seed if medium else ()),
        *("-drive", f"if=none,id=disk,file={site}/disk.qcow2,format=qcow2,cache=writeback"),
        *("-device", f"virtio-blk-pci,drive=disk,bootindex={order[0]}", "-device", "virtio-rng-pci"),
        *("-netdev", f"{network},bootfile={base}/boot.ipxe,hostfwd=tcp:{HERE}:{port}-{ADDRESSES[node]}:22"),
        *("-device", f"virtio-net-pci,netdev=lan,mac={mac},bootindex={order[1]}"),
    ]
    process = subprocess.Popen(argv)
    try:
        yield Machine(node, process, console, site / "id", port)
    finally:
        process.kill()
        process.wait()


def expect_newest(booted: Machine, passwords: list[list[str]]) -> None:
    """The node's files hold the newest passwords, and no file below /etc holds one of before."""
    known = [value for values in passwords for value in values]
    said = booted.execute(
        "grep --recursive --text --only-matching --fixed-strings --file=- /etc", input="\n".join(known) + "\n"
    )
    found = {tuple(line.split(":", 1)) for line in said.splitlines()}
    assert found == {(path, value) for path in HOLDERS for value in passwords[-1]}


def test_power_is_cut_while_the_image_is_written(site: Path) -> None:
    """The disk has our mark and nothing that boots. With a medium that has its seed the machine claims none."""
    with machine(site, site / "1.log") as booted:
        said = booted.wait_for(" MiB (")
    assert "/dev/vdb (10.0 GiB): blank" in said
    assert "a medium labelled cidata is attached: no seed is requested" in said
    assert count_claims(site) == 0
    run(["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1", f"if={site}/disk.qcow2", f"of={site}/head"])
    head = (site / "head").read_bytes()
    assert not any(head[: 64 << 10]) and b"imagegen deployment, not finished" in head


def test_the_next_boot_starts_over_and_goes_on_to_first_boot(site: Path, passwords: list[list[str]]) -> None:
    """Without another POST: the same kernel goes on with the disk, cloud-init reads the seed, the agent waits.

    The medium is gone, so the seed is the one that the server gives out, in the disk's seed partition.
    """
    image = current_image("compute")
    with machine(site, site / "2.log", medium=False) as booted:
        said = booted.wait_for("waiting wait-messaging")
        assert booted.execute("cloud-init query subplatform") == "config-disk (/dev/vda3)\n"
        expect_newest(booted, passwords)
    assert "an unfinished deployment of" in said
    assert f"table: /dev/vda holds {image}" in said
    assert said.count("Linux version") == 1
    assert "18 files as the seed promised" in said
    assert count_claims(site) == 1


def test_a_disk_that_bears_the_image_is_booted_as_it_is(site: Path) -> None:
    """Over the network nothing is written again, and no seed is claimed. The tests that follow boot by its own GRUB."""
    with machine(site, site / "3.log", medium=False) as booted:
        said = booted.wait_for("waiting wait-messaging")
    assert "working disk: /dev/vda (10.0 GiB): deployed" in said
    assert "working image" not in said
    assert count_claims(site) == 1


def test_a_newer_medium_beside_the_seed_partition_wins(site: Path, passwords: list[list[str]]) -> None:
    """The node was never ready. Its old seed is erased before cloud-init looks, which would have taken that one."""
    rotate(site, passwords)
    with machine(site, site / "4.log", network_first=False) as booted:
        said = booted.wait_for("waiting wait-messaging")
        told = booted.execute(
            "cloud-init query subplatform; journalctl --unit=imagegen-medium --output=cat --no-pager; "
            "tr -d '\\0' </dev/vdb3 | wc -c"
        ).splitlines()
        expect_newest(booted, passwords)
    assert told[0] == "config-disk (/dev/vda)"
    assert "erased from /dev/vdb3" in told
    assert told[-1] == "0"
    # By the disk's own GRUB, which finds root by its new UUID.
    assert "root=PARTUUID=" in said and "boot=imagegen" not in said
    assert "18 files as the seed promised" in said


def test_with_neither_medium_nor_seed_partition_the_node_works_on(site: Path, passwords: list[list[str]]) -> None:
    """By the agent's own copy: cloud-init is off, the interface has its name and address, the newest seed counts."""
    with machine(site, site / "5.log", medium=False, network_first=False) as booted:
        said = booted.wait_for("waiting wait-messaging")
        told = booted.execute(
            "cloud-init status; ls /run/cloud-init/instance-data.json || echo no instance data; "
            "blkid --cache-file /dev/null --match-token LABEL=cidata || echo no seed; "
            "ip -oneline -4 address show dev net0; udevadm info --query=property /sys/class/net/net0"
        )
        expect_newest(booted, passwords)
    assert "status: disabled" in told and "no instance data" in told and "no seed" in told
    assert f" {ADDRESSES[NODE]}/24 " in told
    assert f"ID_NET_LINK_FILE=/etc/systemd/network/05-imagegen-{MACS[NODE].replace(':', '')}.link" in told
    assert "18 files as the seed promised" in said


def test_another_machine_with_that_disk_is_refused(site: Path) -> None:
    """Without a medium, too: the agent's copy is not for this machine, and says for which one it is."""
    with machine(site, site / "6.log", mac=OTHER_MAC, medium=False, network_first=False) as booted:
        said = booted.wait_for(
            "failed role: cloud-init found no data source, and the last seed on this disk was for another machine: "
            f"that machine had the DMI UUID {find_uuid(MACS[NODE])}, this one has {find_uuid(OTHER_MAC)}. "
            "Give this machine its own seed (label cidata)"
        )
    assert "files as the seed promised" not in said


def test_a_new_medium_rotates_passwords(site: Path, passwords: list[list[str]]) -> None:
    """The node's own machine again, with no seed but the medium's: applied as a first one, and nothing older stays."""
    rotate(site, passwords)
    with machine(site, site / "7.log", network_first=False) as booted:
        said = booted.wait_for("waiting wait-messaging")
        assert booted.execute("cloud-init query subplatform") == "config-disk (/dev/vda)\n"
        expect_newest(booted, passwords)
    assert len(passwords) == 3
    assert "18 files as the seed promised" in said


def test_a_live_node_leaves_disks_alone(site: Path) -> None:
    """Under UEFI. Its root is in memory, checked before it is used; the disk beside it has not a byte changed."""
    before = (site / "disk.qcow2").read_bytes()
    with machine(site, site / "8.log", node="linux-node3", uefi=True) as booted:
        said = booted.wait_for("waiting wait-messaging")
    assert "efi: EFI v2" in said
    assert "working root: in memory" in said
    assert "18 files as the seed promised" in said
    assert (site / "disk.qcow2").read_bytes() == before
