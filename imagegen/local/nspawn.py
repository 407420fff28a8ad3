"""The nspawn backend: nodes as containers, with the same seed, tree and network as a real node."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, Self

from imagegen.base.commands import Completed, Process, follow, require_tools, run, start
from imagegen.base.console import plain_lines, read_tail
from imagegen.base.errors import CommandFailed, MachineLacks
from imagegen.base.handles import append_file, make_fresh, open_directory, read_file, remove_place
from imagegen.base.tree import Tree, text, write_file, write_tree
from imagegen.local.bridge import Bridge, namespace_command, remove_namespaces
from imagegen.model.cluster import Cluster, Node

STATE = "nspawn.json"
SEED = "var/lib/cloud/seed/nocloud"
STATUS = "run/imagegen/status.json"
OPENVSWITCH = Path("/sys/module/openvswitch")  # a container cannot load it into this machine's kernel
TUNNEL = "tunnel0"
TUNNEL_BRIDGE = "br-tunnel"  # which the agent makes
TUNNEL_NETWORK = IPv4Network("198.18.0.0/16")  # of tests between hosts (RFC 2544), inside namespaces of this machine
ANY = range(-64, 256)  # all return codes

# Runs the command in the control groups given as the first argument, and again whenever it ends with 133, by which
# systemd-nspawn --keep-unit asks for a restart after a reboot. So a kept machine can reboot without imagegen.
LOOP = """
for group in $0; do echo 0 >"$group/loop/cgroup.procs"; done
while :; do
    rc=0
    (for group in $0; do echo 0 >"$group/machine/cgroup.procs"; done; exec "$@") || rc=$?
    [ "$rc" -eq 133 ] || exit "$rc"
done
"""


class Nspawn:
    """One run's network and machines.

    Everything that it makes outside its directory has the run's name, so that a later run can find and end it.
    """

    tools = (*Bridge.tools, "systemd-nspawn", "tar", "mount", "umount")
    timeout = 20 * 60.0  # seconds until ready

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        """`directory` (out/boot) gets one directory per node. Raises MachineLacks without root or a tool."""
        if os.geteuid() != 0:
            raise MachineLacks('systemd-nspawn needs root: run `sudo "$(command -v imagegen)" boot ...`')
        require_tools(*self.tools)
        self.cluster = cluster
        self.directory = directory
        self.name = f"imagegen-{secrets.token_hex(3)}"
        self.bridge = Bridge(f"{self.name}-hub", cluster.network)
        self.machines: list[NspawnMachine] = []
        self._kept = False

    @property
    def way_in(self) -> str:
        """The command that opens a shell in the nodes' network."""
        return shlex.join(["sudo", *self.bridge.prefix, "su", "-l", os.environ.get("SUDO_USER", "root")])

    def __enter__(self) -> Self:
        """Removes what an earlier run left, and makes the network. Raises CommandFailed."""
        with open_directory(self.directory, make=True):
            remove_leftovers(self.directory)
        write_file(self.directory / STATE, text(json.dumps({"version": 1, "run": self.name}) + "\n", 0o600))
        try:
            self.bridge.make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def needs(self, node: Node, image: Path) -> tuple[int, int]:
        """(memory, disk) in bytes that a machine needs: a tree holds the image and what the node writes."""
        return node.role.container_memory, (0 if image.is_dir() else image.stat().st_size) + (1 << 30)

    def add(self, node: Node, image: Path, seed: Tree) -> NspawnMachine:
        """A machine for that node, not started yet: a fresh copy of `image`, a tar or a directory, with the seed in it.

        Raises CommandFailed.
        """
        namespace = f"{self.name}-n{len(self.machines)}"
        machine = NspawnMachine(node, image, self.directory / node.name, namespace)
        self.machines.append(machine)
        self.bridge.add_namespace(namespace, "host0", node.mac)
        machine.unpack(seed)
        if not OPENVSWITCH.exists():
            self.bridge.add_interface(namespace, TUNNEL)
            machine.switch_in_user_space(f"{TUNNEL_NETWORK[len(self.machines)]}/{TUNNEL_NETWORK.prefixlen}")
        return machine

    def keep(self) -> None:
        """Makes close() leave the machines running; the next run with the same directory removes them."""
        self._kept = True

    def close(self) -> None:
        """Ends every machine; removes its namespaces and tree, not its console log. Does nothing after keep()."""
        if self._kept:
            return
        end_run(self.name)
        for machine in self.machines:
            machine.reap()
            remove_tree(machine.directory)
        remove_place(self.directory / STATE)


class NspawnMachine:
    """One node in a container."""

    def __init__(self, node: Node, image: Path, directory: Path, namespace: str) -> None:
        self.node = node
        self.image = image.name
        self.directory = directory
        self.tree = directory / "tree"
        self._source = image
        self._console = directory / "console.log"
        self._namespace = namespace
        self._process: Process | None = None

    def unpack(self, seed: Tree) -> None:
        """Replaces the node's directory; if the image is a directory, only changes to it are stored.

        Raises CommandFailed.
        """
        remove_tree(self.directory)
        make_fresh(self.directory, 0o700)
        make_fresh(self.tree)
        if self._source.is_dir():
            mount_changes(self._source, self.directory)
        else:
            run(["tar", "-xpf", self._source, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", self.tree])
        write_tree(seed, self.tree / SEED, directory_mode=0o700)

    def switch_in_user_space(self, tunnel: str) -> None:
        """Asks for what a kernel without Open vSwitch can do. Open vSwitch's program tunnels only through an interface
        that it has for itself, so that has an address of its own.
        """
        address = str(IPv4Interface(tunnel).ip)
        asked = {"datapath": "netdev", "interface": TUNNEL, "address": address}
        match = "[Match]\nName={}\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nLinkLocalAddressing=no\n{}"
        files = {
            "etc/imagegen/datapath.json": json.dumps(asked) + "\n",
            "etc/systemd/network/60-tunnel-bridge.network": match.format(TUNNEL_BRIDGE, f"Address={tunnel}\n"),
            "etc/systemd/network/60-tunnel.network": match.format(TUNNEL, ""),
        }
        for path, content in files.items():
            with open_directory((self.tree / path).parent, make=True):
                write_file(self.tree / path, text(content))

    def start(self) -> None:
        """Boots the node; its console goes to a file. Raises CommandFailed if its control groups cannot be made."""
        groups = make_control_groups(self._namespace)
        with append_file(self._console) as console:
            self._process = start(
                ["sh", "-euc", LOOP, " ".join(map(str, groups)), *nspawn_command(self._namespace, self.tree)],
                # The containers' systemd (257) needs cgroup v2, on a hybrid host too.
                # Neutron's metadata agent sets sysctls of the network namespaces that it makes.
                env={"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
                stdout=console.fileno(),
            )

    def leader(self) -> int | None:
        """The host's pid of the container's init, if it runs; read each time, because a reboot changes it."""
        return None if self._process is None else find_init(self._process.pid)

    def alive(self) -> bool:
        """Whether the machine is running."""
        return self._process is not None and self._process.poll() is None

    def status(self) -> dict[str, Any] | None:
        """The agent's newest status document, if there is one."""
        leader = self.leader()
        try:
            document = json.loads(Path(f"/proc/{leader}/root/{STATUS}").read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def console(self, lines: int = 20) -> list[str]:
        """The console's last lines, without control sequences."""
        return plain_lines(read_tail(self._console))[-lines:]

    def execute(self, argv: Sequence[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        """Runs a command on the node as root, with any return code. Raises CommandFailed if the node is not running."""
        leader = self.leader()
        if leader is None:
            raise CommandFailed(f"{self.node.name} is not running", last_lines=self.console())
        return run([*enter_command(leader), *argv], input=input, env={"HOME": "/root"}, ok=ANY, timeout=timeout)

    def follow(
        self, argv: Sequence[str], each_line: Callable[[bytes], None], *, input: bytes, timeout: float
    ) -> Completed:
        """Likewise, and hands each line of its stdout over as it comes."""
        leader = self.leader()
        if leader is None:
            raise CommandFailed(f"{self.node.name} is not running", last_lines=self.console())
        return follow([*enter_command(leader), *argv], each_line, input=input, env={"HOME": "/root"}, timeout=timeout)

    @property
    def login(self) -> str:
        """The command that gives a root shell on the node."""
        return shlex.join(["sudo", *enter_command(self.leader() or 0), "su", "-"])

    def kill(self) -> None:
        """Ends the node at once, as a power cut does; start() boots it from what is on its disk.

        Raises CommandFailed if any of its processes survives.
        """
        end_groups([mount / self._namespace for mount in read_control_group_mounts()])
        self.reap()

    def reap(self) -> None:
        """Reaps the systemd-nspawn that has ended."""
        if self._process is not None:
            self._process.wait(timeout=10)


def mount_changes(image: Path, directory: Path) -> None:
    """Mounts directory/tree: the image's tree unchanged, with writes going to directory/changes.

    Raises CommandFailed.
    """
    for name in ("changes", "work"):
        make_fresh(directory / name)
    layers = f"lowerdir={image.absolute()},upperdir={directory / 'changes'},workdir={directory / 'work'}"
    run(["mount", "-t", "overlay", "-o", layers, "overlay", directory / "tree"])


def remove_tree(directory: Path) -> None:
    """Removes the tree from the directory of a node that has ended. Raises CommandFailed."""
    if directory.is_symlink() or not directory.is_dir():
        return
    if (directory / "tree").is_mount() and not (directory / "tree").is_symlink():
        run(["umount", "--recursive", directory / "tree"])
    for name in ("tree", "changes", "work"):
        remove_place(directory / name)


def nspawn_command(namespace: str, tree: Path) -> list[str]:
    """The command that boots a tree in a network namespace.

    It uses nsenter, because --network-namespace-path= shows the host's interfaces in the container's /sys, so that
    cloud-init does not find its MAC address, and `ip netns exec` remounts /sys and hides the control groups. /dev/kvm
    is not bound: it would have the host's group number. Trees are thrown away, so they are not synced to the disk.
    """
    return [
        *(*namespace_command(namespace), "systemd-nspawn", "--quiet", "--boot"),
        *("--directory", os.fspath(tree), "--machine", namespace, "--hostname=localhost"),
        *("--register=no", "--keep-unit", "--capability=CAP_NET_ADMIN,CAP_NET_RAW", "--suppress-sync=yes"),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--setenv=SYSTEMD_COLORS=0"),
    ]


def enter_command(leader: int) -> list[str]:
    """The command prefix to run something inside the container of that init."""
    return ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]


def find_init(ancestor: int, proc: Path = Path("/proc")) -> int | None:
    """The pid of the container's init, if there is one: the descendant that is process 1 of its own pid namespace."""
    try:
        if re.search(r"^NSpid:\t\d+(\t\d+)*\t1$", (proc / f"{ancestor}/status").read_text(), re.MULTILINE):
            return ancestor
        children = (proc / f"{ancestor}/task/{ancestor}/children").read_text().split()
    except OSError:  # ended meanwhile
        return None
    return next((init for child in children if (init := find_init(int(child), proc)) is not None), None)


def control_group_mounts(mountinfo: str) -> list[Path]:
    """Where systemd's control groups are mounted: v2 and, on a hybrid host, v1's name=systemd. Source: proc(5)."""
    mounts = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            mounts.append(Path(head.split(" ")[4]))
    return mounts


def read_control_group_mounts() -> list[Path]:
    """control_group_mounts of this process."""
    return control_group_mounts(Path("/proc/self/mountinfo").read_text())


def make_control_groups(name: str) -> list[Path]:
    """A control group of that name in every hierarchy. Raises CommandFailed.

    Otherwise, with --keep-unit, two containers share the group `/payload`, and one's systemd ends the other's services.
    """
    groups = [mount / name for mount in read_control_group_mounts()]
    try:
        for group in groups:
            for part in ("loop", "machine"):
                (group / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(
            f"no control group {error.filename}: {error.strerror}; cgroup v2 must be writable here"
        ) from error
    return groups


def end_run(name: str) -> None:
    """Ends all processes of a run; removes its control groups and namespaces. Raises CommandFailed if any survives."""
    end_groups([group for mount in read_control_group_mounts() for group in mount.glob(f"{name}-n*")])
    remove_namespaces(name)
    for left in Path("/run/systemd/nspawn/propagate").glob(f"{name}-*"):
        left.rmdir()


def end_groups(groups: Sequence[Path]) -> None:
    """Ends the machines in these control groups, and removes the groups: after cgroup.kill, a kernel may also kill
    what systemd starts there later. Raises CommandFailed.
    """
    # The payload first: systemd-nspawn then sees its init's end and removes its own lock files.
    kill_groups([group / "machine/payload" for group in groups], 10)
    kill_groups(groups, 10)
    for group in groups:
        for directory in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            directory.rmdir()
        group.rmdir()


def kill_groups(groups: Sequence[Path], seconds: float) -> None:
    """Kills what is in and below these groups (cgroup v2's cgroup.kill) and waits until they are empty.

    Raises CommandFailed if something is left after that many seconds.
    """
    groups = [group for group in groups if (group / "cgroup.kill").exists()]
    for group in groups:
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + seconds
    while busy := [group for group in groups if "populated 1" in (group / "cgroup.events").read_text()]:
        if time.monotonic() > deadline:
            raise CommandFailed(f"processes in {', '.join(map(str, busy))} were killed, but do not end")
        time.sleep(0.05)


def remove_leftovers(directory: Path) -> None:
    """Removes the machines, namespaces and trees that an earlier run with this directory left. Raises CommandFailed."""
    state = directory / STATE
    try:
        name = json.loads(read_file(state))["run"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, RecursionError):
        name = ""
    if isinstance(name, str) and re.fullmatch(r"imagegen-[0-9a-f]{6}", name):
        end_run(name)
    for tree in directory.glob("*/tree"):
        remove_tree(tree.parent)
    remove_place(state)
