"""The agent, killed once before, during and after each of its effects on the world. Runs on a node, as its unit.

The points are not listed anywhere: every command, every file and every change of a database passes the places that
are wrapped here. POINTS holds what was struck already, so that each start comes further than the one before. The plan
says whether each effect is struck in all three phases or in one.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, "/usr/lib/imagegen-node")

import pymysql
from imagegen_node import cli
from imagegen_node.engine import files, system
from imagegen_node.engine.errors import Waiting
from imagegen_node.openstack.database import connect_root, fetch_rows

STATE = Path("/var/lib/imagegen-faults")
POINTS = STATE / "points.jsonl"
PLAN = json.loads((STATE / "plan.json").read_text())
PHASES = ("before", "during", "after")
LONGEST = 4.0  # seconds of a command before it is struck; shorter ones are struck at their end
READS = ("systemctl show", "virsh")
CHANGES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "GRANT", "REVOKE")

struck = [json.loads(line)["point"] for line in POINTS.read_text().splitlines()] if POINTS.exists() else []
delays = random.Random(f"{PLAN['seed']}/{len(struck)}")


def is_due(point):
    """Whether this process is to be killed at that point, PHASE EFFECT: never twice."""
    phase, effect = point.split(" ", 1)
    planned = PLAN["phases"] == "all" or phase == random.Random(f"{PLAN['seed']}/{effect}").choice(PHASES)
    return planned and point not in struck and threading.current_thread() is threading.main_thread()


def strike(point):
    if not is_due(point):
        return
    with POINTS.open("a") as stream:
        stream.write(json.dumps({"point": point}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.kill(os.getpid(), signal.SIGKILL)


def name_command(argv):
    """The command without its options: those may be long, and none tells more."""
    if argv[-1].endswith(".py"):
        return Path(argv[-1]).name
    words = [word for word in argv if not word.startswith(("-", "/etc"))]
    return " ".join([Path(words[0]).name, *words[1:4]])


def count_tables():
    """Of every schema; None on a node that does not host the database."""
    try:
        with connect_root() as connection:
            return fetch_rows(connection, "SELECT COUNT(*) FROM information_schema.tables")[0][0]
    except Waiting:
        return None


def wait_for_table(process, before):
    """Until a sync has made its first table: from then on to be cut off leaves something behind."""
    while process.poll() is None and count_tables() == before:
        time.sleep(0.01)


def run(argv, **options):
    """subprocess.run, with three points."""
    name = name_command(argv)
    if name.startswith(READS):
        return subprocess.run(argv, **options)
    strike(f"before {name}")
    during = f"during {name}"
    if is_due(during):
        given = dict(options)
        text = given.pop("input", None)
        given.pop("capture_output")
        given.pop("timeout", None)
        given["stdin"] = subprocess.PIPE if text is not None else subprocess.DEVNULL
        tables = count_tables() if "sync" in name else None
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **given)
        if tables is not None:
            wait_for_table(process, tables)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(text, timeout=delays.uniform(0, LONGEST))
        strike(during)
    done = subprocess.run(argv, **options)
    strike(f"after {name}")
    return done


def write_atomically(path, *more):
    strike(f"before {path}")
    write(path, *more)
    strike(f"after {path}")


def execute(self, query, args=None):
    change = query.split()[0].upper() in CHANGES
    name = " ".join(query.split("(")[0].split()[:5])
    if change:
        strike(f"before {name}")
    rows = ask(self, query, args)
    if change:
        strike(f"after {name}")
    return rows


system.subprocess = SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
write, files.write_atomically = files.write_atomically, write_atomically
ask, pymysql.cursors.Cursor.execute = pymysql.cursors.Cursor.execute, execute

if __name__ == "__main__":
    sys.exit(cli.main(["run"]))
