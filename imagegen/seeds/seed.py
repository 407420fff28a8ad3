"""What distinguishes a node: its cloud-init seed, as a tree of user-data, meta-data and network-config."""

from __future__ import annotations

import hmac
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from imagegen.base.templates import dump_json, dump_yaml, quote_url, render_template
from imagegen.base.tree import Tree, text
from imagegen.model.cluster import NAMESPACE, Cluster, Hosted, Node, Place, Role
from imagegen.model.logins import (
    COMPUTE_USER,
    EXCHANGE,
    MessagingUser,
    compute_messaging,
    controller_messaging,
    database_clients,
    database_schemas,
    identity_users,
    messaging_users,
    schema_of,
)
from imagegen.model.services import endpoints, hosted_port

if TYPE_CHECKING:
    from imagegen.inputs.secrets_file import Secrets

LOOPBACK = "127.0.0.1"
CELL0_UUID = UUID(int=0)  # nova.objects.cell_mapping.CellMapping.CELL0_UUID


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


def seed_trees(cluster: Cluster, secrets: Secrets) -> dict[str, Tree]:
    """The seed of every node, by node name, in file order."""
    return {node.name: seed_tree(cluster, node, secrets) for node in cluster.nodes}


def seed_tree(cluster: Cluster, node: Node, secrets: Secrets) -> Tree:
    """The files user-data, meta-data and network-config of one node, mode 0600. Same input, same bytes.

    The instance-id changes with the content. It is a keyed digest, so it reveals nothing about the secrets inside.
    """
    files = node_files(cluster, node, secrets)
    user_data = "#cloud-config\n" + dump_yaml(_user_data(cluster, files))
    network_config = dump_yaml(_network_config(cluster, node))
    facts = dump_yaml(_meta_data(cluster, node, files, files_key(secrets, node)))
    digest = _keyed_digest(secrets.seed_key, user_data + network_config + facts)
    instance_id = uuid5(NAMESPACE, f"instance/{cluster.name}/{node.name}/{digest}")
    return {
        "meta-data": text(f"instance-id: {instance_id}\n{facts}", 0o600),
        "network-config": text(network_config, 0o600),
        "user-data": text(user_data, 0o600),
    }


def files_key(secrets: Secrets, node: Node) -> str:
    """The key of the file digests in meta-data: 64 hex digits whose ASCII bytes are the HMAC key.

    Derived for one node, so that no node holds the cluster's seed_key.
    """
    return _keyed_digest(secrets.seed_key, f"files/{node.name}")


def node_files(cluster: Cluster, node: Node, secrets: Secrets) -> tuple[SeedFile, ...]:
    """Every file that the node's seed carries, in a fixed order."""
    files = [_file("/etc/imagegen/node.json", "root:root", 0o600, dump_json(_node_document(cluster, node, secrets)))]
    values = _template_values(cluster, node, secrets)
    if node == cluster.controllers[0]:
        files.append(_file("/etc/chrony/conf.d/imagegen.conf", "root:root", 0o644, "chrony.conf.j2", values))
    if values["time_servers"]:
        files.append(_file("/etc/chrony/sources.d/imagegen.sources", "root:root", 0o644, "chrony.sources.j2", values))
    nova = f"nova-{node.role}.conf.j2"
    files.append(_file("/etc/nova/nova.conf.d/50-imagegen.conf", "root:nova", 0o640, nova, values))
    if node.role is Role.CONTROLLER:
        placement = "/etc/placement/placement.conf.d/50-imagegen.conf"
        files.append(_file(placement, "root:placement", 0o640, "placement.conf.j2", values))
        files += _further_cells(cluster, node, secrets)
        for service in cluster.hosted_on(node):
            files += _HOSTED_FILES[service](cluster, secrets, values)
    return tuple(files)


def hash_rabbitmq_password(password: str, salt: bytes) -> str:
    """The password_hash in RabbitMQ's definitions, for rabbit_password_hashing_sha256 and a salt of 4 bytes.

    Source: rabbitmq.com/docs/passwords, "Computing Password Hashes".
    """
    return b64encode(salt + sha256(salt + password.encode()).digest()).decode()


def _file(path: str, owner: str, mode: int, content: str, values: dict[str, object] | None = None) -> SeedFile:
    """A file from its content, or from a template and the values for it."""
    return SeedFile(path, owner, mode, content if values is None else render_template(content, values))


def _keyed_digest(key: str, message: str) -> str:
    return hmac.new(key.encode(), message.encode(), sha256).hexdigest()


def _compute_id(cluster: Cluster, node: Node) -> str | None:
    """The compute_id, for a compute whose release has one."""
    knows = cluster.release.knows("compute_id")
    return str(cluster.compute_id(node)) if knows and node.role is Role.COMPUTE else None


def _time_servers(cluster: Cluster, node: Node) -> list[str]:
    """The cluster file's, and the first controller: so nodes agree on the time even if nothing else can be reached."""
    first = cluster.controllers[0]
    return [*cluster.network.ntp, *([] if node == first else [str(first.address)])]


def _database_url(place: Place, schema: str, user: str, password: str) -> str:
    return f"mysql+pymysql://{user}:{quote_url(password)}@{place.host}:{place.port}/{quote_url(schema)}"


def _transport_url(cluster: Cluster, cell: str, user: MessagingUser, secrets: Secrets) -> str:
    place = cluster.services.messaging
    credentials = f"{user.name}:{quote_url(secrets.password(user.secret))}"
    return f"rabbit://{credentials}@{place.host}:{place.port}/{quote_url(schema_of(cluster, cell))}"


def _cell_urls(cluster: Cluster, cell: str, secrets: Secrets) -> dict[str, object]:
    """Where a controller finds a cell's database and message queue."""
    schema = schema_of(cluster, cell)
    return {
        "database": _database_url(cluster.services.database, schema, "nova", secrets.database_nova),
        "transport_url": _transport_url(cluster, cell, controller_messaging(cluster), secrets),
    }


def _template_values(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, object]:
    """All values for the templates in userdata_templates/."""
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
            "transport_url": _transport_url(cluster, node.cell, user, secrets),
            "compute_user": COMPUTE_USER,
            "compute_password": secrets.password(f"identity_{COMPUTE_USER}"),
            "novncproxy_base_url": f"http://{cluster.controllers[0].address}:{console_port}/vnc_auto.html",
        }
    else:
        database = services.database
        values |= {
            "cache": "{host}:{port}".format(**_cache(cluster)),
            "api_database": _database_url(database, "nova_api", "nova", secrets.database_nova),
            **_cell_urls(cluster, node.cell, secrets),
            "placement_database": _database_url(database, "placement", "placement", secrets.database_placement),
            "keystone_database": f"mysql+pymysql://keystone@{database.host}:{database.port}/keystone",
        }
    return values


def _cache(cluster: Cluster) -> dict[str, Any]:
    """The address of a controller's memcached: its own loopback, unless the cluster file names another one."""
    place = cluster.services.cache or Place(LOOPBACK, hosted_port(Hosted.CACHE))
    return {"host": place.host, "port": place.port}


def _further_cells(cluster: Cluster, node: Node, secrets: Secrets) -> list[SeedFile]:
    """A drop-in for each cell but the controller's own; the controller runs a conductor and a noVNC proxy for each."""
    files = []
    for cell in cluster.cells:
        if cell != node.cell:
            values = {**_cell_urls(cluster, cell, secrets), "console_port": cluster.console_port(cell)}
            files.append(_file(f"/etc/nova/cells/{cell}.conf", "root:nova", 0o640, "nova-cell.conf.j2", values))
    return files


def _identity_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    return [
        _file("/etc/keystone/keystone.conf.d/50-imagegen.conf", "root:keystone", 0o640, "keystone.conf.j2", values),
        # Keystone takes a key file as it is: no newline at the end.
        _file("/etc/keystone/fernet-keys/0", "root:keystone", 0o640, secrets.keystone_fernet_key),
        _file("/etc/keystone/credential-keys/0", "root:keystone", 0o640, secrets.keystone_credential_key),
    ]


def _messaging_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    definitions = dump_json(_rabbitmq_definitions(cluster, secrets))
    return [
        _file("/etc/rabbitmq/conf.d/50-imagegen.conf", "root:root", 0o644, "rabbitmq.conf.j2", values),
        _file("/etc/rabbitmq/definitions.json", "root:rabbitmq", 0o640, definitions),
    ]


def _database_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    return [_file("/etc/mysql/mariadb.conf.d/90-imagegen.cnf", "root:root", 0o644, "mariadb.cnf.j2", values)]


def _cache_files(cluster: Cluster, secrets: Secrets, values: dict[str, object]) -> list[SeedFile]:
    return [_file("/etc/memcached.conf", "root:root", 0o644, "memcached.conf.j2", {**values, **_cache(cluster)})]


_HOSTED_FILES = {
    Hosted.DATABASE: _database_files,
    Hosted.MESSAGING: _messaging_files,
    Hosted.CACHE: _cache_files,
    Hosted.IDENTITY: _identity_files,
}


def _rabbitmq_definitions(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """RabbitMQ's definitions: a vhost per cell, the controllers' user, one for each cell's computes, and no others."""

    def describe(user: MessagingUser) -> dict[str, Any]:
        salt = bytes.fromhex(_keyed_digest(secrets.seed_key, f"rabbitmq/{user.name}"))[:4]
        hashed = hash_rabbitmq_password(secrets.password(user.secret), salt)
        algorithm = "rabbit_password_hashing_sha256"
        return {"name": user.name, "password_hash": hashed, "hashing_algorithm": algorithm, "tags": []}

    users = messaging_users(cluster)
    places = [({"user": user.name, "vhost": vhost}, user.rights) for user in users for vhost in user.vhosts]
    return {
        "users": [describe(user) for user in users],
        "vhosts": [{"name": schema_of(cluster, cell)} for cell in cluster.cells],
        "permissions": [
            {**place, "configure": may.configure, "write": may.write, "read": may.read} for place, may in places
        ],
        "topic_permissions": [
            {**place, "exchange": EXCHANGE, "write": ".*", "read": may.topics} for place, may in places
        ],
    }


def _node_document(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, Any]:
    """/etc/imagegen/node.json, the agent's input: what this node needs, and nothing that grows with the fleet."""
    controller = node.role is Role.CONTROLLER
    user = controller_messaging(cluster) if controller else compute_messaging(cluster, node.cell)
    document: dict[str, Any] = {
        "version": 1,
        "node": node.name,
        "role": node.role.value,
        "cluster": cluster.name,
        "region": cluster.region,
        "release": cluster.release.id,
        "cell": node.cell,
        "address": str(node.address),
        "hosts": [service.value for service in cluster.hosted_on(node)],
        "files_key": files_key(secrets, node),
        "status_url": cluster.status_url,
        "auth_url": cluster.services.auth_url,
        "messaging": _messaging_login(cluster, user, secrets),
    }
    if Hosted.MESSAGING in cluster.hosted_on(node):
        document["erlang_cookie"] = secrets.messaging_cookie
    if controller:
        return document | _controller_document(cluster, node, secrets)
    identity = {"user": COMPUTE_USER, "users": _identity_logins(cluster, secrets, COMPUTE_USER)}
    return document | {"compute_id": _compute_id(cluster, node), "identity": identity}


def _messaging_login(cluster: Cluster, user: MessagingUser, secrets: Secrets) -> dict[str, Any]:
    """How the agent logs in to the message queue as that user."""
    place, password = cluster.services.messaging, secrets.password(user.secret)
    login = {"host": place.host, "port": place.port, "user": user.name, "password": password}
    return {**login, "vhosts": list(user.vhosts)}


def _identity_logins(cluster: Cluster, secrets: Secrets, *names: str) -> list[dict[str, Any]]:
    """Keystone's users with these names, or all, with their passwords and roles in project service."""
    return [
        {"name": user.name, "password": secrets.password(user.secret), "roles": list(user.roles)}
        for user in identity_users(cluster)
        if not names or user.name in names
    ]


def _controller_document(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, Any]:
    """The part of node.json that only a controller has: the schemas, cells, users and endpoints that it maintains."""
    services, address = cluster.services, cluster.controllers[0].address
    database: dict[str, Any] = {
        "host": services.database.host,
        "port": services.database.port,
        "schemas": [
            {"name": name, "user": user, "password": secrets.password(f"database_{user}")}
            for name, user in database_schemas(cluster)
        ],
    }
    hosts = cluster.hosted_on(node)
    if Hosted.DATABASE in hosts:  # only the host needs to know who may log in: no other seed grows with the controllers
        database["clients"] = database_clients(cluster)
    others = messaging_users(cluster)[1:] if Hosted.MESSAGING in hosts else []
    return {
        "database": database,
        "other_messaging": [_messaging_login(cluster, user, secrets) for user in others],
        "cache": _cache(cluster),
        "cells": _cells(cluster, secrets),
        "console_ports": {cell: cluster.console_port(cell) for cell in cluster.cells},
        "identity": {
            "admin_password": None if services.identity.node is None else secrets.identity_admin,
            "user": "nova",
            "users": _identity_logins(cluster, secrets),
            "services": [
                {"name": endpoint.service, "type": endpoint.type, "url": endpoint.url(address)}
                for endpoint in endpoints()
            ],
        },
    }


def _cells(cluster: Cluster, secrets: Secrets) -> list[dict[str, str]]:
    """The rows of nova_api.cell_mappings as they must be, cell0 first."""

    def row(name: str, uuid: UUID, database: object, transport_url: object) -> dict[str, str]:
        urls = {"database_connection": str(database), "transport_url": str(transport_url)}
        return {"name": name, "uuid": str(uuid), **urls}

    cell0 = _database_url(cluster.services.database, "nova_cell0", "nova", secrets.database_nova)
    rows = [row("cell0", CELL0_UUID, cell0, "none:///")]
    return rows + [row(cell, cluster.cell_uuid(cell), **_cell_urls(cluster, cell, secrets)) for cell in cluster.cells]


def _user_data(cluster: Cluster, files: tuple[SeedFile, ...]) -> dict[str, Any]:
    """The cloud-config. It writes files and lets people log in; the agent does the rest, so there is no runcmd."""
    document: dict[str, Any] = {
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": False,  # host keys survive a new instance-id
    }
    if cluster.ssh_authorized_keys:
        document["ssh_authorized_keys"] = list(cluster.ssh_authorized_keys)
    document["write_files"] = [
        {"path": file.path, "owner": file.owner, "permissions": file.permissions, "content": file.content}
        for file in files
    ]
    return document


def _network_config(cluster: Cluster, node: Node) -> dict[str, Any]:
    """Version 2, one interface, matched and renamed: without set-name, cloud-init 22.4 also matches the key."""
    network = cluster.network
    interface: dict[str, Any] = {
        "match": {"macaddress": node.mac},
        "set-name": "net0",
        "addresses": [f"{node.address}/{network.cidr.prefixlen}"],
    }
    if network.gateway is not None:
        # Not the word `default`: cloud-init 25.1's networkd renderer takes addresses only.
        interface["routes"] = [{"to": "0.0.0.0/0", "via": str(network.gateway)}]
    if network.dns:
        interface["nameservers"] = {"addresses": [str(address) for address in network.dns]}
    return {"version": 2, "ethernets": {"net0": interface}}


def _meta_data(cluster: Cluster, node: Node, files: tuple[SeedFile, ...], key: str) -> dict[str, Any]:
    """Meta-data without the instance-id. Every process on the node can read it, so it has only public facts and keyed
    digests.
    """
    return {
        "local-hostname": node.name,
        "imagegen": {
            "version": 1,
            "cluster": cluster.name,
            "region": cluster.region,
            "release": cluster.release.id,
            "role": node.role.value,
            "cell": node.cell,
            "hosts_services": [service.value for service in cluster.hosted_on(node)],
            "compute_id": _compute_id(cluster, node),
            "files": [
                {
                    "path": file.path,
                    "owner": file.owner,
                    "mode": file.permissions,
                    "sha256-HMAC": _keyed_digest(key, file.content),
                }
                for file in files
            ],
        },
    }
