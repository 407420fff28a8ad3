"""A live node's disk, its image in memory, and its one seed."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from imagegen_deploy import disks, gpt, live, stream
from imagegen_deploy.disks import Disk
from imagegen_deploy.live import LiveBoot
from imagegen_deploy.mark import render_mark
from imagegen_deploy.plan import parse_plan
from imagegen_node.engine.errors import Refused

MIB = 1 << 20
DATA = bytes(2 * MIB)
WORDS = (
    "imagegen.mode=live imagegen.node=c-1 imagegen.role=compute imagegen.mac=52:54:00:00:00:01"
    " imagegen.address=10.0.0.2/24 imagegen.url=http://10.0.0.1 imagegen.image=http://10.0.0.1/i.squashfs"
    " imagegen.size=1000 imagegen.id=0123456789ab imagegen.root_device.serial=S1"
    f" imagegen.sha256={hashlib.sha256(DATA).hexdigest()}"
)


class Machine:
    """One that boots live, with a disk of 4 MiB on which blkid sees what the test says."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.disk = Disk(place / "vda", 4 * MIB, 512, {"serial": ("s1",)})
        self.disk.path.write_bytes(bytes(4 * MIB))
        self.seen: dict[str, str] = {}
        self.commands: list[str] = []
        self.said: list[str] = []
        patch.setattr(disks, "probe", lambda path: self.seen)
        patch.setattr(live, "list_disks", lambda: [self.disk])
        patch.setattr(live, "run", lambda argv: self.commands.append(argv[0]))
        patch.setattr(live, "PLACE", place / "live")
        patch.setattr(live, "MEMORY", place / "meminfo")

    def boot(self, words: str = "") -> LiveBoot:
        status: Any = SimpleNamespace(wait=self.said.append, tell=self.said.append)
        return LiveBoot(parse_plan(f"{WORDS} {words}"), status, lambda seconds: None)

    def write(self, place: int, data: bytes) -> None:
        with self.disk.path.open("r+b") as file:
            file.seek(place)
            file.write(data)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


# the disk


def test_a_disk_that_a_live_node_had_is_kept(machine: Machine) -> None:
    """By its label, also with `wipe`: that is for what others left."""
    machine.seen = {"TYPE": "ext4", "LABEL": "imagegen-data"}
    machine.write(0, b"x" * 4 * MIB)
    boot = machine.boot("imagegen.wipe=1")
    assert boot.find_disk() == f"{machine.disk}: kept"
    assert (boot.disk, machine.commands) == (machine.disk, [])
    assert machine.disk.path.read_bytes() == b"x" * 4 * MIB


def test_a_blank_disk_gets_a_file_system(machine: Machine) -> None:
    boot = machine.boot()
    assert boot.find_disk() == f"{machine.disk}: new"
    assert (boot.disk, machine.commands) == (machine.disk, ["blockdev", "mke2fs"])


MARK = render_mark("c-9", "ba9876543210", b"seed")
CONTENTS = {
    "file system": ({"TYPE": "xfs"}, b"", "something that blkid calls xfs"),
    "deployment that was cut off": ({}, MARK, "an unfinished deployment of ba9876543210 to c-9"),
    # It begins over the file system of a live node, whose superblock it has not reached yet.
    "both": ({"TYPE": "ext4", "LABEL": "imagegen-data"}, MARK, "an unfinished deployment"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_others_left_is_let_be_unless_it_may_be_wiped(kind: str, machine: Machine) -> None:
    """Wiped, neither the mark nor what lies at the disk's end is found again at the next boot."""
    machine.seen, mark, words = CONTENTS[kind]
    machine.write(64 << 10, mark)
    machine.write(4 * MIB - 512, b"x" * 512)
    before = machine.disk.path.read_bytes()
    with pytest.raises(Refused) as refused:
        machine.boot().find_disk()
    assert words in str(refused.value) and "`deploy: {wipe: true}` for c-1" in str(refused.value)
    assert machine.disk.path.read_bytes() == before and machine.commands == []
    assert machine.boot("imagegen.wipe=1").find_disk() == f"{machine.disk}: new"
    assert machine.disk.path.read_bytes() == bytes(4 * MIB) and machine.commands == ["blockdev", "mke2fs"]


@pytest.mark.parametrize(
    ("image", "words"),
    [("0123456789ab", "this image"), ("ba9876543210", "a partition table with imagegen-ba9876543210")],
)
def test_a_deployed_disk_is_let_be(image: str, words: str, machine: Machine) -> None:
    """Whichever image it bears: the node that lives there would be lost."""
    part = gpt.Partition(UUID(int=1), UUID(int=2), 2048, 4096, 0, f"imagegen-{image}")
    machine.write(0, gpt.render_table(gpt.Table(UUID(int=3), (part,)), machine.disk.sectors)[0])
    with pytest.raises(Refused, match=f"holds {words}, so it is left alone"):
        machine.boot().find_disk()


# the image


def fetch(machine: Machine, monkeypatch: pytest.MonkeyPatch, memory: int) -> tuple[str, int]:
    """The step's last word with so many MiB of memory, and the last look at a clock that goes on a minute a look."""
    (machine.disk.path.parent / "meminfo").write_text(f"MemTotal: {memory << 10} kB\nMemFree: 1 kB\n")
    answer: Any = io.BytesIO(DATA)
    answer.status, answer.headers = 200, {"Content-Length": str(len(DATA))}
    clock, shown = itertools.count(0, 60), [0]

    def look() -> int:
        shown.append(next(clock))
        return shown[-1]

    monkeypatch.setattr(stream, "OPENER", SimpleNamespace(open=lambda request, timeout: answer))
    with monkeypatch.context() as patch:
        patch.setattr(live.time, "monotonic", look)
        return machine.boot().fetch_image(), shown[-1]


def test_the_image_is_in_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """How long it took is told at its end, after how far it was; how much memory there is is asked once."""
    asked: list[int] = []
    real = live.read_memory
    monkeypatch.setattr(live, "read_memory", lambda: asked.append(1) or real())
    said, now = fetch(machine, monkeypatch, 1024)
    assert machine.said == ["1 of 2 MiB (50 %)", "2 of 2 MiB (100 %)"]
    assert (said, len(asked)) == (f"2 MiB in {now} s", 1)
    assert (tmp_path / "live/image").read_bytes() == DATA


def test_an_image_that_does_not_fit_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="takes 2 MiB of memory, and a live node needs 512 MiB more, but this machine"):
        fetch(machine, monkeypatch, 513)


# the seed


def test_a_medium_with_a_seed_is_the_nodes_only_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for another; without one the server is, once."""
    boot = machine.boot()
    boot.claim = SimpleNamespace(take=lambda: b"iso")  # type: ignore[assignment]
    monkeypatch.setattr(live, "find_seed_label", lambda disk: "config-2")
    assert boot.fetch_seed() == "a medium labelled config-2 is attached: no seed is requested"
    assert boot.seed == b""
    monkeypatch.setattr(live, "find_seed_label", lambda disk: "")
    assert boot.fetch_seed() == "3 bytes"
    assert boot.seed == b"iso"


@pytest.fixture
def root(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A root file system in the place of the node's; what is copied is copied, nothing is mounted."""
    place = tmp_path / "root"
    (place / "etc/ssh").mkdir(parents=True)
    (place / "etc/ssh/sshd_config").write_text("Port 22\n")
    (place / "var/lib/dbus").mkdir(parents=True)
    (place / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    monkeypatch.setattr(live, "ROOT", place)

    def run(argv: list[str]) -> str:
        machine.commands.append(" ".join(argv))
        if argv[:2] == ["cp", "-a"]:
            shutil.copytree(argv[2], argv[3])
        return ""

    monkeypatch.setattr(live, "run", run)
    return place


def test_what_is_kept_is_there_before_the_first_boot(machine: Machine, root: Path, tmp_path: Path) -> None:
    """Directories that the image lacks as well: the agent's stamp of the machine is made by the first boot."""
    data = tmp_path / "data"
    live.keep(machine.disk, data, live.KEPT)
    assert (data / "etc/ssh/sshd_config").read_text() == "Port 22\n"
    for path in live.KEPT:
        assert (data / path).is_dir() and (root / path).is_dir()
        assert f"mount -o bind {data / path} {root / path}" in machine.commands


def test_a_live_node_has_one_machine_id(machine: Machine, root: Path, tmp_path: Path) -> None:
    """Made for a new disk and kept there; systemd takes it from D-Bus' place, which is no link to its own any more."""
    ids = []
    for _ in range(2):
        given = root / "var/lib/dbus/machine-id"
        given.unlink()
        given.symlink_to("/etc/machine-id")
        live.keep(machine.disk, tmp_path / "data", live.KEPT)
        assert not given.is_symlink() and not (root / "etc/machine-id").exists()
        ids.append(given.read_text())
    assert ids[0] == ids[1] == (tmp_path / "data/etc/machine-id").read_text()
    assert re.fullmatch(r"[0-9a-f]{32}\n", ids[0])
