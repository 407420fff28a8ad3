"""What must exist at backing services outside the cluster, which imagegen has no administrator's credentials for."""

from __future__ import annotations

from imagegen.model import Cluster, Hosted


def explain_external(cluster: Cluster) -> list[str]:
    """The commands to type at each external service, as lines; a password is named by its key in secrets.yaml."""
    sections = {
        Hosted.DATABASE: (cluster.services.database, _database_lines),
        Hosted.MESSAGING: (cluster.services.messaging, _messaging_lines),
        Hosted.CACHE: (cluster.services.cache, _cache_lines),
        Hosted.IDENTITY: (cluster.services.identity, _identity_lines),
    }
    lines: list[str] = []
    for service, (place, explain) in sections.items():
        if place.node is None:
            lines += [f"# {service} at {place.host}:{place.port}", *explain(cluster), ""]
    return lines[:-1]


def database_schemas(cluster: Cluster) -> list[tuple[str, str]]:
    """Every database of the cluster and the user that owns it, in the order of the seeds."""
    cells = [("nova" if cell == cluster.cells[0] else f"nova_{cell}", "nova") for cell in cluster.cells]
    keystone = [("keystone", "keystone")] if cluster.services.identity.node else []
    return [
        *keystone,
        ("placement", "placement"),
        ("nova_api", "nova"),
        ("nova_cell0", "nova"),
        *cells,
        ("imagegen", "imagegen"),
    ]


def _database_lines(cluster: Cluster) -> list[str]:
    schemas = database_schemas(cluster)
    # Computes never reach a database, so the controllers are the only hosts that need an account.
    hosts = [str(node.address) for node in cluster.controllers]
    lines = [f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4;" for name, _ in schemas]
    for user in dict.fromkeys(user for _, user in schemas):
        for host in hosts:
            lines.append(f"CREATE USER '{user}'@'{host}' IDENTIFIED BY '<database_{user} of secrets.yaml>';")
            lines += [
                f"GRANT ALL PRIVILEGES ON `{name}`.* TO '{user}'@'{host}';" for name, own in schemas if own == user
            ]
    return lines


def _messaging_lines(cluster: Cluster) -> list[str]:
    vhosts = ["nova", *(f"nova_{cell}" for cell in cluster.cells[1:])]
    return [
        "rabbitmqctl add_user openstack    # asks for the password: messaging_openstack of secrets.yaml",
        *(f"rabbitmqctl add_vhost {vhost}" for vhost in vhosts),
        *(f"rabbitmqctl set_permissions -p {vhost} openstack '.*' '.*' '.*'" for vhost in vhosts),
    ]


def _cache_lines(cluster: Cluster) -> list[str]:
    return [f"# nothing to create; {', '.join(str(node.address) for node in cluster.controllers)} must reach it"]


def _identity_lines(cluster: Cluster) -> list[str]:
    first = cluster.controllers[0].address
    lines = ["openstack project create --domain default --or-show service", "openstack role create --or-show service"]
    services = (("nova", "compute", f"http://{first}:8774/v2.1"), ("placement", "placement", f"http://{first}:8778"))
    for user, kind, url in services:
        lines += [
            f"openstack user create --domain default --password-prompt {user}    # identity_{user} of secrets.yaml",
            f"openstack role add --project service --user {user} admin",
            f"openstack role add --project service --user {user} service",
            f"openstack service create --name {user} {kind}",
        ]
        lines += [
            f"openstack endpoint create --region {cluster.region} {kind} {interface} {url}"
            for interface in ("public", "internal", "admin")
        ]
    return lines
