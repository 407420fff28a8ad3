"""Checks from outside once all nodes say that they are ready: Nova's cells, services, hosts and endpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import chain
from typing import Any, Protocol
from urllib.parse import urlsplit

from imagegen.base.commands import Completed
from imagegen.base.errors import CommandFailed
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.seeds.node_json import node_document

INTERFACES = ("admin", "internal", "public")
COMPUTE_SERVICES = {"nova-controller": ("nova-conductor", "nova-scheduler"), "nova-compute": ("nova-compute",)}
"""Element -> what registers itself with Nova where it runs."""

AGENTS = ("OVN Controller agent", "OVN Metadata agent")
"""What a compute has in Neutron's list, with OVN."""

Row = dict[str, Any]


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong: with what, and what. Never holds a password."""

    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


@dataclass(frozen=True)
class Facts:
    """What nova-manage and the APIs say. Rows of `cells` and `hosts` have nova-manage's column titles as keys.

    None: nobody asked, or the answer could not be read, which is in `errors`.
    """

    cells: Sequence[Row] | None
    hosts: Sequence[Row] | None
    services: Sequence[Row] | None
    endpoints: Sequence[Row] | None
    compute_services: Sequence[Row] | None
    hypervisors: Sequence[Row] | None
    agents: Sequence[Row] | None = None
    errors: Sequence[str] = ()


class Executor(Protocol):
    """The part of a machine's interface that is needed here."""

    def execute(self, argv: Sequence[str], input: bytes | None = ..., timeout: float | None = ...) -> Completed: ...


def verify_cluster(
    cluster: Cluster,
    secrets: Secrets,
    nodes: Sequence[Node],
    reach: Executor,
    timeout: float,
    controller: Executor | None,
) -> list[Fault]:
    """What is wrong with these nodes; empty: nothing. `timeout`: seconds per command.

    `reach` is where the APIs are asked, `controller` where nova-manage is; None: what only that knows is not checked.
    """
    expected = node_document(cluster, cluster.controllers[0], secrets)
    return check_facts(cluster, nodes, expected, gather_facts(cluster, secrets, reach, timeout, controller))


def gather_facts(
    cluster: Cluster, secrets: Secrets, reach: Executor, timeout: float, controller: Executor | None
) -> Facts:
    """Asks the APIs and, on a controller, nova-manage. What cannot be read is in `errors`."""
    errors: list[str] = []

    def ask(where: Executor, what: str, argv: Sequence[str], input: bytes | None = None) -> str | None:
        try:
            done = where.execute(argv, input=input, timeout=timeout)
        except CommandFailed as error:
            errors.append(f"{what} failed: {error.message}")
            return None
        if done.returncode:
            # The last line only: a traceback's other lines are long and may show a URL.
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            errors.append(" ".join([f"{what} ended with {done.returncode}:", *reason]))
            return None
        return done.stdout.decode(errors="replace")

    def manage(*words: str) -> list[Row] | None:
        if controller is None:
            return None
        argv = ["runuser", "-u", "nova", "--", "nova-manage", "cell_v2", *words]
        said = ask(controller, f"nova-manage cell_v2 {words[0]}", argv)
        return None if said is None else parse_table(said)

    cells, hosts = manage("list_cells", "--verbose"), manage("list_hosts")
    said = ask(reach, "reading the APIs", ["python3", "-"], observe_program(cluster, secrets))
    try:
        document = json.loads(said) if said else {}
    except ValueError:
        document = {"errors": ["the answer about the APIs is not JSON"]}
    names = ["services", "endpoints", "compute_services", "hypervisors"]
    if cluster.services.southbound:  # else somebody's own agents are in the list, or none
        names.append("agents")
    read = {name: document.get(name) for name in names}
    errors += document.get("errors", [])
    if None in read.values() and not errors:
        errors.append("the answer about the APIs is incomplete")
    return Facts(cells, hosts, **read, errors=errors)


def observe_program(cluster: Cluster, secrets: Secrets) -> bytes:
    """data/observe.py and a call of its main(), as text for python3's standard input: passwords are in it."""
    services = cluster.services
    (compute_url,) = (url for endpoint, url in cluster.catalog if endpoint.type == "compute")
    # As Nova's own user, which may read all of this, even if no administrator's password is known.
    login = ("nova", secrets["identity_nova"], "service")
    agents = services.network_endpoint if services.southbound else None
    call = (services.auth_url, compute_url, services.image_endpoint, agents, *login)
    source = files("imagegen").joinpath("data/observe.py").read_text(encoding="utf-8")
    return f"{source}\n\nmain(*{call!r})\n".encode()


def parse_table(text: str) -> list[Row]:
    """The rows of a table that nova-manage prints (prettytable), by exact column; the first row holds the titles.

    No cell of these tables can hold a `|`: names are checked, and URLs are percent-encoded.
    """
    lines = [
        [cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:] if len(line) == len(lines[0])]


def check_facts(cluster: Cluster, nodes: Sequence[Node], expected: dict[str, Any], facts: Facts) -> list[Fault]:
    """Every difference between what must be and what is. `expected`: a controller's node.json, `nodes`: the booted."""
    computes = [node for node in nodes if node.role.runs("nova-compute")]
    return sorted(
        {
            *(Fault("cluster", error) for error in facts.errors),
            *_if_read(partial(_check_cells, expected["cells"]), facts.cells),
            *_if_read(partial(_check_compute_services, nodes, len(cluster.cells)), facts.compute_services),
            *_if_read(partial(_check_hosts, computes), facts.hosts),
            *_if_read(partial(_check_hypervisors, computes), facts.hypervisors),
            *_if_read(partial(_check_agents, computes), facts.agents),
            *_if_read(
                partial(_check_endpoints, cluster.region, expected["identity"]["services"]),
                facts.services,
                facts.endpoints,
            ),
        }
    )


def _if_read(check: Callable[..., list[Fault]], *rows: Sequence[Row] | None) -> list[Fault]:
    """What the check finds in the rows; nothing where they could not be read, for that is a fault of its own."""
    return [] if None in rows else check(*rows)


def _check_cells(expected: Sequence[Row], rows: Sequence[Row]) -> list[Fault]:
    """Each cell exactly once, with its uuid and both URLs, enabled; and no other."""
    found = []
    for cell in expected:
        subject, mine = f"cell {cell['name']}", [row for row in rows if row["Name"] == cell["name"]]
        if len(mine) != 1:
            found.append(Fault(subject, f"is listed {len(mine)} times, not once"))
            continue
        if mine[0]["UUID"] != cell["uuid"]:
            found.append(Fault(subject, f"has the uuid {mine[0]['UUID']}, not {cell['uuid']}"))
        if mine[0].get("Disabled", "False") != "False":
            found.append(Fault(subject, "is disabled"))
        for title, key in (("Transport URL", "transport_url"), ("Database Connection", "database_connection")):
            if parts := compare_urls(cell[key], mine[0][title]):
                found.append(Fault(subject, f"its {title} is not the seed's: {', '.join(parts)} differ(s)"))
    names = {cell["name"] for cell in expected}
    return found + [
        Fault(f"cell {row['Name']}", "is not in the cluster file") for row in rows if row["Name"] not in names
    ]


def compare_urls(wanted: str, seen: str) -> list[str]:
    """The names of the parts in which two URLs differ, passwords included; their values are never shown."""
    if wanted == seen:
        return []
    try:
        left, right = urlsplit(wanted), urlsplit(seen)
        parts = {
            "scheme": left.scheme == right.scheme,
            "user": left.username == right.username,
            "password": left.password == right.password,
            "host": left.hostname == right.hostname,
            "port": left.port == right.port,
            "path": left.path == right.path,
            "query": left.query == right.query,
        }
    except ValueError:
        return ["form"]
    return [name for name, same in parts.items() if not same] or ["spelling"]


def _check_compute_services(nodes: Sequence[Node], cells: int, rows: Sequence[Row]) -> list[Fault]:
    """Every controller's scheduler once and its conductor once per cell, every compute once: up, enabled, reporting.

    Nova calls a service up for service_down_time after its record was made, though it may never have worked: so
    updated_at counts as well (nova/servicegroup/drivers/db.py, is_up).
    """
    found = []
    for node in nodes:
        running = [binaries for element, binaries in COMPUTE_SERVICES.items() if node.role.runs(element)]
        for binary in chain.from_iterable(running):
            mine = [row for row in rows if row["binary"] == binary and row["host"] == node.name]
            found += _check_up(node.name, binary, mine, cells if binary == "nova-conductor" else 1) or [
                Fault(node.name, f"{binary} has never reported since it was registered")
                for row in mine
                if not row["updated_at"]
            ]
    return found


def _check_up(subject: str, what: str, rows: Sequence[Row], times: int = 1) -> list[Fault]:
    """There must be that many rows, all up and enabled."""
    if len(rows) != times:
        wanted = "once" if times == 1 else f"{times} times"
        return [Fault(subject, f"{what} is listed {len(rows)} times, not {wanted}")]
    states = {(row["state"], row["status"]) for row in rows} - {("up", "enabled")}
    return [Fault(subject, f"{what} is {state} and {status}, not up and enabled") for state, status in sorted(states)]


def _check_hosts(computes: Sequence[Node], rows: Sequence[Row]) -> list[Fault]:
    """Every compute mapped once, to its own cell."""
    found = []
    for node in computes:
        cells = [row["Cell Name"] for row in rows if row["Hostname"] == node.name]
        if cells != [node.cell]:
            found.append(Fault(node.name, f"is mapped to {', '.join(cells) or 'no cell'}, not to {node.cell} once"))
    return found


def _check_hypervisors(computes: Sequence[Node], rows: Sequence[Row]) -> list[Fault]:
    """Every compute's hypervisor listed once, up and enabled."""
    found = []
    for node in computes:
        found += _check_up(node.name, "its hypervisor", [row for row in rows if row["service"]["host"] == node.name])
    return found


def _check_agents(computes: Sequence[Node], rows: Sequence[Row]) -> list[Fault]:
    """Every compute's chassis and metadata agent alive in Neutron."""
    alive = {(row["host"], row["agent_type"]) for row in rows if row["alive"]}
    return [
        Fault(node.name, f"Neutron does not call its {kind} alive")
        for node in computes
        for kind in AGENTS
        if (node.name, kind) not in alive
    ]


def _check_endpoints(
    region: str, expected: Sequence[Row], services: Sequence[Row], endpoints: Sequence[Row]
) -> list[Fault]:
    """Each service registered once, with one enabled endpoint per interface in the region, at the right URL."""
    found = []
    for service in expected:
        subject = f"service {service['name']}"
        mine = [row["id"] for row in services if row["type"] == service["type"] and row["name"] == service["name"]]
        if len(mine) != 1:
            found.append(Fault(subject, f"of type {service['type']} is registered {len(mine)} times, not once"))
            continue
        for interface in INTERFACES:
            urls = [
                row["url"]
                for row in endpoints
                if (row["service_id"], row["interface"], row["region"], row["enabled"])
                == (mine[0], interface, region, True)
            ]
            if urls != [service["url"]]:
                seen = ", ".join(urls) or "missing"
                found.append(
                    Fault(subject, f"its {interface} endpoint in {region} is {seen}, not {service['url']} once")
                )
    return found
