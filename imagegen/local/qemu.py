"""The QEMU backend: nodes as virtual machines with the NIC in their seed, booted from the disk image and seed ISO.

Every NIC is connected to one switch. A further QEMU, without a machine, is the cluster's gateway: its user network
forwards a port of 127.0.0.1 to each node's ssh.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, create_connection, socket
from typing import Any, Self

from imagegen.base.commands import Completed, Process, follow, require_tools, run, start
from imagegen.base.console import newest_document, plain_lines, read_tail
from imagegen.base.errors import BadUsage, CommandFailed
from imagegen.base.handles import create_file, make_fresh, open_directory, read_file, remove_place
from imagegen.base.resources import PACKAGE
from imagegen.base.tree import Tree, text, write_file
from imagegen.local.bridge import remove_namespaces
from imagegen.local.hardware import (
    Hardware,
    can_accelerate,
    gateway_command,
    lan_socket,
    node_command,
    plan_outside,
)
from imagegen.model.cluster import Cluster, Node
from imagegen.seeds.iso import write_seed_iso

STATE = "qemu.json"
KEY = "ssh_key"
SERVED = ".serve"  # the data of `imagegen serve` in a network boot; no node can have this name
NODE_FILES = ("disk.qcow2", "seed.iso", "qmp", "ssh")  # of a machine, besides its logs
GROWTH = "16G"  # how much larger a node's disk is than its image; sparse
ANY = range(-64, 256)  # all return codes
NETWORK_SECONDS = 20.0  # for switch and gateway to answer
LOGIN_SECONDS = 120.0  # for ssh to connect; under TCG that takes several seconds

# A separate process, because kept machines outlive the command. Isolated, with this same package on its path.
SWITCH = (
    "import sys; sys.path.append(sys.argv[1]); from imagegen.local.switch import run_switch; run_switch(sys.argv[2])"
)


class Qemu:
    """One run's network and machines. Every process has the run's name, so that a later run can find and end it."""

    way_in = ""
    tools: tuple[str, ...] = ("qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen")

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        """`directory` (out/boot) gets one directory per node. Raises MachineLacks, and BadUsage for a tiny network."""
        require_tools(*self.tools)
        self.cluster = cluster
        self.directory = directory.absolute()
        self.name = f"imagegen-{secrets.token_hex(4)}"
        self.accelerated = can_accelerate(Path("/proc/cpuinfo").read_text(), os.access("/dev/kvm", os.R_OK | os.W_OK))
        self.timeout = (20 if self.accelerated else 60) * 60.0  # seconds until ready
        self.outside = plan_outside(cluster)
        self.machines: list[QemuMachine] = []
        self._public_key = ""
        self._processes: list[Process] = []
        self._kept = False

    @property
    def prefix(self) -> list[str]:
        """The prefix of the command of each machine and each ssh."""
        return []

    def __enter__(self) -> Self:
        """Ends what an earlier run left, and makes this run's ssh key. Raises CommandFailed."""
        with open_directory(self.directory, make=True):
            remove_leftovers(self.directory)
        write_file(self.directory / STATE, text(json.dumps({"version": 1, "run": self.name}) + "\n", 0o600))
        key = self.directory / KEY
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", key])
        self._public_key = read_file(key.with_suffix(".pub")).decode().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def needs(self, node: Node, image: Path) -> tuple[int, int]:
        """(memory, disk) in bytes that a machine needs: the disk holds only what the node writes."""
        return node.role.machine_memory, 4 << 30

    def add(self, node: Node, image: Path, seed: Tree) -> QemuMachine:
        """A machine for that node, not started yet: an overlay on `image` (qcow2 or raw) and a copy of the seed.

        Add all machines before you start the first. Raises BadUsage, CommandFailed.
        """
        if self._processes:
            raise BadUsage(
                f"{node.name} cannot join a network that is already running", "add every node before starting one"
            )
        machine = QemuMachine(self, node, image)
        self.machines.append(machine)
        machine.prepare(image, self.complete_seed(seed))
        return machine

    def complete_seed(self, seed: Tree) -> Tree:
        """The seed with vendor-data that lets `boot` log in."""
        return {**seed, "vendor-data": text(vendor_data(self._public_key, slow=not self.accelerated), 0o600)}

    def connect(self) -> None:
        """Starts the network, unless it is running, and waits until it is. Raises CommandFailed."""
        if self._processes:
            return
        ports = {machine.node: machine.port for machine in self.machines}
        lan = self.directory / lan_socket(self.name)
        self._serve(switch_command(self.name), "switch.log", lan.exists)
        gateway = gateway_command(self.name, self.cluster, self.outside, ports)
        self._serve(gateway, "gateway.log", lambda: all(answers(port) for port in ports.values()))

    def _serve(self, argv: Sequence[str], log: str, ready: Callable[[], bool]) -> None:
        path = self.directory / log
        with create_file(path) as output:
            self._await_process(start(argv, cwd=self.directory, stdout=output.fileno()), path, ready)

    def _await_process(self, process: Process, log: Path, ready: Callable[[], bool]) -> None:
        """Makes the process the network's, which ends it. Raises CommandFailed if it does not become ready."""
        self._processes.append(process)
        if not wait_until(ready, process, NETWORK_SECONDS):
            raise CommandFailed(
                "the network of the nodes did not start", log=log, last_lines=plain_lines(read_tail(log))[-5:]
            )

    def keep(self) -> None:
        """Makes close() leave the machines running; the next run with the same directory ends them."""
        self._kept = True

    def close(self) -> None:
        """Ends every machine and removes disks, seeds and the key, not the logs. After keep() nothing ends."""
        end_processes([m.tunnel for m in self.machines if m.tunnel is not None])
        if self._kept:
            return
        end_processes([*(m.process for m in self.machines if m.process is not None), *self._processes])
        remove_leftovers(self.directory)  # also what was started but not recorded yet, and the LAN of a network boot


class QemuMachine:
    """One node in a virtual machine. The network ends `process` and `tunnel`, the ssh connection of all commands."""

    def __init__(self, network: Qemu, node: Node, image: Path) -> None:
        self.node = node
        self.image = image.name
        self.directory = network.directory / node.name
        self.host, self.port = "127.0.0.1", free_port()  # of its ssh
        self.process: Process | None = None
        self.tunnel: Process | None = None
        self._network = network

    def prepare(self, image: Path, seed: Tree) -> None:
        """Replaces the node's directory, with disk and seed. Raises CommandFailed."""
        make_fresh(self.directory, 0o700)
        kind = "raw" if image.suffix == ".raw" else "qcow2"
        disk = self.directory / "disk.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", image.absolute(), disk])
        run(["qemu-img", "resize", "-q", disk, f"+{GROWTH}"])
        write_seed_iso(seed, self.directory / "seed.iso")

    def start(self) -> None:
        """Switches the node on, the first time or again; console and status go to files. Raises CommandFailed."""
        network = self._network
        network.connect()
        with create_file(self.directory / "qemu.log") as output:
            self.process = start([*network.prefix, *self.command()], cwd=network.directory, stdout=output.fileno())

    def command(self) -> list[str]:
        """The command that runs this machine."""
        return node_command(self._network.name, self.node, self.hardware)

    @property
    def hardware(self) -> Hardware:
        """What this machine has besides its node's NIC and disk."""
        return Hardware(self.node.role.machine_memory, self._network.accelerated)

    def alive(self) -> bool:
        """Whether the machine is running."""
        return self.process is not None and self.process.poll() is None

    def status(self) -> dict[str, Any] | None:
        """The agent's newest status document, if there is one."""
        return newest_document(read_tail(self.directory / "status.jsonl"))

    def console(self, lines: int = 20) -> list[str]:
        """The last lines of the console and, if the machine has ended, of QEMU's own log; without control sequences."""
        said = plain_lines(read_tail(self.directory / "console.log"))
        if not self.alive():
            said += plain_lines(read_tail(self.directory / "qemu.log"))
        return said[-lines:]

    def execute(self, argv: Sequence[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        """Runs a command on the node as root, with any return code. Raises CommandFailed if ssh fails."""
        tunnel = self._open_tunnel(LOGIN_SECONDS if timeout is None else min(timeout, LOGIN_SECONDS))
        # Relative to the directory: a socket's path must be short.
        done = run(
            [*self._ssh("-o", "ControlMaster=no", "-S", self._socket), shlex.join(argv)],
            input=input,
            cwd=self._network.directory,
            ok=ANY,
            timeout=timeout,
        )
        if done.returncode == 255 and tunnel.poll() is not None:
            raise CommandFailed(f"the ssh connection to {self.node.name} broke", last_lines=self.console())
        return done

    def follow(
        self, argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float
    ) -> Completed:
        """Likewise, and hands each line of its stdout over as it comes."""
        self._open_tunnel(LOGIN_SECONDS)
        ssh = [*self._ssh("-o", "ControlMaster=no", "-S", self._socket), shlex.join(argv)]
        return follow(ssh, each_line, input=input, cwd=self._network.directory, timeout=timeout)

    @property
    def login(self) -> str:
        """The command that gives a root shell on the node."""
        return shlex.join(self._ssh())

    @property
    def _socket(self) -> str:
        return f"{self.node.name}/ssh"

    def _ssh(self, *options: str) -> list[str]:
        own = ssh_options(self._network.directory / KEY, self.port)
        return [*self._network.prefix, "ssh", *own, *options, f"root@{self.host}"]

    def _open_tunnel(self, seconds: float) -> Process:
        """The connection that all commands share: a handshake takes seconds under TCG. Raises CommandFailed."""
        if self.tunnel is not None and self.tunnel.poll() is None:
            return self.tunnel
        path, log = self._network.directory / self._socket, self.directory / "ssh.log"
        remove_place(path)
        # Not with ControlPersist: nothing would end such a process.
        argv = self._ssh("-N", "-o", "ControlMaster=yes", "-S", self._socket)
        with create_file(log) as output:
            self.tunnel = start(argv, cwd=self._network.directory, stdout=output.fileno())
        if not wait_until(path.exists, self.tunnel, seconds):
            end_processes([self.tunnel])
            raise CommandFailed(
                f"ssh cannot reach {self.node.name}", log=log, last_lines=plain_lines(read_tail(log))[-5:]
            )
        return self.tunnel


def switch_command(name: str) -> list[str]:
    """The command of the process that connects the nodes and the gateway: see Switch."""
    return [sys.executable, "-I", "-c", SWITCH, str(PACKAGE.parent), lan_socket(name)]


def ssh_options(key: Path, port: int) -> list[str]:
    """How ssh reaches a node. The host key is new and the path is the loopback: there is nothing to check."""
    options = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    options += ["LogLevel=ERROR", f"ConnectTimeout={LOGIN_SECONDS:.0f}"]
    return ["-F", "none", "-i", str(key), "-p", str(port), *(word for option in options for word in ("-o", option))]


def vendor_data(public_key: str, *, slow: bool) -> str:
    """The vendor-data that `boot` adds to a copy of the seed: root's key and, on a slow machine, longer time-outs for
    Nova and one worker per service, because importing Nova takes most of the time.

    It uses bootcmd, which no seed has: user-data replaces a key of vendor-data instead of adding to it.
    """
    key = shlex.quote(public_key)
    script = f"""set -eu
umask 077
mkdir -p /root/.ssh
grep -qsxF {key} /root/.ssh/authorized_keys || echo {key} >>/root/.ssh/authorized_keys
"""
    if slow:
        script += f"""umask 022
mkdir -p /etc/imagegen
echo 1 >/etc/imagegen/workers
if [ -d /etc/nova ]; then
    mkdir -p /etc/nova/nova.conf.d
    printf %s {shlex.quote(SLOW_NOVA)} >/etc/nova/nova.conf.d/60-slow-machine.conf
fi
"""
    return "#cloud-config\n" + json.dumps({"bootcmd": [["sh", "-c", script]]}, indent=1) + "\n"


# Nova's defaults times ten (report_interval 10, service_down_time 60, rpc_response_timeout 60, heartbeat 60 seconds).
SLOW_NOVA = """\
# Written by `imagegen boot`: this machine emulates its processor.
[DEFAULT]
report_interval = 100
service_down_time = 600
rpc_response_timeout = 600

[oslo_messaging_rabbit]
heartbeat_timeout_threshold = 600
"""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket(AF_INET, SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether something listens on that TCP port of 127.0.0.1."""
    try:
        create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(done: Callable[[], bool], process: Process, seconds: float) -> bool:
    """Whether `done` became true before the process ended or the time was up."""
    end = time.monotonic() + seconds
    while not done():
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def end_processes(processes: Sequence[Process], seconds: float = 10.0) -> None:
    """Ends processes: terminates all, kills what is left after that many seconds, and reaps them."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()


def remove_leftovers(directory: Path, proc: Path = Path("/proc")) -> None:
    """Ends the machines that a run in the directory left, with --keep or because it was killed, and removes their disks
    and seeds, the key and the state, but no logs. Does nothing if no run left its state.
    """
    try:
        name = json.loads(read_file(directory / STATE))["run"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, RecursionError):
        name = ""
    # It is searched for in processes' arguments: an empty or short one would match those of others.
    if isinstance(name, str) and re.fullmatch(r"imagegen-[0-9a-f]{8}", name):
        for entry in sorted(proc.iterdir()):
            if entry.name.isdecimal() and bears_name(entry, name):
                kill_process(int(entry.name), partial(bears_name, entry, name))
        remove_namespaces(name)
        remove_place(directory / lan_socket(name))
    for node in [place for place in directory.iterdir() if place.is_dir() and not place.is_symlink()]:
        for left in NODE_FILES:
            remove_place(node / left)
    for left in (SERVED, KEY, f"{KEY}.pub", STATE):
        remove_place(directory / left)


def bears_name(entry: Path, name: str) -> bool:
    """Whether the process below /proc is a QEMU, the switch or a dnsmasq of the run with that name."""
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:  # has ended meanwhile
        return False
    ours = words[0].startswith((b"qemu-system-", b"dnsmasq")) or SWITCH.encode() in words
    return ours and any(word.rpartition(b"/")[2].startswith(f"{name}-".encode()) for word in words)


def kill_process(number: int, check: Callable[[], bool]) -> None:
    """Kills a process and waits until it is gone; `check` excludes another that has got its pid meanwhile."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(number)
        try:
            if check():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 10)
        finally:
            os.close(handle)
