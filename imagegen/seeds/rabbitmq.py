"""What RabbitMQ reads when it starts: the cluster's vhosts, users and their rights."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import Any

from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster
from imagegen.model.logins import (
    EXCHANGE,
    MessagingUser,
    messaging_users,
    messaging_vhosts,
)
from imagegen.seeds.keyed import keyed_digest


def hash_rabbitmq_password(password: str, salt: bytes) -> str:
    """The password_hash in RabbitMQ's definitions, for rabbit_password_hashing_sha256 and a salt of 4 bytes.

    Source: rabbitmq.com/docs/passwords, "Computing Password Hashes".
    """
    return b64encode(salt + sha256(salt + password.encode()).digest()).decode()


def rabbitmq_definitions(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """RabbitMQ's definitions: a vhost and a computes' user per cell, the controllers' user, and services' own."""

    def describe(user: MessagingUser) -> dict[str, Any]:
        salt = bytes.fromhex(keyed_digest(secrets["seed_key"], f"rabbitmq/{user.name}"))[:4]
        hashed = hash_rabbitmq_password(secrets[user.secret], salt)
        algorithm = "rabbit_password_hashing_sha256"
        return {"name": user.name, "password_hash": hashed, "hashing_algorithm": algorithm, "tags": []}

    users = messaging_users(cluster)
    places = [({"user": user.name, "vhost": vhost}, user.rights) for user in users for vhost in user.vhosts]
    return {
        "users": [describe(user) for user in users],
        "vhosts": [{"name": vhost} for vhost in messaging_vhosts(cluster)],
        "permissions": [
            {**place, "configure": may.configure, "write": may.write, "read": may.read} for place, may in places
        ],
        "topic_permissions": [
            {**place, "exchange": EXCHANGE, "write": ".*", "read": may.topics} for place, may in places
        ],
    }
