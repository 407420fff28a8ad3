"""A machine that nobody touches: iPXE, the image's own initramfs, a blank disk, first boot. Power is cut in the middle.

The file is the first of the tier, while no other machine runs.
"""

from __future__ import annotations

import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from bringup import IMAGES, run_imagegen
from netboot_images import share_images

from imagegen.base.commands import run
from imagegen.local.qemu import can_accelerate, find_ovmf

SECONDS = 1200.0  # for one boot, under TCG
POLL = 0.5
MACS = {"linux-node2": "52:54:00:56:00:12", "linux-node3": "52:54:00:56:00:13"}
LIVE = {
    "name": "linux-node3",
    "role": "compute",
    "mac": MACS["linux-node3"],
    "address": "192.168.56.13",
    "deploy": {"mode": "live"},
}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the tree of `imagegen pxe`, served on 127.0.0.1, a seed ISO and a blank disk."""
    place = tmp_path_factory.mktemp("network")
    share_images(IMAGES, place / "out")
    run_imagegen(["init", str(place)])
    handler = partial(QuietHandler, directory=str(place / "out/pxe"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    document = yaml.safe_load((place / "cluster.yaml").read_text())
    # The emulated network's gateway is this machine's loopback.
    document["pxe"] = {"url": f"http://192.168.56.1:{server.server_port}"}
    document["nodes"].append(LIVE)
    (place / "cluster.yaml").write_text(yaml.safe_dump(document))
    options = ["-c", str(place / "cluster.yaml"), "-o", str(place / "out")]
    run_imagegen([*options, "pxe"])
    run_imagegen([*options, "seed", *MACS])
    run(["qemu-img", "create", "-q", "-f", "qcow2", place / "disk.qcow2", "10G"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield place
    server.shutdown()
    server.server_close()


@contextmanager
def machine(
    site: Path, console: Path, *, node: str = "linux-node2", network_first: bool = True, uefi: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A compute: a disk, its seed on a medium, its one interface. Leaving the context cuts its power."""
    fast = can_accelerate(Path("/proc/cpuinfo").read_text(), Path("/dev/kvm").exists())
    engine = ["-accel", "kvm", "-cpu", "host"] if fast else ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]
    order = (2, 1) if network_first else (1, 2)
    script = site / "out/pxe/mac" / f"{MACS[node].replace(':', '-')}.ipxe"
    base = script.read_text().split()[-1].partition("/nodes/")[0]
    network = "user,id=lan,net=192.168.56.0/24,host=192.168.56.1,dhcpstart=192.168.56.100"
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", *engine),
        *(("-bios", str(find_ovmf())) if uefi else ()),
        *("-m", "4G", "-smp", "1", "-serial", f"file:{console}"),
        *("-drive", f"if=none,id=disk,file={site}/disk.qcow2,format=qcow2,cache=writeback"),
        *("-device", f"virtio-blk-pci,drive=disk,bootindex={order[0]}"),
        *("-drive", f"if=none,id=seed,file={site}/out/seeds/{node}.iso,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=seed", "-device", "virtio-rng-pci"),
        *("-netdev", f"{network},bootfile={base}/boot.ipxe"),
        *("-device", f"virtio-net-pci,netdev=lan,mac={MACS[node]},bootindex={order[1]}"),
    ]
    process = subprocess.Popen(argv)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(console: Path, process: subprocess.Popen[bytes], text: str) -> str:
    """What the console shows once it shows that text."""
    deadline = time.monotonic() + SECONDS
    while True:
        said = console.read_text(errors="replace") if console.exists() else ""
        if text in said:
            return said
        assert process.poll() is None, f"QEMU ended with {process.returncode}"
        assert time.monotonic() < deadline, f"the console does not show {text!r}:\n{said[-2000:]}"
        time.sleep(POLL)


def test_power_is_cut_while_the_image_is_written(site: Path) -> None:
    """The disk has our mark and nothing that boots."""
    console = site / "1.log"
    with machine(site, console) as process:
        said = wait_for(console, process, " MiB (")
    assert "/dev/vda (10.0 GiB): blank" in said
    run(["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1", f"if={site}/disk.qcow2", f"of={site}/head"])
    head = (site / "head").read_bytes()
    assert not any(head[: 64 << 10]) and b"imagegen deployment, not finished" in head


def test_the_next_boot_starts_over_and_goes_on_to_first_boot(site: Path) -> None:
    """Without another POST: the same kernel goes on with the disk, cloud-init reads the seed, the agent waits."""
    console = site / "2.log"
    image = (IMAGES / "compute/current").read_text().strip()
    with machine(site, console) as process:
        said = wait_for(console, process, "waiting wait-messaging")
    assert "an unfinished deployment of" in said
    assert f"table: /dev/vda holds {image}" in said
    assert said.count("Linux version") == 1
    assert "3 files as the seed promised" in said


@pytest.mark.parametrize("network_first", [True, False])
def test_a_disk_that_bears_the_image_is_booted_as_it_is(site: Path, network_first: bool) -> None:
    """Over the network nothing is written again; by its own GRUB it finds its root by the new UUID."""
    console = site / f"3-{network_first}.log"
    with machine(site, console, network_first=network_first) as process:
        said = wait_for(console, process, "waiting wait-messaging")
    assert ("working disk: /dev/vda (10.0 GiB): deployed" in said) == network_first
    assert "working image" not in said


def test_a_live_node_leaves_disks_alone(site: Path) -> None:
    """Under UEFI. Its root is in memory, checked before it is used; the disk beside it has not a byte changed."""
    console, before = site / "4.log", (site / "disk.qcow2").read_bytes()
    with machine(site, console, node="linux-node3", uefi=True) as process:
        said = wait_for(console, process, "waiting wait-messaging")
    assert "efi: EFI v2" in said
    assert "working root: in memory" in said
    assert "3 files as the seed promised" in said
    assert (site / "disk.qcow2").read_bytes() == before
