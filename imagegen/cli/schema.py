"""imagegen schema."""

from __future__ import annotations

import json

import click

from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome
from imagegen.model.json_schemas import json_schema


@click.command()
@common_options
@click.pass_obj
def schema(settings: Settings) -> Outcome:
    """Print the JSON schema of the cluster file. With --output json it is the key `schema` of the document.

    \b
    Example, for editors that use the YAML language server:
      imagegen schema > cluster.schema.json
      and in cluster.yaml:  # yaml-language-server: $schema=cluster.schema.json
    """
    found = json_schema("cluster")
    return Outcome(json.dumps(found, indent=2).splitlines(), more={"schema": found})
