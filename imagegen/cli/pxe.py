"""imagegen pxe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from imagegen.base.access import explain_closed
from imagegen.base.errors import MachineLacks
from imagegen.base.marks import mark_tree
from imagegen.base.outdir import work_in
from imagegen.base.tree import write_tree
from imagegen.cli.inputs import load_own_cluster
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say, warn
from imagegen.outputs.pxe import LOADERS, find_images, link_files, pxe_tree

IPXE = Path("/usr/lib/ipxe")  # Debian's package ipxe


@click.command()
@common_options
@click.pass_obj
def pxe(settings: Settings) -> Outcome:
    """Write pxe/: iPXE scripts, hard links to the built images, and configurations for dnsmasq and nginx.

    Nothing in it is secret, and any web and TFTP server can serve it. A node writes its image to its disk
    (`deploy: {mode: deploy}`, the default) or runs it live from memory.

    \b
    Examples:
      imagegen pxe
      sudo dnsmasq --conf-file="$PWD/out/pxe/dnsmasq.conf"
    """
    cluster, out = load_own_cluster(settings), settings.out
    images = find_images(cluster, out)
    root = out.absolute() / "pxe"
    tree = pxe_tree(cluster, images, root)
    loaders = {f"ipxe/{name}": (IPXE / name).resolve() for name in LOADERS if (IPXE / name).is_file()}
    if not loaders:
        raise MachineLacks("iPXE's boot files are missing", f"install the package ipxe: they belong in {IPXE}")
    links = {**link_files(images.values()), **loaders}
    with work_in(out, ["pxe"], "pxe", lambda line: say(settings, line)):
        write_tree(mark_tree(tree, links), root, links=links)
    if warning := explain_closed(root / "ipxe"):
        warn(settings, warning)
    rows = [{"name": n.name, "role": str(n.role), "image": images[n.role].id} for n in cluster.nodes]
    return replace(print_paths(out / "pxe"), nodes=rows)
