"""The commands that the agent runs, with the return codes and the habits of the real ones (Nova 31)."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

from fakes import nova
from fakes.nova_manage import DONE, HALF_MADE, Answer, Configuration, NovaManage

if TYPE_CHECKING:
    from fakes.world import World

# These change nothing.
READS = (
    *("systemctl show", "virsh", "ovn-nbctl get-connection", "ovn-sbctl get-connection", "ovn-appctl"),
    *("ovs-vsctl get-manager", "ovs-vsctl --format=json --columns=external_ids list"),
)


class Crash(BaseException):
    """The agent's machine loses power."""


class Commands:
    """Runs commands on the world. `faults`: what the next commands that begin so answer instead of working."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log: list[str] = []  # every command that may change something
        self.users: dict[str, str] = {}  # command -> the account it ran as
        self.faults: list[tuple[str, Answer]] = []
        self.crash_at: tuple[int, str] | None = None  # (number of the command, "before" or "after" its work)

    def fail(self, command: str, rc: int, stderr: str = "", times: int = 1) -> None:
        self.faults += [(command, (rc, "", stderr))] * times

    def run(self, argv: list[str], *, input: str | None, env: dict[str, str], **options: Any) -> CompletedProcess[str]:
        """What subprocess.run does here."""
        words = [word if "/" not in word or index else word.rsplit("/", 1)[1] for index, word in enumerate(argv)]
        if argv[-1].endswith(".py"):
            words = [argv[-1].rsplit("/", 1)[1]]
        command = shlex.join(words)
        number = len(self.log)
        if not command.startswith(READS):
            self.log.append(command)
            self.users[command] = env["HOME"].rsplit("/", 1)[1]
        crashes = self.crash_at is not None and self.crash_at[0] == number and not command.startswith(READS)
        if crashes and self.crash_at == (number, "before"):
            raise Crash
        rc, out, err = self._answer(command, words, input, env)
        if crashes:
            raise Crash
        return CompletedProcess(argv, rc, out, err)

    def _answer(self, command: str, words: list[str], input: str | None, env: dict[str, str]) -> Answer:
        for fault in self.faults:
            if command.startswith(fault[0]):
                self.faults.remove(fault)
                return fault[1]
        for start, method in COMMANDS.items():
            if command.startswith(start):
                return method(self, words[len(start.split()) :], input, env)
        raise AssertionError(f"there is no such command on the node: {command}")

    # systemd

    def show_units(self, words: list[str], *_: Any) -> Answer:
        if words[0] == "--property=ActiveEnterTimestampMonotonic":
            return 0, f"{round(self._unit(words[2]).since * 1e6)}\n", ""
        assert words[0] == "--property=ActiveState,SubState"
        names = {"active": ("active", "running"), "inactive": ("inactive", "dead"), "failed": ("failed", "failed")}
        states = [names.get(self._unit(name).state, (self._unit(name).state, "start")) for name in words[1:]]
        return 0, "\n\n".join(f"ActiveState={active}\nSubState={sub}" for active, sub in states) + "\n", ""

    def start_units(self, words: list[str], *_: Any) -> Answer:
        for name in words:
            if self._unit(name).state == "inactive":
                self._unit(name).state = "activating"
        return DONE

    def restart_units(self, words: list[str], *_: Any) -> Answer:
        for name in words:
            self._unit(name).state = "restarting"
        return DONE

    def reset_units(self, words: list[str], *_: Any) -> Answer:
        for name in words:
            self._unit(name).state = "inactive"
        return DONE

    def _unit(self, name: str) -> Any:
        from fakes.world import Unit

        return self.world.units.setdefault(name, Unit())

    # cloud-init

    def write_files(self, *_: Any) -> Answer:
        self.world.make_node(self.world.node_name)
        return DONE

    # the backing services

    def import_definitions(self, words: list[str], *_: Any) -> Answer:
        assert words == [str(self.world.at("/etc/rabbitmq/definitions.json"))]
        self.world.import_definitions()
        return DONE

    def sync_keystone(self, *_: Any) -> Answer:
        return self._sync("keystone")

    def bootstrap(self, words: list[str], input: str | None, env: dict[str, str]) -> Answer:
        if not self._at_head("keystone"):
            return 1, "", "no such table: project"
        options = dict(zip(words[::2], words[1::2], strict=True))
        urls = {interface: options[f"--bootstrap-{interface}-url"] for interface in ("public", "internal", "admin")}
        self.world.keystone.bootstrap(env["OS_BOOTSTRAP_PASSWORD"], options["--bootstrap-region-id"], urls)
        return DONE

    def sync_placement(self, *_: Any) -> Answer:
        return self._sync("placement")

    def sync_declared(self, words: list[str], *_: Any, schema: str) -> Answer:
        """A tool that reads its service's configuration, where the package and the seed have it."""
        for word in words:
            option, _, place = word.partition("=")
            assert option not in ("--config-file", "--config-dir") or place.startswith(f"/etc/{schema}/"), word
        return self._sync(schema)

    # OVN and Open vSwitch

    def tell_ovn(self, words: list[str], *_: Any, port: int) -> Answer:
        database = self.world.ovn[port]
        return database.answer(words, self._unit(database.unit).state == "active")

    def tell_switch(self, words: list[str], *_: Any) -> Answer:
        up, switching = (self._unit(f"{name}.service").state == "active" for name in ("ovsdb-server", "ovs-vswitchd"))
        return self.world.switch.answer(words, up, switching)

    def show_connection(self, *_: Any) -> Answer:
        if self._unit("ovn-controller.service").state != "active":
            return 1, "", 'ovn-appctl: cannot read pidfile "/var/run/ovn/ovn-controller.pid" (No such file or directory)'
        return 0, "connected\n" if self.world.is_connected() else "not connected\n", ""

    # Nova

    def manage(self, words: list[str], *_: Any) -> Answer:
        """nova-manage with the node's configuration, or with that of a further cell."""
        node = self.world.node
        url = next(cell["database_connection"] for cell in node["cells"] if cell["name"] == node["cell"])
        if words[0] == "--config-dir":
            assert words[1:3] == ["/etc/nova/nova.conf.d", "--config-file"]
            found = re.search(r'^connection = "(mysql\+pymysql://.+@.+/\w+)"$', Path(words[3]).read_text(), re.M)
            assert found
            url, words = found.group(1), words[4:]
        configuration = Configuration("nova_api", url, "rabbit://openstack:x@192.168.56.11:5672/nova")
        return NovaManage(self.world.server, configuration, self._heads()).run(words)

    @staticmethod
    def _heads() -> dict[str, list[str]]:
        from fakes.world import REVISIONS, heads_of

        return {kind: heads_of(kind) for kind in REVISIONS}

    def check_upgrade(self, *_: Any) -> Answer:
        """rc 2 while there are computes and no host mapping at all; 1 is a warning."""
        server = self.world.server
        if server.rows("nova", "compute_nodes") and not server.rows("nova_api", "host_mappings"):
            return 2, "No host mappings found but there are compute nodes.", ""
        return 1, "Warning", ""

    def map_cells(self, words: list[str], input: str | None, *_: Any) -> Answer:
        from imagegen_node.openstack import cell_mappings

        nova.rows = self.world.server.rows("nova_api", "cell_mappings")
        return 0, "\n".join(cell_mappings.ensure(json.loads(input or ""))), ""

    def ensure_identity(self, words: list[str], input: str | None, *_: Any) -> Answer:
        from imagegen_node.openstack import identity_objects

        return 0, "\n".join(identity_objects.ensure(json.loads(input or ""))), ""

    def do_nothing(self, *_: Any) -> Answer:
        return DONE

    def _sync(self, schema: str) -> Answer:
        if schema not in self.world.server.schemas:
            return 255, "", f"(1049, \"Unknown database '{schema}'\")"
        if HALF_MADE in self.world.server.schemas[schema]:
            return 1, "", "(pymysql.err.OperationalError) (1050, \"Table 'half_made' already exists\")"
        rows = self.world.server.rows(schema, "alembic_version")
        rows[:] = [{"version_num": head} for head in self._heads()[schema]]
        return DONE

    def _at_head(self, schema: str) -> bool:
        rows = self.world.server.schemas.get(schema, {}).get("alembic_version", [])
        return sorted(row["version_num"] for row in rows) == sorted(self._heads()[schema])


COMMANDS: dict[str, Callable[..., Answer]] = {
    "cloud-init single --name write_files --frequency always": Commands.write_files,
    "systemctl show": Commands.show_units,
    "systemctl start --no-block": Commands.start_units,
    "systemctl restart --no-block": Commands.restart_units,
    "systemctl reset-failed": Commands.reset_units,
    "rabbitmqctl import_definitions": Commands.import_definitions,
    "keystone-manage db_sync": Commands.sync_keystone,
    "keystone-manage bootstrap": Commands.bootstrap,
    "placement-manage db sync": Commands.sync_placement,
    "glance-manage db sync": partial(Commands.sync_declared, schema="glance"),
    "neutron-db-manage": partial(Commands.sync_declared, schema="neutron"),
    "ovn-nbctl": partial(Commands.tell_ovn, port=6641),
    "ovn-sbctl": partial(Commands.tell_ovn, port=6642),
    "ovs-vsctl": Commands.tell_switch,
    "ovn-appctl --target=ovn-controller connection-status": Commands.show_connection,
    "nova-manage": Commands.manage,
    "nova-status upgrade check": Commands.check_upgrade,
    "cell_mappings.py": Commands.map_cells,
    "identity_objects.py": Commands.ensure_identity,
    "virsh": Commands.do_nothing,
    "chown --recursive": Commands.do_nothing,
}
