"""imagegen seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from imagegen.base.outdir import work_in
from imagegen.cli.inputs import NodeName, choose_nodes, load_inputs, remove_files_of_others
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say
from imagegen.cli.progress import progress
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.seeds.iso import write_seed_iso
from imagegen.seeds.seed import seed_tree


@click.command()
@click.argument("names", metavar="[NODE]...", nargs=-1, type=NodeName())
@common_options
@click.pass_obj
def seed(settings: Settings, names: tuple[str, ...]) -> Outcome:
    """Write seeds/NODE.iso (0600, label cidata) for the named nodes, or for all.

    A seed holds the node's secrets: attach it to that machine and to no other.

    \b
    Examples:
      imagegen seed
      imagegen seed linux-node1 -o /srv/seeds
    """
    cluster, secrets = load_inputs(settings)
    chosen = choose_nodes(settings, cluster, names)
    paths = _write_isos(settings, cluster, secrets, chosen, whole=not names)
    rows = [
        {"name": n.name, "role": str(n.role), "seed": os.fspath(path)} for n, path in zip(chosen, paths, strict=True)
    ]
    return replace(print_paths(*paths), nodes=rows)


def _write_isos(
    settings: Settings, cluster: Cluster, secrets: Secrets, nodes: Sequence[Node], *, whole: bool
) -> list[Path]:
    """The ISOs of these nodes; `whole`: they are all of the cluster's, and what others are there goes."""
    out = settings.out
    seeds = out / "seeds"
    isos = [f"{node.name}.iso" for node in nodes]
    with (
        work_in(out, ["seeds"], "seed", lambda line: say(settings, line), seeds=isos),
        progress(settings) as report,
    ):
        for number, node in enumerate(nodes, 1):
            report("writing seeds", f"{number} of {len(nodes)}")
            write_seed_iso(seed_tree(cluster, node, secrets), seeds / f"{node.name}.iso")
        if whole:
            remove_files_of_others(settings, out, cluster)
    return [seeds / f"{node.name}.iso" for node in nodes]
