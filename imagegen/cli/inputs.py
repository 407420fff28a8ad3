"""The cluster file and its secrets as a command wants them, and the nodes that it was told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from imagegen.base.errors import BadUsage, ImagegenError
from imagegen.base.marks import remove_old_files
from imagegen.cli.options import DEFAULT_CLUSTER, Settings
from imagegen.cli.output import say, warn
from imagegen.inputs.cluster_file import load_cluster, read_cluster
from imagegen.inputs.secrets_file import Secrets, load_secrets, secrets_warnings
from imagegen.inputs.yaml_file import Findings, name_file, quoted, suggest
from imagegen.model.cluster import Cluster, Node
from imagegen.model.logins import typed_secrets


def name_cluster_file(settings: Settings) -> str:
    return name_file(settings.cluster or DEFAULT_CLUSTER)


def load_cluster_or_example(settings: Settings) -> Cluster:
    """The cluster file, or the embedded default when none was named and none is there."""
    if settings.cluster is None and not os.path.lexists(DEFAULT_CLUSTER):
        say(settings, f"{DEFAULT_CLUSTER} not found; using the built-in example")
        return load_cluster(None)
    return load_cluster(settings.cluster or DEFAULT_CLUSTER)


def load_own_cluster(settings: Settings) -> Cluster:
    """The cluster file. Raises BadInput, and BadUsage when there is none."""
    return read_own_cluster(settings)[0]


def read_own_cluster(settings: Settings) -> tuple[Cluster, Findings]:
    """The same, and what stands where in it."""
    if settings.cluster is None and not os.path.lexists(DEFAULT_CLUSTER):
        raise BadUsage(f"{DEFAULT_CLUSTER} not found", "run `imagegen init`, or name a cluster file with -c")
    return read_cluster(settings.cluster or DEFAULT_CLUSTER)


def load_inputs(settings: Settings) -> tuple[Cluster, Secrets]:
    """The cluster file and its secrets. Raises as load_own_cluster()."""
    cluster = load_own_cluster(settings)
    secrets = load_secrets(cluster.secrets_path, typed_secrets(cluster))
    warn_of_readers(settings, cluster)
    return cluster, secrets


def warn_of_readers(settings: Settings, cluster: Cluster) -> None:
    """Says when other people can read secrets.yaml, or the key of the CA next to it."""
    for path in (cluster.secrets_path, cluster.secrets_path.parent / "ca.key"):
        for warning in secrets_warnings(path):
            warn(settings, warning)


def choose_nodes(settings: Settings, cluster: Cluster, names: Sequence[str]) -> tuple[Node, ...]:
    """The named nodes in file order; without names all of them. Raises BadUsage for a name that no node has."""
    known = [node.name for node in cluster.nodes]
    for name in names:
        if name not in known:
            raise BadUsage(f"{name_cluster_file(settings)} has no node {quoted(name)}{suggest(name, known)}")
    return tuple(node for node in cluster.nodes if not names or node.name in names)


class NodeName(click.ParamType):  # type: ignore[type-arg]
    """A node's name, which a shell completes; with nothing when there is no good cluster file."""

    name = "NODE"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        with suppress(ImagegenError):
            names = [node.name for node in load_cluster(ctx.obj.cluster or DEFAULT_CLUSTER).nodes]
            return [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return []


def remove_files_of_others(settings: Settings, out: Path, cluster: Cluster) -> None:
    """Removes secrets in OUT of nodes that the cluster file has no more, and says so."""
    for place in remove_old_files(out, [node.name for node in cluster.nodes]):
        say(settings, f"removed {place}: {name_cluster_file(settings)} has no such node")
