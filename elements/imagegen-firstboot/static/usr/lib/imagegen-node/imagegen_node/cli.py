"""The command `imagegen-node`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from imagegen_node.engine import retry
from imagegen_node.engine.errors import CommandFailed, Refused, Waiting
from imagegen_node.engine.mask import find_secrets, mask
from imagegen_node.engine.status import DEGRADED, STATUS_FILE, Status
from imagegen_node.engine.steps import Step, run_step
from imagegen_node.node import metadata, seed

OVERVIEW = """\
The first-boot agent. imagegen-node.service runs it at every boot: it reads the node's role from the metadata, checks
that cloud-init wrote every file of the seed, and runs the role's steps until the node is ready. Each step looks at
what is there and changes only what differs, so running it again is safe. Secrets are never shown.

states:
  working   a step runs
  waiting   a step waits for what it names, as long as it takes: another node, a service, the next try of a command
  ready     controller: schemas and cells exist, its services are up in the API, its endpoints are right
            compute: its service is up, a controller has mapped it, its hypervisor is listed
            A ready node checks itself every five minutes. If something has stopped working, it stays ready and says
            `degraded:` and why; it restarts nothing. `imagegen-node doctor` names the cure.
  failed    a step cannot go on; it says why and what to do, and is tried again every 30 seconds
"""
PLACES = f"""\
files:
  {STATUS_FILE}       where the node is, as JSON; also on the console and the virtio-serial port
                                  org.imagegen.status
  {metadata.NODE_FILE}        what the seed says about this node (holds secrets)
  {seed.COPY}  the public facts of the newest seed, for boots without one
  {metadata.IMAGE_FILE}       the roles and the release in this image

the agent's log:        journalctl -u imagegen-node
what cloud-init did:    /var/log/cloud-init.log
after a new seed:       reboot (a node that was ready once boots without a seed, too)
after an edited file:   reboot (the seed's files are written again)
"""
STATUS_CODES = "exit codes: 0 ready, 1 not ready yet, 2 failed, 3 no status yet, 4 ready but degraded"
DOCTOR_CODES = "exit codes: 0 nothing wrong, 1 findings, 3 cannot examine: not root, no role yet, FILE not found"
RETRY_CODES = "exit codes: 0 the step is done, 1 it is waiting or working, 2 it failed, 3 no such step, or not root"


def run_role() -> int:
    """Finds the role, runs its steps, and stays: the node checks itself, a controller maps new computes."""
    retry.listen()
    status = Status(os.uname().nodename, "")
    facts: dict[str, Any] = {}
    node: dict[str, Any] = {}

    def find_role() -> str:
        facts.update(metadata.read_facts())
        status.role = metadata.check_role(facts)
        node.update(metadata.read_node())
        if metadata.restore_files(facts, node):
            node.clear()
            node.update(metadata.read_node())
        status.secrets = find_secrets(node)
        if node.get("status_url"):
            status.post_to(node["status_url"])
        return status.role

    run_step(Step("role", find_role), status, retry.nap)
    try:
        make_role(facts, node, status).run()
    except Exception as error:  # systemd restarts the agent; meanwhile the status must not say `working`
        status.fail(f"the agent ended: {type(error).__name__}: {error}", None)
        raise
    return 0


def make_role(facts: dict[str, Any], node: dict[str, Any], status: Status) -> Any:
    """The role, to be run: the class of that name in the module of that name in roles/.

    Its modules are imported only here: `imagegen-node status` must work whatever they need.
    """
    module = import_module(f"imagegen_node.roles.{status.role}")
    return getattr(module, status.role.capitalize())(facts, node, status, retry.nap)


def read_status() -> dict[str, Any]:
    """The status document; empty, and said on stderr, when there is none yet."""
    try:
        return retry.read_document()
    except FileNotFoundError:
        print("there is no status yet: see journalctl -u imagegen-node", file=sys.stderr)
        return {}


def show_status(as_json: bool) -> int:
    """Prints the status; returns an exit code as in STATUS_CODES."""
    document = read_status()
    if not document:
        return 3
    if as_json:
        print(json.dumps(document, sort_keys=True))
    else:
        print("{node} ({role}) is {state} since {since}".format(**document))
        if document["detail"]:
            print(": ".join(filter(None, (document["step"], document["detail"]))))
        for step in document["steps"]:
            print("  {name:<18} {state:<8} {seconds:8.1f} s".format(**step))
    if document["state"] == "ready" and document["detail"].startswith(DEGRADED):
        return 4
    return {"ready": 0, "failed": 2}.get(document["state"], 1)


def examine_node(as_json: bool, expect: str | None) -> int:
    """Prints what is wrong and its cure; returns an exit code as in DOCTOR_CODES."""
    from imagegen_node.doctor import Patient, examine

    try:
        facts, node, names = metadata.read_facts(), metadata.read_node(), read_names(expect)
        metadata.check_role(facts)
    except (Refused, Waiting, OSError) as error:
        print(f"this node cannot be examined: {error}", file=sys.stderr)
        return 3
    findings = examine(Patient(facts, node, names))
    secrets = find_secrets(node)
    told = [{"what": mask(finding.what, secrets), "cure": mask(finding.cure, secrets)} for finding in findings]
    if as_json:
        print(json.dumps({"version": 1, "node": node["node"], "findings": told}, indent=2))
    else:
        for finding in told:
            print("{what}\n  cure: {cure}".format(**finding))
        print("{} found on {} ({})".format(len(told) or "nothing", node["node"], facts["role"]), file=sys.stderr)
    return 1 if findings else 0


def read_names(place: str | None) -> list[str]:
    """Names of computes, one per line, from a file or from stdin (-)."""
    if place is None:
        return []
    text = sys.stdin.read() if place == "-" else Path(place).read_text()
    return text.split()


def list_step_names() -> list[str]:
    """Every step of this node's role, begun or not. Raises Refused and Waiting while there is no role yet."""
    facts, node = metadata.read_facts(), metadata.read_node()
    return list(make_role(facts, node, Status(node["node"], metadata.check_role(facts))).list_step_names())


def retry_step(step: str) -> int:
    """Has the agent try a step again, waits for the outcome and prints it; returns a code of RETRY_CODES."""
    document = read_status()
    if not document:
        return 3
    try:
        names = list_step_names()
    except (Refused, Waiting, PermissionError):  # no role yet, or nobody who may see it
        names = [entry["name"] for entry in document["steps"]]
    if step not in names:
        print("there is no step {} here; the steps are: {}".format(step, ", ".join(names)), file=sys.stderr)
        return 3
    try:
        print(retry.ask(step, document), file=sys.stderr)
    except CommandFailed as error:
        print(error, file=sys.stderr)
        return 3
    entry = retry.follow(step, document)
    print(": ".join(filter(None, ("{name} {state}".format(**entry), entry.get("detail")))))
    return {"done": 0, "failed": 2}.get(entry["state"], 1)


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="imagegen-node", description=OVERVIEW, epilog=PLACES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,status,doctor,retry,erase-seed}")
    commands.add_parser(
        "run",
        help="make this node ready (what imagegen-node.service does)",
        description="Makes this node ready. Needs root; imagegen-node.service runs it, so start that instead: "
        "systemctl restart imagegen-node",
    )
    status = commands.add_parser("status", help="where this node is", epilog=STATUS_CODES)
    status.add_argument("--json", action="store_true", help="print the status document as JSON")
    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with this node, and how to cure it",
        description="Checks the seed's files, the disk, the clock, the backing services, the schemas, the cells, the "
        "computes and the units, and says how to cure whatever is wrong. Needs root; changes nothing.",
        epilog=DOCTOR_CODES,
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--expect", metavar="FILE", help="names of computes that should exist, one per line; - is stdin (controllers)"
    )
    again = commands.add_parser(
        "retry",
        help="try a step again now",
        description="Makes the agent try that step now instead of after its pause, and says how it ended. A step that "
        "is already done is checked again, together with all the others. Needs root.",
        epilog=RETRY_CODES,
    )
    again.add_argument("step", metavar="STEP", help="its name, as `imagegen-node status` lists it")
    commands.add_parser(
        "erase-seed",
        help="erase the seed in this disk's seed partition",
        description="Overwrites the seed partition of this disk, so that a seed on a medium is used instead. The agent "
        "does this when the node is ready, and imagegen-medium.service when a medium labelled cidata is attached. "
        "Needs root.",
    )
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run_role()
    if given.command == "erase-seed":
        print(seed.erase() or "this disk has no seed partition")
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `imagegen-node status | head` ends as any command does
    if given.command == "status":
        return show_status(given.json)
    return retry_step(given.step) if given.command == "retry" else examine_node(given.json, given.expect)
