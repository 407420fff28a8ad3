"""Who logs in where, and with which rights: the users of Keystone, of the message queue and of the databases."""

from __future__ import annotations

from dataclasses import dataclass

from imagegen.model.cluster import Cluster, Node
from imagegen.model.services import services

COMPUTE_USER = "nova_compute"
AGENT_SCHEMA = "imagegen"  # the first-boot agent's own, with the lease in it
CONTROLLER_MESSAGING = "openstack"
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
    return [controller_messaging(cluster), *(compute_messaging(cluster, cell) for cell in cluster.cells)]


def identity_users(cluster: Cluster) -> list[IdentityUser]:
    """The users of Nova and Placement on controllers, and that of all computes.

    The role `service` may check tokens in Keystone (in every release), use Placement (since 2023.1), and list Nova's
    services and hypervisors (elements/nova-controller, policy.d). Before 2023.1, Placement needs an administrator.
    """
    roles = ("service",) if cluster.release.knows("placement_service_role") else ("admin", "service")
    names = sorted(name for service in services() for name in service.users)
    return [IdentityUser(name, roles) for name in sorted(names, key=COMPUTE_USER.__eq__)]  # controllers' first


def typed_secrets(cluster: Cluster) -> dict[str, str]:
    """Optional keys that secrets.yaml must have, and why: an administrator types these passwords elsewhere."""
    said = "{} is outside this cluster and needs a password for user {}: `imagegen validate --explain` prints how"
    services = cluster.services
    typed = {}
    if services.messaging.node is None:
        for user in messaging_users(cluster)[1:]:
            typed[user.secret] = said.format("the message queue", user.name)
    if services.identity.node is None:
        typed[f"identity_{COMPUTE_USER}"] = said.format("Keystone", COMPUTE_USER)
    return typed
