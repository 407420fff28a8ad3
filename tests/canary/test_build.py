"""A build amid canaries, in the cluster file, the secrets file and the environment: none gets into what it makes.

It builds the compute's image into out/, from where the other tiers take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bringup import CHECKOUT, IMAGES, current_image, find_secrets, run_imagegen, write_inputs
from canaries import PLANTED
from secret_places import name_secrets
from watch import ProcessWatch, spell_secret

from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import load_secrets


@dataclass(frozen=True)
class CanaryBuild:
    """What a build left, what was said meanwhile and what its processes were given."""

    files: list[Path]
    said: str
    watch: ProcessWatch
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def canary_build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CanaryBuild]:
    """The compute's image, built while all processes of this machine are looked at from outside."""
    directory = write_inputs(tmp_path_factory.mktemp("canary"))
    cluster = load_cluster(directory / "cluster.yaml")
    secrets = {**name_secrets(cluster, load_secrets(directory / "secrets.yaml")), **PLANTED}
    options = ["-c", str(directory / "cluster.yaml"), "-o", str(CHECKOUT / "out")]
    for more in ([], ["--refresh"]):
        with ProcessWatch(secrets) as watch:
            done = run_imagegen([*options, "build", "--role", "compute", *more])
        if "compute: dib: " in done.stderr:
            break  # the whole image was built; a cache may hold it, or its tree without the other formats
    image = current_image("compute")
    files = [path for path in (IMAGES / "compute").iterdir() if image in path.name or path.suffix in ("", ".json")]
    files.append(CHECKOUT / f"out/logs/compute-{image}.log")
    yield CanaryBuild(files, done.stdout + done.stderr, watch, secrets)


def test_no_canary_is_built_in(canary_build: CanaryBuild) -> None:
    """Neither image, manifest, sums, log nor the build's own words hold one; the same search finds what is there."""
    kinds = {path.suffix for path in canary_build.files}
    assert {".tar", ".raw", ".qcow2", ".log", ".json", ""} <= kinds
    assert find_secrets(canary_build.files, canary_build.secrets) == []
    image = next(path for path in canary_build.files if path.suffix == ".raw")
    assert find_secrets([image], {"every image": "imagegen-node.service"}) == [str(image)]
    spelled = {one for value in canary_build.secrets.values() for one in spell_secret(value)}
    assert not [one for one in spelled if one in canary_build.said]


def test_no_process_of_a_build_was_given_a_canary(canary_build: CanaryBuild) -> None:
    """Of the environment only what a proxy needs goes on to dib, which puts it into arguments: a login there is
    refused before the build."""
    watch = canary_build.watch
    assert watch.rounds > 100
    assert [given.argv for given in watch.seen if given.in_argv - {"no_proxy"}] == []
    own = ("-m", "imagegen")
    lent = {name for given in watch.seen if own != given.argv[1:3] for name in given.in_environment}
    assert lent == {"no_proxy"}, "what imagegen was given went further"
    assert any("environment" in given.in_environment for given in watch.seen), "the watch did not see the build"
