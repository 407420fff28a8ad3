"""One bring-up for the whole tier: a compute from disk image and seed ISO under BIOS, and over the network, under UEFI,
one that is deployed to a blank disk; their controller is a container. With --full the controller is the machine from
disk image and seed ISO, and a compute runs live.

On a bad day: see bad_day.py.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator
from pathlib import Path

import bad_day
import pytest
from bad_day import BOOTED, HOST
from bringup import (
    BOOT_MINUTES,
    IMAGES,
    LIVE_NODE,
    SECOND_COMPUTE,
    BootedCluster,
    run_imagegen,
    write_inputs,
)
from netboot_images import share_images

from imagegen.base.signals import end_on_signals
from imagegen.inputs.cluster_file import load_cluster
from imagegen.local.boot import remove_leftovers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="a live compute, and a host that loses power, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: of a live compute, or a host that lost power: with --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def cluster_directory(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The tier's cluster file and secrets, and the images that the build left in out/."""
    more_nodes = LIVE_NODE if request.config.getoption("full") else SECOND_COMPUTE
    directory = write_inputs(tmp_path_factory.mktemp("vm"), more_nodes)
    share_images(IMAGES, directory / "out")
    return directory


@pytest.fixture(scope="session")
def booted(cluster_directory: Path, request: pytest.FixtureRequest) -> Generator[BootedCluster]:
    """The cluster as `imagegen boot --keep` leaves it after a bad day; its machines end with the tier."""
    out, full = cluster_directory / "out", request.config.getoption("full")
    from_disk = HOST if full else BOOTED
    options = ["-c", str(cluster_directory / "cluster.yaml"), "-o", str(out), "--output", "json"]
    with end_on_signals():
        run_imagegen([*options, "pxe"])
        try:
            done = run_imagegen(
                [*options, "boot", "--pxe", "--from-disk", from_disk, "--keep", "--timeout", str(BOOT_MINUTES)],
                check=False,
                program=[bad_day.__file__, *(["--full"] if full else [])],
                each_line=lambda line: print(line, end="", file=sys.stderr, flush=True),
            )
            logins = {
                words[0]: words[3:]
                for words in map(shlex.split, done.stderr.splitlines())
                if words[1:3] == ["login", "kept"]
            }
            cluster = load_cluster(cluster_directory / "cluster.yaml")
            machines = [node for node in cluster.nodes if full or node.name != HOST]
            said = (done.returncode, done.stdout, done.stderr)
            yield BootedCluster(cluster, machines, from_disk, out / "boot", *said, logins)
        finally:
            remove_leftovers(out / "boot")
