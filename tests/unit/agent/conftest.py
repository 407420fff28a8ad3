"""Nodes that were ready once: what they did until then is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.world import World


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A controller that is ready."""
    world = World(tmp_path, monkeypatch)
    world.make_node("linux-node1")
    assert world.run_controller()["state"] == "ready"
    world.forget()
    return world


@pytest.fixture
def compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A compute that is ready beside a control plane elsewhere."""
    world = World(tmp_path, monkeypatch)
    world.make_node("linux-node2")
    world.put("/run/libvirt/libvirt-sock", "")
    world.make_control_plane()
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    world.forget()
    return world
