"""`imagegen serve` on 127.0.0.1, with real sockets and TLS, and a tree of small files in the place of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from netboot_images import make_images, make_loaders
from repository import AGENT, NETWORK_BOOT

from imagegen.cli.run import run_command
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import load_secrets
from imagegen.local.qemu import free_port
from imagegen.model.cluster import Cluster
from imagegen.seeds.seed import seed_tree
from imagegen.server.provisioning import Provisioning, Serve, Window, provision

sys.path[:0] = [str(NETWORK_BOOT), str(AGENT)]  # what a node runs

HOST = "127.0.0.1"


@dataclass
class Site:
    """A directory with a cluster file and OUT/pxe; its nodes find their server on the loopback."""

    place: Path
    said: list[str] = field(default_factory=list)

    @property
    def cluster(self) -> Cluster:
        return load_cluster(self.place / "cluster.yaml")

    @property
    def directory(self) -> Path:
        return self.place / "out/serve"

    @contextmanager
    def serve(self, window: Window | None = None) -> Iterator[Provisioning]:
        """The server, in this process."""
        secrets = load_secrets(self.cluster.secrets_path)
        self.directory.mkdir(exist_ok=True)
        asked = Serve(
            self.cluster,
            self.place / "out/pxe",
            self.directory,
            lambda cluster, node: seed_tree(cluster, node, secrets),
            window or Window(),
            tls_port=0,
            any_address=True,  # the loopback is none of the cluster's
        )
        with provision(asked, self.said.append) as at_work:
            yield at_work


MakeSite = Callable[[int], Site]


@pytest.fixture
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSite:
    """A site of so many computes, beside the controller."""

    def make(computes: int) -> Site:
        assert run_command(["-q", "init", str(tmp_path)]) == 0
        document = yaml.safe_load((tmp_path / "cluster.yaml").read_text())
        document["pxe"] = {"url": f"http://{HOST}:{free_port()}"}
        document["network"] = {"cidr": "10.77.0.0/16", "gateway": "10.77.0.1"}
        document["nodes"] = [
            {
                "name": "ctl" if number == 0 else f"c-{number}",
                "role": "controller" if number == 0 else "compute",
                "mac": f"52:54:00:57:{number // 250:02x}:{number % 250:02x}",
                "address": f"10.77.{1 + number // 250}.{1 + number % 250}",
            }
            for number in range(computes + 1)
        ]
        document.pop("services")
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document))
        make_images(tmp_path / "out")
        monkeypatch.setattr("imagegen.cli.pxe.IPXE", make_loaders(tmp_path / "ipxe"))
        assert run_command(["-q", "-c", str(tmp_path / "cluster.yaml"), "-o", str(tmp_path / "out"), "pxe"]) == 0
        return Site(tmp_path)

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site(2)


@pytest.fixture
def server(site: Site) -> Iterator[Provisioning]:
    with site.serve() as at_work:
        yield at_work
