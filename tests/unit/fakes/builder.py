"""Stand-ins for dib and the disk assembler."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagegen.images import build, cache
from imagegen.images.dib import DibBuild, DibLog

STATUS = """\
Package: nova-api
Status: install ok installed
Version: 2:31.0.0-6
Description: a compute service
 Version: not this one

Package: gone
Status: deinstall ok config-files
Version: 1
"""


class FakeMachine:
    """Stands in for dib and the disk assembler: writes small files and counts the runs of each."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.jobs: list[DibBuild] = []

    def run_dib(self, job: DibBuild, log: Path, follow: DibLog) -> None:
        self.ran.append("dib")
        self.jobs.append(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("log\n")
        job.cache.mkdir(parents=True, exist_ok=True)
        job.tar.write_text(f"tree {len(self.ran)}")
        follow.seconds["root"] = 1.0

    def unpack(self, tar: Path, tree: Path) -> None:
        self.ran.append("unpack")
        tree.mkdir()

    def read_from_tar(self, tar: Path, name: str) -> str:
        assert tar.is_file() and name == "./var/lib/dpkg/status"
        return STATUS

    def assemble_disk(self, tree: Path, target: Path, **options: Any) -> None:
        self.ran.append("disk")
        target.write_text("raw")

    def convert_qcow2(self, raw: Path, target: Path) -> None:
        self.ran.append("qcow2")
        target.write_text("qcow2")

    def compress_raw(self, raw: Path, target: Path) -> None:
        self.ran.append("raw.zst")
        target.write_text(f"compressed {raw.read_text()}")

    def pack_squashfs(self, tree: Path, target: Path) -> None:
        self.ran.append("squashfs")
        assert tree.is_dir()
        target.write_text("squashfs")

    def copy_kernel(self, tree: Path, vmlinuz: Path, initrd: Path) -> None:
        assert tree.is_dir()
        vmlinuz.write_text("kernel")
        initrd.write_text("initramfs")

    def run(self, argv: list[Any], **options: Any) -> None:
        if argv[0] == "rm":
            shutil.rmtree(argv[-1], ignore_errors=True)


FAKED = ("run_dib", "read_from_tar", "unpack", "assemble_disk", "convert_qcow2")


FAKED += ("compress_raw", "pack_squashfs", "copy_kernel")


FORMATS = ("tar", "raw", "qcow2", "raw.zst", "squashfs", "vmlinuz", "initrd")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Builds run on the fake machine."""
    fake = FakeMachine()
    for name in FAKED:
        monkeypatch.setattr(build, name, getattr(fake, name))
    monkeypatch.setattr(build, "check_machine", lambda out, cache, count: None)
    monkeypatch.setattr(build, "find_proxies", lambda environ: {})
    quiet = SimpleNamespace(run=fake.run, missing_tools=lambda tools: [])
    monkeypatch.setattr(build, "commands", quiet)
    monkeypatch.setattr(cache, "commands", quiet)
    return fake
