"""What OpenStack's clients read: clouds.yaml and openrc, for one user of a cluster."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from imagegen.base.marks import CREDENTIALS_HEAD
from imagegen.base.templates import dump_yaml
from imagegen.base.tree import Tree, text
from imagegen.model.cluster import Cluster

DOMAIN = "Default"
HEAD = CREDENTIALS_HEAD.decode()


@dataclass(frozen=True, repr=False)
class Credentials:
    """Who logs in, to which project. No repr: the password is a secret."""

    user: str
    project: str
    password: str | None  # None: the client asks for it


def credentials_tree(cluster: Cluster, credentials: Credentials) -> Tree:
    """clouds.yaml, in which the cloud bears the cluster's name, and openrc, for a shell; both 0600.

    Sources: openstacksdk, "Configuring OpenStack SDK Applications"; python-openstackclient, "Authentication".
    """
    auth = {
        "auth_url": cluster.services.auth_url,
        "username": credentials.user,
        "password": credentials.password,
        "project_name": credentials.project,
        "user_domain_name": DOMAIN,
        "project_domain_name": DOMAIN,
    }
    cloud = {
        "auth": {key: value for key, value in auth.items() if value is not None},
        "region_name": cluster.region,
        "interface": "public",
        "identity_api_version": "3",
    }
    clouds = {"clouds": {cluster.name: cloud}}
    return {"clouds.yaml": text(HEAD + dump_yaml(clouds), 0o600), "openrc": text(_openrc(cluster, auth), 0o600)}


def _openrc(cluster: Cluster, auth: dict[str, str | None]) -> str:
    names = {f"OS_{key.upper()}": value for key, value in auth.items() if value is not None}
    names |= {"OS_REGION_NAME": cluster.region, "OS_INTERFACE": "public", "OS_IDENTITY_API_VERSION": "3"}
    lines = ["unset OS_CLOUD", *(f"export {name}={shlex.quote(value)}" for name, value in names.items())]
    if auth["password"] is None:
        asked = shlex.quote(f"Password of {auth['username']}: ")
        lines += [
            f"printf %s {asked}",
            "stty -echo",
            "IFS= read -r OS_PASSWORD",
            "stty echo",
            "echo",
            "export OS_PASSWORD",
        ]
    return HEAD + "\n".join(lines) + "\n"
