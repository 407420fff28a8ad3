"""Downloads that break off and go on, and what is never believed."""

from __future__ import annotations

import hashlib
import io
import ssl
import urllib.error
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagegen_deploy import deploy, seed, stream
from imagegen_deploy.deploy import Deployment, Writer
from imagegen_deploy.disks import Content, Disk
from imagegen_deploy.mark import END, read_mark, render_mark
from imagegen_deploy.plan import Plan
from imagegen_deploy.stream import Download
from imagegen_node.engine.errors import Refused, Waiting
from imagegen_node.engine.status import Status

URL = "http://192.0.2.1/image"


class Answer(io.BytesIO):
    """What urllib gives: breaks after so many bytes."""

    def __init__(self, data: bytes, status: int, headers: dict[str, str], breaks: int) -> None:
        super().__init__(data)
        self.status = status
        self.headers = headers
        self.left = breaks

    def read(self, size: int | None = -1, /) -> bytes:
        if self.left == 0:
            raise ConnectionResetError(104, "Connection reset by peer")
        block = super().read(min(size or 0, self.left))
        self.left -= len(block)
        return block


class FakeServer:
    """A web server with one file. `breaks`: after how many bytes each connection ends; -1: the server is away."""

    def __init__(self, data: bytes, breaks: list[int], ranges: bool = True) -> None:
        self.data, self.breaks, self.ranges = data, breaks, ranges
        self.asked: list[str] = []

    def open(self, request: Any, timeout: float) -> Answer:
        wanted = request.get_header("Range") or ""
        self.asked.append(wanted)
        breaks = self.breaks.pop(0) if self.breaks else len(self.data) + 1
        if breaks < 0:
            raise urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))
        if wanted and self.ranges:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers = {"Content-Range": f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}"}
            return Answer(self.data[begin:], 206, headers, breaks)
        return Answer(self.data, 200, {"Content-Length": str(len(self.data))}, breaks)


def download(server: FakeServer, sha256: str = "", progress: float = 60.0) -> tuple[bytes, list[str]]:
    """What arrives, and what was said meanwhile."""
    said: list[str] = []
    status: Any = SimpleNamespace(wait=said.append, tell=said.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "OPENER", server)
        patch.setattr(stream, "PROGRESS", progress)
        job = Download(URL, sha256 or hashlib.sha256(server.data).hexdigest(), status, lambda seconds: None)
        return b"".join(job.blocks()), said


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(-1, 120), max_size=12), st.booleans())
def test_a_broken_download_goes_on_where_it_was(data: bytes, breaks: list[int], ranges: bool) -> None:
    """Wherever it breaks, and whether the server knows ranges or not: every byte arrives once, in order."""
    server = FakeServer(data, list(breaks), ranges)
    assert download(server)[0] == data


def test_what_it_waits_for_is_said() -> None:
    """With the place where it is."""
    _, said = download(FakeServer(bytes(4 << 20), [3 << 20, -1]))
    assert said == [
        f"{URL}: [Errno 104] Connection reset by peer; 3 of 4 MiB (75 %)",
        f"{URL}: [Errno 111] Connection refused; 3 of 4 MiB (75 %)",
    ]


def test_how_far_it_is_is_told() -> None:
    """Now and then; here after every block."""
    _, said = download(FakeServer(bytes(2 << 20), []), progress=0.0)
    assert said == ["1 of 2 MiB (50 %)", "2 of 2 MiB (100 %)"]
    assert download(FakeServer(bytes(2 << 20), []))[1] == []


def test_a_damaged_file_is_refused() -> None:
    """Also one that is too short for the right sum."""
    with pytest.raises(Refused, match="it is damaged, or from another build"):
        download(FakeServer(b"x" * 100, []), hashlib.sha256(b"y" * 100).hexdigest())
    with pytest.raises(Refused, match="it is damaged"):
        download(FakeServer(b"y" * 99, []), hashlib.sha256(b"y" * 100).hexdigest())


def test_a_file_that_changes_on_the_way_is_refused() -> None:
    """Half of one build and half of the next are not an image."""
    server = FakeServer(b"x" * 100, [50])
    data, server.data = server.data, b"x" * 100

    def open_other(request: Any, timeout: float) -> Answer:
        if request.get_header("Range"):
            server.data = data + b"more"
        return FakeServer.open(server, request, timeout)

    server.open = open_other  # type: ignore[method-assign]
    with pytest.raises(Refused, match="changed while it was read: it had 100 bytes, now it has 104"):
        download(server)


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [(206, {"Content-Range": "bytes 7-9/10"}, "another range"), (200, {}, "does not say how large the file is")],
)
def test_an_answer_that_makes_no_sense_is_tried_again(status: int, headers: dict[str, str], reason: str) -> None:
    """A proxy may answer in the server's place."""
    server = FakeServer(b"0123456789", [5])
    honest = server.open

    def open_once(request: Any, timeout: float) -> Answer:
        if len(server.asked) == 1:
            server.asked.append("")
            return Answer(b"", status, headers, 0)
        return honest(request, timeout)

    server.open = open_once  # type: ignore[method-assign]
    data, said = download(server)
    assert data == b"0123456789"
    assert reason in said[1]


# onto the disk


@given(st.lists(st.binary(max_size=700), max_size=8), st.integers(1, 300))
def test_the_head_is_kept_and_the_rest_is_at_its_place(blocks: list[bytes], end: int) -> None:
    """In whatever pieces it comes: what makes a disk bootable is not on it yet."""
    disk = io.BytesIO()
    whole = b"".join(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagegen_deploy.deploy.END", end)
        writer = Writer(disk, len(whole))
        for block in blocks:
            writer.take(block)
        with pytest.raises(ValueError, match="unpacks to more than"):
            writer.take(b"x")
    assert (writer.head, writer.written) == (whole[:end], len(whole))
    assert disk.getvalue()[end:] == whole[end:]
    assert not any(disk.getvalue()[:end])


# the seed


def plan(**changed: Any) -> Plan:
    values: dict[str, Any] = {
        "mode": "deploy", "node": "c-1", "role": "compute", "mac": "", "address": "", "gateway": "",
        "url": "http://192.0.2.1", "image": URL, "sha256": "", "size": 0, "id": "0123456789ab", "root_device": {},
        "wipe": False, "seed": "https://192.0.2.1/seeds/c-1/token", "ca": hashlib.sha256(b"pem").hexdigest(),
        "status": "",
    }  # fmt: skip
    return Plan(**{**values, **changed})


def serve(monkeypatch: pytest.MonkeyPatch, answer: Any, ca: bytes = b"pem") -> list[str]:
    """The CA over HTTP, and one answer to the claim; what was asked for."""
    asked: list[str] = []

    def claim(url: str, timeout: float) -> Any:
        asked.append(url)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    def give_ca(url: str, timeout: float) -> Any:
        asked.append(url)
        return io.BytesIO(ca)

    monkeypatch.setattr(seed, "OPENER", SimpleNamespace(open=give_ca))
    monkeypatch.setattr(ssl, "create_default_context", lambda cadata: None)
    monkeypatch.setattr(seed.urllib.request, "HTTPSHandler", lambda context: None)
    monkeypatch.setattr(seed.urllib.request, "build_opener", lambda *_: SimpleNamespace(open=claim))
    return asked


def test_a_seed_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, b"iso")
    assert seed.claim_seed(plan()) == b"iso"
    assert asked == ["http://192.0.2.1/ca.pem", "https://192.0.2.1/seeds/c-1/token"]


def test_another_ca_is_refused_before_the_token_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sits on the wire gets nothing."""
    asked = serve(monkeypatch, b"iso", b"another pem")
    with pytest.raises(Refused, match="the seed is not requested"):
        seed.claim_seed(plan())
    assert asked == ["http://192.0.2.1/ca.pem"]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            urllib.error.HTTPError("", 410, "", Message(), io.BytesIO(b"the window is closed\n")),
            Refused,
            "https://192.0.2.1/seeds/c-1 refuses the seed (410): the window is closed. Open the window",
        ),
        (
            urllib.error.HTTPError("", 503, "", Message(), io.BytesIO(b"the disk is full\n")),
            Waiting,
            "https://192.0.2.1/seeds/c-1 (503): the disk is full",
        ),
        (
            urllib.error.URLError(ssl.SSLCertVerificationError("bad certificate")),
            Refused,
            "is not the server that the node's script",
        ),
        (urllib.error.URLError(ssl.SSLEOFError("EOF in violation of protocol")), Waiting, "EOF in violation"),
        (urllib.error.URLError(OSError(111, "Connection refused")), Waiting, "Connection refused"),
        (ConnectionResetError(104, "Connection reset"), Refused, "broke in the middle of the seed"),
        (b"x" * ((8 << 20) + 1), Refused, "that is not a seed"),
    ],
)
def test_what_goes_wrong_with_a_claim_is_told(
    error: Any, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes before the question is waited for; what comes after is not asked twice. The token is never told."""
    serve(monkeypatch, error)
    with pytest.raises(kind) as told:
        seed.claim_seed(plan())
    assert words in str(told.value) and "token" not in str(told.value)


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """One that has found its disk, a file of 2 MiB."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * END))
    monkeypatch.setattr(deploy, "find_seed_label", lambda disk: "")
    made = Deployment(plan(), Status("c-1", "compute"))
    made.disk = Disk(path, 2 * END, 512)
    return made


def test_a_refused_claim_is_not_made_again(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is tried every half minute; the server would report each as a replay. The disk is not touched."""
    asked = serve(monkeypatch, urllib.error.HTTPError("", 410, "", Message(), io.BytesIO(b"closed")))
    for _ in range(3):
        with pytest.raises(Refused, match="closed"):
            deployment.fetch_seed()
    assert len(asked) == 2
    assert deployment.disk.path.read_bytes() == bytes(2 * END)


def test_a_seed_is_kept_on_the_disk_at_once(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given out once: when power is cut later, the next boot finds it there and asks nobody."""
    serve(monkeypatch, b"iso")
    assert deployment.fetch_seed() == "3 bytes"
    assert deployment.disk.path.read_bytes()[64 << 10 : END] == render_mark("c-1", "0123456789ab", b"iso")
    after = Deployment(plan(), Status("c-1", "compute"))
    after.disk = deployment.disk
    after.content = Content("begun", mark=read_mark(deployment.disk.path.read_bytes()))
    asked = serve(monkeypatch, AssertionError("asked twice"))
    assert after.fetch_seed() == "3 bytes, kept by the earlier deployment"
    assert (after.seed, asked) == (b"iso", [])


def test_a_medium_with_a_seed_is_the_nodes_only_one(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for another, and what the deployment before claimed is kept no longer."""
    asked = serve(monkeypatch, b"iso")
    monkeypatch.setattr(deploy, "find_seed_label", lambda disk: "CIDATA" if disk is deployment.disk else "")
    kept = render_mark("c-1", "0123456789ab", b"old iso")
    deployment.disk.path.write_bytes(bytes(64 << 10) + kept + bytes(END))
    deployment.content = Content("begun", mark=read_mark(deployment.disk.path.read_bytes()))
    assert deployment.fetch_seed() == "a medium labelled CIDATA is attached: no seed is requested"
    assert (deployment.seed, asked) == (b"", [])
    assert deployment.disk.path.read_bytes()[64 << 10 : END] == render_mark("c-1", "0123456789ab", b"")


def test_without_a_server_first_boot_finds_its_seed_itself(deployment: Deployment) -> None:
    """A medium labelled cidata, as virtual media or a USB stick."""
    deployment.plan = plan(seed="")
    deployment.claim = seed.Claim(deployment.plan)
    assert "a medium labelled cidata" in deployment.fetch_seed()


# a disk that bears the image already


@pytest.fixture
def system(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tree of the disk's system, mounted read-only and unmounted again; the network's kernel is 6.12.2."""
    commands: list[list[str]] = []
    monkeypatch.setattr(deploy, "MOUNT", tmp_path / "root")
    monkeypatch.setattr(deploy, "KERNEL", "6.12.2")
    monkeypatch.setattr(deploy, "run", commands.append)
    deployment.root = Path("/dev/vda4")
    yield tmp_path / "root"
    assert commands == [
        ["mount", "-t", "ext4", "-o", "ro", "/dev/vda4", str(tmp_path / "root")],
        ["umount", str(tmp_path / "root")],
    ]


def install_kernel(system: Path, version: str, place: str = "usr/lib/modules") -> None:
    (system / place / version).mkdir(parents=True)
    (system / place / version / "modules.dep").touch()


@pytest.mark.parametrize("place", ["usr/lib/modules", "lib/modules"])
def test_a_system_with_the_networks_kernel_is_booted(place: str, deployment: Deployment, system: Path) -> None:
    install_kernel(system, "6.12.1")
    install_kernel(system, "6.12.2", place)
    assert deployment.check_kernel() == "6.12.2"


def test_a_system_without_the_networks_kernel_is_not_booted(deployment: Deployment, system: Path) -> None:
    """What a removed kernel left behind is none; what to do is told."""
    install_kernel(system, "6.12.1")
    install_kernel(system, "6.12.3")
    (system / "usr/lib/modules/6.12.2/updates").mkdir(parents=True)
    with pytest.raises(Refused) as refused:
        deployment.check_kernel()
    said = str(refused.value)
    assert "has modules for 6.12.1, 6.12.3, but the kernel from the network is 6.12.2" in said
    assert "boot from its disk first" in said and "`deploy: {wipe: true}` for c-1" in said


def test_a_system_without_modules_is_not_booted(deployment: Deployment, system: Path) -> None:
    with pytest.raises(Refused, match="has modules for no kernel, but the kernel from the network"):
        deployment.check_kernel()
