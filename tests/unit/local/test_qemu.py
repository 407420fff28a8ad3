"""qemu.py: what is decided without starting anything."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import yaml
from fakes.booted import option_values as values
from hypothesis import given
from hypothesis import strategies as st

from imagegen.local import qemu
from imagegen.model.roles import find_role

KEY = "ssh-ed25519 AAAAC3 imagegen-0011"


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
