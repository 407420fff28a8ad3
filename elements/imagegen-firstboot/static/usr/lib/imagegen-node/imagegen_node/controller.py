"""The controller role, step by step."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Callable

from imagegen_node import backing, configure, discovery, metadata
from imagegen_node.api import Session, Unauthorized
from imagegen_node.database import connect_schema, fetch_rows, read_schema_state
from imagegen_node.lease import Lease
from imagegen_node.steps import LeaseLost, Refused, Step, Waiting, run_step, run_steps
from imagegen_node.system import check_port, run, start_unit

HERE = Path(__file__).parent
UNITS = ("placement-api", "nova-api", "nova-api-metadata", "nova-conductor", "nova-scheduler", "nova-novncproxy")
PORTS = {"placement": 8778, "compute API": 8774, "metadata API": 8775, "noVNC proxy": 6080}
DISCOVERY_INTERVAL = 3.0  # seconds between two looks for unmapped computes


class Controller:
    """One controller and what it found out so far."""

    def __init__(self, facts: dict[str, Any], node: dict[str, Any], status: Any) -> None:
        self.facts = facts
        self.node = node
        self.status = status
        self.lease = Lease(node["database"], node["node"])
        self.upgraded = False

    def run(self) -> None:
        """Makes the node ready, then stays: keeps the lease and maps new computes."""
        run_steps(self.list_local_steps(), self.status)
        self.share_work()
        run_steps(self.list_service_steps(), self.status)
        self.status.ready("")
        while True:
            self.discover()
            time.sleep(DISCOVERY_INTERVAL)

    def list_local_steps(self) -> list[Step]:
        node = self.node
        prepare: dict[str, Callable[[dict[str, Any]], str]] = {
            "database": backing.prepare_database,
            "messaging": backing.prepare_messaging,
            "cache": backing.prepare_cache,
        }
        steps = [
            Step("files", lambda: metadata.check_files(self.facts, node)),
            Step("machine", lambda: metadata.check_identity(node)),
            Step("configure", lambda: configure.configure_controller(node)),
        ]
        steps += [Step(name, lambda work=work: work(node)) for name, work in prepare.items() if name in node["hosts"]]
        steps.append(Step("wait-database", lambda: backing.check_database(node)))
        steps.append(Step("wait-messaging", lambda: backing.check_messaging(node["messaging"])))
        if "identity" in node["hosts"]:
            steps.append(Step("identity", lambda: backing.prepare_identity(node)))
        steps.append(Step("wait-identity", lambda: backing.check_identity(node)))
        return steps

    def share_work(self) -> None:
        """The work that one controller does for all: by the holder of the lease; the others wait for what it makes."""
        while True:
            try:
                run_step(Step("lease", self.take_lease_or_see_schemas), self.status)
                if not self.lease.held:
                    return
                for step in self.list_shared_steps():
                    self.lease.check()
                    run_step(step, self.status)
                return
            except (LeaseLost, Waiting):
                continue

    def take_lease_or_see_schemas(self) -> str:
        if self.lease.take():
            return "held by this node"
        self.check_schemas()
        return "held by another, and the schemas are there"

    def list_shared_steps(self) -> list[Step]:
        sync = backing.sync_schema
        node = self.node
        return [
            Step("placement-schema", lambda: sync(node, "placement", ["placement-manage", "db", "sync"], "placement")),
            Step("nova-api-schema", lambda: sync(node, "nova_api", ["nova-manage", "api_db", "sync"], "nova")),
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

    def cell_schemas(self) -> list[str]:
        """The names of Nova's cell schemas, cell0's first."""
        other = ("keystone", "placement", "nova_api", "imagegen")
        names = [entry["name"] for entry in self.node["database"]["schemas"] if entry["name"] not in other]
        return sorted(names, key=lambda name: name != "nova_cell0")

    def read_cells(self) -> list[dict[str, str]]:
        query = "SELECT name, uuid, database_connection, transport_url FROM cell_mappings ORDER BY name, uuid"
        with connect_schema(self.node["database"], "nova_api") as connection:
            keys = ("name", "uuid", "database_connection", "transport_url")
            return [dict(zip(keys, row)) for row in fetch_rows(connection, query)]

    def check_schemas(self) -> str:
        """Raises Waiting until the node sees schema-ready: schemas at their heads, exactly one row a cell."""
        for schema in ["placement", "nova_api", *self.cell_schemas()]:
            with connect_schema(self.node["database"], schema) as connection:
                state = read_schema_state(connection, schema)
            if state == "ahead":
                raise Refused(backing.explain_newer(schema))
            if state != "head":
                raise Waiting(f"schema {schema}, which is {state}")
        if self.read_cells() != sorted(self.node["cells"], key=lambda cell: (cell["name"], cell["uuid"])):
            raise Waiting("cell mappings as the seed describes them")
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
        wanted = {cell["name"]: cell["uuid"] for cell in self.node["cells"]}
        strange = [cell for cell in there if cell["name"] in wanted and wanted[cell["name"]] != cell["uuid"]]
        if strange:
            advice = "; ".join(
                "nova-manage cell_v2 delete_cell --cell_uuid {}".format(cell["uuid"]) for cell in strange
            )
            raise Refused(
                "Nova has a second row for {}. Look at its hosts with `nova-manage cell_v2 list_hosts`, "
                "then, as user nova: {}".format(strange[0]["name"], advice)
            )

    def sync_nova(self) -> str:
        """`db sync`, which reaches cell0 and [database]; further cells one by one."""
        states = {}
        for schema in self.cell_schemas():
            with connect_schema(self.node["database"], schema) as connection:
                states[schema] = read_schema_state(connection, schema)
        if "ahead" in states.values():
            raise Refused(backing.explain_newer("nova"))
        if set(states.values()) == {"head"}:
            return "at head"
        if {states["nova_cell0"], states["nova"]} != {"head"}:
            run(["nova-manage", "db", "sync"], user="nova")
        for cell in self.node["cells"]:
            schema = cell["database_connection"].split("?")[0].rsplit("/", 1)[1]
            if schema not in ("nova", "nova_cell0") and states[schema] != "head":
                self.sync_further_cell(cell)
        if "behind" in states.values():
            self.migrate_online()
        self.upgraded = True
        return ", ".join("{} was {}".format(*item) for item in sorted(states.items()))

    def sync_further_cell(self, cell: dict[str, str]) -> None:
        """`db sync --local_cell` with a configuration file of the cell's own, since [database] is the first cell's."""
        from imagegen_node.system import put_file

        path = "/run/imagegen/{}.conf".format(cell["name"])
        put_file(path, "[database]\nconnection = {}\n".format(cell["database_connection"]), 0o640, "root", "nova")
        argv = [
            "nova-manage",
            "--config-dir",
            "/etc/nova/nova.conf.d",
            "--config-file",
            path,
            "db",
            "sync",
            "--local_cell",
        ]
        run(argv, user="nova")
        Path(path).unlink()

    def migrate_online(self) -> None:
        """online_data_migrations until it says 0 (done); 1 is: run again; 2: stuck."""
        for _ in range(5):
            try:
                run(["nova-manage", "db", "online_data_migrations"], user="nova")
                return
            except Exception as error:
                if getattr(error, "rc", None) != 1:
                    raise
        raise Waiting("online_data_migrations to finish")

    def ensure_identity(self) -> str:
        """Service users and endpoints; nothing is spawned when the services' own logins show them all."""
        if self.see_identity():
            return "all there"
        identity = self.node["identity"]
        if identity["admin_password"] is None:
            raise Waiting(
                "Keystone outside this cluster to have the users {}".format(
                    ", ".join(u["name"] for u in identity["users"])
                )
            )
        wanted = {"auth_url": self.node["auth_url"], "region": self.node["region"], **identity}
        text = run([sys.executable, str(HERE / "identity_objects.py")], input=json.dumps(wanted))
        if not self.see_identity():
            raise Waiting("users and endpoints in Keystone as the seed describes them")
        return ", ".join(text.splitlines())

    def see_identity(self) -> bool:
        """Whether every service user logs in, has its roles, and finds every service at its URL."""
        identity = self.node["identity"]
        for user in identity["users"]:
            try:
                session = Session(self.node["auth_url"], user["name"], user["password"])
            except Unauthorized:
                return False
            if not set(user["roles"]) <= session.roles:
                return False
            for service in identity["services"]:
                wanted = {interface: [service["url"]] for interface in ("public", "internal", "admin")}
                if session.endpoints(service["type"], self.node["region"]) != wanted:
                    return False
        return True

    def start_services(self) -> str:
        for unit in UNITS:
            start_unit(unit + ".service")
        for what, port in PORTS.items():
            check_port(self.node["address"], port, what)
        return ""

    def verify(self) -> str:
        """Raises Waiting until the API lists this node's conductor and scheduler as up."""
        user = next(entry for entry in self.node["identity"]["users"] if entry["name"] == "nova")
        try:
            session = Session(self.node["auth_url"], "nova", user["password"])
        except Unauthorized as error:
            raise Waiting("Keystone to take the password of user nova") from error
        services = session.compute(self.node["region"], "/os-services")["services"]
        up: set[str] = {s["binary"] for s in services if s["host"] == self.node["node"] and s["state"] == "up"}
        missing = {"nova-conductor", "nova-scheduler"} - up
        if missing:
            raise Waiting("{} up in the compute API".format(" and ".join(sorted(missing))))
        return "conductor and scheduler up"

    def check_upgrade(self) -> str:
        """nova-status upgrade check: 0 and 1 (warnings) pass, 2 fails."""
        run(["nova-status", "upgrade", "check"], user="nova", ok=(0, 1))
        return ""

    def discover(self) -> None:
        """Maps computes that no cell mapping knows yet, while this node holds the lease."""
        try:
            if self.lease.take():
                mapped = discovery.map_new_hosts(self.node)
                if mapped:
                    self.status.ready("mapped " + ", ".join(mapped))
        except Waiting as waiting:
            self.status.ready("discovery waits for " + str(waiting))
        except Exception as error:
            self.status.ready(f"discovery failed, trying again: {error}")
