"""A node from qcow2 and seed ISO under BIOS; over the network, under UEFI, a deployed compute.

With --full a live one besides, and the node from qcow2 is a controller that loses power.
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid5

import bad_day
import pytest
from bad_day import DEPLOYED, HOST, LIVE
from bringup import BOOT_MINUTES, COMMAND_SECONDS, BootedCluster, current_image, find_secrets
from canaries import CLOSED
from repository import ROOT
from secret_places import find_misplaced, name_secrets, secrets_of_compute
from watch import spell_secret

from imagegen.inputs.secrets_file import load_secrets
from imagegen.model.cluster import NAMESPACE
from imagegen.seeds.service_files import node_files
from imagegen.server.ledger import Ledger

LAYERS = "/run/imagegen/live"  # of a live node's root file system
SCAN = (ROOT / "tests/cluster/probes/secrets.py").read_text()


@pytest.mark.item(20, 26, 27)
def test_all_nodes_become_ready_with_nobody_typing(booted: BootedCluster) -> None:
    """`imagegen boot` ends with 0: all nodes are ready and the cluster was verified from outside."""
    assert booted.rc == 0, booted.stderr[-5000:]
    nodes = json.loads(booted.stdout)["nodes"]
    names = {node.name for node in booted.cluster.nodes}
    assert names >= {HOST, DEPLOYED, booted.from_disk}
    assert {node["name"]: node["state"] for node in nodes} == dict.fromkeys(names, "ready")
    assert all(node["seconds"] < BOOT_MINUTES * 60 for node in nodes)
    assert set(booted.logins) == names


def test_power_was_cut_where_it_was_planned(booted: BootedCluster, request: pytest.FixtureRequest) -> None:
    """Each cut fell while the node was at work on its first boot."""
    plans = bad_day.PLANS | (bad_day.OF_A_FULL_DAY if request.config.getoption("full") else {})
    for node in booted.machines:
        log = booted.directory / node.name / bad_day.CUTS
        cuts = log.read_text().splitlines() if log.exists() else []
        assert cuts == [text for _, text, _ in plans[node.name]], node.name
    assert any(plans.values())


def read_boots(booted: BootedCluster) -> list[str]:
    """What the deployed node's console says, boot by boot."""
    return (booted.directory / DEPLOYED / "console.log").read_text(errors="replace").split("Linux version")[1:]


def test_a_deployed_disk_boots_by_itself(booted: BootedCluster) -> None:
    """Deployed under UEFI; then by its own GRUB, from the disk whose power was cut in the middle of cloud-init."""
    *_, deploying, last = read_boots(booted)
    image = current_image("compute")
    node = booted.cluster.node(DEPLOYED)
    files = len(node_files(booted.cluster, node, load_secrets(booted.cluster.secrets_path)))
    assert f"table: /dev/vda holds {image}" in deploying and f"{files} files as the seed promised" in deploying + last
    assert "efi: EFI v2" in deploying and "boot=imagegen" in deploying
    assert "efi: EFI v2" in last and "boot=imagegen" not in last and "root=PARTUUID=" in last


@pytest.mark.full
def test_a_deployment_that_was_cut_off_started_over(booted: BootedCluster) -> None:
    """With the seed that it had claimed: iPXE, the image's initramfs, the disk and first boot, without another POST."""
    first, second, _ = read_boots(booted)
    assert ": blank" in first and "working table" not in first
    assert "an unfinished deployment of" in second and "kept by the earlier deployment" in second


def test_seeds_were_given_once(booted: BootedCluster) -> None:
    """One claim each, by those that booted over the network, and nothing was refused."""
    ledger = Ledger(booted.directory / ".serve/ledger.sqlite")
    told = ledger.read()
    ledger.close()
    claims = {node.name: int(node.name in (DEPLOYED, LIVE)) for node in booted.cluster.nodes}
    assert {node["name"]: node["seed"]["used"] for node in told["nodes"]} == claims
    assert told["reports"] == []
    steps = {node["name"]: [event["step"] for event in node["timeline"]] for node in told["nodes"]}
    for name, claimed in claims.items():
        if claimed:
            assert steps[name][0] == "script" and {"image", "seed", "role", "mapped"} <= set(steps[name])


@pytest.mark.full
def test_a_live_node_keeps_its_identity_on_its_own_disk(booted: BootedCluster) -> None:
    """Its root is in memory; instances, host keys, compute_id and stamp are on the disk that its hint names."""
    said = booted.execute(
        LIVE,
        "findmnt -no FSTYPE /; for p in /var/lib/nova /var/lib/imagegen /etc/ssh; do "
        "findmnt -no SOURCE,FSTYPE $p; done; blkid -o value -s LABEL /dev/vda; ls /var/lib/nova/compute_id; "
        "cat /etc/machine-id /run/imagegen/live/data/etc/machine-id",
    ).splitlines()
    assert said[0] == "overlay"
    assert [line.split()[0].partition("[")[0] for line in said[1:4]] == ["/dev/vda"] * 3
    assert said[4:6] == ["imagegen-data", "/var/lib/nova/compute_id"]
    assert said[6] == said[7] and len(said) == 8


def test_a_clock_that_is_a_year_off_is_set(booted: BootedCluster) -> None:
    """The compute's hardware clock is a year ahead; with no time server but the first controller it has our time."""
    said = booted.execute(DEPLOYED, "journalctl --unit=chrony --output=cat --no-pager | grep 'wrong by'; date +%s")
    off = float(said.split("wrong by")[1].split()[0])
    assert abs(abs(off) - bad_day.CLOCK_OFF.total_seconds()) < 86400, said
    now = time.time()
    assert abs(int(said.split()[-1]) - now) < 60, said
    assert "10.20.30.1" in booted.execute(DEPLOYED, "chronyc -n sources")


def test_disks_are_stamped_with_their_machine(booted: BootedCluster) -> None:
    """By the UUID of the firmware, which QEMU has from the node's MAC."""
    for node in booted.machines:
        stamp = json.loads(booted.execute(node.name, "cat /var/lib/imagegen/machine.json"))
        assert stamp == {"node": node.name, "dmi_uuid": str(uuid5(NAMESPACE, f"machine/{node.mac}"))}


def test_the_seed_came_from_where_it_belongs(booted: BootedCluster) -> None:
    """The disk's seed partition, or memory, and nowhere else; the one NIC bears the seed's name."""
    places = {DEPLOYED: "/dev/vda3", LIVE: "/var/lib/cloud/seed/nocloud"}
    for name in booted.logins.keys() & places:
        place = places[name]
        facts = booted.execute(name, "cat /run/cloud-init/result.json")
        assert f"DataSourceNoCloud [seed={place}]" in facts or f"seed={place}," in facts, facts
    for node in booted.machines:
        facts = booted.execute(node.name, "cat /sys/class/net/net0/address; ls /sys/class/net")
        made = {"br-int", "genev_sys_6081", "ovs-system"}  # by Open vSwitch
        assert [line for line in facts.splitlines() if line not in made] == [node.mac, "lo", "net0"]


@pytest.mark.full
def test_a_node_without_its_medium_is_ready(booted: BootedCluster) -> None:
    """The controller's went with the last cut: cloud-init is off, udev gives the interface its name, networkd the
    address, and the agent works from its own copy."""
    said = booted.execute(
        HOST,
        "cloud-init status; test -e /run/cloud-init/instance-data.json && echo found; ls /dev/disk/by-label; "
        "udevadm info --query=property /sys/class/net/net0; stat -c '%U %a' /var/lib/imagegen/seed.json",
    )
    assert "status: disabled" in said and "found" not in said and "cidata" not in said
    assert "ID_NET_LINK_FILE=/etc/systemd/network/05-imagegen-525400aa0001.link" in said
    assert said.endswith("root 600\n")


def test_the_seed_on_a_deployed_disk_is_erased(booted: BootedCluster) -> None:
    """Once the node is ready, every byte; the partition stays, and no label leads to it."""
    said = booted.execute(
        DEPLOYED,
        "tr -d '\\0' </dev/vda3 | wc -c; blockdev --getsize64 /dev/vda3; udevadm settle; blkid -L cidata || echo none; "
        "imagegen-node status",
    )
    assert said.splitlines()[:3] == ["0", str(8 << 20), "none"]
    assert re.search(r"^  seed +done", said, re.MULTILINE)


def test_the_root_file_system_took_the_whole_disk(booted: BootedCluster) -> None:
    """The last partition and its file system grew at first boot to what the disk has."""
    for name in (booted.from_disk, DEPLOYED):
        sizes = booted.execute(
            name, "blockdev --getsize64 /dev/vda; findmnt -no SIZE --bytes /; findmnt -no SOURCE /"
        ).split()
        disk, root, source = int(sizes[0]), int(sizes[1]), sizes[2]
        assert source == "/dev/vda4"
        assert disk - root < 2 << 30, f"{name}: the disk has {disk} bytes, / has {root}"


def test_no_unit_failed(booted: BootedCluster) -> None:
    """systemd knows of no failed unit, and no job waits for ever; timers may start some meanwhile."""
    for node in booted.machines:
        assert booted.execute(node.name, "systemctl list-units --failed --no-legend") == ""
        deadline = time.monotonic() + COMMAND_SECONDS
        while jobs := booted.execute(node.name, "systemctl list-jobs --no-legend"):
            assert time.monotonic() < deadline, f"{node.name}: these jobs do not end:\n{jobs}"
            time.sleep(5)


@pytest.mark.item(24)
def test_virt_type_follows_the_processor(booted: BootedCluster) -> None:
    """kvm when the guest's processor shows vmx or svm and /dev/kvm is there, qemu otherwise."""
    said = booted.execute(
        DEPLOYED,
        "grep -cwE 'vmx|svm' /proc/cpuinfo || true; [ -e /dev/kvm ] && echo kvm || echo none; "
        "cat /etc/nova/nova.conf.d/40-virt-type.conf",
    ).split("\n", 2)
    expected = "kvm" if int(said[0]) and said[1] == "kvm" else "qemu"
    assert f"virt_type = {expected}\n" in said[2]


def test_secrets_stand_only_in_closed_files(booted: BootedCluster) -> None:
    """The whole of both machines is searched, files, journal and processes: only the known places hold a secret."""
    secrets = {**name_secrets(booted.cluster, load_secrets(booted.cluster.secrets_path)), **CLOSED}
    spelled = {name: sorted(spell_secret(value)) for name, value in secrets.items()}
    program = f"{SCAN}\n\nmain({spelled!r})\n"
    nodes = booted.machines
    with ThreadPoolExecutor() as pool:  # each takes a minute
        said = list(pool.map(lambda node: booted.execute(node.name, "python3 -", input=program), nodes))
    for node, scan in zip(nodes, map(json.loads, said), strict=True):
        assert scan["files seen"] > 20_000 and scan["files read"] > 100
        files, also = scan["files"], {}
        if node.name == LIVE:
            # What lies below the root file system is the same again, and closed as a whole.
            files = {path: found for path, found in files.items() if not path.startswith(f"{LAYERS}/")}
            also = {r"/var/lib/cloud/seed/nocloud/user-data": "root:root 0600"}
            assert booted.execute(LIVE, f"stat -c '%U %a' {LAYERS}") == "root 700\n"
        assert find_misplaced(node.role, files, also) == []
        names = {name for _, _, found in files.values() for name in found}
        assert not {"environment", "no_proxy"} & names
        if node.role.runs("nova-compute"):
            assert names == secrets_of_compute(node) | {"comment of a key"}
        assert (scan["journal"], scan["arguments"], scan["environments"]) == ([], {}, {})


def test_no_canary_is_said(booted: BootedCluster) -> None:
    """Neither on a console, in a status, in QEMU's logs nor by `imagegen boot` itself."""
    secrets = {**name_secrets(booted.cluster, load_secrets(booted.cluster.secrets_path)), **CLOSED}
    spelled = {one for value in secrets.values() for one in spell_secret(value)}
    assert not [one for one in spelled if one in booted.stdout + booted.stderr]
    logs = [path for pattern in ("*.log", "*/*.log", "*/*.jsonl") for path in booted.directory.glob(pattern)]
    assert len(logs) > 4
    assert find_secrets(logs, secrets) == []
