"""The controller role, step by step."""

from __future__ import annotations

import json
import random
import sys
import time
from functools import partial
from typing import Any, Callable

from imagegen_node.engine import health
from imagegen_node.engine.errors import LeaseLost, Refused, Waiting
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import TRIES, Sleep, Step, run_step, run_steps
from imagegen_node.engine.system import Units, check_port, run, seconds_active, start_units
from imagegen_node.node import configure, declared, metadata, seed
from imagegen_node.openstack import backing, cells, cloud, discovery, flavors, identity_objects, upgrade
from imagegen_node.openstack.api import INTERFACES, Session, Unauthorized, has_reported, open_nova_session
from imagegen_node.openstack.database import schema_of
from imagegen_node.openstack.lease import Lease

# What one controller does for all, by the name in an element's `steps`.
SHARED_STEPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "nova-api-schema": upgrade.sync_api,
    "cells": cells.map_cells,
    "nova-schema": upgrade.sync_nova,
    "flavors": flavors.write_first,
}
DISCOVERY_PAUSE = 3.0  # seconds between two looks for unmapped computes
LONGEST_DISCOVERY_PAUSE = 60.0  # seconds, while discovery fails


class Controller:
    """One controller and what it found out so far."""

    def __init__(self, facts: dict[str, Any], node: dict[str, Any], status: Status, sleep: Sleep = time.sleep) -> None:
        self.facts = facts
        self.node = node
        self.status = status
        self.sleep = sleep
        self.lease = Lease(node["database"], node["node"])
        self.leads = False
        self.paused = False  # the step that is tried again has given the lease back meanwhile

    def run(self) -> None:
        """Makes the node ready, then stays: keeps the lease and maps new computes."""
        run_steps(self.list_local_steps(), self.status, self.sleep)
        self.share_work()
        run_steps(self.list_service_steps(), self.status, self.sleep)
        self.status.ready("")
        self.watch()

    def list_local_steps(self) -> list[Step]:
        node = self.node
        hosted = backing.list_backing(node)
        steps = [
            Step("files", lambda: metadata.check_files(self.facts, node)),
            Step("machine", lambda: seed.keep_machine(self.facts, node)),
            Step("configure", lambda: configure.configure_controller(node)),
            Step("start", lambda: backing.start_hosted(node)),
        ]
        steps += [self.prepare(element) for element in hosted if not element["schemas"]]
        steps.append(Step("wait-database", lambda: backing.check_database(node)))
        steps.append(Step("wait-messaging", lambda: backing.check_messaging(node["messaging"])))
        steps += [self.prepare(element) for element in hosted if element["schemas"]]
        steps.append(Step("wait-identity", lambda: backing.check_identity(node)))
        return steps

    def prepare(self, element: declared.Element) -> Step:
        return Step(element["step"], lambda: backing.prepare(self.node, element))

    def prepare_under_lease(self, element: declared.Element) -> Step:
        """Its schemas may be another controller's a moment longer, if the cluster file has moved it here.

        With its schemas at their heads it needs no lease: one that another controller holds for long keeps it down.
        """

        def run_held() -> str:
            if backing.is_synced(self.node, element):
                return backing.prepare(self.node, element)
            if not self.lease.take():
                raise Waiting("the lease, under which schemas are synced")
            try:
                return backing.prepare(self.node, element)
            finally:
                self.lease.release()

        return Step(element["step"], run_held)

    def share_work(self) -> None:
        """The work that one controller does for all: the holder of the lease; the others wait for its results."""
        while True:
            self.paused = False
            run_step(Step("lease", self.take_lease_or_see_work_done), self.status, self.sleep)
            if not self.leads:
                return
            try:
                run_steps(map(self.under_lease, self.list_shared_steps()), self.status, self.sleep)
                return
            except LeaseLost:
                continue
            finally:
                self.lease.release()

    def take_lease_or_see_work_done(self) -> str:
        """Raises Waiting while another holds the lease and is not done: if it dies, this node takes over."""
        self.leads = self.lease.take()
        if self.leads:
            return "held by this node"
        self.check_schemas()
        if not upgrade.is_done(self.node, upgrade.MIGRATIONS):
            raise Waiting("another controller to migrate data online")
        missing = find_missing_identity(self.node)
        if missing:
            raise Waiting(f"another controller to give Keystone {missing}")
        return "held by another controller, which has done the work"

    def under_lease(self, step: Step) -> Step:
        """The step, with the lease held during every try. While it waits or has failed, another may have the lease."""
        errors: list[Exception] = []

        def run_held() -> str | None:
            if not self.paused:
                self.lease.check()
            elif not self.lease.take():
                raise LeaseLost("the lease, which another controller has taken")
            self.paused = False
            try:
                return step.run()
            except Exception as error:
                errors.append(error)
                # Handed over earlier, a command that always fails would never make a node say so.
                if isinstance(error, (Waiting, Refused)) or len(errors) >= TRIES:
                    self.lease.release()
                    self.paused = True
                raise

        return Step(step.name, run_held)

    def list_shared_steps(self) -> list[Step]:
        services = declared.list_services(self.node)
        schemas = [schema for element in services for schema in element["schemas"] if schema["sync"]]
        names = [name for element in services for name in element["steps"]]
        return [
            *map(self.sync, schemas),
            *(Step(name, partial(SHARED_STEPS[name], self.node)) for name in names),
            Step("service-users", self.ensure_identity),
        ]

    def sync(self, schema: dict[str, Any]) -> Step:
        name = schema["name"].replace("_", "-")
        return Step(f"{name}-schema", lambda: backing.sync_declared(self.node, schema))

    def list_service_steps(self) -> list[Step]:
        return [
            Step("wait-schemas", self.check_schemas),
            Step("compute-versions", lambda: upgrade.check_computes(self.node)),
            Step("services", self.start_services),
            *map(self.prepare_under_lease, backing.list_customers(self.node)),
            Step("verify", self.verify),
            Step("upgrade-check", self.check_upgrade),
            Step("seed", seed.erase),
        ]

    def list_step_names(self) -> list[str]:
        """Every step of this node, in the order in which they run."""
        before, shared, after = self.list_local_steps(), self.list_shared_steps(), self.list_service_steps()
        return ["role", *(step.name for step in before), "lease", *(step.name for step in [*shared, *after])]

    def check_schemas(self) -> str:
        """Raises Waiting until the node sees schema-ready: schemas at their heads, exactly one row per cell."""
        services = declared.list_services(self.node)
        for schema in (entry["name"] for entry in self.node["database"]["schemas"]):
            if declared.find_schema(schema, services):
                state = backing.read_state(self.node, schema)
                if state != "head":
                    raise Waiting(f"schema {schema}, which is {state}")
        cells.check_mapped(self.node)
        return ""

    def ensure_identity(self) -> str:
        """Service users and endpoints; nothing is spawned when the services' own logins show them all."""
        missing = find_missing_identity(self.node)
        if not missing:
            return "all there"
        identity = self.node["identity"]
        if identity["admin_password"] is None:
            raise Waiting(f"Keystone, which is outside this cluster, to have {missing}")
        wanted = {"auth_url": self.node["auth_url"], "region": self.node["region"], **identity}
        text = run([sys.executable, identity_objects.__file__], input=json.dumps(wanted))
        missing = find_missing_identity(self.node)
        if missing:
            raise Waiting(f"Keystone to have {missing}")
        return ", ".join(text.splitlines())

    def start_services(self) -> str:
        start_units(
            declared.list_units(declared.list_services(self.node), cells.further_cells(self.node), step="services")
        )
        self.check_ports()
        return ""

    def check_ports(self) -> None:
        """Raises Waiting until each of the services listens."""
        consoles = {f"noVNC proxy of {cell}": port for cell, port in self.node["console_ports"].items()}
        listens = {
            what: port for element in declared.list_services(self.node) for what, port in element["listens"].items()
        }
        for what, port in {**listens, **consoles}.items():
            check_port(self.node["address"], port, what)

    def verify(self) -> str:
        """Raises Waiting until Keystone has the endpoints and this node's conductor and scheduler are up and read."""
        missing = find_missing_identity(self.node)
        if missing:
            raise Waiting(f"Keystone to have {missing}")
        session = open_nova_session(self.node)
        cloud.check_apis(self.node, session)
        services = session.list_compute(self.node["region"], "/os-services", "services")
        ages = {name: seconds_active(declared.find_unit(name)) for name in ("nova-conductor", "nova-scheduler")}
        own = [item for item in services if item["host"] == self.node["node"] and item["binary"] in ages]
        down = ages.keys() - {item["binary"] for item in own if has_reported(item, session, ages[item["binary"]])}
        if down:
            raise Waiting("{} up in the compute API".format(" and ".join(sorted(down))))
        for cell in self.node["cells"]:
            if cell["name"] != cells.CELL0:
                readers = ["conductor", "scheduler"] if cell["name"] == self.node["cell"] else ["conductor"]
                queues = ("{}.{}".format(name, self.node["node"]) for name in readers)
                # The vhost bears the schema's name.
                backing.check_consumers(self.node["messaging"], schema_of(cell), queues)
        return "conductor and scheduler up"

    def check_upgrade(self) -> str:
        """Once per release, by one controller. Computes that wait for their mapping would fail it."""
        if upgrade.is_done(self.node, upgrade.CHECK):
            return "done before"
        if not self.lease.take():
            raise Waiting("the lease for the upgrade check, which another controller may be running")
        try:
            discovery.map_new_hosts(self.node)
            upgrade.check_upgrade(self.node)
        finally:
            self.lease.release()
        return "done"

    def map_hosts(self) -> list[str]:
        """Maps computes that have no mapping yet, unless another controller is at work."""
        if not discovery.find_unmapped(self.node) or not self.lease.take():
            return []
        try:
            return discovery.map_new_hosts(self.node)
        finally:
            self.lease.release()

    def watch(self) -> None:
        """Maps computes as they come, and looks at this node's services, for ever. The status shows trouble."""
        state, pause, said = health.Health(self.list_looks()), DISCOVERY_PAUSE, ""
        while True:
            undiscovered = ""
            try:
                if mapped := self.map_hosts():
                    said = "mapped " + ", ".join(mapped)
                pause = DISCOVERY_PAUSE
            except Exception as error:  # the node stays ready, and tries again
                undiscovered = (
                    f"discovery waits for {error}" if isinstance(error, Waiting) else f"discovery failed: {error}"
                )
                pause, said = min(2 * pause, LONGEST_DISCOVERY_PAUSE), ""
            if trouble := "; ".join(filter(None, (undiscovered, state.examine()))):
                self.status.degraded(trouble)
            else:
                self.status.ready(said)
            self.status.flush()
            self.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - two that collided once do not meet again

    def list_looks(self) -> list[health.Look]:
        """What must be true of a controller that works."""
        return [
            lambda: health.look_at_disks(declared.list_places(self.node)),
            lambda: health.look_at_units(list_units(self.node)),
            health.require(lambda: backing.check_database(self.node)),
            health.require(self.check_ports),
            health.require(self.verify),
        ]


def list_units(node: dict[str, Any]) -> Units:
    """Every unit that a controller needs: those of the services that it hosts, and those of its role's."""
    return declared.list_units(declared.list_at_work(node), cells.further_cells(node))


def find_missing_identity(node: dict[str, Any]) -> str:
    """The first thing that is wrong in Keystone: a user's password or roles, a service's three URLs. Empty: nothing.

    A surplus role counts only where Keystone is the cluster's own. An administrator's role brings others with it.
    """
    identity, region = node["identity"], node["region"]
    for user in identity["users"]:
        try:
            session = Session(node["auth_url"], user["name"], user["password"])
        except Unauthorized:
            return "user {} with the seed's password and a role in project service".format(user["name"])
        if not set(user["roles"]) <= session.roles:
            return "user {} with the roles {}".format(user["name"], ", ".join(user["roles"]))
        ours = identity["admin_password"] is not None and "admin" not in user["roles"]
        if ours and session.roles - set(user["roles"]):
            return "user {} with no role but {}".format(user["name"], ", ".join(user["roles"]))
    for service in identity["services"]:
        wanted = {interface: [service["url"]] for interface in INTERFACES}
        if session.endpoints(service["type"], region) != wanted:
            return "each endpoint of {} in {} exactly once, at {}".format(service["type"], region, service["url"])
    return ""
