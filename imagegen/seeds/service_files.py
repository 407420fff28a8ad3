"""The files that cloud-init writes on a node: what the elements at work there declare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from imagegen.base.templates import dump_json, render_template
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.model.declarations import declarations
from imagegen.model.logins import database_schemas, messaging_user, schema_of, service_messaging, service_users
from imagegen.model.secret_keys import CELL
from imagegen.seeds.connections import cache_place, cell_urls, database_url, transport_url
from imagegen.seeds.migration import Migration
from imagegen.seeds.node_json import node_document
from imagegen.seeds.rabbitmq import rabbitmq_definitions

# What `document` names in a declaration.
DOCUMENTS: Mapping[str, Callable[[Cluster, Node, Secrets], object]] = {
    "node": node_document,
    "rabbitmq_definitions": lambda cluster, node, secrets: rabbitmq_definitions(cluster, secrets),
}


@dataclass(frozen=True)
class SeedFile:
    """One file that cloud-init writes on the node."""

    path: str
    owner: str  # USER:GROUP, both in the role's image
    mode: int
    content: str

    @property
    def permissions(self) -> str:
        """The mode as cloud-init and the node's agent read it: four octal digits."""
        return f"{self.mode:04o}"


def node_files(cluster: Cluster, node: Node, secrets: Secrets) -> tuple[SeedFile, ...]:
    """Every file that the node's seed carries: of its role's services, of each further cell, of what it hosts."""
    declared = sorted(_declared_files(cluster.at_work(node)), key=lambda one: "per" in one[1])
    own = _template_values(cluster, node, secrets)
    further = [cell for cell in cluster.cells if cell != node.cell]
    files = []
    for element, file in declared:
        for cell in further if "per" in file else [node.cell]:
            values = own if cell == node.cell else own | _cell_values(cluster, cell, secrets)
            if "when" in file and not values[file["when"]]:
                continue
            if "template" in file:
                content = render_template(f"{element}/seed/{file['template']}", values)
            elif "document" in file:
                content = dump_json(DOCUMENTS[file["document"]](cluster, node, secrets))
            elif "migration" in file:
                content = getattr(values["migration"], file["migration"])
            else:
                content = secrets[file["secret"]]
            files.append(SeedFile(file["path"].replace(CELL, cell), file["owner"], int(file["mode"], 8), content))
    return tuple(files)


def _declared_files(elements: Iterable[str]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(element, file) for element in elements for file in declarations()[element].get("files", ())]


def _template_values(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, object]:
    """All values for the templates."""
    first = cluster.controllers[0]
    ntp = cluster.network.ntp
    console_port = cluster.console_port(node.cell)
    values: dict[str, object] = {
        "name": node.name,
        "address": str(node.address),
        "region": cluster.region,
        "services": cluster.services,
        "secrets": secrets,
        "auth_url": cluster.services.auth_url,
        "image_endpoint": cluster.services.image_endpoint,
        "network_endpoint": cluster.services.network_endpoint,
        "southbound": cluster.services.southbound,
        "chassis": cluster.chassis(node),
        "metadata_host": str(first.address),
        "migration": Migration(cluster, node, secrets),
        "resume_guests": cluster.resume_guests,
        "one_compute": sum(node.role.runs("nova-compute") for node in cluster.nodes) == 1,
        "block_storage": cluster.services.block_storage,
        "release": cluster.release,
        "cidr": cluster.network.cidr,
        "first_controller": node == first,
        # The first controller as well: so nodes agree on the time even if nothing else can be reached.
        "time_servers": ntp if node == first else (*ntp, str(first.address)),
        "cache": cache_place(cluster),
        "console_port": console_port,
        "novncproxy_base_url": f"http://{first.address}:{console_port}/vnc_auto.html",
    }
    if user := messaging_user(cluster, node):
        values["transport_url"] = transport_url(cluster, schema_of(cluster, node.cell), user, secrets)
    if node.role.controls:  # a compute knows no database
        urls = {name: database_url(cluster, name, user, secrets) for name, user in database_schemas(cluster)}
        queues = {
            name: transport_url(cluster, name, service_messaging(name), secrets) for name in service_users(cluster)
        }
        values |= {"databases": urls, "transport_urls": queues, **_cell_values(cluster, node.cell, secrets)}
    return values


def _cell_values(cluster: Cluster, cell: str, secrets: Secrets) -> dict[str, object]:
    """The values that a controller's templates have for each cell."""
    return {**cell_urls(cluster, cell, secrets), "console_port": cluster.console_port(cell)}
