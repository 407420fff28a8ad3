"""A deployment on this machine: the initramfs' own code, with files for disks and no interface of its own.

Reads its plan and its disks as JSON from stdin; ends when the disk is done, or after its first refusal, with status 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from imagegen_deploy import deploy, gpt
from imagegen_deploy.disks import Disk
from imagegen_deploy.plan import Plan
from imagegen_node.engine import status, steps, system

NOT_HERE = ("udevadm", "blockdev")  # the kernel's view of a disk; these are files


class Stopped(BaseException):
    """The deployment refused to go on."""


def stop(seconds: float) -> None:
    if last.state == "failed" or seconds >= steps.FAILED_PAUSE:
        raise Stopped


def run(argv: list[str], **options: Any) -> str:
    return "" if argv[0] in NOT_HERE else system.run(argv, **options)


def find_root(self: deploy.Deployment) -> str:
    """The kernel makes no devices for the partitions of a file: a copy of the last one, which mount takes as well."""
    with self.disk.path.open("rb") as disk:
        table = gpt.read_table(disk.read(gpt.HEAD))
        assert table
        disk.seek(table.partitions[-1].first * gpt.SECTOR)
        self.root = place / "root.ext4"
        self.root.write_bytes(disk.read(table.partitions[-1].sectors * gpt.SECTOR))
    return ""


given = json.load(sys.stdin)
place = Path(given["place"])
status.STATUS_FILE = place / "status.json"
status.CONSOLE = status.PORT = place / "none"
deploy.MOUNT = place / "root"
deploy.run = run
deploy.raise_interface = lambda plan: "not here"
deploy.lower_interface = lambda plan: None
deploy.list_disks = lambda: [
    Disk(Path(disk["path"]), disk["size"], 512, {"serial": (disk["serial"].lower(),)}) for disk in given["disks"]
]
deploy.find_seed_label = lambda disk: ""
deploy.Deployment.find_root = find_root
deploy.KERNEL = given["kernel"]
last = status.Status(given["plan"]["node"], given["plan"]["role"])
if given["plan"]["status"]:
    last.post_to(given["plan"]["status"])
try:
    deploy.Deployment(Plan(**given["plan"]), last, stop).run()
except Stopped:
    sys.exit(1)
finally:
    last.close()
