"""What must exist at backing services outside the cluster, for which imagegen has no administrator's credentials."""

from __future__ import annotations

from imagegen.model.cluster import Cluster
from imagegen.model.logins import (
    COMPUTE_USER,
    EXCHANGE,
    METADATA_SECRET,
    Rights,
    database_clients,
    database_schemas,
    identity_users,
    messaging_users,
    messaging_vhosts,
)
from imagegen.model.roles import hosted_services


def explain_external(cluster: Cluster) -> list[str]:
    """The commands to run on each external service, as lines; a password is named by its key in secrets.yaml."""
    explain = {
        "database": _database_lines,
        "messaging": _messaging_lines,
        "cache": _cache_lines,
        "identity": _identity_lines,
        "network": _network_lines,
        "image": _image_lines,
    }
    lines: list[str] = []
    for service in hosted_services():
        place = cluster.services.place(service)
        if place and place.host and place.node is None:
            lines += [f"# {service} at {place.host}:{place.port}", *explain[service](cluster), ""]
    if cluster.services.block_storage:
        lines += ["# block storage", *_block_storage_lines(cluster), ""]
    return lines[:-1]


def _database_lines(cluster: Cluster) -> list[str]:
    schemas = database_schemas(cluster)
    lines = [f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4;" for name, _ in schemas]
    for user in dict.fromkeys(user for _, user in schemas):
        for host in database_clients(cluster):
            lines.append(f"CREATE USER '{user}'@'{host}' IDENTIFIED BY '<database_{user} of secrets.yaml>';")
            lines += [
                # In a database's name _ stands for any character.
                "GRANT ALL PRIVILEGES ON `{}`.* TO '{}'@'{}';".format(name.replace("_", "\\_"), user, host)
                for name, own in schemas
                if own == user
            ]
    return lines


def _messaging_lines(cluster: Cluster) -> list[str]:
    lines = [f"rabbitmqctl add_vhost {vhost}" for vhost in messaging_vhosts(cluster)]
    for user in messaging_users(cluster):
        lines.append(f"rabbitmqctl add_user {user.name}    # asks for the password: {user.secret} of secrets.yaml")
        may = user.rights
        for vhost in user.vhosts:
            lines.append(
                f"rabbitmqctl set_permissions -p {vhost} {user.name} '{may.configure}' '{may.write}' '{may.read}'"
            )
            if may != Rights():
                lines.append(f"rabbitmqctl set_topic_permissions -p {vhost} {user.name} {EXCHANGE} '.*' '{may.topics}'")
    return lines


def _cache_lines(cluster: Cluster) -> list[str]:
    addresses = ", ".join(str(node.address) for node in cluster.controllers)
    return [f"# nothing to create; {addresses} must reach it, and nobody else: it has no authentication"]


def _identity_lines(cluster: Cluster) -> list[str]:
    lines = ["openstack project create --domain default --or-show service", "openstack role create --or-show service"]
    for user in identity_users(cluster):
        prompt = "openstack user create --domain default --password-prompt"
        lines.append(f"{prompt} {user.name}    # {user.secret} of secrets.yaml")
        lines += [f"openstack role add --project service --user {user.name} {role}" for role in user.roles]
    for endpoint, url in cluster.catalog:
        lines.append(f"openstack service create --name {endpoint.service} {endpoint.type}")
        lines += [
            f"openstack endpoint create --region {cluster.region} {endpoint.type} {interface} {url}"
            for interface in ("public", "internal", "admin")
        ]
    return lines


def _network_lines(cluster: Cluster) -> list[str]:
    services, url = cluster.services, cluster.services.network_endpoint
    lines = [
        _in_catalogue(cluster, "network", f"at {url}"),
        f"# users nova and {COMPUTE_USER} must be able to bind ports with the role service; a Neutron older than its",
        "#   release note service-role-port-device-id needs policies create_port:device_id and update_port:device_id",
        "#   for that role, or the users need the role admin",
        "# its policies get_subnet and get_floatingip must allow the role service, or Nova shows no addresses",
        f"# its metadata agents need metadata_proxy_shared_secret: {METADATA_SECRET} of secrets.yaml",
        f"#   and nova_metadata_host: {cluster.controllers[0].address}",
        "# the user in section [nova] of its configuration must be an administrator: Nova hears of ports from no other",
    ]
    if services.southbound:
        lines += [
            f"# computes must reach {services.southbound}, and Geneve (6081/UDP) must pass between all chassis",
            "# its policy get_agent must allow the role service: computes ask whether their agents are alive, and wait",
            "#   until they know",
        ]
    return lines


def _image_lines(cluster: Cluster) -> list[str]:
    return [_in_catalogue(cluster, "image", f"at {cluster.services.image_endpoint}")]


def _block_storage_lines(cluster: Cluster) -> list[str]:
    return [_in_catalogue(cluster, "block-storage (or volumev3)", "that leads to Cinder")]


def _in_catalogue(cluster: Cluster, kind: str, where: str) -> str:
    return f"# Keystone's catalogue must have, in region {cluster.region}, an endpoint of type {kind} {where}"
