"""imagegen init."""

from __future__ import annotations

import os
from pathlib import Path

import click

from imagegen.base.errors import BadUsage
from imagegen.base.handles import open_directory, put_file, remove
from imagegen.base.owners import find_caller, find_place
from imagegen.base.tree import File, text
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

    Nodes recognise `imagegen serve` by the CA (ca.pem, ca.key). Existing files are never overwritten; next to a cluster
    file or secrets of an earlier version, only the CA is made.

    \b
    Examples:
      imagegen init
      imagegen init demo && imagegen -c demo/cluster.yaml validate
    """
    place = find_place(directory, hint="give another directory")
    authority = generate_authority()
    texts = {"cluster.yaml": text(default_text()), "secrets.yaml": text(generate_secrets(), 0o600)}
    pair = {CERTIFICATE: File(authority.certificate), KEY: File(authority.key, 0o600)}
    there = [place / name for name in (*texts, *pair) if os.path.lexists(place / name)]
    if there and any(path.name in pair for path in there):
        names = " and ".join(map(os.fspath, there))
        lost = [place / name for name in pair if place / name not in there]
        half = next(path for path in there if path.name in pair)
        hint = explain_half(half, *lost)[1] if lost else "give another directory"
        raise BadUsage(f"{names} exist already and are left as they are", hint)
    files = {place / name: file for name, file in (pair if there else texts | pair).items()}
    with open_directory(place, make=True, owner=find_caller()) as handle:
        for path, file in files.items():
            _write_new(handle, path, file)
    if there:
        say(settings, f"{' and '.join(map(os.fspath, there))} stay as they are; only the CA was made")
    else:
        say(settings, "edit cluster.yaml, then run `imagegen validate`; secrets.yaml and ca.key are for your eyes only")
    return print_paths(*files)


def _write_new(directory: int, path: Path, file: File) -> None:
    """Writes a file of the caller's that must not be there yet, whole or not at all. Raises BadUsage when it is."""
    beside = f".{path.name}.{os.getpid()}"
    put_file(directory, beside, file.data, file.mode, path, owner=find_caller())
    try:
        os.link(beside, path.name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        raise BadUsage(f"{path} exists already and is left as it is", "give another directory") from None
    finally:
        remove(directory, beside)
