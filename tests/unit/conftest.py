"""Unit tests are pure: what starts a process or opens a network socket fails, unless a marker names the command."""

from __future__ import annotations

import fakes  # noqa: F401 - makes the agent importable
import hypothesis
from guards import pytest_itemcollected, pytest_runtest_protocol

__all__ = ["pytest_itemcollected", "pytest_runtest_protocol"]

# How fast a machine is proves nothing about the code. The rest is hypothesis' default, which knows CI.
hypothesis.settings.register_profile("unit", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unit")
