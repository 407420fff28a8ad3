"""imagegen schema."""

from __future__ import annotations

import json

import click

from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome
from imagegen.inputs.cluster_file import cluster_schema


@click.command()
@common_options
@click.pass_obj
def schema(settings: Settings) -> Outcome:
    """Print the JSON schema of the cluster file.

    \b
    Example, for editors that use the YAML language server:
      imagegen schema > cluster.schema.json
      and in cluster.yaml:  # yaml-language-server: $schema=cluster.schema.json
    """
    return Outcome(json.dumps(cluster_schema(), indent=2).splitlines())
