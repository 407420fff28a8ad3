"""imagegen boot."""

from __future__ import annotations

import traceback
from dataclasses import asdict

import click

from imagegen.base.errors import BadUsage, Problem
from imagegen.base.streams import tell
from imagegen.cli.inputs import NodeName, choose_nodes, load_inputs
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, complain, table
from imagegen.cli.progress import progress
from imagegen.local.boot import ClusterNotReady, boot_cluster
from imagegen.local.hardware import Firmware
from imagegen.local.instance import STEP_COLUMNS
from imagegen.local.request import Boot, NetworkBoot


@click.command()
@click.argument("names", metavar="[NODE]...", nargs=-1, type=NodeName())
@click.option(
    "--backend",
    type=click.Choice(["qemu", "nspawn"]),
    default="qemu",
    show_default=True,
    help="nspawn needs root.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Default: 20, without KVM 60.",
)
@click.option("--keep", is_flag=True, help="Leave the nodes running and print how to log in.")
@click.option("--instance", is_flag=True, help="At the end, boot a guest on every compute, as `verify` does.")
@click.option("--pxe", "over_network", is_flag=True, help="Boot blank machines over the network (root).")
@click.option(
    "--from-disk",
    multiple=True,
    type=NodeName(),
    help="Repeatable. With --pxe: boot this node from its image and ISO.",
)
@click.option(
    "--firmware", type=click.Choice(["bios", "uefi"]), help="With --pxe: the blank machines' firmware. Default: uefi."
)
@click.option("--proxy-dhcp", is_flag=True, help="With --pxe: leave addresses to another DHCP server.")
@common_options
@click.pass_obj
def boot(
    settings: Settings,
    names: tuple[str, ...],
    backend: str,
    timeout: float | None,
    keep: bool,
    instance: bool,
    over_network: bool,
    from_disk: tuple[str, ...],
    firmware: str | None,
    proxy_dhcp: bool,
) -> Outcome:
    """Boot the named nodes, or all, from built images and fresh seeds; wait until they are ready; check the cluster.

    Exit code 0 means that every node is ready and was verified from outside. With --pxe the machines start with blank
    disks: they get DHCP, the files of `imagegen pxe` and their seeds over a network inside this machine.

    \b
    Examples:
      imagegen boot
      imagegen boot linux-node1 --timeout 90
      sudo "$(command -v imagegen)" boot --backend nspawn --instance --keep
      imagegen pxe && sudo "$(command -v imagegen)" boot --pxe --from-disk linux-node1
    """
    if not over_network and (from_disk or firmware or proxy_dhcp):
        raise BadUsage("--from-disk, --firmware and --proxy-dhcp apply only to network boots", "add --pxe")
    if over_network and backend != "qemu":
        raise BadUsage("--pxe needs virtual machines", "leave --backend out")
    cluster, secrets = load_inputs(settings)
    chosen = choose_nodes(settings, cluster, names)
    choose_nodes(settings, cluster, from_disk)
    network = NetworkBoot(frozenset(from_disk), Firmware(firmware or "uefi"), proxy_dhcp) if over_network else None
    return _boot_nodes(
        settings,
        Boot(cluster, secrets, settings.out, chosen, backend, network, timeout and timeout * 60, keep, instance),
    )


def _boot_nodes(settings: Settings, boot: Boot) -> Outcome:
    columns = ("name", "role", "state", "seconds", "image")
    try:
        with progress(settings, every_line=True) as report:
            booted = boot_cluster(boot, report)
    except ClusterNotReady as error:
        if settings.debug:
            tell("".join(traceback.format_exception(error)).rstrip())
        complain(error.message, error.hint)
        rows = [asdict(result) for result in error.nodes]
        problems = [Problem("", 0, "", error.message, error.hint)]
        return Outcome(table(rows, columns), nodes=rows, problems=problems, code=error.exit_code)
    rows = [asdict(result) for result in booted.nodes]
    steps = [asdict(step) for step in booted.steps]
    lines = table(rows, columns) + (["", *table(steps, STEP_COLUMNS)] if steps else [])
    return Outcome(lines, nodes=rows, more={"steps": steps} if steps else {})
