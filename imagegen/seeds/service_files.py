"""The files that cloud-init writes on a node: node.json, and what each of its services reads."""

from __future__ import annotations

from dataclasses import dataclass

from imagegen.base.templates import dump_json, render_template
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Hosted, Node, Role
from imagegen.model.logins import (
    COMPUTE_USER,
    compute_messaging,
)
from imagegen.seeds.connections import cache_place, cell_urls, database_url, transport_url
from imagegen.seeds.node_json import node_document
from imagegen.seeds.rabbitmq import rabbitmq_definitions


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
    """Every file that the node's seed carries, in a fixed order."""
    files = [_file("/etc/imagegen/node.json", "root:root", 0o600, dump_json(node_document(cluster, node, secrets)))]
    values = _template_values(cluster, node, secrets)
    if node == cluster.controllers[0]:
        files.append(
            _file("/etc/chrony/conf.d/imagegen.conf", "root:root", 0o644, "imagegen-base/seed/chrony.conf.j2", values)
        )
    if values["time_servers"]:
        files.append(
            _file(
                "/etc/chrony/sources.d/imagegen.sources",
                "root:root",
                0o644,
                "imagegen-base/seed/chrony.sources.j2",
                values,
            )
        )
    nova = f"nova-{node.role}/seed/nova-{node.role}.conf.j2"
    files.append(_file("/etc/nova/nova.conf.d/50-imagegen.conf", "root:nova", 0o640, nova, values))
    if node.role is Role.CONTROLLER:
        placement = "/etc/placement/placement.conf.d/50-imagegen.conf"
        files.append(_file(placement, "root:placement", 0o640, "placement-api/seed/placement.conf.j2", values))
        files += _further_cells(cluster, node, secrets)
        for service in cluster.hosted_on(node):
            files += _HOSTED_FILES[service](cluster, secrets, values)
    return tuple(files)


def _file(path: str, owner: str, mode: int, content: str, values: dict[str, object] | None = None) -> SeedFile:
    """A file from its content, or from a template and the values for it."""
    return SeedFile(path, owner, mode, content if values is None else render_template(content, values))


def _time_servers(cluster: Cluster, node: Node) -> list[str]:
    """The cluster file's, and the first controller: so nodes agree on the time even if nothing else can be reached."""
    first = cluster.controllers[0]
    return [*cluster.network.ntp, *([] if node == first else [str(first.address)])]


def _template_values(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, object]:
    """All values for the templates."""
    services = cluster.services
    console_port = cluster.console_port(node.cell)
    values: dict[str, object] = {
        "name": node.name,
        "address": str(node.address),
        "region": cluster.region,
        "services": services,
        "secrets": secrets,
        "auth_url": services.auth_url,
        "image_endpoint": services.image_endpoint,
        "release": cluster.release,
        "cidr": cluster.network.cidr,
        "time_servers": _time_servers(cluster, node),
        "console_port": console_port,
    }
    if node.role is Role.COMPUTE:
        user = compute_messaging(cluster, node.cell)
        values |= {
            "transport_url": transport_url(cluster, node.cell, user, secrets),
            "compute_user": COMPUTE_USER,
            "compute_password": secrets.password(f"identity_{COMPUTE_USER}"),
            "novncproxy_base_url": f"http://{cluster.controllers[0].address}:{console_port}/vnc_auto.html",
        }
    else:
        database = services.database
        values |= {
            "cache": "{host}:{port}".format(**cache_place(cluster)),
            "api_database": database_url(database, "nova_api", "nova", secrets.database_nova),
            **cell_urls(cluster, node.cell, secrets),
            "placement_database": database_url(database, "placement", "placement", secrets.database_placement),
            "keystone_database": f"mysql+pymysql://keystone@{database.host}:{database.port}/keystone",
        }
    return values


def _further_cells(cluster: Cluster, node: Node, secrets: Secrets) -> list[SeedFile]:
    """A drop-in for each cell but the controller's own; the controller runs a conductor and a noVNC proxy for each."""
    files = []
    for cell in cluster.cells:
        if cell != node.cell:
            values = {**cell_urls(cluster, cell, secrets), "console_port": cluster.console_port(cell)}
            files.append(
                _file(
                    f"/etc/nova/cells/{cell}.conf", "root:nova", 0o640, "nova-controller/seed/nova-cell.conf.j2", values
                )
            )
    return files


def _identity_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    return [
        _file(
            "/etc/keystone/keystone.conf.d/50-imagegen.conf",
            "root:keystone",
            0o640,
            "keystone/seed/keystone.conf.j2",
            values,
        ),
        # Keystone takes a key file as it is: no newline at the end.
        _file("/etc/keystone/fernet-keys/0", "root:keystone", 0o640, secrets.keystone_fernet_key),
        _file("/etc/keystone/credential-keys/0", "root:keystone", 0o640, secrets.keystone_credential_key),
    ]


def _messaging_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    definitions = dump_json(rabbitmq_definitions(cluster, secrets))
    return [
        _file(
            "/etc/rabbitmq/conf.d/50-imagegen.conf", "root:root", 0o644, "rabbitmq-server/seed/rabbitmq.conf.j2", values
        ),
        _file("/etc/rabbitmq/definitions.json", "root:rabbitmq", 0o640, definitions),
    ]


def _database_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    return [
        _file(
            "/etc/mysql/mariadb.conf.d/90-imagegen.cnf",
            "root:root",
            0o644,
            "mariadb-server/seed/mariadb.cnf.j2",
            values,
        )
    ]


def _cache_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    return [
        _file(
            "/etc/memcached.conf",
            "root:root",
            0o644,
            "memcached/seed/memcached.conf.j2",
            {**values, **cache_place(cluster)},
        )
    ]


_HOSTED_FILES = {
    Hosted.DATABASE: _database_files,
    Hosted.MESSAGING: _messaging_files,
    Hosted.CACHE: _cache_files,
    Hosted.IDENTITY: _identity_files,
}
