"""What daemons must have in effect, from the cluster file and the secrets and nothing that imagegen wrote."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node

NOVA_COMPUTE = "nova-compute"


def connection(cluster: Cluster, user: str, password: str, schema: str) -> str:
    return f"mysql+pymysql://{user}:{quote(password, safe='')}@{cluster.controllers[0].address}:3306/{schema}"


def login(cluster: Cluster, section: str, user: str, password: str) -> dict[str, Any]:
    """A section that keystoneauth reads."""
    values = {
        "auth_type": "password",
        "auth_url": f"http://{cluster.controllers[0].address}:5000/v3",
        "project_domain_name": "Default",
        "project_name": "service",
        "user_domain_name": "Default",
        "username": user,
        "password": password,
    }
    return {f"{section}.{name}": value for name, value in values.items()}


def authtoken(cluster: Cluster, service_type: str, user: str, password: str) -> dict[str, Any]:
    address = cluster.controllers[0].address
    return {
        **login(cluster, "keystone_authtoken", user, password),
        "keystone_authtoken.www_authenticate_uri": f"http://{address}:5000/v3",
        "keystone_authtoken.memcached_servers": ["127.0.0.1:11211"],
        "keystone_authtoken.region_name": cluster.region,
        "keystone_authtoken.service_token_roles_required": True,
        "keystone_authtoken.service_type": service_type,
    }


def schema_of(cell: str) -> str:
    """The database, and the vhost, of a cell of this tier's cluster."""
    return {"cell1": "nova", "oost": "nova_oost"}[cell]


CONSOLE_PORTS = {"cell1": 6080, "oost": 6081}  # of each cell's noVNC proxy


def transport_url(cluster: Cluster, secrets: Secrets, user: str, cell: str) -> str:
    password = quote(secrets[f"messaging_{user}"], safe="")
    return f"rabbit://{user}:{password}@{cluster.controllers[0].address}:5672/{schema_of(cell)}"


def list_cell_options(cluster: Cluster, secrets: Secrets, cell: str) -> dict[str, Any]:
    """What a conductor and a noVNC proxy of that cell have of their own."""
    return {
        "DEFAULT.transport_url": transport_url(cluster, secrets, "openstack", cell),
        "database.connection": connection(cluster, "nova", secrets["database_nova"], schema_of(cell)),
        "vnc.novncproxy_port": CONSOLE_PORTS[cell],
    }


def list_options(cluster: Cluster, secrets: Secrets, node: Node) -> dict[str, Any]:
    """`section.option` -> value of all that the seed writes into Nova's configuration on this node."""
    controller, mine = str(cluster.controllers[0].address), str(node.address)
    users = ("nova", "placement") if node.role.controls else ("nova_compute", "nova_compute")
    service_user, placement = ((user, secrets[f"identity_{user}"]) for user in users)
    options: dict[str, Any] = {
        "DEFAULT.host": node.name,
        "DEFAULT.my_ip": mine,
        "service_user.send_service_user_token": True,
        **login(cluster, "service_user", *service_user),
        "placement.region_name": cluster.region,
        **login(cluster, "placement", *placement),
        "vnc.enabled": True,
        "vnc.server_listen": mine,
        "vnc.server_proxyclient_address": mine,
        "glance.endpoint_override": f"http://{controller}:9292",
        "neutron.endpoint_override": f"http://{controller}:9696",
        "neutron.region_name": cluster.region,
        **login(cluster, "neutron", *service_user),
        "upgrade_levels.compute": "auto",
        "glance.region_name": cluster.region,
        "oslo_concurrency.lock_path": "/var/lock/nova",
        "cinder.os_region_name": cluster.region,
    }
    if node.role.runs("nova-compute"):
        return options | {
            "DEFAULT.transport_url": transport_url(cluster, secrets, f"compute_{node.cell}", node.cell),
            "libvirt.live_migration_inbound_addr": mine,
            "libvirt.live_migration_uri": "qemu+ssh://nova@%s/system",
            "libvirt.live_migration_with_native_tls": True,
            "vnc.novncproxy_base_url": f"http://{controller}:{CONSOLE_PORTS[node.cell]}/vnc_auto.html",
        }
    return options | {
        **list_cell_options(cluster, secrets, node.cell),
        "DEFAULT.enabled_apis": ["osapi_compute", "metadata"],
        "DEFAULT.osapi_compute_listen": mine,
        "DEFAULT.metadata_listen": mine,
        "api_database.connection": connection(cluster, "nova", secrets["database_nova"], "nova_api"),
        "api.auth_strategy": "keystone",
        "neutron.service_metadata_proxy": True,
        "neutron.metadata_proxy_shared_secret": secrets["neutron_metadata"],
        **authtoken(cluster, "compute", "nova", secrets["identity_nova"]),
        "vnc.novncproxy_host": mine,
        "scheduler.discover_hosts_in_cells_interval": -1,
    }


def list_placement_options(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """The same for Placement."""
    return {
        "placement_database.connection": connection(cluster, "placement", secrets["database_placement"], "placement"),
        "api.auth_strategy": "keystone",
        **authtoken(cluster, "placement", "placement", secrets["identity_placement"]),
    }


def list_keystone_options(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """The same for Keystone, whose database password is a parameter of the URL."""
    controller = cluster.controllers[0].address
    return {
        "database.connection": f"mysql+pymysql://keystone@{controller}:3306/keystone",
        "database.connection_parameters": "password=" + quote(secrets["database_keystone"], safe=""),
        "cache.enabled": True,
        "cache.backend": "oslo_cache.memcache_pool",
        "cache.memcache_servers": ["127.0.0.1:11211"],
    }
