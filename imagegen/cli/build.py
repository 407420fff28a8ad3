"""imagegen build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from imagegen.base.errors import BadUsage
from imagegen.cli.inputs import load_cluster_or_example
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, table
from imagegen.cli.progress import progress
from imagegen.images.build import FORMATS, build_images
from imagegen.inputs.warnings import untested_release
from imagegen.model.cluster import Cluster
from imagegen.model.roles import roles


@click.command()
@click.option(
    "--role",
    "names",
    multiple=True,
    type=click.Choice([role.name for role in roles()]),
    help="Repeatable. Default: the cluster's roles.",
)
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FORMATS), help="Repeatable. Default: all of them."
)
@click.option("--refresh", is_flag=True, help="Build even if an image with the same ID exists.")
@click.option("--untested", is_flag=True, help="Build a release or distro that nobody has built and booted yet.")
@common_options
@click.pass_obj
def build(
    settings: Settings, names: tuple[str, ...], formats: tuple[str, ...], refresh: bool, untested: bool
) -> Outcome:
    """Build images/ROLE/ROLE-ID.{tar,raw,qcow2}: diskimage-builder makes the tree, imagegen the disk.

    An image holds no secret and no identity, so it suits every cluster of that release. Needs root; sudo does not
    search a virtual environment, hence the long form below. The whole log goes to logs/ in the out directory.

    \b
    Examples:
      sudo "$(command -v imagegen)" build --role controller
      sudo "$(command -v imagegen)" build --format qcow2 --refresh
    """
    cluster = load_cluster_or_example(settings)
    if not untested and (sentence := untested_release(cluster)):
        raise BadUsage(sentence, "choose another `release` and `distro`, or try this one with --untested")
    images = _build_images(settings, cluster, names, formats or tuple(FORMATS), refresh)
    return Outcome(table(images, ("role", "format", "id", "path")), images=images)


def _build_images(
    settings: Settings, cluster: Cluster, names: Sequence[str], formats: Sequence[str], refresh: bool
) -> list[dict[str, Any]]:
    chosen = tuple(role for role in roles() if role.name in names) or cluster.roles
    with progress(settings) as report:
        images = build_images(
            cluster,
            chosen,
            settings.out,
            formats=formats,
            refresh=refresh,
            report=lambda progress: report(f"{progress.role}: {progress.phase}", progress.detail),
        )
    return [{**asdict(image), "role": str(image.role), "path": os.fspath(image.path)} for image in images]
