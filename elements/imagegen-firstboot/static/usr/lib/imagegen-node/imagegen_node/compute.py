"""The compute role, step by step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from imagegen_node import backing, configure, metadata, seed
from imagegen_node.api import NotFound, Session, has_reported, open_nova_session
from imagegen_node.files import put_file, read_text
from imagegen_node.status import Status
from imagegen_node.steps import Refused, Sleep, Step, Waiting, run_steps
from imagegen_node.system import Units, run, seconds_active, start_units

COMPUTE_ID = Path("/var/lib/nova/compute_id")
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
LIBVIRT: Units = {"libvirtd.service": ()}
NOVA_COMPUTE: Units = {"nova-compute.service": (Path("/etc/nova"),)}
UNITS: Units = {**LIBVIRT, **NOVA_COMPUTE}


class Compute:
    """One compute node."""

    def __init__(self, facts: dict[str, Any], node: dict[str, Any], status: Status, sleep: Sleep = time.sleep) -> None:
        self.facts = facts
        self.node = node
        self.status = status
        self.sleep = sleep

    def run(self) -> None:
        """Makes the node ready: service up, host mapped, hypervisor listed."""
        run_steps(self.list_steps(), self.status, self.sleep)
        self.status.ready("")
        self.status.close(self.sleep)

    def list_step_names(self) -> list[str]:
        """Every step of this node, in the order in which they run."""
        return ["role", *(step.name for step in self.list_steps())]

    def list_steps(self) -> list[Step]:
        node = self.node
        return [
            Step("files", lambda: metadata.check_files(self.facts, node)),
            Step("machine", lambda: seed.keep_machine(self.facts, node)),
            Step("configure", configure.configure_compute),
            Step("wait-messaging", lambda: backing.check_messaging(node["messaging"])),
            Step("wait-identity", lambda: backing.check_identity(node)),
            Step("compute-id", self.place_compute_id),
            Step("libvirt", self.start_libvirt),
            Step("compute-service", self.start_compute),
            Step("mapped", self.check_mapped),
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
                "Nova knows the compute service {node}, but not which compute_id it had. Restore {path}, or, when no "
                "instance is left there: `openstack compute service delete {id}`".format(
                    node=self.node["node"], path=COMPUTE_ID, id=service["id"]
                )
            )
        put_file(COMPUTE_ID, f"{known or wanted}\n", 0o644, "nova", "nova")
        return "written, as Nova knows it" if known else "written"

    def start_libvirt(self) -> str:
        start_units(LIBVIRT)
        if not LIBVIRT_SOCKET.exists():
            raise Waiting(f"libvirt's socket {LIBVIRT_SOCKET}")
        run(["virsh", "--connect", "qemu:///system", "version"])
        return ""

    def start_compute(self) -> str:
        """nova-compute started; done when the API calls it up."""
        start_units(NOVA_COMPUTE)
        session = open_nova_session(self.node)
        service = find_service(self.node, session)
        if not has_reported(service, session, seconds_active("nova-compute.service")):
            state = "registered, first report due" if service.get("state") == "up" else service.get("state")
            raise Waiting(f"nova-compute up in the compute API (now {state or 'not registered'})")
        return "up"

    def check_mapped(self) -> str:
        """Raises Waiting until the API lists the hypervisor, which it does for mapped hosts only."""
        if not is_mapped(self.node, open_nova_session(self.node)):
            raise Waiting("a controller to map this host (registered, unmapped)")
        return "hypervisor listed"


def check_compute_id(node: dict[str, Any], session: Session) -> str:
    """Raises Refused when the compute_id that is there is neither the seed's nor the one that Nova knows."""
    there, wanted = (read_text(COMPUTE_ID) or "").strip(), node["compute_id"]
    if wanted in (there, None):
        return "in place"
    if there != find_hypervisor(node, session).get("id"):
        raise Refused(
            f"{COMPUTE_ID} holds {there!r}, the seed says {wanted}: this disk was another node's, or the node "
            "was renamed. Give the node its own disk, or its old name"
        )
    return "in place, older than the seed"


def find_service(node: dict[str, Any], session: Session) -> dict[str, Any]:
    """This node's nova-compute in the API, or an empty map."""
    path = "/os-services?binary=nova-compute&host={node}".format(**node)
    services = session.compute(node["region"], path)["services"]
    return next((service for service in services if service["host"] == node["node"]), {})


def is_mapped(node: dict[str, Any], session: Session) -> bool:
    """Whether the API shows this node's hypervisor, which it does for mapped hosts only.

    Asked by its uuid where this release has one in a file: a list of all grows with the fleet, and each compute polls.
    """
    compute_id = read_text(COMPUTE_ID)
    if compute_id is None:
        return bool(find_hypervisor(node, session))
    try:
        session.compute(node["region"], "/os-hypervisors/" + compute_id.strip())
    except NotFound:
        return False
    return True


def find_hypervisor(node: dict[str, Any], session: Session) -> dict[str, Any]:
    """This node's hypervisor in the API's list, or an empty map. Nova lists only mapped hosts."""
    hypervisors = session.compute(node["region"], "/os-hypervisors/detail")["hypervisors"]
    return next((item for item in hypervisors if item["service"]["host"] == node["node"]), {})
