"""Boots a cluster whose agents are killed at every point where they touch the world, until each point was struck once.

usage: crash_points.py [SEED]     (needs root and the images of both roles in out/)

The nodes must become ready all the same, and the cluster be right from outside. Prints a table, and a last line that
counts.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from imagegen import nspawn
from imagegen.boot import ClusterNotReady, boot_cluster, find_image
from imagegen.cluster import load_cluster
from imagegen.model import Role
from imagegen.run import run
from imagegen.secrets import load_secrets

CHECKOUT = Path(__file__).parents[2]
OUT = CHECKOUT / "out"
WORK = OUT / "faults"
STATE = "var/lib/imagegen-faults"
AGENT = "usr/lib/imagegen-faults/crashing_agent.py"
SECONDS = 2400.0

CLUSTER = """\
name: crash
network: {cidr: 10.44.0.0/24}
cells: [cell1, cell2]
nodes:
  - {name: crash-ctl, role: controller, mac: "52:54:00:44:00:01", address: 10.44.0.11}
  - {name: crash-cpt, role: compute, mac: "52:54:00:44:00:02", address: 10.44.0.12, cell: cell2}
"""
UNIT = f"""\
[Unit]
StartLimitIntervalSec=0

[Service]
ExecStart=
ExecStart=/usr/bin/python3 /{AGENT}
RestartSec=100ms
"""


def make_tree(role: Role, seed: int) -> Path:
    """The role's OS tree with the crashing agent in the place of the agent."""
    tree = WORK / "trees" / role
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    tar = find_image(OUT, role, "nspawn")
    run(["tar", "-xpf", tar, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", tree])
    for path, text in (
        (AGENT, (Path(__file__).parent / "crashing_agent.py").read_text()),
        ("etc/systemd/system/imagegen-node.service.d/50-faults.conf", UNIT),
        (f"{STATE}/seed", f"{seed}/{role}"),
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    return tree


def read_points(node: str) -> list[str]:
    """Where the agent of that node was killed, in order."""
    place = WORK / "boot" / node / "tree" / STATE / "points.jsonl"
    return [json.loads(line)["point"] for line in place.read_text().splitlines()] if place.is_file() else []


def main(seed: int) -> int:
    print(f"seed {seed}", flush=True)
    nspawn.remove_leftovers(WORK / "boot")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    run([sys.executable, "-m", "imagegen", "-q", "init", WORK / "init"])
    (WORK / "init/secrets.yaml").rename(WORK / "secrets.yaml")
    (WORK / "cluster.yaml").write_text(CLUSTER)
    cluster = load_cluster(WORK / "cluster.yaml")
    secrets = load_secrets(WORK / "secrets.yaml")
    trees = {role: make_tree(role, seed) for role in Role}
    begun = time.monotonic()
    try:
        boot_cluster(
            cluster,
            secrets,
            WORK,
            cluster.nodes,
            "nspawn",
            SECONDS,
            True,
            lambda phase, detail="": print(f"{time.monotonic() - begun:6.0f} s  {phase} {detail}".rstrip(), flush=True),
            images=trees,
        )
        return tell("", time.monotonic() - begun)
    except ClusterNotReady as error:
        return tell(error.message, time.monotonic() - begun)
    finally:
        nspawn.remove_leftovers(WORK / "boot")
        shutil.rmtree(WORK / "trees", ignore_errors=True)


def tell(fault: str, seconds: float) -> int:
    """Prints the table and the count; 0 when all is well."""
    total = 0
    for node in ("crash-ctl", "crash-cpt"):
        points = read_points(node)
        total += len(points)
        print(f"\n{node}: killed {len(points)} times")
        for point, phases in Counter(point.split(" ", 1)[1] for point in points).items():
            struck = [one.split(" ", 1)[0] for one in points if one.split(" ", 1)[1] == point]
            print(f"  {point:<60} {', '.join(struck)}{'' if phases == len(set(struck)) else '  TWICE'}")
    end = fault or "every node ready, the cluster right from outside"
    print(f"\nend state: {end}")
    print(f"1 schedule, {total} faults, {1 if fault or total < 60 else 0} failures, {seconds:.0f} s")
    return 1 if fault or total < 60 else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().randrange(10**6)))
