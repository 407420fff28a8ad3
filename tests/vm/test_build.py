"""A cold build amid canaries, in the cluster file, the secrets file and the environment; its image under UEFI."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bringup import find_secrets, run_imagegen
from canaries import PLANTED
from secret_places import name_secrets
from watch import ProcessWatch, spell_secret

from imagegen.boot import find_image
from imagegen.cluster import load_cluster
from imagegen.model import Role
from imagegen.qemu import Firmware, Qemu
from imagegen.secrets import load_secrets
from imagegen.seeds import seed_tree

LOGIN_MINUTES = 12
POLL = 2.0  # seconds between two looks at a console


@dataclass(frozen=True)
class CanaryBuild:
    """A role's image built from nothing, what was said meanwhile and what its processes were given."""

    directory: Path
    said: str
    watch: ProcessWatch
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def canary_build(cluster_directory: Path) -> Generator[CanaryBuild]:
    """A cold build of the compute's image, with a cache of its own, and all of it looked at from outside."""
    directory = cluster_directory / "canary"
    cluster = load_cluster(cluster_directory / "cluster.yaml")
    secrets = {**name_secrets(cluster, load_secrets(cluster_directory / "secrets.yaml")), **PLANTED}
    words = ["-c", str(cluster_directory / "cluster.yaml"), "-o", str(directory / "out"), "build", "--role", "compute"]
    try:
        with ProcessWatch(secrets) as watch:
            done = run_imagegen(words, extra={"XDG_CACHE_HOME": str(directory / "cache")})
        yield CanaryBuild(directory, done.stdout + done.stderr, watch, secrets)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_no_canary_is_built_in(canary_build: CanaryBuild) -> None:
    """Neither image, manifest, sums, log nor the build's own words hold one; the same search finds what is there."""
    files = [path for path in canary_build.directory.rglob("*") if path.is_file() and path.stat().st_size]
    kinds = {path.suffix for path in files}
    assert {".tar", ".raw", ".qcow2", ".log", ".json"} <= kinds
    assert find_secrets(files, canary_build.secrets) == []
    image = next(path for path in files if path.suffix == ".raw")
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


def test_a_login_prompt_under_uefi(cluster_directory: Path, canary_build: CanaryBuild) -> None:
    """An image that boots under BIOS boots under OVMF as well."""
    cluster = load_cluster(cluster_directory / "cluster.yaml")
    secrets = load_secrets(cluster_directory / "secrets.yaml")
    node = cluster.node("attic-c1")
    image = find_image(canary_build.directory / "out", Role.COMPUTE, "qemu")
    with Qemu(cluster, cluster_directory / "uefi", firmware=Firmware.UEFI) as network:
        machine = network.add(node, image, seed_tree(cluster, node, secrets))
        machine.start()
        deadline = time.monotonic() + LOGIN_MINUTES * 60
        while not any(line.startswith(f"{node.name} login:") for line in machine.console(50)):
            assert machine.alive(), "the machine ended:\n" + "\n".join(machine.console(50))
            assert time.monotonic() < deadline, "no login prompt:\n" + "\n".join(machine.console(50))
            time.sleep(POLL)
