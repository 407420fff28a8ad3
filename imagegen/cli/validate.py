"""imagegen validate."""

from __future__ import annotations

from dataclasses import replace

import click

from imagegen.base.errors import BadInput, ExitCode, Problem
from imagegen.base.streams import tell
from imagegen.cli.inputs import read_own_cluster
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, complain, say
from imagegen.inputs.prerequisites import explain_external
from imagegen.inputs.warnings import find_warnings
from imagegen.outputs.pxe import find_long_lines


@click.command()
@click.option("--explain", is_flag=True, help="Print what you must create at services outside the cluster.")
@click.option("--strict", is_flag=True, help="Exit with 2 for warnings, too.")
@common_options
@click.pass_obj
def validate(settings: Settings, explain: bool, strict: bool) -> Outcome:
    """Check the cluster file and print every problem as FILE:LINE: PATH: MESSAGE.

    A file without problems may still have warnings: FILE:LINE: PATH: warning: MESSAGE. Secrets are not read. --explain
    prints the commands for the administrators of services outside the cluster.

    \b
    Examples:
      imagegen validate
      imagegen -c site/cluster.yaml validate --output json
      ./make-cluster | imagegen validate --strict -c -
      imagegen validate --explain
    """
    cluster, found = read_own_cluster(settings)
    for path, message in find_long_lines(cluster):
        found.add(path, message)
    if found.problems:
        raise BadInput(found.problems)
    settings.warnings += find_warnings(cluster, found)
    for warning in settings.warnings:
        tell(str(replace(warning, message=f"warning: {warning.message}")))
    lines = explain_external(cluster) if explain else []
    if explain and not lines:
        say(settings, "every service is in the cluster: you need not create anything")
    more = {"explain": lines} if explain else {}
    if strict and settings.warnings:
        fault = f"{found.file} has {len(settings.warnings)} warning(s), and --strict allows none"
        complain(fault)
        return Outcome(lines, problems=[Problem("", 0, "", fault)], code=ExitCode.BAD_INPUT, more=more)
    say(settings, f"{found.file}: no problems, {len(cluster.nodes)} node(s)")
    return Outcome(lines, more=more)
