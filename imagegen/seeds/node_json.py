"""/etc/imagegen/node.json: what the agent works from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.model.logins import (
    COMPUTE_USER,
    MessagingUser,
    database_clients,
    database_schemas,
    identity_users,
    messaging_user,
    messaging_users,
)
from imagegen.seeds.connections import cache_place, cell_urls, database_url
from imagegen.seeds.keyed import files_key

CELL0_UUID = UUID(int=0)  # nova.objects.cell_mapping.CellMapping.CELL0_UUID


def compute_id(cluster: Cluster, node: Node) -> str | None:
    """The compute_id, for a compute whose release has one."""
    knows = cluster.release.knows("compute_id")
    return str(cluster.compute_id(node)) if knows and node.role.runs("nova-compute") else None


def node_document(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, Any]:
    """/etc/imagegen/node.json, the agent's input: what this node needs, and nothing that grows with the fleet."""
    document: dict[str, Any] = {
        "version": 1,
        "node": node.name,
        "role": node.role.name,
        "cluster": cluster.name,
        "region": cluster.region,
        "release": cluster.release.id,
        "cell": node.cell,
        "address": str(node.address),
        "hosts": list(cluster.hosted_on(node)),
        "elements": list(cluster.at_work(node)),
        "files_key": files_key(secrets, node),
        "status_url": cluster.status_url,
        "auth_url": cluster.services.auth_url,
        "image_endpoint": cluster.services.image_endpoint,
        "network_endpoint": cluster.services.network_endpoint,
    }
    if user := messaging_user(cluster, node):
        document["messaging"] = _messaging_login(cluster, user, secrets)
    if "messaging" in cluster.hosted_on(node):
        document["erlang_cookie"] = secrets["messaging_cookie"]
    if node.role.controls:
        document |= _controller_document(cluster, node, secrets)
    if node.role.runs("nova-compute"):
        identity = {"user": COMPUTE_USER, "users": _identity_logins(cluster, secrets, COMPUTE_USER)}
        document |= {"compute_id": compute_id(cluster, node), "identity": identity}
    if cluster.services.southbound and node.role.runs("nova-compute"):
        document["chassis"] = {"name": str(cluster.chassis(node)), "southbound": cluster.services.southbound}
    return document


def _messaging_login(cluster: Cluster, user: MessagingUser, secrets: Secrets) -> dict[str, Any]:
    """How the agent logs in to the message queue as that user."""
    place, password = cluster.services.messaging, secrets[user.secret]
    login = {"host": place.host, "port": place.port, "user": user.name, "password": password}
    return {**login, "vhosts": list(user.vhosts)}


def _identity_logins(cluster: Cluster, secrets: Secrets, *names: str) -> list[dict[str, Any]]:
    """Keystone's users with these names, or all, with their passwords and roles in project service."""
    return [
        {"name": user.name, "password": secrets[user.secret], "roles": list(user.roles)}
        for user in identity_users(cluster)
        if not names or user.name in names
    ]


def _controller_document(cluster: Cluster, node: Node, secrets: Secrets) -> dict[str, Any]:
    """The part of node.json that only a controller has: the schemas, cells, users and endpoints that it maintains."""
    services = cluster.services
    database: dict[str, Any] = {
        "host": services.database.host,
        "port": services.database.port,
        "schemas": [
            {"name": name, "user": user, "password": secrets[f"database_{user}"]}
            for name, user in database_schemas(cluster)
        ],
    }
    hosts = cluster.hosted_on(node)
    if "database" in hosts:  # only the host needs to know who may log in: no other seed grows with the controllers
        database["clients"] = database_clients(cluster)
    others = messaging_users(cluster)[1:] if "messaging" in hosts else []
    return {
        "database": database,
        "other_messaging": [_messaging_login(cluster, user, secrets) for user in others],
        "cache": cache_place(cluster),
        "cells": _cells(cluster, secrets),
        "flavors": [asdict(flavor) for flavor in cluster.flavors],
        "console_ports": {cell: cluster.console_port(cell) for cell in cluster.cells},
        "identity": {
            "admin_password": None if services.identity.node is None else secrets["identity_admin"],
            "user": "nova",
            "users": _identity_logins(cluster, secrets),
            "services": [
                {"name": endpoint.service, "type": endpoint.type, "url": url} for endpoint, url in cluster.catalog
            ],
        },
    }


def _cells(cluster: Cluster, secrets: Secrets) -> list[dict[str, str]]:
    """The rows of nova_api.cell_mappings as they must be, cell0 first."""

    def row(name: str, uuid: UUID, database: object, transport_url: object) -> dict[str, str]:
        urls = {"database_connection": str(database), "transport_url": str(transport_url)}
        return {"name": name, "uuid": str(uuid), **urls}

    cell0 = database_url(cluster, "nova_cell0", "nova", secrets)
    rows = [row("cell0", CELL0_UUID, cell0, "none:///")]
    return rows + [row(cell, cluster.cell_uuid(cell), **cell_urls(cluster, cell, secrets)) for cell in cluster.cells]
