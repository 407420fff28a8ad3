"""Unit tests are pure: what starts a process or opens a network socket fails, unless a marker names the command."""

from __future__ import annotations

import os
from pathlib import Path

import fakes  # noqa: F401 - makes the agent importable
import hypothesis
import pytest
from fakes.users import ALICE
from guards import pytest_itemcollected, pytest_runtest_protocol

__all__ = ["pytest_itemcollected", "pytest_runtest_protocol"]

# How fast a machine is proves nothing about the code. The rest is hypothesis' default, which knows CI.
hypothesis.settings.register_profile("unit", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture(scope="session")
def root() -> None:
    """For tests that give files to other users."""
    if os.geteuid() != 0:
        pytest.skip("giving files to other users takes root: run the unit tests as root")


@pytest.fixture
def sudo(root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Alice's directory, in which she calls sudo."""
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, ALICE, ALICE)
    monkeypatch.setenv("SUDO_UID", str(ALICE))
    monkeypatch.setenv("SUDO_GID", str(ALICE))
    return tmp_path
