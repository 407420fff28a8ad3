"""The command `imagegen-node`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Callable

from imagegen_node import metadata
from imagegen_node.status import STATUS_FILE, Status
from imagegen_node.steps import Step, run_step


def run_role() -> int:
    """Finds the role, runs its steps."""
    import os

    found: dict[str, Any] = {}
    status = Status(os.uname().nodename, "")

    def find_role() -> str:
        found["facts"] = metadata.read_facts()
        found["role"] = metadata.check_role(found["facts"])
        found["node"] = metadata.read_node()
        status.role = found["role"]
        return str(found["role"])

    run_step(Step("role", find_role), status)
    roles: dict[str, Callable[..., Any]] = {}
    if found["role"] == "controller":
        from imagegen_node.controller import Controller

        roles["controller"] = Controller
    else:
        from imagegen_node.compute import Compute

        roles["compute"] = Compute
    roles[found["role"]](found["facts"], found["node"], status).run()
    return 0


def show_status(as_json: bool) -> int:
    """0 ready, 1 not ready yet, 2 failed, 3 no status there."""
    try:
        text = STATUS_FILE.read_text()
    except FileNotFoundError:
        print("there is no status yet: journalctl -u imagegen-node", file=sys.stderr)
        return 3
    document = json.loads(text)
    if as_json:
        print(text, end="")
    else:
        print("{node} ({role}) is {state} since {since}".format(**document))
        if document["detail"]:
            print("{step}: {detail}".format(**document))
        for step in document["steps"]:
            print("  {name:<18} {state:<8} {seconds:8.1f} s".format(**step))
    return {"ready": 0, "failed": 2}.get(document["state"], 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="imagegen-node",
        description="The first-boot agent: makes this node ready for the role that its metadata names.",
        epilog="Its log: journalctl -u imagegen-node",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="make the node ready (what imagegen-node.service does)")
    status = commands.add_parser(
        "status", help="where the node is", epilog="exit codes: 0 ready, 1 not ready yet, 2 failed, 3 no status there"
    )
    status.add_argument("--json", action="store_true", help="the status document")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run_role()
    return show_status(arguments.json)
