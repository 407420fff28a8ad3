"""The compute role, step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from imagegen_node.engine import health
from imagegen_node.engine.errors import CommandFailed, Refused, Waiting
from imagegen_node.engine.files import put_file, read_text
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import Sleep, Step, run_steps
from imagegen_node.engine.system import run, seconds_active, start_units
from imagegen_node.node import configure, declared, metadata, seed
from imagegen_node.openstack import backing, cloud, ovn
from imagegen_node.openstack.api import NotFound, Session, TokenRefused, has_reported, open_nova_session

COMPUTE_ID = Path("/var/lib/nova/compute_id")
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
LIBVIRT_SECONDS = 30.0  # until libvirt must have answered


class Compute:
    """One compute node."""

    def __init__(self, facts: dict[str, Any], node: dict[str, Any], status: Status, sleep: Sleep = time.sleep) -> None:
        self.facts = facts
        self.node = node
        self.status = status
        self.sleep = sleep
        self.session: Session | None = None  # kept between looks: a login costs Keystone a password's hash

    def run(self) -> None:
        """Makes the node ready - service up, host mapped, hypervisor listed - then stays, and checks that it is."""
        run_steps(self.list_steps(), self.status, self.sleep)
        self.status.ready("")
        self.watch()

    def watch(self) -> None:
        """Looks at the node from time to time, for ever. The status shows what is wrong until it is over."""
        state = health.Health(self.list_looks())
        while True:
            self.sleep(max(1.0, state.seconds_left()))
            if trouble := state.examine():
                self.status.degraded(trouble)
            else:
                self.status.ready("")
            self.status.flush()

    def list_looks(self) -> list[health.Look]:
        """What must be true of a compute that works."""
        return [
            lambda: health.look_at_disks(declared.list_places(self.node)),
            lambda: health.look_at_units(declared.list_units(declared.list_at_work(self.node))),
            look_at_libvirt,
            *([health.require(ovn.check_connected)] if "chassis" in self.node else []),
            lambda: look_at_queue(self.node),
            self.look_at_service,
        ]

    def look_at_service(self) -> Iterator[str]:
        """What the API says of this node's nova-compute."""
        if self.session is None:
            self.session = open_nova_session(self.node)
        try:
            yield from self.ask_apis(self.session)
        except TokenRefused:  # it has expired, an hour after the login
            self.session = open_nova_session(self.node)
            yield from self.ask_apis(self.session)

    def ask_apis(self, session: Session) -> list[str]:
        """What the APIs say is wrong with this node. Raises TokenRefused, with nothing said."""
        troubles = list(find_service_troubles(self.node, session))
        if "chassis" in self.node:
            troubles += health.find_troubles([health.require(partial(cloud.check_agents, self.node, session))])
        return troubles

    def list_step_names(self) -> list[str]:
        """Every step of this node, in the order in which they run."""
        return ["role", *(step.name for step in self.list_steps())]

    def list_steps(self) -> list[Step]:
        node = self.node
        others = declared.list_units(declared.list_services(self.node), step="services")
        chassis = "chassis" in node
        return [
            Step("files", lambda: metadata.check_files(self.facts, node)),
            Step("machine", lambda: seed.keep_machine(self.facts, node)),
            Step("configure", configure.configure_compute),
            Step("wait-messaging", lambda: backing.check_messaging(node["messaging"])),
            Step("wait-identity", lambda: backing.check_identity(node)),
            Step("compute-id", self.place_compute_id),
            Step("libvirt", self.start_libvirt),
            *([Step("openvswitch", self.start_openvswitch), Step("chassis", self.start_chassis)] if chassis else []),
            Step("compute-service", self.start_compute),
            *([Step("metadata-agent", self.start_metadata_agent)] if chassis else []),
            *([Step("services", partial(start_units, others))] if others else []),
            Step("mapped", self.check_mapped),
            *([Step("network-agents", self.check_agents)] if chassis else []),
            Step("seed", seed.erase),
        ]

    def place_compute_id(self) -> str:
        """compute_id (2023.1 and later): never changed; written from the seed, or as Nova knows it, only if absent."""
        wanted = self.node["compute_id"]
        if wanted is None:
            return "this release has none"
        session = open_nova_session(self.node)
        if read_text(COMPUTE_ID) is not None:
            return check_compute_id(self.node, session)
        known = find_hypervisor(self.node, session).get("id")
        service = find_service(self.node, session)
        if service and not known:
            raise Refused(
                "Nova knows the compute service {node}, but not which compute_id it had. Restore {path} or, if no "
                "instance is left there, run `openstack compute service delete {id}`".format(
                    node=self.node["node"], path=COMPUTE_ID, id=service["id"]
                )
            )
        put_file(COMPUTE_ID, f"{known or wanted}\n", 0o644, "nova", "nova")
        return "written, as Nova knows it" if known else "written"

    def start_libvirt(self) -> str:
        self.start("libvirt")
        if not LIBVIRT_SOCKET.exists():
            raise Waiting(f"libvirt's socket {LIBVIRT_SOCKET}")
        ask_libvirt()
        return ""

    def start_openvswitch(self) -> str:
        """Open vSwitch up, and told which chassis this is and where OVN is."""
        self.start("openvswitch")
        return ovn.configure_chassis(self.node)

    def start_chassis(self) -> str:
        """ovn-controller connected to OVN."""
        self.start("chassis")
        return ovn.check_connected()

    def start_metadata_agent(self) -> str:
        self.start("metadata-agent")
        return ""

    def check_agents(self) -> str:
        """Raises Waiting until Neutron calls this node's chassis and metadata agent alive."""
        return cloud.check_agents(self.node, open_nova_session(self.node))

    def start(self, step: str) -> None:
        start_units(declared.list_units(declared.list_services(self.node), step=step))

    def start_compute(self) -> str:
        """nova-compute started; done when the API calls it up."""
        self.start("compute-service")
        session = open_nova_session(self.node)
        service = find_service(self.node, session)
        if not has_reported(service, session, seconds_active(declared.find_unit("nova-compute"))):
            state = "registered, first report due" if service.get("state") == "up" else service.get("state")
            raise Waiting(f"nova-compute up in the compute API (now {state or 'not registered'})")
        return "up"

    def check_mapped(self) -> str:
        """Raises Waiting until the API lists the hypervisor, which it does for mapped hosts only."""
        if not is_mapped(self.node, open_nova_session(self.node)):
            raise Waiting("a controller to map this host (registered, not mapped yet)")
        return "hypervisor listed"


def ask_libvirt() -> None:
    """Raises CommandFailed when libvirt does not answer."""
    run(["virsh", "--connect", "qemu:///system", "version"], timeout=LIBVIRT_SECONDS)


def look_at_libvirt() -> Iterator[str]:
    """Yields that libvirt does not answer, if so."""
    try:
        ask_libvirt()
    except CommandFailed as error:
        yield f"libvirt does not answer: {error}"


def look_at_queue(node: dict[str, Any]) -> Iterator[str]:
    """Yields that nova-compute does not read its queue, if so: it can be up in the API while no request reaches it."""
    for vhost in node["messaging"]["vhosts"]:
        queue = "compute.{node}".format(**node)
        if not backing.has_reader(node["messaging"], vhost, queue):
            yield f"nova-compute is deaf: it does not read the queue {queue}"


def find_service_troubles(node: dict[str, Any], session: Session) -> Iterator[str]:
    """What the API says of this node's nova-compute, if that is not up, enabled and mapped.

    Asked by the hypervisor's uuid where there is one: for /os-services, filters or not, Nova reads every service of
    every cell (nova/compute/api.py, service_get_all), and each compute asks.
    """
    found = read_hypervisor(node, session)
    if not found:
        yield "the API lists no hypervisor for this node: no controller has mapped it, or its service was deleted"
        return
    if found["state"] != "up":
        forced = find_service(node, session).get("forced_down")
        yield "nova-compute is {} in the API".format("forced down" if forced else found["state"])
    if found["status"] != "enabled":
        reason = found["service"].get("disabled_reason")
        yield "nova-compute is disabled in the API" + (f" ({reason})" if reason else "")


def check_compute_id(node: dict[str, Any], session: Session) -> str:
    """Raises Refused when the compute_id that is there is neither the seed's nor the one that Nova knows."""
    there, wanted = (read_text(COMPUTE_ID) or "").strip(), node["compute_id"]
    if wanted in (there, None):
        return "in place"
    if there != find_hypervisor(node, session).get("id"):
        raise Refused(
            f"{COMPUTE_ID} holds {there!r}, but the seed says {wanted}: this disk was another node's, or the node "
            "was renamed. Give the node its own disk, or its old name"
        )
    return "in place, older than the seed"


def find_service(node: dict[str, Any], session: Session) -> dict[str, Any]:
    """This node's nova-compute in the API, or an empty map."""
    path = "/os-services?binary=nova-compute&host={node}".format(**node)
    services = session.list_compute(node["region"], path, "services")
    return next((service for service in services if service["host"] == node["node"]), {})


def is_mapped(node: dict[str, Any], session: Session) -> bool:
    """Whether the API shows this node's hypervisor, which it does for mapped hosts only."""
    return bool(read_hypervisor(node, session))


def read_hypervisor(node: dict[str, Any], session: Session) -> dict[str, Any]:
    """This node's hypervisor in the API, or an empty map. Nova shows only mapped hosts.

    By its uuid where this release has one in a file: a list of all grows with the fleet, and each compute asks.
    """
    compute_id = read_text(COMPUTE_ID)
    if compute_id is None:
        return find_hypervisor(node, session)
    try:
        answer = session.compute(node["region"], "/os-hypervisors/" + compute_id.strip())
    except NotFound:
        return {}
    return dict(answer["hypervisor"])


def find_hypervisor(node: dict[str, Any], session: Session) -> dict[str, Any]:
    """This node's hypervisor in the API's list, or an empty map. Nova lists only mapped hosts."""
    hypervisors = session.list_compute(node["region"], "/os-hypervisors/detail", "hypervisors")
    return next((item for item in hypervisors if item["service"]["host"] == node["node"]), {})
