"""Who logs in where, and with which rights: the users of Keystone, of the message queue and of the databases."""

from __future__ import annotations

from dataclasses import dataclass

from imagegen.model.cluster import Cluster, Node
from imagegen.model.secret_keys import derived_secrets
from imagegen.model.services import services

COMPUTE_USER = "nova_compute"
AGENT_SCHEMA = "imagegen"  # the first-boot agent's own, with the lease in it
CONTROLLER_MESSAGING = "openstack"
METADATA_SECRET = "neutron_metadata"  # noqa: S105 - the key of it
EXCHANGE = "nova"  # of all topics, as nova/config.py sets control_exchange


@dataclass(frozen=True)
class Rights:
    """What a user may do in its vhosts: RabbitMQ's patterns of names, and of routing keys that it may bind to."""

    configure: str = ".*"
    write: str = ".*"
    read: str = ".*"
    topics: str = ".*"


# A compute makes and reads only computes' queues: a reader of a conductor's queue, or of one bound to its topic, would
# get requests that are meant for the conductor. It does make the exchange scheduler_fanout, to which it sends.
# Names: oslo.messaging, amqpdriver.listen (TOPIC, TOPIC.SERVER) and impl_rabbit.declare_fanout_consumer.
OF_COMPUTES = Rights(
    configure=r"^(?!(conductor|scheduler)($|\.|_fanout_))",
    write=r"^(?!(conductor|scheduler)($|\.|_fanout_))",
    read=rf"^({EXCHANGE}$|reply_|compute($|\.|_fanout))",
    topics=r"^compute($|\.)",
)


@dataclass(frozen=True)
class MessagingUser:
    """One user of the message queue, with the same rights in each of its vhosts and none in another."""

    name: str
    vhosts: tuple[str, ...]
    rights: Rights

    @property
    def secret(self) -> str:
        """Its password's key in secrets.yaml."""
        return f"messaging_{self.name}"


@dataclass(frozen=True)
class IdentityUser:
    """One user of Keystone, with its roles in the project service."""

    name: str
    roles: tuple[str, ...]

    @property
    def secret(self) -> str:
        """Its password's key in secrets.yaml."""
        return f"identity_{self.name}"


def schema_of(cluster: Cluster, cell: str, name: str = "nova") -> str:
    """A cell's database of that name, and by default its vhost: the first cell's is plain."""
    return name if cell == cluster.cells[0] else f"{name}_{cell}"


def database_schemas(cluster: Cluster) -> list[tuple[str, str]]:
    """Every database of the cluster and the user that owns it, in the order of the seeds."""
    schemas: list[tuple[str, str]] = []
    for service in filter(cluster.runs, services()):
        for schema in service.schemas:
            names = (
                [schema_of(cluster, cell, schema.name) for cell in cluster.cells] if schema.per_cell else [schema.name]
            )
            schemas += [(name, schema.user) for name in names]
    return [*schemas, (AGENT_SCHEMA, AGENT_SCHEMA)]


def database_clients(cluster: Cluster) -> list[str]:
    """The addresses from which a database takes logins: the controllers'. A compute knows no database."""
    return [str(node.address) for node in cluster.controllers]


def controller_messaging(cluster: Cluster) -> MessagingUser:
    """The controllers' user, which works in every cell's vhost."""
    vhosts = tuple(schema_of(cluster, cell) for cell in cluster.cells)
    return MessagingUser(CONTROLLER_MESSAGING, vhosts, Rights())


def compute_messaging(cluster: Cluster, cell: str) -> MessagingUser:
    """The user of a cell's computes, which sees no other cell's vhost."""
    return MessagingUser(f"compute_{cell}", (schema_of(cluster, cell),), OF_COMPUTES)


def messaging_user(cluster: Cluster, node: Node) -> MessagingUser | None:
    """The user as which the node's services log in to the message queue; None: they do not."""
    if node.role.controls:
        return controller_messaging(cluster)
    return compute_messaging(cluster, node.cell) if node.role.runs("nova-compute") else None


def messaging_users(cluster: Cluster) -> list[MessagingUser]:
    """Every user of the message queue, the controllers' first."""
    return [
        controller_messaging(cluster),
        *(compute_messaging(cluster, cell) for cell in cluster.cells),
        *(service_messaging(name) for name in service_users(cluster)),
    ]


def service_users(cluster: Cluster) -> list[str]:
    """The users of the message queue that services have to themselves."""
    return [service.messaging for service in services() if service.messaging and cluster.runs(service)]


def service_messaging(name: str) -> MessagingUser:
    """A service's own user, alone in the vhost of its name."""
    return MessagingUser(name, (name,), Rights())


def messaging_vhosts(cluster: Cluster) -> list[str]:
    """Every virtual host of the message queue: the cells', then those of services."""
    return [*(schema_of(cluster, cell) for cell in cluster.cells), *service_users(cluster)]


def identity_users(cluster: Cluster) -> list[IdentityUser]:
    """The users of the services on controllers, and that of all computes.

    The role `service` may check tokens in Keystone (in every release), use Placement (since 2023.1), and list Nova's
    services and hypervisors (elements/nova-controller, policy.d). Before 2023.1, Placement needs an administrator;
    services say which of their users Nova takes for nothing less.
    """
    running = list(filter(cluster.runs, services()))
    names = sorted(name for service in running for name in service.users)
    admins = {name for service in running for name in service.administrators}
    if not cluster.release.knows("placement_service_role"):
        admins |= set(names)
    return [
        IdentityUser(name, ("admin", "service") if name in admins else ("service",))
        for name in sorted(names, key=COMPUTE_USER.__eq__)  # controllers' first
    ]


def typed_secrets(cluster: Cluster) -> dict[str, str]:
    """Optional keys that secrets.yaml must have, and why: an administrator types these passwords elsewhere."""
    said = "{} is outside this cluster and needs a password for user {}: `imagegen validate --explain` prints how"
    services = cluster.services
    typed = {}
    derived = derived_secrets()
    if services.database.node is None:
        for user in dict.fromkeys(user for _, user in database_schemas(cluster)):
            if f"database_{user}" in derived:
                typed[f"database_{user}"] = said.format("the database", user)
    if services.messaging.node is None:
        for login in messaging_users(cluster)[1:]:
            typed[login.secret] = said.format("the message queue", login.name)
    if services.identity.node is None:
        for one in identity_users(cluster):
            if one.secret in derived:
                typed[one.secret] = said.format("Keystone", one.name)
    if services.network_endpoint and services.network.node is None:
        typed[METADATA_SECRET] = "Neutron is outside this cluster, and its metadata agents share this secret with Nova"
    return typed
