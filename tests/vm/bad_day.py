"""`imagegen boot`, the same command, on a bad day: power is cut, unflushed writes are lost, a clock is a year off, and
the seed's medium is gone when the power comes back for good.

usage: bad_day.py WORDS...                  as `imagegen WORDS...`; the host is a container among virtual machines
       bad_day.py --full WORDS...           the same; the host is a virtual machine, and loses power and its medium
       bad_day.py --power PLAN QEMU...      runs that QEMU; kills it, and starts it again, as the plan says

What a cut loses: the guest's page cache, and the part of the disk image's own tables that QEMU has not written.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from imagegen.base.commands import run
from imagegen.base.tree import Tree
from imagegen.local import boot, qemu
from imagegen.local.bridge import BRIDGE
from imagegen.local.hardware import Hardware
from imagegen.local.network_boot import PxeQemu
from imagegen.local.nspawn import Nspawn
from imagegen.local.request import find_tar
from imagegen.model.cluster import Node

# The nodes of bringup.py: the controller, and computes deployed, live, and booted from disk image and seed ISO.
HOST, DEPLOYED, LIVE, BOOTED = "rabbitmq", "attic-c1", "attic-c2", "attic-c3"
POLL = 0.2  # seconds
CUTS = "power.log"

# When power is cut: so many seconds after a file of the node's directory shows a text since the power came. A live node
# has nothing that a cut could spoil.
WRITING_IMAGE = ("console.log", " MiB (1", 1.0)  # some tenth of it
WRITING_SEED = ("console.log", "cloud-init-network.service", 6.0)  # users, keys and the seed's files
CHANGING_SCHEMA = ("status.jsonl", '"step": "nova-api-schema"', 20.0)  # a long change
PLANS: dict[str, list[tuple[str, str, float]]] = {HOST: [], DEPLOYED: [WRITING_SEED], LIVE: [], BOOTED: []}
# The host's cut makes all others wait; the cluster tier cuts deployments off, too, with files in the place of disks.
OF_A_FULL_DAY = {HOST: [CHANGING_SCHEMA], DEPLOYED: [WRITING_IMAGE, WRITING_SEED]}
CLOCK_OFF = timedelta(days=365)  # of the deployed compute

node_command = qemu.node_command


class Mixed(PxeQemu):
    """The network boot with the host as a container, whose bridge is joined to the machines' LAN: emulated, it takes
    half an hour for what the cluster tier proves anyway.
    """

    def __enter__(self) -> Mixed:
        super().__enter__()
        self.containers = self._stack.enter_context(Nspawn(self.cluster, self.directory))
        return self

    def add(self, node: Node, image: Path, seed: Tree) -> Any:
        if node.name != HOST:
            return super().add(node, image, seed)
        machine = self.containers.add(node, find_tar(self.directory.parent, node.role), seed)
        # A container has this machine's clock, and may not set it. As the machines' time server it only tells it.
        drop_in = machine.tree / "etc/systemd/system/chrony.service.d/90-container.conf"
        drop_in.write_text("[Unit]\nConditionCapability=\n\n[Service]\nEnvironment=DAEMON_OPTS=-x\n")
        (machine.tree / "etc/default/chrony").unlink()
        # The machines report as seldom as slow ones do, so this must wait as long for them.
        place = machine.tree / "etc/nova/nova.conf.d/60-slow-machine.conf"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(qemu.SLOW_NOVA)
        place.chmod(0o644)
        return machine

    def connect(self) -> None:
        connected = bool(self._processes)
        super().connect()
        if not connected:
            hub = self.containers.bridge.name
            run(["ip", "-n", hub, "address", "flush", "dev", BRIDGE])  # the LAN's bridge has the gateway's
            self.lan.add_interface(hub, "lan")
            run(["ip", "-n", hub, "link", "set", "lan", "master", BRIDGE, "up"])

    def keep(self) -> None:
        super().keep()
        self.containers.keep()


def spoil(name: str, node: Node, hardware: Hardware) -> list[str]:
    """The node's QEMU, which keeps writes to itself until they are flushed, at the end of a wire that can be cut."""
    argv = [word.replace("cache=unsafe", "cache=writeback") for word in node_command(name, node, hardware)]
    assert argv != node_command(name, node, hardware)
    if node.name == DEPLOYED:
        argv += ["-rtc", f"base={datetime.now(UTC) + CLOCK_OFF:%Y-%m-%dT%H:%M:%S}"]
    plan = [(f"{node.name}/{file}", text, seconds) for file, text, seconds in PLANS[node.name]]
    return [sys.executable, __file__, "--power", json.dumps([f"{node.name}/{CUTS}", plan, node.name]), *argv]


def detach_medium(argv: Sequence[str]) -> list[str]:
    """The machine without the seed's medium: its drive and its device."""
    kept = list(argv)
    for word in argv:
        if word.startswith("if=none,id=seed,") or word.endswith(",drive=seed"):
            at = kept.index(word)
            del kept[at - 1 : at + 1]
    assert len(kept) == len(argv) - 4
    return kept


def boot_from_disk(argv: Sequence[str]) -> list[str]:
    """The machine with its disk, and not the network, first in the firmware's order."""
    swapped = {",bootindex=1": ",bootindex=2", ",bootindex=2": ",bootindex=1"}
    changed = [re.sub(",bootindex=[12]", lambda found: swapped[found[0]], word) for word in argv]
    assert sum(a != b for a, b in zip(argv, changed, strict=True)) == 2
    return changed


# How a node's machine differs once its power came back for the last time.
CHANGES: dict[str, Callable[[Sequence[str]], list[str]]] = {HOST: detach_medium, DEPLOYED: boot_from_disk}


def shows(place: Path, start: int, text: str) -> bool:
    """Whether the file shows the text beyond its first `start` bytes."""
    if not place.exists():
        return False
    with place.open("rb") as stream:
        stream.seek(start)
        return text.encode() in stream.read()


def cut_power(log: Path, plan: Sequence[tuple[str, str, float]], argv: Sequence[str], last_argv: Sequence[str]) -> int:
    """Runs the machine, after the last cut by its last argv; its return code when it ends by itself."""
    for file, text, seconds in plan:
        place = Path(file)
        start = place.stat().st_size if place.exists() else 0
        process = launch(argv)
        while not shows(place, start, text):
            if process.poll() is not None:
                return process.returncode
            time.sleep(POLL)
        time.sleep(seconds)
        process.kill()
        process.wait()
        with log.open("a") as stream:
            stream.write(f"{text}\n")
    return launch(last_argv).wait()


def launch(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process that ends when this one is asked to."""
    process = subprocess.Popen(argv)

    def end(number: int, _: object) -> None:
        process.terminate()
        sys.exit(process.wait())

    signal.signal(signal.SIGTERM, end)
    return process


if __name__ == "__main__":
    if sys.argv[1] == "--power":
        log, plan, name = json.loads(sys.argv[2])
        argv = sys.argv[3:]
        change = CHANGES.get(name, list) if plan else list
        sys.exit(cut_power(Path(log), plan, argv, change(argv)))
    from imagegen.cli.main import main

    if sys.argv[1] == "--full":
        PLANS.update(OF_A_FULL_DAY)
        del sys.argv[1]
    else:
        boot.PxeQemu = Mixed
    qemu.node_command = spoil
    main()
