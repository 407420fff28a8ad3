"""Deployments under faults: real bytes over real HTTP onto files in the place of disks, with a small image.

What must hold of each: a clear word in the status, no disk touched that should not be, and what is bootable is right.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from repository import AGENT, NETWORK_BOOT

from imagegen.base.commands import run
from imagegen.images.disk import MIB, Layout, fstab, grub_config, partition_script, plan_layout
from imagegen.images.network_formats import compress_raw
from imagegen.inputs.ca import generate_authority
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import generate_secrets, load_secrets
from imagegen.local.qemu import free_port
from imagegen.model.cluster import Cluster
from imagegen.seeds.seed import seed_tree
from imagegen.server.provisioning import Provisioning, Serve, provision

IMAGE = "0123456789ab"
KERNEL = "6.12.1-amd64"
SECONDS = 120.0
DISK_BYTES = 300 * MIB


@dataclass
class Payload:
    """A disk image that is made as a real one is, with hardly anything in it."""

    layout: Layout
    raw: Path
    compressed: Path

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.compressed.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Payload:
    place = tmp_path_factory.mktemp("payload")
    layout = plan_layout(32 * MIB, IMAGE)
    tree = place / "tree"
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "boot/grub/grub.cfg").write_text(grub_config(layout.root.uuid))
    (tree / "etc/fstab").write_text(fstab(layout.root.uuid))
    (tree / "usr/lib/modules" / KERNEL).mkdir(parents=True)
    (tree / "usr/lib/modules" / KERNEL / "modules.dep").touch()
    (tree / "noise").write_bytes(random.Random(7).randbytes(12 * MIB))  # so that there is something to interrupt
    raw = place / "payload.raw"
    with raw.open("wb") as stream:
        stream.truncate(layout.size)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", raw], input=partition_script(layout).encode())
    blocks = f"{layout.root.size // 1024}k"
    run(["mke2fs", "-q", "-t", "ext4", "-d", tree, "-E", f"offset={layout.root.start}", raw, blocks])
    with raw.open("r+b") as stream:
        stream.write(b"boot code".ljust(440, b"."))
    compress_raw(raw, place / "payload.raw.zst")
    return Payload(layout, raw, place / "payload.raw.zst")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Gives one file, by ranges; breaks connections and goes away as the test says."""

    def __init__(self, server: WebServer, *rest: Any) -> None:
        self.web = server
        super().__init__(*rest)

    def do_GET(self) -> None:
        data = self.web.data
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.web.asked.append(begin)
        if self.web.away_until > time.monotonic():
            self.close_connection = True
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = next((place for place in self.web.breaks if begin < place), len(data))
        at = begin
        while at < end:
            self.wfile.write(data[at : min(end, at + 65536)])
            at += 65536
            self.web.sent = min(at, end)
            time.sleep(self.web.pause)
        if end < len(data):
            self.web.away_until = time.monotonic() + self.web.away
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class WebServer:
    """On 127.0.0.1. `breaks`: at which bytes connections end, after each it is away for so many seconds."""

    data: bytes
    breaks: list[int] = field(default_factory=list)
    away: float = 1.0
    pause: float = 0.0  # seconds between two blocks
    sent: int = 0
    away_until: float = 0.0
    asked: list[int] = field(default_factory=list)

    def __enter__(self) -> WebServer:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/payload.raw.zst"


@dataclass
class Machine:
    """One machine that boots over the network, and its disks."""

    place: Path
    payload: Payload
    disks: list[dict[str, Any]] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)
    wipe: bool = False
    kernel: str = KERNEL  # that the network brings
    told: dict[str, str] = field(default_factory=dict)  # by a server: imagegen.seed, imagegen.ca, ...

    def add_disk(self, serial: str, size: int = DISK_BYTES) -> Path:
        path = self.place / serial
        with path.open("wb") as stream:
            stream.truncate(size)
        self.disks.append({"path": str(path), "size": size, "serial": serial})
        return path

    def start(self, web: WebServer) -> subprocess.Popen[bytes]:
        plan = {
            "mode": "deploy", "node": "c-1", "role": "compute", "mac": "", "address": "", "gateway": "", "url": "",
            "image": web.url, "sha256": self.payload.sha256, "size": self.payload.layout.size, "id": IMAGE,
            "root_device": self.hints, "wipe": self.wipe, "seed": "", "ca": "", "status": "",
            **self.told,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("deploying.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{NETWORK_BOOT}:{AGENT}"},
        )
        assert process.stdin
        given = {"place": str(self.place), "disks": self.disks, "kernel": self.kernel, "plan": plan}
        process.stdin.write(json.dumps(given).encode())
        process.stdin.close()
        return process

    def boot(self, web: WebServer) -> str:
        """Runs the deployment to its end; its last word, empty when it went well."""
        ended = self.start(web).wait(timeout=SECONDS)
        status = json.loads((self.place / "status.json").read_text())
        assert (ended, status["state"]) in ((0, "working"), (1, "failed"))
        return str(status["detail"]) if ended else ""


@pytest.fixture
def machine(tmp_path: Path, payload: Payload) -> Machine:
    return Machine(tmp_path, payload)


@pytest.fixture
def web(payload: Payload) -> Iterator[WebServer]:
    with WebServer(payload.compressed.read_bytes()) as server:
        yield server


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_table(path: Path) -> dict[str, Any]:
    return json.loads(run(["sfdisk", "--json", path]).stdout)["partitiontable"]


def is_bootable(path: Path) -> bool:
    """Whether firmware finds anything on the disk: boot code, or a table."""
    with path.open("rb") as stream:
        head = stream.read(64 << 10)
    return any(head)


def check_deployed(path: Path, payload: Payload, *, seeded: bool = False) -> None:
    """Every byte of the image at its place, but for a table with UUIDs that this disk alone has, its own names, and
    its seed.
    """
    table = read_table(path)
    names = [part["name"] for part in table["partitions"]]
    assert names == ["bios", "esp", "seed", f"imagegen-{IMAGE}"]
    theirs = {str(part.uuid).upper() for part in payload.layout.partitions} | {str(payload.layout.uuid).upper()}
    assert not theirs & {table["id"], *(part["uuid"] for part in table["partitions"])}
    assert table["lastlba"] == DISK_BYTES // 512 - 34
    root = payload.layout.root
    with path.open("rb") as disk, payload.raw.open("rb") as raw:
        assert disk.read(440) == raw.read(440)
        for stream in (disk, raw):
            stream.seek(1 * MIB)
        size = (payload.layout.partitions[2].start if seeded else root.start) - MIB
        assert disk.read(size) == raw.read(size)
        disk.seek(64 << 10)
        assert not any(disk.read(MIB - (64 << 10)))
    new = table["partitions"][3]["uuid"].lower()
    for name in ("boot/grub/grub.cfg", "etc/fstab"):
        text = run(["debugfs", "-R", f"cat /{name}", f"{path}?offset={root.start}"]).stdout.decode()
        assert new in text and str(root.uuid) not in text
    noise = run(["debugfs", "-R", "cat /noise", f"{path}?offset={root.start}"]).stdout
    assert noise == random.Random(7).randbytes(12 * MIB)
    run(["e2fsck", "-fn", f"{path}?offset={root.start}"])


def test_a_blank_disk_gets_the_image(machine: Machine, web: WebServer) -> None:
    """And is not written again at the next boot."""
    disk = machine.add_disk("S1")
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)
    before, asked = digest(disk), len(web.asked)
    assert machine.boot(web) == ""
    assert (digest(disk), len(web.asked)) == (before, asked)


def test_another_kernel_than_the_disks_is_no_boot(machine: Machine, web: WebServer) -> None:
    """Its modules are not there. The disk is let be, and boots again when the network brings its kernel."""
    disk = machine.add_disk("S1")
    assert machine.boot(web) == ""
    before = digest(disk)
    machine.kernel = "6.12.9-amd64"
    said = machine.boot(web)
    assert f"has modules for {KERNEL}, but the kernel from the network is 6.12.9-amd64" in said
    machine.kernel = KERNEL
    assert machine.boot(web) == ""
    assert digest(disk) == before and not os.path.ismount(machine.place / "root")


@pytest.mark.parametrize("percent", [10, 50, 99])
def test_a_server_that_goes_away_is_waited_for(machine: Machine, web: WebServer, percent: int) -> None:
    """And the stream goes on where it broke off: no byte is fetched twice."""
    disk = machine.add_disk("S1")
    web.breaks = [len(web.data) * percent // 100]
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)
    assert web.asked[0] == 0 and web.breaks[0] in web.asked


def spoil(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("place", ["byte", "end"])
def test_a_damaged_image_is_never_bootable(machine: Machine, web: WebServer, place: str) -> None:
    """One byte, or the last ones missing: the disk stays without a table, the reason is told, the next boot works."""
    disk = machine.add_disk("S1")
    good = web.data
    web.data = spoil(good, len(good) // 2) if place == "byte" else good[:-100]
    said = machine.boot(web)
    assert "has the sha256" in said or "zstd" in said, said
    assert not is_bootable(disk)
    web.data = good
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)


@pytest.mark.parametrize("percent", [1, 30, 70, 100])
def test_a_power_cut_starts_over(machine: Machine, web: WebServer, percent: int) -> None:
    """Killed while it writes: what is there does not boot, and the next boot begins anew and succeeds."""
    disk = machine.add_disk("S1")
    web.pause = 0.01
    process = machine.start(web)
    deadline = time.monotonic() + SECONDS
    while web.sent < len(web.data) * percent // 100:
        assert time.monotonic() < deadline, "the image's bytes are not fetched"
        time.sleep(0.002)
    process.kill()
    process.wait()
    web.pause = 0.0
    if percent < 100:
        assert not is_bootable(disk)
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)


def make_foreign(disk: Path) -> None:
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "data", disk])


def make_partitioned(disk: Path) -> None:
    run(["sfdisk", "--quiet", disk], input=b'label: gpt\nname="precious", size=8MiB\n')


def make_other_image(disk: Path) -> None:
    run(["sfdisk", "--quiet", disk], input=b'label: gpt\nname="imagegen-ba9876543210", size=8MiB\n')


FOREIGN = {
    "file system": (make_foreign, "blkid calls ext4"),
    "partitions": (make_partitioned, "a partition table with precious"),
    "another image": (make_other_image, "a partition table with imagegen-ba9876543210"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_disk_is_let_be_unless_it_may_be_wiped(machine: Machine, web: WebServer, kind: str) -> None:
    """Not a byte changes; with `wipe` it is overwritten."""
    make, words = FOREIGN[kind]
    disk = machine.add_disk("S1")
    make(disk)
    before = digest(disk)
    said = machine.boot(web)
    assert words in said and "wipe: true" in said
    assert digest(disk) == before and web.asked == []
    machine.wipe = True
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)


def test_an_empty_partition_table_is_no_foreign_disk(machine: Machine, web: WebServer) -> None:
    disk = machine.add_disk("S1")
    run(["sfdisk", "--quiet", disk], input=b"label: gpt\n")
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)


@pytest.mark.parametrize(
    ("serials", "hints", "words"),
    [
        (["S1", "S2"], {}, "there are 2 disks"),
        (["S1", "S2"], {"serial": "<in> S"}, "matches 2 disks"),
        (["S1"], {"serial": "S9"}, "no disk matches root_device serial=S9"),
        ([], {}, "there is no disk"),
    ],
)
def test_no_disk_or_several_stop_the_boot(
    machine: Machine, web: WebServer, serials: list[str], hints: dict[str, str], words: str
) -> None:
    """Every disk is named, none is touched, nothing is fetched."""
    disks = [machine.add_disk(serial) for serial in serials]
    machine.hints = hints
    before = [digest(disk) for disk in disks]
    said = machine.boot(web)
    assert words in said and all(serial in said for serial in serials)
    assert [digest(disk) for disk in disks] == before and web.asked == []


def test_only_the_named_disk_is_written(machine: Machine, web: WebServer) -> None:
    other, disk = machine.add_disk("S1"), machine.add_disk("S2")
    make_foreign(other)
    before = digest(other)
    machine.hints = {"serial": "S2"}
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload)
    assert digest(other) == before


def test_a_disk_that_is_too_small_is_let_be(machine: Machine, web: WebServer) -> None:
    disk = machine.add_disk("S1", machine.payload.layout.size)
    before = digest(disk)
    assert "is too small" in machine.boot(web)
    assert digest(disk) == before


# With `imagegen serve`, which has the seed.


@dataclass
class Server:
    """The server at work, for the one compute c-1; `mac` is what the kernel knows of whoever asks."""

    at_work: Provisioning
    cluster: Cluster
    mac: str | None = None

    def tell(self, machine: Machine) -> None:
        """The machine fetches its script: what it is told beside what `imagegen pxe` wrote."""
        with urllib.request.urlopen(f"{self.at_work.url}/nodes/c-1.ipxe", timeout=SECONDS) as answer:
            words = answer.read().decode().splitlines()[1].split()
        assert words[:2] == ["set", "seed-arguments"]
        machine.told = {key.removeprefix("imagegen."): value for key, value in (w.split("=", 1) for w in words[2:])}
        machine.told["url"] = self.at_work.url

    @property
    def node(self) -> dict[str, Any]:
        """What the page shows of it."""
        with urllib.request.urlopen(f"{self.at_work.url}/nodes.json", timeout=SECONDS) as answer:
            return next(node for node in json.load(answer)["nodes"] if node["name"] == "c-1")

    @property
    def refused(self) -> list[str]:
        return [report["text"] for report in self.at_work.ledger.read()["reports"]]


CLUSTER = """\
name: demo
network: {{cidr: 10.0.0.0/24}}
pxe: {{url: "http://127.0.0.1:{port}"}}
nodes:
  - {{name: ctl, role: controller, mac: "52:54:00:00:00:01", address: 10.0.0.1}}
  - {{name: c-1, role: compute, mac: "52:54:00:00:00:02", address: 10.0.0.2}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    place = tmp_path / "site"
    (place / "pxe/nodes").mkdir(parents=True)
    (place / "serve").mkdir()
    port = free_port()
    (place / "cluster.yaml").write_text(CLUSTER.format(port=port))
    (place / "secrets.yaml").write_text(generate_secrets())
    authority = generate_authority()
    (place / "ca.pem").write_bytes(authority.certificate)
    (place / "ca.key").write_bytes(authority.key)
    for name in ("ctl", "c-1"):
        (place / f"pxe/nodes/{name}.ipxe").write_text("#!ipxe\n")
    cluster, secrets = load_cluster(place / "cluster.yaml"), load_secrets(place / "secrets.yaml")
    made: list[Server] = []
    asked = Serve(
        cluster,
        place / "pxe",
        place / "serve",
        lambda cluster, node: seed_tree(cluster, node, secrets),
        tls_port=0,
        any_address=True,  # the loopback is none of the cluster's
        find_mac=lambda address: made[0].mac if made else None,
    )
    with provision(asked, lambda line: None) as at_work:
        made.append(Server(at_work, cluster))
        yield made[0]


def read_seed(path: Path, payload: Payload) -> bytes:
    place = payload.layout.partitions[2]
    with path.open("rb") as disk:
        disk.seek(place.start)
        return disk.read(place.size).rstrip(b"\0")


def test_the_seed_of_the_server_lands_in_its_partition(machine: Machine, web: WebServer, server: Server) -> None:
    """Claimed once, byte for byte the ISO; the next boots ask for none; the page shows each step."""
    server.mac = "52:54:00:00:00:02"  # by which it is the node, whatever its address
    disk = machine.add_disk("S1")
    server.tell(machine)
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload, seeded=True)
    seed = read_seed(disk, machine.payload)
    assert b"CD001" in seed and f"{server.at_work.url}/status".encode() in seed
    server.tell(machine)
    assert machine.boot(web) == ""
    node = server.node
    assert node["seed"]["used"] == 1 and server.refused == []
    assert (node["state"], node["timeline"][0]["step"]) == ("working", "script")


def test_a_power_cut_after_the_claim_needs_no_second_one(machine: Machine, web: WebServer, server: Server) -> None:
    """The seed is kept on the disk until the deployment is whole."""
    disk = machine.add_disk("S1")
    server.tell(machine)
    web.pause = 0.01
    process = machine.start(web)
    deadline = time.monotonic() + SECONDS
    while web.sent < len(web.data) // 2:
        assert time.monotonic() < deadline, "the image's bytes are not fetched"
        time.sleep(0.002)
    process.kill()
    process.wait()
    web.pause = 0.0
    server.tell(machine)
    assert machine.boot(web) == ""
    check_deployed(disk, machine.payload, seeded=True)
    assert b"CD001" in read_seed(disk, machine.payload)
    assert server.node["seed"]["used"] == 1 and server.refused == []


def spend_token(machine: Machine, server: Server) -> None:
    """Somebody was there before: he heard the token, or is faster."""
    path = machine.told["seed"]
    context = ssl.create_default_context(cafile=server.cluster.secrets_path.parent / "ca.pem")
    with urllib.request.urlopen(path, timeout=SECONDS, context=context) as answer:
        assert b"CD001" in answer.read()


def close_window(machine: Machine, server: Server) -> None:
    server.at_work.ledger.open_windows(["c-1"], 0.001, 1)


def forge_authority(machine: Machine, server: Server) -> None:
    machine.told["ca"] = "0" * 64


def forge_mac(machine: Machine, server: Server) -> None:
    server.mac = "02:00:00:00:00:66"


SEED_FAULTS = {
    "token used twice": (spend_token, "(403): the seed of c-1 was already given out for this token"),
    "after the window": (close_window, "(403): the window of c-1 closed"),
    "another CA": (forge_authority, "the seed is not requested"),
    "wrong MAC": (forge_mac, "(403): 02:00:00:00:00:66 asked for the seed of c-1, whose MAC address is 52:54"),
}


@pytest.mark.parametrize("fault", SEED_FAULTS)
def test_without_its_seed_no_disk_is_touched(machine: Machine, web: WebServer, server: Server, fault: str) -> None:
    """The reason stands on the console and on the page, what was refused is reported, and the image is not fetched."""
    make, words = SEED_FAULTS[fault]
    disk = machine.add_disk("S1")
    before = digest(disk)
    server.tell(machine)
    make(machine, server)
    said = machine.boot(web)
    assert words in said, said
    assert digest(disk) == before and web.asked == []
    node = server.node
    assert (node["state"], node["step"], node["detail"]) == ("failed", "seed", said)
    assert len(server.refused) == (0 if fault == "another CA" else 1)
    assert machine.told["seed"].rpartition("/")[2] not in said


def test_a_wrong_mac_gets_no_script(machine: Machine, server: Server) -> None:
    """A stranger that asks for a node's script is refused before there is a token, and reported."""
    server.mac = "02:00:00:00:00:66"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        server.tell(machine)
    assert server.node["state"] == "" and len(server.refused) == 1
