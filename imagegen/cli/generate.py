"""imagegen generate."""

from __future__ import annotations

from pathlib import Path

import click

from imagegen.base.marks import mark_tree
from imagegen.base.outdir import work_in
from imagegen.base.resources import data_directory
from imagegen.base.tree import read_tree, write_file, write_tree
from imagegen.cli.inputs import load_inputs, remove_files_of_others
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say
from imagegen.images.build import image_content_id
from imagegen.images.elements import elements_tree, images_yaml
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster
from imagegen.seeds.seed import seed_tree


@click.command()
@common_options
@click.pass_obj
def generate(settings: Settings) -> Outcome:
    """Write elements/, images.yaml and seeds/NODE/ to the out directory.

    Text only. Needs neither root nor a network. The same input gives the same bytes, so you can compare results.

    \b
    Examples:
      imagegen generate
      imagegen generate -o new && diff -r out/elements new/elements
    """
    cluster, secrets = load_inputs(settings)
    return print_paths(*_write_texts(settings, cluster, secrets))


def _write_texts(settings: Settings, cluster: Cluster, secrets: Secrets) -> list[Path]:
    out, release = settings.out, cluster.release
    static = read_tree(data_directory("elements"))
    ids = {role: image_content_id(role, release, static) for role in cluster.roles}
    elements = elements_tree(static, cluster.roles, release, ids)
    seeds = {out / "seeds" / node.name: seed_tree(cluster, node, secrets) for node in cluster.nodes}
    names, nodes = ["elements", "images.yaml", "seeds"], [node.name for node in cluster.nodes]
    with work_in(out, names, "generate", lambda line: say(settings, line), seeds=nodes):
        write_tree(mark_tree(elements), out / "elements")
        write_file(out / "images.yaml", images_yaml(cluster.roles, cluster.release.distro))
        for place, tree in seeds.items():
            write_tree(tree, place, directory_mode=0o700)
        remove_files_of_others(settings, out, cluster)
    return [out / "elements", out / "images.yaml", *seeds]
