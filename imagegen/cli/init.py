"""imagegen init."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import click

from imagegen.base.errors import BadUsage, ImagegenError
from imagegen.base.handles import open_directory, put_file, remove, remove_empty
from imagegen.base.owners import find_caller, find_place
from imagegen.base.tree import File, text
from imagegen.cli.options import Directory, Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say
from imagegen.inputs.ca import CERTIFICATE, KEY, explain_half, generate_authority
from imagegen.inputs.cluster_file import default_text, load_cluster
from imagegen.inputs.secrets_file import generate_secrets

SECRETS = "secrets.yaml"


@click.command()
@click.argument("directory", metavar="[DIR]", default=".", type=Directory(path_type=Path))
@common_options
@click.pass_obj
def init(settings: Settings, directory: Path) -> Outcome:
    """Write cluster.yaml (one controller, one compute), secrets.yaml (generated, 0600) and a CA to DIR.

    Nodes recognise `imagegen serve` by the CA (ca.pem, ca.key). Existing files are never overwritten: of cluster.yaml,
    secrets.yaml and the CA, what is missing is made.

    \b
    Examples:
      imagegen init
      imagegen init demo && imagegen -c demo/cluster.yaml validate
    """
    place = find_place(directory, hint="choose another directory")
    authority = generate_authority()
    pair = {CERTIFICATE: File(authority.certificate), KEY: File(authority.key, 0o600)}
    files = {"cluster.yaml": text(default_text()), SECRETS: text(generate_secrets(), 0o600), **pair}
    there = [name for name in files if os.path.lexists(place / name)]
    lost = [place / name for name in pair if name not in there]
    if len(lost) == 1:
        half = next(place / name for name in pair if name in there)
        raise _refuse([place / name for name in there], explain_half(half, *lost)[1])
    new = [name for name in files if name not in there and not (name == SECRETS and _names_other_secrets(place))]
    if not new:
        raise _refuse([place / name for name in there])
    _write_all({place / name: files[name] for name in new}, place)
    if there:
        kept = " and ".join(os.fspath(place / name) for name in there)
        say(settings, f"made {' and '.join(new)}; kept {kept}")
        if SECRETS in new:
            say(settings, f"nodes that already run do not know the passwords of the new {SECRETS}: they need new seeds")
    else:
        say(settings, f"edit cluster.yaml, then run `imagegen validate`; {SECRETS} and {KEY} are for your eyes only")
    return print_paths(*(place / name for name in new))


def _refuse(there: Sequence[Path], hint: str = "choose another directory") -> BadUsage:
    return BadUsage(f"refusing to overwrite {' and '.join(map(os.fspath, there))}", hint)


def _names_other_secrets(place: Path) -> bool:
    """Whether the cluster file there has its secrets in another file, which is there."""
    with suppress(ImagegenError, OSError):
        path = load_cluster(place / "cluster.yaml").secrets_path
        return path.name != SECRETS and path.exists()
    return False


def _write_all(files: Mapping[Path, File], place: Path) -> None:
    """Writes these files in the directory `place`, which is made when it is missing. What fails leaves nothing."""
    missing = [path for path in (place, *place.parents) if not os.path.lexists(path)]
    made: list[str] = []
    try:
        with open_directory(place, make=True, owner=find_caller()) as handle:
            try:
                for path, file in files.items():
                    _write_new(handle, path, file)
                    made.append(path.name)
            except BaseException:
                for name in made:
                    remove(handle, name)
                raise
    except BaseException:
        for path in missing:
            remove_empty(path)
        raise


def _write_new(directory: int, path: Path, file: File) -> None:
    """Writes a file of the caller's that must not be there yet, whole or not at all. Raises BadUsage when it is."""
    beside = f".{path.name}.{os.getpid()}"
    put_file(directory, beside, file.data, file.mode, path, owner=find_caller())
    try:
        os.link(beside, path.name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        raise BadUsage(f"refusing to overwrite {path}", "choose another directory") from None
    finally:
        remove(directory, beside)
