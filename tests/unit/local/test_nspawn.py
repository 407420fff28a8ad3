"""nspawn.py: what is decided without starting anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imagegen.base.errors import CommandFailed, MachineLacks
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local import nspawn

HYBRID = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 master:3 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
"""
UNIFIED = "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


@pytest.fixture
def make_process(tmp_path: Path):
    """Writes a process into the test's own /proc: its pids, from the outermost namespace inwards, and its children."""

    def make(pids: str, children: str) -> Path:
        pid = pids.split()[0]
        task = tmp_path / pid / "task" / pid
        task.mkdir(parents=True)
        (tmp_path / pid / "status").write_text("Name:\tx\nNSpid:\t" + pids.replace(" ", "\t") + "\nSeccomp:\t0\n")
        (task / "children").write_text(children)
        return tmp_path

    return make


def test_the_init_is_found_below_loop_and_supervisor(make_process) -> None:
    """The container's init is the descendant with pid 1 of its own namespace, not a process beside it."""
    make_process("100", "110 ")
    make_process("110", "111 120 ")
    make_process("111", "")
    make_process("120 1", "121 ")
    proc = make_process("121 1 1", "")
    assert nspawn.find_init(100, proc) == 120


def test_no_init_is_found_before_it_runs_or_after_it_ended(make_process) -> None:
    """A child that ended between two looks is no error."""
    make_process("100", "110 111 ")
    proc = make_process("110 11", "")
    assert nspawn.find_init(100, proc) is None
    assert nspawn.find_init(999, proc) is None


def test_systemds_control_groups_are_found_on_hybrid_and_unified_hosts() -> None:
    """v1's controllers are none of ours; systemd's own v1 tree is, because nspawn reads its place from there."""
    assert nspawn.control_group_mounts(HYBRID) == [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")]
    assert nspawn.control_group_mounts(UNIFIED) == [Path("/sys/fs/cgroup")]


def test_a_directory_that_nothing_ran_in_has_no_leftovers(tmp_path: Path) -> None:
    """The first run removes nothing, other people's files least of all."""
    (tmp_path / "keep").mkdir()
    nspawn.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


@pytest.mark.parametrize("run", ["imagegen-0a1b2c", "", "*", "../x", "imagegen-0a1b2c\n", 7, None])
def test_leftovers_are_ended_by_a_runs_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """A state file that something else wrote names nothing to kill; trees and the file go in every case."""
    ended: list[str] = []
    monkeypatch.setattr(nspawn, "end_run", ended.append)
    (tmp_path / nspawn.STATE).write_text(json.dumps({"version": 1, "run": run}))
    (tmp_path / "n1" / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "n1" / "console.log").write_text("x")
    nspawn.remove_leftovers(tmp_path)
    assert ended == (["imagegen-0a1b2c"] if run == "imagegen-0a1b2c" else [])
    assert sorted(os.fspath(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["n1", "n1/console.log"]


def test_a_broken_state_file_is_no_obstacle(tmp_path: Path) -> None:
    """A file cut short by a full disk is removed like a whole one."""
    (tmp_path / nspawn.STATE).write_text('{"run"')
    nspawn.remove_leftovers(tmp_path)
    assert not (tmp_path / nspawn.STATE).exists()


def make_group(root: Path, name: str, populated: int) -> Path:
    """A directory that looks like a group of cgroup v2."""
    group = root / name
    group.mkdir()
    (group / "cgroup.kill").write_text("")
    (group / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    return group


def test_groups_are_killed_whole(tmp_path: Path) -> None:
    """Every group gets its kill; a group that does not exist (any more) is passed over."""
    groups = [make_group(tmp_path, "a", 0), make_group(tmp_path, "b", 0), tmp_path / "gone"]
    nspawn.kill_groups(groups, 0)
    assert [(group / "cgroup.kill").read_text() for group in groups[:2]] == ["1", "1"]


def test_a_group_that_survives_is_an_error(tmp_path: Path) -> None:
    """Nobody is told that all is gone while a process is left."""
    with pytest.raises(CommandFailed, match="stubborn were killed, but do not end"):
        nspawn.kill_groups([make_group(tmp_path, "stubborn", 1)], 0)


def test_only_root_gets_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root nothing is started, and the message says what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineLacks, match="sudo"):
        nspawn.Nspawn(load_cluster(None), tmp_path / "boot")
    assert not (tmp_path / "boot").exists()


def test_the_container_is_alone_in_its_network_but_not_in_a_private_one() -> None:
    """The namespace comes by nsenter: each --network option of systemd-nspawn breaks cloud-init or the MAC."""
    words = nspawn.nspawn_command("imagegen-0a1b2c-n0", Path("out/boot/n1/tree"))
    assert words[:3] == ["nsenter", "--net=/run/netns/imagegen-0a1b2c-n0", "systemd-nspawn"]
    assert not [word for word in words if word.startswith(("--network", "--private"))]
    assert {"--register=no", "--keep-unit", "--boot"} <= set(words)
