"""imagegen verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from imagegen.base.errors import CommandFailed, ExitCode, MachineLacks, Problem
from imagegen.base.signals import end_on_signals
from imagegen.cli.inputs import NodeName, choose_nodes, load_inputs
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, complain, table, warn
from imagegen.cli.progress import progress
from imagegen.inputs.secrets_file import Secrets
from imagegen.local.guest import make_guest
from imagegen.local.instance import STEP_COLUMNS, Step, explain_steps, find_administrator, find_hosts, run_guests
from imagegen.local.reach import Here, Login
from imagegen.local.request import find_tar
from imagegen.local.verify import verify_cluster
from imagegen.model.cluster import Cluster, Node


@click.command()
@click.argument("names", metavar="[NODE]...", nargs=-1, type=NodeName())
@click.option("--instance", is_flag=True, help="Boot a guest on every compute as well.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="MINUTES",
    help="For each step.",
)
@common_options
@click.pass_obj
def verify(settings: Settings, names: tuple[str, ...], instance: bool, timeout: float) -> Outcome:
    """Check a running cluster, or the named nodes of it, from outside, as `boot` does at its end.

    This machine must reach the cluster's APIs. Nova's table of cells is checked on the first controller, if root can
    log in there by ssh without a password.

    With --instance, a guest that is made of the compute's image boots on every compute. It must become ACTIVE, get its
    address by DHCP, read its metadata and reach the next guest, and its console must answer. Everything is made in a
    project of its own, imagegen-verify, and removed at the end; what a killed run has left, the next one removes.

    \b
    Examples:
      imagegen verify
      imagegen verify --instance linux-node2
    """
    cluster, secrets = load_inputs(settings)
    chosen = choose_nodes(settings, cluster, names)
    computes = find_hosts(cluster, secrets, chosen) if instance else []
    faults = [str(fault) for fault in _check(settings, cluster, secrets, chosen, timeout)]
    steps: list[Step] = []
    if computes and not faults:
        steps = _boot_guests(settings, cluster, secrets, computes, timeout)
        faults = explain_steps(steps)
    for fault in faults:
        complain(fault)
    rows = [asdict(step) for step in steps]
    lines = (
        table(rows, STEP_COLUMNS) if steps else [] if faults else [f"{cluster.name}: {len(chosen)} node(s) verified"]
    )
    problems = [Problem("", 0, "", fault) for fault in faults]
    more = {"steps": rows} if instance else {}
    return Outcome(lines, problems=problems, more=more, code=ExitCode.FAILED if faults else ExitCode.DONE)


def _check(
    settings: Settings, cluster: Cluster, secrets: Secrets, nodes: Sequence[Node], timeout: float
) -> list[object]:
    controller, why = _find_controller(cluster)
    if why:
        warn(settings, f"Nova's table of cells is not checked: {why}")
    with progress(settings) as report:
        report("verify", "asking Nova, Keystone, Glance and Neutron")
        return list(verify_cluster(cluster, secrets, nodes, Here(), 60 * timeout, controller))


def _find_controller(cluster: Cluster) -> tuple[Login | None, str]:
    """root on the first controller; or why nobody can log in there."""
    login = Login(cluster.controllers[0])
    try:
        done = login.execute(["true"], timeout=30)
    except (CommandFailed, MachineLacks) as error:
        return None, error.message
    if done.returncode == 0:
        return login, ""
    said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["ssh failed"]
    return None, f"root@{login.node.address}: {said[0]}"


def _boot_guests(
    settings: Settings, cluster: Cluster, secrets: Secrets, computes: Sequence[Node], timeout: float
) -> list[Step]:
    login = find_administrator(cluster, secrets)
    with end_on_signals(), progress(settings, every_line=True) as report:
        report("making the guest", f"from the image of the role {computes[0].role}")
        guest = make_guest(find_tar(settings.out, computes[0].role))
        return run_guests(cluster, login, computes, guest, Here(), 60 * timeout, report)
