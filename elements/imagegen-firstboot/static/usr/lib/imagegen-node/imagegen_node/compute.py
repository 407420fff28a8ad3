"""The compute role, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagegen_node import backing, configure, metadata
from imagegen_node.api import Session, Unauthorized
from imagegen_node.steps import Refused, Step, Waiting, run_steps
from imagegen_node.system import put_file, run, start_unit

COMPUTE_ID = Path("/var/lib/nova/compute_id")
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")


class Compute:
    """One compute node."""

    def __init__(self, facts: dict[str, Any], node: dict[str, Any], status: Any) -> None:
        self.facts = facts
        self.node = node
        self.status = status

    def run(self) -> None:
        """Makes the node ready: service up, host mapped, hypervisor listed."""
        run_steps(self.list_steps(), self.status)
        self.status.ready("")

    def list_steps(self) -> list[Step]:
        node = self.node
        return [
            Step("files", lambda: metadata.check_files(self.facts, node)),
            Step("machine", lambda: metadata.check_identity(node)),
            Step("configure", configure.configure_compute),
            Step("wait-messaging", lambda: backing.check_messaging(node["messaging"])),
            Step("wait-identity", lambda: backing.check_identity(node)),
            Step("compute-id", self.place_compute_id),
            Step("libvirt", self.start_libvirt),
            Step("compute-service", self.start_compute),
            Step("mapped", self.check_mapped),
        ]

    def open_session(self) -> Session:
        user = next(entry for entry in self.node["identity"]["users"] if entry["name"] == "nova")
        try:
            return Session(self.node["auth_url"], "nova", user["password"])
        except Unauthorized as error:
            raise Waiting("Keystone to take the password of user nova, which a controller makes") from error

    def find_service(self, session: Session) -> dict[str, Any]:
        """This node's nova-compute in the API, or an empty map."""
        services = session.compute(self.node["region"], "/os-services?binary=nova-compute")["services"]
        return next((service for service in services if service["host"] == self.node["node"]), {})

    def find_hypervisor(self, session: Session) -> dict[str, Any]:
        """This node's hypervisor in the API, or an empty map. Nova lists only mapped hosts."""
        hypervisors = session.compute(self.node["region"], "/os-hypervisors/detail")["hypervisors"]
        return next((item for item in hypervisors if item["service"]["host"] == self.node["node"]), {})

    def place_compute_id(self) -> str:
        """compute_id from the seed, only when absent and Nova does not know the host (2023.1 and later)."""
        wanted = self.node["compute_id"]
        if COMPUTE_ID.exists():
            there = COMPUTE_ID.read_text().strip()
            if there != wanted:
                raise Refused(
                    f"{COMPUTE_ID} holds {there}, the seed says {wanted}: "
                    "this disk was another node's, or the node was renamed. "
                    "Give the node its own disk, or its old name"
                )
            return "in place"
        session = self.open_session()
        if self.find_service(session):
            known = self.find_hypervisor(session).get("id")
            if not known:
                raise Refused(
                    "Nova knows {}, but its compute_id cannot be found in the API: restore {}".format(
                        self.node["node"], COMPUTE_ID
                    )
                )
            wanted = known
        put_file(str(COMPUTE_ID), wanted + "\n", 0o644, "nova", "nova")
        return "written"

    def start_libvirt(self) -> str:
        start_unit("libvirtd.service")
        if not LIBVIRT_SOCKET.exists():
            raise Waiting(f"libvirt's socket {LIBVIRT_SOCKET}")
        run(["virsh", "--connect", "qemu:///system", "version"])
        return ""

    def start_compute(self) -> str:
        """nova-compute started; done when the API calls it up."""
        start_unit("nova-compute.service")
        service = self.find_service(self.open_session())
        if service.get("state") != "up":
            raise Waiting("nova-compute up in the compute API (now {})".format(service.get("state", "not registered")))
        return "up"

    def check_mapped(self) -> str:
        """Raises Waiting until the API lists the hypervisor, which it does for mapped hosts only."""
        if not self.find_hypervisor(self.open_session()):
            raise Waiting("a controller to map this host (registered, unmapped)")
        return "hypervisor listed"
