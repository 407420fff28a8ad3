"""Every known fault of a node, with its cure. It only looks: nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from imagegen_node.engine import health
from imagegen_node.engine.errors import Waiting
from imagegen_node.engine.system import check_port
from imagegen_node.node import clock, declared, machine, metadata
from imagegen_node.openstack import backing, cells, cloud, discovery, ovn, upgrade
from imagegen_node.openstack.api import Session, is_up, open_nova_session, own_user
from imagegen_node.openstack.database import AGENT_SCHEMA, connect_schema, fetch_rows, read_schema_state
from imagegen_node.roles import compute, controller

RUN = Path("/run")  # in memory; the agent writes there
AGAIN = "imagegen-node retry {}"
STEP_CLOCK = "chronyc tracking; chronyc sources; once there is a source: chronyc makestep"


@dataclass(frozen=True)
class Finding:
    """What is wrong, and what to do about it."""

    what: str
    cure: str


@dataclass(frozen=True)
class Patient:
    """The node's metadata, its node.json, and the names of computes that ought to be there (controllers only)."""

    facts: dict[str, Any]
    node: dict[str, Any]
    expected: Sequence[str] = ()


Check = Callable[[Patient], Iterator[Finding]]


def examine(patient: Patient) -> list[Finding]:
    """Everything that is wrong with this node."""
    findings: list[Finding] = []
    for name, cure, check in CHECKS[patient.facts["role"]]:
        try:
            findings += check(patient)
        except Exception as error:  # what a check cannot look at is a finding, and the other checks still run
            text = str(error) or type(error).__name__
            findings.append(Finding(f"{name}: {text}", cure))
    return findings


def check_files(patient: Patient) -> Iterator[Finding]:
    for wrong in metadata.find_wrong_files(patient.facts.get("files") or [], patient.node["files_key"]):
        yield Finding(
            wrong,
            "reboot (the seed's files are written again); if that does not help: /var/log/cloud-init.log",
        )


def check_machine(patient: Patient) -> Iterator[Finding]:
    machine.check_machine(patient.node)
    yield from ()


def check_disk(patient: Patient) -> Iterator[Finding]:
    for place, what in health.find_full([*declared.list_places(patient.node), RUN]):
        cure = f"find where the files are: du -x --inodes {place} | sort -n | tail"
        if "inodes" not in what:
            cure = f"journalctl --vacuum-size=100M; apt-get clean; find what is large: du -xh {place} | sort -h | tail"
        yield Finding(what, cure)


def check_databases(patient: Patient) -> Iterator[Finding]:
    backing.check_database(patient.node)
    with connect_schema(patient.node["database"], "imagegen") as connection:
        ((theirs,),) = fetch_rows(connection, "SELECT UNIX_TIMESTAMP(NOW(6))")
    if skew := clock.describe_skew(float(theirs), "the database server's"):
        yield Finding(skew, STEP_CLOCK)
    for work in (upgrade.MIGRATIONS, upgrade.CHECK):
        if not upgrade.is_done(patient.node, work):
            yield Finding(f"{upgrade.name_work(work)} was not finished", AGAIN.format("lease"))


def check_messaging(patient: Patient) -> Iterator[Finding]:
    backing.check_messaging(patient.node["messaging"])
    yield from ()


def check_identity(patient: Patient) -> Iterator[Finding]:
    backing.check_identity(patient.node)
    if "database" in patient.node:
        if missing := controller.find_missing_identity(patient.node):
            yield Finding(f"Keystone lacks {missing}", AGAIN.format("service-users"))
        return
    user = own_user(patient.node)
    session = Session(patient.node["auth_url"], user["name"], user["password"])
    if skew := clock.describe_skew(session.issued, "Keystone's"):
        yield Finding(skew, STEP_CLOCK)


def check_cache(patient: Patient) -> Iterator[Finding]:
    if cache := patient.node.get("cache"):
        check_port(cache["host"], cache["port"], "memcached")
    yield from ()


def check_schemas(patient: Patient) -> Iterator[Finding]:
    cures = {
        "absent": "the holder of the lease makes it: " + AGAIN.format("lease") + " on each controller",
        "behind": "the holder of the lease upgrades it: " + AGAIN.format("lease") + " on each controller",
        "ahead": "a newer release made it: boot this node from the image of that release",
    }
    for entry in patient.node["database"]["schemas"]:
        schema = entry["name"]
        if schema == AGENT_SCHEMA:
            continue
        with connect_schema(patient.node["database"], schema) as connection:
            state = read_schema_state(connection, schema)
        if state != "head":
            yield Finding(f"schema {schema} is {state}", cures[state])


def check_cells(patient: Patient) -> Iterator[Finding]:
    there = cells.read_cells(patient.node)
    for cell in cells.find_duplicates(patient.node["cells"], there):
        yield Finding("two rows for one cell", cells.explain_duplicate(cell))
    rows = {cell["uuid"]: cell for cell in there}
    for wanted in patient.node["cells"]:
        row = rows.get(wanted["uuid"])
        if row is None:
            yield Finding("{name} has no row in nova_api.cell_mappings".format(**wanted), AGAIN.format("cells"))
            continue
        if wanted["name"] == cells.CELL0 and row["transport_url"] != wanted["transport_url"]:
            what = "cell0 has a message queue's URL, so it can be mistaken for cell1; it must be none:///"
            yield Finding(what, AGAIN.format("cells"))
        stale = [key for key in ("name", "database_connection", "transport_url") if row[key] != wanted[key]]
        if (wanted["name"] != cells.CELL0 and stale) or stale not in ([], ["transport_url"]):
            named = " and ".join(stale)
            what = "the row of {} differs from the seed in {}".format(wanted["name"], named)
            yield Finding(what, AGAIN.format("cells") + "; if it comes back, another controller has an older seed")


def check_computes(patient: Patient) -> Iterator[Finding]:
    for uuid, hosts in discovery.find_unmapped(patient.node).items():
        discover = f"as user nova: nova-manage cell_v2 discover_hosts --cell_uuid {uuid}"
        yield Finding(
            "registered, but not mapped: {}".format(", ".join(hosts)),
            f"a controller maps them within seconds; if not: journalctl -u imagegen-node there, or {discover}",
        )
    for host, here, there in discovery.find_elsewhere(patient.node):
        what = f"{host} registered in the cell {here}, but is mapped to the cell {there}, where it was before"
        cure = f"when no instance is left there, as user nova: nova-manage cell_v2 delete_host --cell_uuid {there} "
        yield Finding(what, cure + f"--host {host}; a controller then maps it to its new cell")
    oldest = upgrade.read_oldest_compute()
    for host, version in upgrade.find_old_computes(patient.node, oldest):
        what = f"{host} runs nova-compute version {version}, but this Nova's services start with {oldest} or later only"
        yield Finding(what, f"upgrade {host}")
    path = "/os-services?binary=nova-compute"
    session = open_nova_session(patient.node)
    services = {item["host"]: item for item in session.list_compute(patient.node["region"], path, "services")}
    for host in sorted(set(patient.expected) - services.keys()):
        yield Finding(f"{host} never registered", "on its console, see what imagegen-node status says")
    for host, service in sorted(services.items()):
        if not is_up(service):
            cure = f"imagegen-node doctor on {host}; if it is gone for good: openstack compute service delete {{id}}"
            yield Finding(f"nova-compute on {host} is down", cure.format(**service))


def check_units(patient: Patient) -> Iterator[Finding]:
    for unit, what in health.find_inactive(controller.list_units(patient.node)):
        yield Finding(what, f"journalctl -u {unit} -n 50; then " + AGAIN.format(declared.find_step(unit)))


def check_ports(patient: Patient) -> Iterator[Finding]:
    for element in declared.list_at_work(patient.node):
        units = list(declared.list_units([element]))
        for what, port in element["listens"].items():
            try:
                check_port(patient.node["address"], port, what)
            except Waiting as silent:
                cure = "journalctl -n 50 {}; then systemctl restart {}"
                yield Finding(str(silent), cure.format(" ".join(f"-u {unit}" for unit in units), " ".join(units)))


def check_cloud(patient: Patient) -> Iterator[Finding]:
    session = open_nova_session(patient.node)
    for what in cloud.check_catalog(patient.node, session):
        yield Finding(what, "openstack endpoint create: `imagegen validate --explain` prints how")
    cloud.check_apis(patient.node, session)


def check_agents(patient: Patient) -> Iterator[Finding]:
    """All of the cluster's: a compute whose network is gone may be unable to say so."""
    if not patient.node["network_endpoint"]:
        return
    session = open_nova_session(patient.node)
    agents = cloud.list_agents(patient.node, session)
    cure = "imagegen-node doctor on {host}; if it is gone for good: openstack network agent delete {id}"
    for agent in sorted(agents, key=lambda agent: (agent["host"], agent["agent_type"])):
        if not agent["alive"]:
            yield Finding("{agent_type} on {host} is dead".format(**agent), cure.format(**agent))
    path = "/os-services?binary=nova-compute"
    computes = {item["host"] for item in session.list_compute(patient.node["region"], path, "services")}
    # One that never registered is check_computes' to name.
    for host in sorted(computes & set(patient.expected) - {agent["host"] for agent in agents}):
        yield Finding(f"{host} has no chassis in OVN", f"imagegen-node status on {host}: see the step chassis")
    for port in cloud.list_unbound_ports(patient.node, session):
        what = "port {} could not be bound to {}".format(port["id"], port["binding:host_id"])
        yield Finding(what, "mend that host's agents, then openstack server reboot --hard its instance")


def check_chassis(patient: Patient) -> Iterator[Finding]:
    if "chassis" in patient.node:
        ovn.check_connected()
        cloud.check_agents(patient.node, open_nova_session(patient.node))
    yield from ()


def check_service(patient: Patient) -> Iterator[Finding]:
    session = open_nova_session(patient.node)
    if compute.COMPUTE_ID.exists():
        compute.check_compute_id(patient.node, session)
    service = compute.find_service(patient.node, session)
    if not is_up(service):
        cure = "journalctl -u nova-compute -n 50; then " + AGAIN.format("compute-service")
        yield Finding("this node's nova-compute is not up in the compute API", cure)
    elif not compute.is_mapped(patient.node, session):
        yield Finding("this node is registered, but not mapped", "imagegen-node doctor on a controller")
    for what in compute.look_at_queue(patient.node):
        yield Finding(what, "journalctl -u nova-compute -n 50; then systemctl restart nova-compute")


def check_libvirt(patient: Patient) -> Iterator[Finding]:
    compute.ask_libvirt()
    yield from ()


LOCAL: tuple[tuple[str, str, Check], ...] = (
    ("files", "a new seed, then reboot", check_files),
    ("machine", "do what it says", check_machine),
    ("disk", "see df", check_disk),
    ("message queue", "on its node: imagegen-node doctor; systemctl status rabbitmq-server", check_messaging),
    ("identity", "on its node: imagegen-node doctor; systemctl status keystone", check_identity),
    ("image and network", "on the controller that hosts it: imagegen-node doctor", check_cloud),
    ("units", "systemctl --failed", check_units),
    ("ports", "ss -ltnp", check_ports),
)
CHECKS: dict[str, tuple[tuple[str, str, Check], ...]] = {
    "controller": (
        *LOCAL,
        ("cache", "on its node: systemctl status memcached", check_cache),
        ("database", "on its node: imagegen-node doctor; systemctl status mariadb", check_databases),
        ("schemas", "first the database", check_schemas),
        ("cells", "first the database and its schemas", check_cells),
        ("network agents", "first Keystone and neutron-api", check_agents),
        ("computes", "first the database, Keystone and nova-api", check_computes),
    ),
    "compute": (
        *LOCAL,
        ("libvirt", "journalctl -u libvirtd -n 50; then systemctl restart libvirtd", check_libvirt),
        ("chassis", "journalctl -n 50 -u ovn-controller -u neutron-ovn-metadata-agent; ovs-vsctl show", check_chassis),
        ("compute service", "imagegen-node doctor on a controller", check_service),
    ),
}
