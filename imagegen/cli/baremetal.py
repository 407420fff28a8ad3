"""imagegen baremetal."""

from __future__ import annotations

from dataclasses import replace

import click

from imagegen.base.marks import mark_tree
from imagegen.base.outdir import work_in
from imagegen.base.tree import write_tree
from imagegen.cli.inputs import load_inputs, remove_files_of_others
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say
from imagegen.outputs.ironic import SUFFIXES, ironic_tree
from imagegen.outputs.metal3 import metal3_tree
from imagegen.outputs.pxe import find_images
from imagegen.seeds.seed import make_seed


@click.command()
@click.option("--ironic", is_flag=True, help="Write Ironic's files only, unless --metal3 is given too.")
@click.option("--metal3", is_flag=True, help="Write Metal3's files only, unless --ironic is given too.")
@click.option("--driver", default="redfish", show_default=True, help="The driver of the nodes in Ironic.")
@common_options
@click.pass_obj
def baremetal(settings: Settings, ironic: bool, metal3: bool, driver: str) -> Outcome:
    """Write ironic/ (nodes.yaml, instance-info/, configdrive/) and metal3/ (BareMetalHosts with their Secrets).

    Config drives and Secrets hold the nodes' secrets. Images are named by their URL in the tree of `imagegen pxe` and
    their sha256. Live nodes are left out, because Ironic and Metal3 write images to disks. root_device selects the same
    disk everywhere. A hint that Metal3 cannot express stops the command before it writes anything; --ironic leaves
    Metal3 out.

    \b
    Examples:
      imagegen baremetal && openstack baremetal create out/ironic/nodes.yaml
      kubectl apply -f out/metal3/linux-node2.yaml
    """
    whole, secrets = load_inputs(settings)
    cluster = replace(whole, nodes=tuple(node for node in whole.nodes if node.deploy.mode == "deploy"))
    if live := [node.name for node in whole.nodes if node not in cluster.nodes]:
        say(settings, f"left out, because they are live: {', '.join(live)}")
    images = find_images(cluster, settings.out, SUFFIXES)
    seeds = {node.name: make_seed(cluster, node, secrets) for node in cluster.nodes}
    trees = {}
    if ironic or not metal3:
        trees["ironic"] = ironic_tree(cluster, images, seeds, driver)
    if metal3 or not ironic:
        trees["metal3"] = metal3_tree(cluster, images, seeds)
    with work_in(settings.out, list(trees), "baremetal", lambda line: say(settings, line)):
        for name, tree in trees.items():
            write_tree(mark_tree(tree), settings.out / name, directory_mode=0o700)
        remove_files_of_others(settings, settings.out, whole)
    rows = [{"name": n.name, "role": str(n.role), "image": images[n.role].id} for n in cluster.nodes]
    return replace(print_paths(*(settings.out / name for name in trees)), nodes=rows)
