"""Unit tests are pure: what starts a process or opens a network socket fails, unless a marker names the command."""

from __future__ import annotations

import os
import signal

import fakes  # noqa: F401 - makes the agent importable
import hypothesis
import pytest
from guards import pytest_itemcollected, pytest_runtest_protocol

__all__ = ["pytest_itemcollected", "pytest_runtest_protocol"]

# Under nohup a process ignores it, and so would what is tested.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How fast a machine is proves nothing about the code. The rest is hypothesis' default, which knows CI.
hypothesis.settings.register_profile("unit", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture(scope="session")
def root() -> None:
    """For tests that give files to other users."""
    if os.geteuid() != 0:
        pytest.skip("giving files to other users takes root: run the unit tests as root")
