"""imagegen init."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from imagegen.base.errors import BadUsage
from imagegen.base.handles import open_directory
from imagegen.base.tree import File, text, write_file
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say
from imagegen.inputs.ca import CERTIFICATE, KEY, explain_half, generate_authority
from imagegen.inputs.cluster_file import default_text
from imagegen.inputs.secrets_file import generate_secrets


@click.command()
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def init(settings: Settings, directory: Path) -> Outcome:
    """Write cluster.yaml (one controller, one compute), secrets.yaml (generated, 0600) and a CA to DIR.

    Nodes recognise `imagegen serve` by the CA (ca.pem, ca.key). Existing files are never overwritten. Next to a cluster
    file or secrets of an earlier version, only the CA is made.

    \b
    Examples:
      imagegen init
      imagegen init demo && imagegen -c demo/cluster.yaml validate
    """
    authority = generate_authority()
    texts = {"cluster.yaml": text(default_text()), "secrets.yaml": text(generate_secrets(), 0o600)}
    pair = {CERTIFICATE: File(authority.certificate), KEY: File(authority.key, 0o600)}
    there = [directory / name for name in (*texts, *pair) if os.path.lexists(directory / name)]
    if there and any(path.name in pair for path in there):
        names = " and ".join(map(os.fspath, there))
        lost = [directory / name for name in pair if directory / name not in there]
        half = next(path for path in there if path.name in pair)
        hint = explain_half(half, *lost)[1] if lost else "choose another directory"
        raise BadUsage(f"refusing to overwrite {names}", hint)
    files = {directory / name: file for name, file in (pair if there else texts | pair).items()}
    with open_directory(directory.resolve(), make=True):
        for path, file in files.items():
            _write_new(path, file)
    if there:
        say(settings, f"made only the CA; kept {' and '.join(map(os.fspath, there))}")
    else:
        say(settings, "edit cluster.yaml, then run `imagegen validate`; secrets.yaml and ca.key are for your eyes only")
    return print_paths(*files)


def _write_new(path: Path, file: Any) -> None:
    """Writes a file that must not be there yet, whole or not at all. Raises BadUsage when it is."""
    beside = path.parent.resolve() / f".{path.name}.{os.getpid()}"
    write_file(beside, file)
    try:
        os.link(beside, path)
    except FileExistsError:
        raise BadUsage(f"refusing to overwrite {path}", "choose another directory") from None
    finally:
        beside.unlink()
