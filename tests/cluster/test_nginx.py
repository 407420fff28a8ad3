"""nginx itself serves what `imagegen pxe` writes: on loopback, without root's ports, from the emitted site."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from netboot_images import make_images

AROUND = Path(__file__).parents[1] / "data/nginx.conf"
SECONDS = 30.0
POLL = 0.05
IMAGE = "/images/compute-222222222222.raw"
CLUSTER = """\
name: demo
network: {{cidr: 192.168.56.0/24}}
pxe: {{url: "http://127.0.0.1:{port}"}}
nodes:
  - {{name: ctl-1, role: controller, mac: "52:54:00:56:00:11", address: 192.168.56.11, serial: "S 1/2+3"}}
  - {{name: cpt-1, role: compute, mac: "52:54:00:56:00:12", address: 192.168.56.12, serial: M-1}}
"""


@dataclass(frozen=True)
class Server:
    """A running nginx, and the directory that it gives out."""

    root: Path
    port: int

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Status, body and headers; the path goes out as it is, dots and all."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tree of a cluster whose url is this machine's loopback, and nginx in front of it."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("nginx is missing: it comes with the Debian package nginx, `make cluster` installs it")
    place = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (place / "cluster.yaml").write_text(CLUSTER.format(port=port))
    make_images(place / "out")
    options = ["-q", "-c", str(place / "cluster.yaml"), "-o", str(place / "out")]
    subprocess.run([sys.executable, "-m", "imagegen", *options, "pxe"], check=True)
    shutil.copy(AROUND, place / "nginx.conf")
    shutil.copy(place / "out/pxe/nginx.conf", place / "site.conf")
    process = subprocess.Popen([program, "-p", str(place), "-c", str(place / "nginx.conf")])
    try:
        wait_for_answer(process, port)
        yield Server(place / "out/pxe", port)
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)


def wait_for_answer(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, "nginx ended"
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(POLL)


def test_every_file_is_given_out_as_it_is(server: Server) -> None:
    """Images and scripts, of any name that iPXE does not have to encode."""
    files = [path for path in sorted(server.root.rglob("*")) if path.is_file()]
    names = [path.relative_to(server.root).as_posix() for path in files]
    assert {IMAGE[1:], "boot.ipxe", "mac/52-54-00-56-00-12.ipxe", "nodes/cpt-1.ipxe"} <= set(names)
    for path, name in zip(files, names, strict=True):
        if " " not in name:
            status, body, headers = server.ask("GET", f"/{name}")
            assert (status, body) == (200, path.read_bytes()), name
            assert (headers["Content-Type"], headers["Server"]) == ("application/octet-stream", "nginx")


def test_a_download_goes_on_where_it_was_cut_off(server: Server) -> None:
    """The initramfs asks for the rest by a Range; beyond the end there is none."""
    whole = (server.root / IMAGE[1:]).read_bytes()
    status, body, headers = server.ask("GET", IMAGE, Range="bytes=4-")
    assert (status, body) == (206, whole[4:])
    assert headers["Content-Range"] == f"bytes 4-{len(whole) - 1}/{len(whole)}"
    assert server.ask("GET", IMAGE, Range=f"bytes={len(whole)}-")[0] == 416


def test_a_head_tells_the_size_alone(server: Server) -> None:
    status, body, headers = server.ask("HEAD", IMAGE)
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == (server.root / IMAGE[1:]).stat().st_size


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "MKCOL"])
def test_nothing_but_reading_is_allowed(method: str, server: Server) -> None:
    """Neither for a file that is there nor for a new one; the tree stays as it was."""
    before = sorted(server.root.rglob("*"))
    assert server.ask(method, IMAGE)[0] in (403, 405)
    assert server.ask(method, "/new")[0] in (403, 405)
    assert sorted(server.root.rglob("*")) == before


@pytest.mark.parametrize(
    "prefix", ["/../", "/%2e%2e/", "/images/../../", "/images/%2e%2e/%2e%2e/", "/..%2f", "//../", "/.../../../"]
)
def test_nothing_outside_the_tree_is_given_out(prefix: str, server: Server) -> None:
    """The seeds lie beside it."""
    secret = server.root.parent / "seeds/cpt-1/user-data"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text("secret")
    status, body, _ = server.ask("GET", f"{prefix}seeds/cpt-1/user-data")
    assert status in (400, 404) and b"secret" not in body


@pytest.mark.parametrize("path", ["/", "/images/", "/nodes/"])
def test_no_directory_is_listed(path: str, server: Server) -> None:
    assert server.ask("GET", path)[0] in (403, 404)


@pytest.mark.parametrize(
    ("asked", "node"),
    [
        ("/mac/52-54-00-56-00-11.ipxe", "ctl-1"),
        ("/mac/52-54-00-56-00-12.ipxe", "cpt-1"),
        ("/serial/M-1.ipxe", "cpt-1"),
        ("/serial/S%201%2F2%2B3.ipxe", "ctl-1"),
    ],
)
def test_a_machine_finds_its_script(asked: str, node: str, server: Server) -> None:
    """By what boot.ipxe asks for: `uristring` encodes blanks, slashes and pluses, and nginx decodes them."""
    status, body, _ = server.ask("GET", asked)
    assert (status, body.decode().splitlines()[-1].rpartition("/")[2]) == (200, f"{node}.ipxe")


def test_an_unknown_machine_is_told_so(server: Server) -> None:
    """iPXE goes on to its menu when the answer is no script."""
    assert server.ask("GET", "/mac/52-54-00-56-00-99.ipxe")[0] == 404
    assert server.ask("GET", "/serial/.ipxe")[0] == 404
