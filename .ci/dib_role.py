"""dib_role.py ROLE OUT: the tree of a role, OUT/dib/ROLE.tar, by a bare disk-image-create of the generated elements.

The mirrors are those of this machine's apt; DIB_* variables that are set already are heeded.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from imagegen.images.mirrors import choose_mirrors
from imagegen.model.releases import Distro


def main(role: str, out: Path) -> None:
    programs = Path(sys.executable).parent
    if not (out / "cluster/cluster.yaml").exists():
        subprocess.run([programs / "imagegen", "init", out / "cluster"], check=True)
    subprocess.run([programs / "imagegen", "-c", out / "cluster/cluster.yaml", "-o", out, "generate"], check=True)

    # images.yaml is the same image for the command `diskimage-builder`.
    (image,) = (
        one for one in yaml.safe_load((out / "images.yaml").read_text()) if one["imagename"] == f"imagegen-{role}"
    )
    distro = Distro(suite=image["environment"]["DIB_RELEASE"], arch=image["arch"])
    mirrors = choose_mirrors(distro, os.environ)
    wanted = {
        "ELEMENTS_PATH": str((out / "elements").resolve()),
        **image["environment"],
        "DIB_DISTRIBUTION_MIRROR": mirrors.main,
        "DIB_APT_SOURCES_CONF": mirrors.sources(distro),
    }
    variables = {name: os.environ.get(name, value) for name, value in wanted.items()}
    argv = ["disk-image-create", "-a", distro.arch, "-n", "-t", "tar", "-o", str(out / role), *image["elements"]]
    print("+", *(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(argv), flush=True)
    environment = {**os.environ, **variables, "PATH": f"{programs}:{os.environ['PATH']}"}
    sys.exit(subprocess.run(argv, env=environment).returncode)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) / "dib")
