"""Where a node may hold secrets, and what a scan found elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.model.logins import identity_users, messaging_users
from imagegen.model.roles import Role
from imagegen.model.secret_keys import CELL, derived_secrets, secret_kinds

# Files that hold secrets by design: path -> owner and mode.
EVERY_NODE = {
    r"/etc/imagegen/node\.json": "root:root 0600",
    r"/etc/nova/nova\.conf\.d/50-imagegen\.conf": "root:nova 0640",
    r"/etc/neutron/neutron\.conf\.d/50-imagegen\.conf": "root:neutron 0640",
    # What cloud-init keeps of the user-data that it was given.
    r"/var/lib/cloud/instances/[0-9a-f-]{36}/(user-data\.txt(\.i)?|cloud-config\.txt)": "root:root 0600",
    r"/var/lib/cloud/instances/[0-9a-f-]{36}/obj\.pkl": "root:root 0400",
}
CONTROLLER_ONLY = {
    r"/etc/glance/glance\.conf\.d/50-imagegen\.conf": "root:glance 0640",
    r"/etc/placement/placement\.conf\.d/50-imagegen\.conf": "root:placement 0640",
    r"/etc/keystone/keystone\.conf\.d/50-imagegen\.conf": "root:keystone 0640",
    r"/etc/keystone/(fernet|credential)-keys/0": "root:keystone 0640",
    r"/var/lib/rabbitmq/\.erlang\.cookie": "rabbitmq:rabbitmq 0400",
    # The server's own data, closed to all but it: Nova's cell mappings are rows with URLs.
    r"/var/lib/mysql/.+": "mysql:mysql 0660",
}
# Where a secret may be found, but need not: not every cluster, and not every boot, has such files.
ALLOWED = {
    # At a boot without a seed cloud-init stays off.
    r"/run/cloud-init/(instance-data-sensitive|combined-cloud-config)\.json": "root:root 0600",
    r"/etc/nova/cells/[^/]+\.conf": "root:nova 0640",
    r"/root/\.ssh/authorized_keys": "root:root 0600",
    r"/[^/]+/debian/\.ssh/authorized_keys": "debian:debian 0600",
}
# Where a seed's files may lie, since cloud-init writes them as root: in root's directories, and so all above them.
ROOT_OWNED = {
    "/etc",
    "/etc/chrony/conf.d",
    "/etc/chrony/sources.d",
    "/etc/imagegen",
    "/etc/keystone/credential-keys",
    "/etc/keystone/fernet-keys",
    "/etc/keystone/keystone.conf.d",
    "/etc/mysql/mariadb.conf.d",
    "/etc/nova/cells",
    "/etc/glance/glance.conf.d",
    "/etc/neutron/neutron.conf.d",
    "/etc/nova",
    "/etc/nova/nova.conf.d",
    "/etc/openvswitch",
    "/etc/pki/qemu",
    "/etc/ssh",
    "/etc/placement/placement.conf.d",
    "/etc/rabbitmq",
    "/etc/rabbitmq/conf.d",
}


def find_misplaced(
    role: Role, files: Mapping[str, Sequence[object]], also: Mapping[str, str] | None = None
) -> list[str]:
    """One line for every file that holds a secret and may not, and for every place where none was found.

    `files` is what probes/secrets.py answers: path -> [owner, mode, names]; `also` are more places of this node.
    """
    expected = {**EVERY_NODE, **(CONTROLLER_ONLY if role.controls else {}), **(also or {})}
    places, unseen, wrong = {**expected, **ALLOWED}, set(expected), []
    for path, (owner, mode, names) in files.items():
        pattern = next((pattern for pattern in places if re.fullmatch(pattern, path)), "")
        if places.get(pattern) != f"{owner} {mode}":
            wrong.append(f"{path} {owner} {mode} holds {names}")
        unseen.discard(pattern)
    return wrong + [f"the scan found no secret in {pattern}" for pattern in sorted(unseen)]


def name_secrets(cluster: Cluster, secrets: Secrets) -> dict[str, str]:
    """Every secret of the cluster by its key, those that the file need not have among them."""
    names = [*secret_kinds(), *(name for name in derived_secrets() if CELL not in name)]
    names += [user.secret for user in (*identity_users(cluster), *messaging_users(cluster))]
    return {name: secrets[name] for name in names}


def secrets_of_compute(node: Node) -> set[str]:
    """Which of them a compute gets: its cell's computes' logins, and what its metadata agent shares with Nova."""
    return {"identity_nova_compute", f"messaging_compute_{node.cell}", "neutron_metadata"}
