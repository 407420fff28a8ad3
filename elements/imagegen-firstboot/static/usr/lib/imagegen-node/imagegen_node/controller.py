"""The controller role, step by step."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable

from imagegen_node import backing, configure, discovery, metadata
from imagegen_node.api import INTERFACES, Session, Unauthorized, is_up, open_nova_session
from imagegen_node.database import connect_schema, fetch_rows, read_due, schema_of, set_due
from imagegen_node.lease import Lease
from imagegen_node.status import Status
from imagegen_node.steps import CommandFailed, LeaseLost, Refused, Sleep, Step, Waiting, run_step, run_steps
from imagegen_node.system import Units, check_port, put_file, run, start_units

HERE = Path(__file__).parent
NOVA_FILES = (Path("/etc/nova"), configure.SERVICES_ENVIRONMENT)
SERVICES: Units = {
    "placement-api.service": (Path("/etc/placement"), configure.SERVICES_ENVIRONMENT),
    "nova-api.service": NOVA_FILES,
    "nova-api-metadata.service": NOVA_FILES,
    "nova-conductor.service": NOVA_FILES,
    "nova-scheduler.service": NOVA_FILES,
    "nova-novncproxy.service": NOVA_FILES,
}
FURTHER_CELL = Path("/run/imagegen/further-cell.conf")
PORTS = {"placement": 8778, "compute API": 8774, "metadata API": 8775, "noVNC proxy": 6080}
MIGRATIONS = "online_data_migrations"
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
        self.upgraded = False

    def run(self) -> None:
        """Makes the node ready, then stays: keeps the lease and maps new computes."""
        run_steps(self.list_local_steps(), self.status, self.sleep)
        self.share_work()
        run_steps(self.list_service_steps(), self.status, self.sleep)
        self.status.ready("")
        self.watch()

    def list_local_steps(self) -> list[Step]:
        node = self.node
        prepare: dict[str, Callable[[dict[str, Any]], str]] = {
            "database": backing.prepare_database,
            "messaging": backing.prepare_messaging,
            "cache": backing.prepare_cache,
        }
        steps = [
            Step("files", lambda: metadata.check_files(self.facts, node)),
            Step("machine", lambda: metadata.check_machine(node)),
            Step("configure", lambda: configure.configure_controller(node)),
            Step("start", lambda: backing.start_hosted(node)),
        ]
        steps += [Step(name, partial(work, node)) for name, work in prepare.items() if name in node["hosts"]]
        steps.append(Step("wait-database", lambda: backing.check_database(node)))
        steps.append(Step("wait-messaging", lambda: backing.check_messaging(node["messaging"])))
        if "identity" in node["hosts"]:
            steps.append(Step("identity", lambda: backing.prepare_identity(node)))
        steps.append(Step("wait-identity", lambda: backing.check_identity(node)))
        return steps

    def share_work(self) -> None:
        """The work that one controller does for all: by the holder of the lease; the others wait for what it makes."""
        while True:
            run_step(Step("lease", self.take_lease_or_see_schemas), self.status, self.sleep)
            if not self.leads:
                return
            try:
                run_steps(map(self.under_lease, self.list_shared_steps()), self.status, self.sleep)
                return
            except LeaseLost:
                continue

    def take_lease_or_see_schemas(self) -> str:
        self.leads = self.lease.take()
        if self.leads:
            return "held by this node"
        self.check_schemas()
        return "held by another, and the schemas are there"

    def under_lease(self, step: Step) -> Step:
        """The step, of which every try first makes sure that this node still holds the lease."""

        def run_held() -> str | None:
            self.lease.check()
            return step.run()

        return Step(step.name, run_held)

    def list_shared_steps(self) -> list[Step]:
        sync = partial(backing.sync_schema, self.node)
        return [
            Step("placement-schema", lambda: sync("placement", ["placement-manage", "db", "sync"], "placement")),
            Step("nova-api-schema", lambda: sync("nova_api", ["nova-manage", "api_db", "sync"], "nova")),
            Step("cells", self.map_cells),
            Step("nova-schema", self.sync_nova),
            Step("service-users", self.ensure_identity),
        ]

    def list_service_steps(self) -> list[Step]:
        steps = [
            Step("wait-schemas", self.check_schemas),
            Step("services", self.start_services),
            Step("verify", self.verify),
        ]
        if self.upgraded:
            steps.append(Step("upgrade-check", self.check_upgrade))
        return steps

    def read_cells(self) -> list[dict[str, str]]:
        query = "SELECT name, uuid, database_connection, transport_url FROM cell_mappings ORDER BY name, uuid"
        with connect_schema(self.node["database"], "nova_api") as connection:
            keys = ("name", "uuid", "database_connection", "transport_url")
            return [dict(zip(keys, row)) for row in fetch_rows(connection, query)]

    def check_schemas(self) -> str:
        """Raises Waiting until the node sees schema-ready: schemas at their heads, exactly one row a cell."""
        for schema in ("placement", "nova_api", *map(schema_of, self.node["cells"])):
            state = backing.read_state(self.node, schema)
            if state != "head":
                raise Waiting(f"schema {schema}, which is {state}")
        there = self.read_cells()
        self.refuse_duplicates(there)
        missing = [cell["name"] for cell in self.node["cells"] if cell not in there]
        if missing:
            raise Waiting("cell mappings as the seed describes them; not yet: {}".format(", ".join(missing)))
        return ""

    def map_cells(self) -> str:
        """cell0 with `none:///` and every cell with its own URLs, under fixed uuids."""
        wanted = self.node["cells"]
        there = self.read_cells()
        self.refuse_duplicates(there)
        if all(cell in there for cell in wanted):
            return "all mapped"
        text = run([sys.executable, str(HERE / "cell_mappings.py")], user="nova", input=json.dumps(wanted))
        return ", ".join(text.splitlines())

    def refuse_duplicates(self, there: list[dict[str, str]]) -> None:
        """Raises Refused for a row that stands in the place of one of ours; what it holds is not ours to judge."""
        names = {cell["name"] for cell in self.node["cells"]}
        uuids = {cell["uuid"] for cell in self.node["cells"]}
        places = {place_of(cell) for cell in self.node["cells"]}
        for cell in there:
            if cell["uuid"] not in uuids and (cell["name"] in names or place_of(cell) in places):
                raise Refused(
                    "Nova's table has a row that the seed does not know, named {name}, with the name or the database "
                    "of a cell of this cluster. What it holds: `nova-manage cell_v2 list_hosts --cell_uuid {uuid}`. "
                    "If nothing, as user nova: `nova-manage cell_v2 delete_cell --cell_uuid {uuid}`, which ends with 0 "
                    "(deleted), 1 (not found), 2 (it has hosts), 3 (it has instances) or 4 (only deleted instances: "
                    "`nova-manage db archive_deleted_rows` first)".format(**cell)
                )

    def sync_nova(self) -> str:
        """`db sync`, which reaches cell0 and [database]; further cells one by one; migrations after an upgrade."""
        database, cells = self.node["database"], {schema_of(cell): cell for cell in self.node["cells"]}
        before = {schema: backing.read_state(self.node, schema) for schema in cells}
        old = [schema for schema, state in before.items() if state != "head"]
        self.upgraded = self.upgraded or bool(old)
        if "behind" in before.values():
            set_due(database, MIGRATIONS, True)
        if {"nova_cell0", "nova"} & set(old):
            run(["nova-manage", "db", "sync"], user="nova")
        for schema in old:
            if schema not in ("nova_cell0", "nova"):
                self.sync_further_cell(cells[schema])
            after = backing.read_state(self.node, schema)
            if after != "head":
                raise Waiting(f"schema {schema} at its head; it is {after} after `nova-manage db sync`")
        if MIGRATIONS in read_due(database):
            self.migrate_online()
            set_due(database, MIGRATIONS, False)
        return ", ".join(f"{schema} was {before[schema]}" for schema in old) or "at head"

    def sync_further_cell(self, cell: dict[str, str]) -> None:
        """`db sync --local_cell` with a configuration file of the cell's own, since [database] is the first cell's."""
        text = "[database]\nconnection = {}\n".format(cell["database_connection"])
        put_file(FURTHER_CELL, text, 0o640, "root", "nova")
        configuration = ["--config-dir", "/etc/nova/nova.conf.d", "--config-file", str(FURTHER_CELL)]
        try:
            run(["nova-manage", *configuration, "db", "sync", "--local_cell"], user="nova")
        finally:
            FURTHER_CELL.unlink()

    def migrate_online(self) -> None:
        """online_data_migrations until it says 0 (done); 1 is: run again; 2: stuck."""
        for _ in range(5):
            try:
                run(["nova-manage", "db", MIGRATIONS], user="nova")
                return
            except CommandFailed as error:
                if error.rc != 1:
                    raise
        raise Waiting(f"{MIGRATIONS} to finish")

    def ensure_identity(self) -> str:
        """Service users and endpoints; nothing is spawned when the services' own logins show them all."""
        missing = self.find_missing_identity()
        if not missing:
            return "all there"
        identity = self.node["identity"]
        if identity["admin_password"] is None:
            raise Waiting(f"Keystone, which is outside this cluster, to have {missing}")
        wanted = {"auth_url": self.node["auth_url"], "region": self.node["region"], **identity}
        text = run([sys.executable, str(HERE / "identity_objects.py")], input=json.dumps(wanted))
        missing = self.find_missing_identity()
        if missing:
            raise Waiting(f"Keystone to have {missing}")
        return ", ".join(text.splitlines())

    def find_missing_identity(self) -> str:
        """The first thing that Keystone lacks: a user's password or roles, a service's three URLs. Empty: nothing."""
        identity, region = self.node["identity"], self.node["region"]
        for user in identity["users"]:
            try:
                session = Session(self.node["auth_url"], user["name"], user["password"])
            except Unauthorized:
                return "user {} with the seed's password and a role in project service".format(user["name"])
            if not set(user["roles"]) <= session.roles:
                return "user {} with the roles {}".format(user["name"], ", ".join(user["roles"]))
        for service in identity["services"]:
            wanted = {interface: [service["url"]] for interface in INTERFACES}
            if session.endpoints(service["type"], region) != wanted:
                return "each endpoint of {} in {} exactly once, at {}".format(service["type"], region, service["url"])
        return ""

    def start_services(self) -> str:
        start_units(SERVICES)
        for what, port in PORTS.items():
            check_port(self.node["address"], port, what)
        return ""

    def verify(self) -> str:
        """Raises Waiting until Keystone has the endpoints and this node's conductor and scheduler are up and read."""
        missing = self.find_missing_identity()
        if missing:
            raise Waiting(f"Keystone to have {missing}")
        services = open_nova_session(self.node).compute(self.node["region"], "/os-services")["services"]
        up = {item["binary"] for item in services if item["host"] == self.node["node"] and is_up(item)}
        down = {"nova-conductor", "nova-scheduler"} - up
        if down:
            raise Waiting("{} up in the compute API".format(" and ".join(sorted(down))))
        cell = next(cell for cell in self.node["cells"] if cell["name"] == self.node["cell"])
        queues = ("{}.{}".format(name, self.node["node"]) for name in ("conductor", "scheduler"))
        backing.check_consumers(self.node["messaging"], schema_of(cell), queues)  # the vhost bears the schema's name
        return "conductor and scheduler up"

    def check_upgrade(self) -> str:
        """nova-status upgrade check: 0 and 1 (warnings) pass, 2 fails - also while computes are there but unmapped."""
        self.map_hosts()
        run(["nova-status", "upgrade", "check"], user="nova", ok=(0, 1))
        return ""

    def map_hosts(self) -> list[str]:
        """Maps computes that no cell mapping knows yet, if this node holds the lease."""
        return discovery.map_new_hosts(self.node) if self.lease.take() else []

    def watch(self) -> None:
        """Maps computes as they come, for ever. Trouble stands in the status of the ready node until it is over."""
        pause, trouble = DISCOVERY_PAUSE, False
        while True:
            try:
                mapped = self.map_hosts()
            except Exception as error:  # the node stays ready, and tries again
                what = f"discovery waits for {error}" if isinstance(error, Waiting) else f"discovery failed: {error}"
                self.status.ready(what)
                pause, trouble = min(2 * pause, LONGEST_DISCOVERY_PAUSE), True
            else:
                if mapped or trouble:
                    self.status.ready("mapped " + ", ".join(mapped) if mapped else "")
                pause, trouble = DISCOVERY_PAUSE, False
            self.sleep(pause)


def place_of(cell: dict[str, str]) -> str:
    """Server and schema of a cell's database, without the login."""
    return cell["database_connection"].rsplit("@", 1)[-1].split("?")[0]
