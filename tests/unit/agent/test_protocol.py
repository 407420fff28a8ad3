"""The first boot as a protocol: any number of nodes, in any order, through crashes and absent services.

Real agents run on a cluster in memory; hypothesis chooses who is switched on, what dies, what is away and for how long.
`make model` goes on for as long as asked and keeps what failed.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from fakes.site import Broken, Site, make_site
from fakes.world import make_secrets
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imagegen.model.roles import hosted_services

SERVICES = tuple(service for service in hosted_services() if service != "cache")
PATIENCE = 3000.0  # seconds of the site's clock, from the last fault until every node is ready
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "30"))


def write_cluster(path: Path, controllers: int, computes: int, cells: int) -> Path:
    """A cluster file with so many nodes; computes are spread over the cells."""
    names = [f"cell{number + 1}" for number in range(cells)]
    nodes: list[dict[str, Any]] = []
    for number in range(controllers + computes):
        role = "controller" if number < controllers else "compute"
        nodes.append(
            {
                "name": f"{role}-{number}",
                "role": role,
                "mac": f"52:54:00:56:00:{number + 16:02x}",
                "address": f"192.168.56.{number + 11}",
                "cell": names[0] if role == "controller" else names[number % cells],
            }
        )
    path.write_text(
        yaml.safe_dump({"name": "m", "network": {"cidr": "192.168.56.0/24"}, "cells": names, "nodes": nodes})
    )
    return path


class Cluster(RuleBasedStateMachine):
    """Faults until hypothesis has enough; then everything is switched on, and must become ready."""

    site: Site

    @initialize(
        controllers=st.integers(1, 3), computes=st.integers(0, 2), cells=st.integers(1, 2), seed=st.integers(0, 2**16)
    )
    def make(self, controllers: int, computes: int, cells: int, seed: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        root = Path(self.directory.name)
        self.context = make_site(root, write_cluster(root / "cluster.yaml", controllers, computes, cells), seed)
        self.site = self.context.__enter__()
        self.generation = 0

    def pick(self, number: int) -> str:
        return list(self.site.nodes)[number % len(self.site.nodes)]

    @rule(number=st.integers(0, 9))
    def power_on(self, number: int) -> None:
        self.site.power_on(self.pick(number))

    @rule()
    def power_on_all(self) -> None:
        for name in self.site.nodes:
            self.site.power_on(name)

    @rule(seconds=st.floats(0.5, 150))
    def run(self, seconds: float) -> None:
        self.site.run(seconds)

    @rule(number=st.integers(0, 9))
    def cut_power(self, number: int) -> None:
        self.site.power_off(self.pick(number))

    @rule(number=st.integers(0, 9))
    def kill_agent(self, number: int) -> None:
        self.site.kill_agent(self.pick(number))

    @rule(number=st.integers(0, 9), points=st.integers(1, 60), seconds=st.floats(1, 100))
    def cut_power_inside_a_step(self, number: int, points: int, seconds: float) -> None:
        node = self.site.nodes[self.pick(number)]
        node.crash_in = points
        self.site.run(seconds)
        node.crash_in = None

    @precondition(lambda self: not self.site.lost)
    @rule(number=st.integers(0, 9))
    def lose_for_good(self, number: int) -> None:
        """A node that hosts nothing burns down, whatever it was at: the others must do without it."""
        name = self.pick(number)
        if name != self.site.host_of("database").node_name:
            self.site.power_off(name)
            self.site.lost.add(name)

    @rule(service=st.sampled_from(SERVICES), seconds=st.floats(1, 120))
    def take_away(self, service: str, seconds: float) -> None:
        self.site.away[service] = self.site.clock + seconds
        self.site.refresh()

    @precondition(lambda self: self.generation < 2)
    @rule()
    def rotate_passwords(self) -> None:
        """New secrets, a new seed for every node, and a reboot: the newest seed's state is what must come out."""
        self.generation += 1
        words = {name: f"{name}-of-generation-{self.generation}" for name in ("database_nova", "messaging_openstack")}
        self.site.secrets = make_secrets(**words, identity_nova=f"nova-{self.generation}")
        for name, node in self.site.nodes.items():
            powered = node.powered
            self.site.power_off(name)
            node.make_node(name)
            if powered:
                self.site.power_on(name)

    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "site"):
            self.site.check()

    def teardown(self) -> None:
        if not hasattr(self, "site"):
            return
        try:
            self.site.away.clear()
            for name in self.site.nodes:
                self.site.power_on(name)
            end = self.site.clock + PATIENCE
            while self.site.ready() and self.site.clock < end:
                self.site.run(10)
            assert not self.site.ready(), self.site.ready()
            assert {row["name"] for row in self.site.server.rows("nova_api", "cell_mappings")} == {
                "cell0",
                *self.site.cluster.cells,
            }
        finally:
            self.context.__exit__(None, None, None)
            self.directory.cleanup()


TestCluster = Cluster.TestCase
TestCluster.settings = hypothesis.settings(
    max_examples=EXAMPLES,
    stateful_step_count=12,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=list(hypothesis.HealthCheck),
)


# What the model would not be worth without: each defect planted once, and seen.


def run_to_ready(site: Site) -> None:
    for name in site.nodes:
        site.power_on(name)
    for _ in range(60):
        site.run(10)
        if not site.ready():
            return
    raise Broken(str(site.ready()))


def test_services_that_start_too_early_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its look at the schemas a controller starts services before another has made them."""
    path = write_cluster(tmp_path / "cluster.yaml", 2, 0, 1)
    with make_site(tmp_path / "nodes", path, 1) as site:
        for node in site.nodes.values():
            monkeypatch.setattr(node.agent["controller"].Controller, "check_schemas", lambda self: "")
            monkeypatch.setattr(node.agent["controller"], "find_missing_identity", lambda node: "")
            monkeypatch.setattr(node.agent["upgrade"], "is_done", lambda node, work: True)
        with pytest.raises(Broken, match="before schema-ready"):
            run_to_ready(site)


def test_work_without_the_lease_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent `api_db sync` is not safe: a controller that believes to hold what another holds is caught."""
    path = write_cluster(tmp_path / "cluster.yaml", 2, 0, 1)
    with make_site(tmp_path / "nodes", path, 1) as site:
        for node in site.nodes.values():
            monkeypatch.setattr(node.agent["lease"].Lease, "_renew", lambda self, only_held=False: True)
        with pytest.raises(Broken, match="without the lease"):
            run_to_ready(site)


def cut_holder_off(site: Site, command: str, lost: bool) -> None:
    """The second controller holds the lease and dies inside that command; or after it, and for good."""
    first, second = site.nodes.values()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first.agent["lease"].Lease, "_renew", lambda self, only_held=False: False)
        for name in site.nodes:
            site.power_on(name)
        seen = second.commands.log if lost else second.commands.begun
        for _ in range(600):
            site.run(0.5)
            if command in seen:
                break
        assert command in seen
        site.power_off("controller-1")
    if lost:
        site.lost.add("controller-1")


@pytest.mark.parametrize("planted", [False, True])
def test_who_takes_half_of_the_work_for_all_of_it_is_seen(
    planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder is lost after the schemas, before Keystone's objects. Who waits for schemas only never gets ready."""
    path = write_cluster(tmp_path / "cluster.yaml", 2, 0, 1)
    with make_site(tmp_path / "nodes", path, 1) as site:
        if planted:
            module = site.nodes["controller-0"].agent["controller"]
            take = module.Controller.take_lease_or_see_work_done

            def see_schemas(agent: Any) -> str:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(module, "find_missing_identity", lambda node: "")
                    return str(take(agent))

            monkeypatch.setattr(module.Controller, "take_lease_or_see_work_done", see_schemas)
        cut_holder_off(site, "nova-manage db sync", lost=True)
        with pytest.raises(Broken, match="waiting verify") if planted else nullcontext():
            run_to_ready(site)


@pytest.mark.parametrize("planted", [False, True])
def test_a_first_sync_that_is_never_repaired_is_seen(
    planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power is cut inside a sync. Without a look at what it left every later sync fails, and a node says so."""
    path = write_cluster(tmp_path / "cluster.yaml", 2, 0, 1)
    with make_site(tmp_path / "nodes", path, 1) as site:
        if planted:
            for node in site.nodes.values():
                monkeypatch.setattr(node.agent["backing"], "drop_unfinished", lambda database, schema: None)
        cut_holder_off(site, "nova-manage api_db sync", lost=False)
        with pytest.raises(Broken, match="nova") if planted else nullcontext():
            run_to_ready(site)
        said = [document for node in site.nodes.values() for document in node.documents]
        failed = [document["detail"] for document in said if document["state"] == "failed"]
        assert bool(failed) == planted
        assert all("nova-manage api_db sync ended with 255" in detail for detail in failed)


def test_two_rows_for_a_cell_are_seen(tmp_path: Path) -> None:
    """A second row of the same name is what create_cell's random uuid makes of a race."""
    with make_site(tmp_path / "nodes", write_cluster(tmp_path / "cluster.yaml", 1, 0, 1), 1) as site:
        run_to_ready(site)
        rows = site.server.rows("nova_api", "cell_mappings")
        rows.append({**rows[-1], "uuid": "random"})
        with pytest.raises(Broken, match="two rows"):
            site.check()


def test_a_password_of_the_database_on_a_compute_is_seen(tmp_path: Path) -> None:
    with make_site(tmp_path / "nodes", write_cluster(tmp_path / "cluster.yaml", 1, 1, 1), 1) as site:
        site.nodes["compute-1"].put("/etc/nova/nova.conf.d/60.conf", f"x = {site.secrets['database_nova']}")
        with pytest.raises(Broken, match="has a password of the database"):
            site.check()


def test_a_cluster_that_never_gets_ready_is_seen(tmp_path: Path) -> None:
    with make_site(tmp_path / "nodes", write_cluster(tmp_path / "cluster.yaml", 1, 0, 1), 1) as site:
        site.away["database"] = 10.0**9
        with pytest.raises(Broken, match="waiting"):
            run_to_ready(site)
