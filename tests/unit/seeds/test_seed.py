"""Seeds: the whole trees of the default cluster, and what holds for the seed of any cluster.

The golden trees are written anew, and the run then fails so that somebody reads the difference, by
    IMAGEGEN_WRITE_GOLDEN=1 pytest tests/unit/seeds/test_seed.py
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from uuid import UUID

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from oslo_config import cfg
from secret_places import ROOT_OWNED

from imagegen.base.tree import Tree, read_tree, write_tree
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node, Place
from imagegen.model.logins import OF_COMPUTES, database_schemas
from imagegen.model.releases import Distro, find_release
from imagegen.model.roles import Role, find_role
from imagegen.model.secret_keys import secret_kinds
from imagegen.seeds.rabbitmq import hash_rabbitmq_password
from imagegen.seeds.seed import make_seed, seed_tree

GOLDEN = Path(__file__).parents[1] / "golden" / "seeds"
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
PASSWORDS = PRINTABLE.filter(lambda text: text == text.strip(" "))
NASTY = r"""p@ss/w:r%d"$#{}\'x $$ \$ ${region} %(a)s;&"""

CONTROLLER = "linux-node1"
COMPUTE = "linux-node2"
NOVA = "/etc/nova/nova.conf.d/50-imagegen.conf"
KEYSTONE = "/etc/keystone/keystone.conf.d/50-imagegen.conf"
PLACEMENT = "/etc/placement/placement.conf.d/50-imagegen.conf"
GLANCE = "/etc/glance/glance.conf.d/50-imagegen.conf"
NEUTRON = "/etc/neutron/neutron.conf.d/50-imagegen.conf"
NODE = "/etc/imagegen/node.json"


def make_cluster(**changes: Any) -> Cluster:
    return replace(load_cluster(None), **changes)


def make_secrets(**changes: str) -> Secrets:
    """Secrets that nobody uses: each value tells its name."""
    values = {name: f"example-{name}" if name in secret_kinds() else f"example-of-{name}" for name in EVERY_SECRET}
    keys = {name: base64.urlsafe_b64encode(name.encode()[:9] * 3 + b"-----").decode() for name in FERNET_KEYS}
    values |= {**keys, "messaging_cookie": "EXAMPLECOOKIE0123456789", **changes}
    return Secrets(values)


OF_CLOUD = (
    *("database_glance", "database_neutron", "identity_glance", "identity_neutron"),
    *("messaging_neutron", "neutron_metadata"),
)
EVERY_SECRET = (*secret_kinds(), "identity_nova_compute", "messaging_compute_cell1", *OF_CLOUD)
FERNET_KEYS = ("keystone_fernet_key", "keystone_credential_key")
PASSWORD_NAMES = [name for name in EVERY_SECRET if name not in (*FERNET_KEYS, "messaging_cookie", "seed_key")]


def make_tree(node: str, cluster: Cluster | None = None, secrets: Secrets | None = None) -> Tree:
    cluster = cluster or make_cluster()
    return seed_tree(cluster, cluster.node(node), secrets or make_secrets())


def add_node(cluster: Cluster, role: Role, number: int, cell: str = "cell1") -> Cluster:
    mac, address = f"52:54:00:56:00:{number:02x}", cluster.network.cidr.network_address + number
    node = Node(name=f"extra{number}", role=role, mac=mac, address=address, cell=cell)
    return replace(cluster, nodes=(*cluster.nodes, node))


def load(tree: Tree, name: str) -> dict[str, Any]:
    value = yaml.safe_load(tree[name].data)
    assert isinstance(value, dict)
    return value


def written_files(tree: Tree) -> dict[str, dict[str, str]]:
    """What cloud-init writes, by path."""
    files = load(tree, "user-data")["write_files"]
    assert len({file["path"] for file in files}) == len(files)
    return {file["path"]: file for file in files}


def content(tree: Tree, path: str) -> str:
    return written_files(tree)[path]["content"]


def node_document(tree: Tree) -> dict[str, Any]:
    value = json.loads(content(tree, NODE))
    assert isinstance(value, dict)
    return value


def options(tree: Tree, path: str) -> dict[str, dict[str, str]]:
    """The options of a drop-in as oslo.config itself reads and substitutes them, by section."""
    sections: dict[str, dict[str, list[str]]] = {}
    # The base class's parse takes lines, the class's own opens a file.
    super(cfg.ConfigParser, cfg.ConfigParser("memory", sections)).parse(content(tree, path).splitlines(keepends=True))
    conf = cfg.ConfigOpts()
    for section, found in sections.items():
        assert all(len(values) == 1 for values in found.values())
        conf.register_opts([cfg.StrOpt(key) for key in found], group=None if section == "DEFAULT" else section)
    conf([], default_config_files=[], default_config_dirs=[])
    conf._namespace = cfg._Namespace(conf)
    conf._namespace._add_parsed_config_file("memory", sections, sections)
    return {
        section: {key: conf[key] if section == "DEFAULT" else conf[section][key] for key in found}
        for section, found in sections.items()
    }


@pytest.mark.parametrize("node", [CONTROLLER, COMPUTE])
def test_the_default_cluster_has_the_golden_seeds(node: str) -> None:
    """Every byte and mode of the seeds of the cluster that `init` writes."""
    tree = make_tree(node)
    if os.environ.get("IMAGEGEN_WRITE_GOLDEN") == "1":
        write_tree({name: replace(file, mode=0o644) for name, file in tree.items()}, GOLDEN / node)
        pytest.fail(f"wrote {GOLDEN / node}: read the difference, then run without IMAGEGEN_WRITE_GOLDEN")
    golden = read_tree(GOLDEN / node)
    assert {name: file.data.decode() for name, file in tree.items()} == {
        name: file.data.decode() for name, file in golden.items()
    }
    assert {file.mode for file in tree.values()} == {0o600}


def test_a_seed_is_a_value_that_shows_no_secret() -> None:
    """Its facts and its id need no parsing, and no repr of it ends in a log with passwords."""
    cluster, secrets = make_cluster(), make_secrets()
    seed = make_seed(cluster, cluster.node(CONTROLLER), secrets)
    assert seed.facts["imagegen"]["role"] == "controller"
    assert f"instance-id: {seed.instance_id}\n" in seed.render()["meta-data"].data.decode()
    assert secrets["database_nova"] not in repr(seed)
    other = make_seed(cluster, cluster.node(CONTROLLER), make_secrets(database_nova="another-password"))
    assert seed.instance_id != other.instance_id


def test_user_data_writes_files_and_runs_nothing() -> None:
    """The cloud-config has these keys only, and its files these four fields."""
    tree = make_tree(CONTROLLER, make_cluster(ssh_authorized_keys=("ssh-ed25519 AAAA you@here",)))
    assert tree["user-data"].data.startswith(b"#cloud-config\n")
    user_data = load(tree, "user-data")
    files = user_data.pop("write_files")
    assert user_data == {
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": False,
        "ssh_authorized_keys": ["ssh-ed25519 AAAA you@here"],
    }
    assert {tuple(file) for file in files} == {("path", "owner", "permissions", "content")}
    assert all(isinstance(value, str) for file in files for value in file.values())


def test_an_empty_list_of_keys_is_left_out() -> None:
    """cloud-init's schema wants at least one key where there is a list."""
    assert "ssh_authorized_keys" not in load(make_tree(CONTROLLER), "user-data")


def test_files_have_the_owners_and_modes_of_the_contract() -> None:
    """What holds a secret is closed to others, and each service can read its own file."""
    files = written_files(
        make_tree(CONTROLLER, make_cluster(network=replace(make_cluster().network, ntp=("ntp.example",))))
    )
    assert {path: (file["owner"], file["permissions"]) for path, file in files.items()} == {
        NODE: ("root:root", "0600"),
        "/etc/chrony/conf.d/imagegen.conf": ("root:root", "0644"),
        "/etc/chrony/sources.d/imagegen.sources": ("root:root", "0644"),
        NOVA: ("root:nova", "0640"),
        PLACEMENT: ("root:placement", "0640"),
        KEYSTONE: ("root:keystone", "0640"),
        GLANCE: ("root:glance", "0640"),
        NEUTRON: ("root:neutron", "0640"),
        "/etc/keystone/fernet-keys/0": ("root:keystone", "0640"),
        "/etc/keystone/credential-keys/0": ("root:keystone", "0640"),
        "/etc/rabbitmq/conf.d/50-imagegen.conf": ("root:root", "0644"),
        "/etc/rabbitmq/definitions.json": ("root:rabbitmq", "0640"),
        "/etc/mysql/mariadb.conf.d/90-imagegen.cnf": ("root:root", "0644"),
        "/etc/memcached.conf": ("root:root", "0644"),
    }
    secrets = [make_secrets()[name] for name in EVERY_SECRET]
    for file in files.values():
        if file["permissions"] == "0644":
            assert not any(secret in file["content"] for secret in secrets)


def test_the_files_of_a_compute_are_for_owners_that_its_image_has() -> None:
    """cloud-init stops at the first owner that it does not know."""
    files = written_files(make_tree(COMPUTE))
    owners = {NODE: "root:root", NOVA: "root:nova", "/etc/chrony/sources.d/imagegen.sources": "root:root"}
    owners |= {NEUTRON: "root:neutron", "/etc/openvswitch/system-id.conf": "root:root"}
    others = {path: file["owner"] for path, file in files.items() if "ssh" in path or "migration" in path}
    of_qemu = {path: file["owner"] for path, file in files.items() if path.startswith("/etc/pki/qemu/")}
    assert {path: file["owner"] for path, file in files.items()} == {**owners, **others, **of_qemu}
    assert set(others.values()) == {"root:root", "root:nova"}
    assert set(of_qemu.values()) == {"root:root", "root:libvirt-qemu"}


def test_time_servers_come_from_the_cluster() -> None:
    """One line a server; without servers the distro's stay."""
    network = replace(make_cluster().network, ntp=("10.0.0.1", "ntp.example.org"))
    sources = content(make_tree(CONTROLLER, make_cluster(network=network)), "/etc/chrony/sources.d/imagegen.sources")
    assert sources == "server 10.0.0.1 iburst\nserver ntp.example.org iburst\n"
    assert "/etc/chrony/sources.d/imagegen.sources" not in written_files(make_tree(CONTROLLER))


def test_the_nodes_of_a_cluster_have_one_time() -> None:
    """The first controller gives its own to the others, for where no other time server is reached."""
    served = content(make_tree(CONTROLLER), "/etc/chrony/conf.d/imagegen.conf").splitlines()
    assert served[1:] == ["allow 192.168.56.0/24", "local stratum 10"]
    sources = content(make_tree(COMPUTE), "/etc/chrony/sources.d/imagegen.sources")
    assert sources == "server 192.168.56.11 iburst\n"


def test_the_network_matches_and_names_one_interface() -> None:
    """Version 2 with match.macaddress and set-name; the default route is written as a network."""
    assert load(make_tree(COMPUTE), "network-config") == {
        "version": 2,
        "ethernets": {
            "net0": {
                "match": {"macaddress": "52:54:00:56:00:12"},
                "set-name": "net0",
                "addresses": ["192.168.56.12/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "192.168.56.1"}],
                "nameservers": {"addresses": ["192.168.56.1"]},
            }
        },
    }


def test_a_network_without_gateway_and_dns_has_neither() -> None:
    """Nothing empty is written."""
    network = replace(make_cluster().network, gateway=None, dns=())
    interface = load(make_tree(COMPUTE, make_cluster(network=network)), "network-config")["ethernets"]["net0"]
    assert set(interface) == {"match", "set-name", "addresses"}


def test_meta_data_promises_exactly_the_files_of_user_data() -> None:
    """Path, owner, mode and a digest keyed with the files_key of node.json: what the node's agent checks."""
    for node in (CONTROLLER, COMPUTE):
        tree = make_tree(node)
        key = node_document(tree)["files_key"].encode()
        assert load(tree, "meta-data")["imagegen"]["files"] == [
            {
                "path": file["path"],
                "owner": file["owner"],
                "mode": file["permissions"],
                "sha256-HMAC": hmac.new(key, file["content"].encode(), hashlib.sha256).hexdigest(),
            }
            for file in written_files(tree).values()
        ]


def test_meta_data_holds_the_public_facts() -> None:
    """Role, place in the cluster and identity, nothing else."""
    meta_data = load(make_tree(COMPUTE), "meta-data")
    del meta_data["instance-id"], meta_data["imagegen"]["files"]
    assert meta_data == {
        "local-hostname": COMPUTE,
        "imagegen": {
            "version": 1,
            "cluster": "demo",
            "region": "RegionOne",
            "release": "2025.1",
            "role": "compute",
            "cell": "cell1",
            "hosts_services": [],
            "compute_id": str(make_cluster().compute_id(make_cluster().node(COMPUTE))),
        },
    }
    everything = ["database", "messaging", "cache", "identity", "network", "image"]
    facts = load(make_tree(CONTROLLER), "meta-data")["imagegen"]
    assert (facts["compute_id"], facts["hosts_services"]) == (None, everything)


def spellings(secret: str) -> Iterator[str]:
    yield secret
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode()).decode()
    yield hashlib.sha256(secret.encode()).hexdigest()


def secrets_in(text: str, secrets: Secrets) -> set[str]:
    """The names of the secrets that stand in a text: plain, percent-encoded, base64 or hashed without a key."""
    values = {name: secrets[name] for name in EVERY_SECRET}
    return {name for name, value in values.items() if any(spelling in text for spelling in spellings(value))}


def test_what_everybody_on_a_node_can_read_holds_no_secret() -> None:
    """Neither meta-data nor network-config, and no digest there that could be guessed at."""
    for node in (CONTROLLER, COMPUTE):
        tree = make_tree(node)
        for name in ("meta-data", "network-config"):
            assert secrets_in(tree[name].data.decode(), make_secrets()) == set()
        assert node_document(tree)["files_key"] not in tree["meta-data"].data.decode()


def test_a_node_gets_only_the_secrets_that_it_needs() -> None:
    """No node holds the cluster's seed_key; a compute holds the two passwords of computes and no controller's."""
    everything = set(EVERY_SECRET) - {"seed_key"}
    assert secrets_in(make_tree(CONTROLLER)["user-data"].data.decode(), make_secrets()) == everything
    compute = make_tree(COMPUTE)["user-data"].data.decode()
    assert secrets_in(compute, make_secrets()) == {
        "messaging_compute_cell1",
        "identity_nova_compute",
        "neutron_metadata",
    }
    assert "mysql" not in compute
    assert not {"database", "api_database"} & options(make_tree(COMPUTE), NOVA).keys()


def test_a_second_controller_hosts_nothing_by_itself() -> None:
    """Keys, cookie and definitions go to the node that hosts the service."""
    tree = make_tree("extra13", add_node(make_cluster(), find_role("controller"), 13))
    own = {NODE, NOVA, PLACEMENT, "/etc/chrony/sources.d/imagegen.sources", "/etc/memcached.conf"}
    assert set(written_files(tree)) == own
    assert node_document(tree)["hosts"] == ["cache"]
    assert secrets_in(tree["user-data"].data.decode(), make_secrets()).isdisjoint({"messaging_cookie", *FERNET_KEYS})


def test_an_external_identity_leaves_no_keystone_behind() -> None:
    """No Keystone files, no administrator's password, no schema; the nodes log in at the given URL."""
    services = make_cluster().services
    external = replace(services, identity=Place("10.0.0.5", 5000), auth_url="http://10.0.0.5:5000/v3")
    cluster = make_cluster(services=external)
    tree = make_tree(CONTROLLER, cluster)
    document = node_document(tree)
    assert not [path for path in written_files(tree) if "keystone" in path]
    assert document["identity"]["admin_password"] is None
    assert "keystone" not in [schema["name"] for schema in document["database"]["schemas"]]
    assert document["auth_url"] == options(tree, NOVA)["keystone_authtoken"]["auth_url"] == "http://10.0.0.5:5000/v3"
    assert secrets_in(tree["user-data"].data.decode(), make_secrets()).isdisjoint({"identity_admin", *FERNET_KEYS})


def test_external_services_are_named_where_they_are() -> None:
    """Host and port of each stand in the URLs, and the controller configures none of them."""
    services = make_cluster().services
    cluster = make_cluster(
        services=replace(
            services, database=Place("db.example", 3307), messaging=Place("mq", 5673), cache=Place("10.0.0.9", 11212)
        )
    )
    tree = make_tree(CONTROLLER, cluster)
    nova = options(tree, NOVA)
    assert urlsplit(nova["database"]["connection"]).netloc.endswith("@db.example:3307")
    assert urlsplit(nova["DEFAULT"]["transport_url"]).netloc.endswith("@mq:5673")
    assert nova["keystone_authtoken"]["memcached_servers"] == "10.0.0.9:11212"
    assert options(tree, KEYSTONE)["cache"]["memcache_servers"] == "10.0.0.9:11212"
    assert node_document(tree)["hosts"] == ["identity", "network", "image"]
    assert not [path for path in written_files(tree) if "mysql" in path or "rabbitmq" in path or "memcached" in path]


def test_schemas_are_those_that_validate_explains() -> None:
    """An operator of an external database is told of the same schemas, and every secret is the user's own."""
    cluster = add_node(make_cluster(cells=("cell1", "far")), find_role("compute"), 13, "far")
    schemas = node_document(make_tree(CONTROLLER, cluster))["database"]["schemas"]
    assert [(schema["name"], schema["user"]) for schema in schemas] == database_schemas(cluster)
    assert all(schema["password"] == make_secrets()[f"database_{schema['user']}"] for schema in schemas)


def test_a_further_cell_has_its_own_database_and_vhost() -> None:
    """A compute talks to the vhost of its own cell; the controller knows all cells, each with a fixed uuid."""
    cluster = add_node(make_cluster(cells=("cell1", "far")), find_role("compute"), 13, "far")
    cluster = add_node(cluster, find_role("controller"), 14, "far")
    compute, controller = make_tree("extra13", cluster), make_tree(CONTROLLER, cluster)
    assert urlsplit(options(compute, NOVA)["DEFAULT"]["transport_url"]).path == "/nova_far"
    assert node_document(compute)["messaging"]["vhosts"] == ["nova_far"]
    far = options(make_tree("extra14", cluster), NOVA)
    assert urlsplit(far["database"]["connection"]).path == urlsplit(far["DEFAULT"]["transport_url"]).path == "/nova_far"
    cells = node_document(controller)["cells"]
    assert [(c["name"], c["uuid"], urlsplit(c["database_connection"]).path) for c in cells] == [
        ("cell0", "00000000-0000-0000-0000-000000000000", "/nova_cell0"),
        ("cell1", str(cluster.cell_uuid("cell1")), "/nova"),
        ("far", str(cluster.cell_uuid("far")), "/nova_far"),
    ]
    assert [urlsplit(c["transport_url"]).path for c in cells] == ["/", "/nova", "/nova_far"]
    assert cells[0]["transport_url"] == "none:///"
    definitions = json.loads(content(controller, "/etc/rabbitmq/definitions.json"))
    assert definitions["vhosts"] == [{"name": "nova"}, {"name": "nova_far"}, {"name": "neutron"}]
    places = [(permission["user"], permission["vhost"]) for permission in definitions["permissions"]]
    assert places == [
        ("openstack", "nova"),
        ("openstack", "nova_far"),
        ("compute_cell1", "nova"),
        ("compute_far", "nova_far"),
        ("neutron", "neutron"),
    ]
    assert node_document(compute)["messaging"]["user"] == "compute_far"


def test_node_data_and_nova_agree_about_the_first_cell() -> None:
    """What the agent maps is what Nova's daemons use."""
    tree = make_tree(CONTROLLER)
    nova, cell1 = options(tree, NOVA), node_document(tree)["cells"][1]
    assert cell1["database_connection"] == nova["database"]["connection"]
    assert cell1["transport_url"] == nova["DEFAULT"]["transport_url"]


def test_endpoints_are_the_first_controllers() -> None:
    """Also on a second controller, which may be the one that registers them."""
    cluster = add_node(make_cluster(), find_role("controller"), 13)
    for node in (CONTROLLER, "extra13"):
        assert node_document(make_tree(node, cluster))["identity"]["services"] == [
            {"name": "glance", "type": "image", "url": "http://192.168.56.11:9292"},
            {"name": "neutron", "type": "network", "url": "http://192.168.56.11:9696"},
            {"name": "nova", "type": "compute", "url": "http://192.168.56.11:8774/v2.1"},
            {"name": "placement", "type": "placement", "url": "http://192.168.56.11:8778"},
        ]


def test_rabbitmq_knows_three_users_without_tags() -> None:
    """The controllers', the one cell's computes' and Neutron's, with hashes that RabbitMQ can check; never guest."""
    users = json.loads(content(make_tree(CONTROLLER), "/etc/rabbitmq/definitions.json"))["users"]
    assert [user["name"] for user in users] == ["openstack", "compute_cell1", "neutron"]
    assert not any(user["tags"] for user in users)
    for user in users:
        raw = base64.b64decode(user["password_hash"])
        password = make_secrets()[f"messaging_{user['name']}"]
        assert raw[4:] == hashlib.sha256(raw[:4] + password.encode()).digest()
        assert user["hashing_algorithm"] == "rabbit_password_hashing_sha256"


def test_what_computes_may_do_at_the_message_queue() -> None:
    """Their own queues and topics, and what they send to; never what conductors and schedulers read."""
    own = ["compute", "compute.cpt-1", "compute_fanout_0a1b", "reply_0a1b"]
    theirs = ["conductor", "conductor.ctl-1", "conductor_fanout_0a1b", "scheduler", "scheduler.ctl-1"]
    theirs.append("scheduler_fanout_0a1b")

    def fitting(pattern: str) -> set[str]:
        exchanges = ["nova", "compute_fanout", "conductor_fanout", "scheduler_fanout", "amq.rabbitmq.trace"]
        return {name for name in (*own, *theirs, *exchanges) if re.search(pattern, name)}

    assert fitting(OF_COMPUTES.read) == {*own, "nova", "compute_fanout"}
    assert fitting(OF_COMPUTES.configure) & set(theirs) == fitting(OF_COMPUTES.write) & set(theirs) == set()
    assert {*own, "nova", "scheduler_fanout"} <= fitting(OF_COMPUTES.configure) & fitting(OF_COMPUTES.write)
    keys = ["compute", "compute.cpt-1", "conductor", "conductor.ctl-1", "scheduler", "#", "*", "*.ctl-1", "computer"]
    assert [key for key in keys if re.search(OF_COMPUTES.topics, key)] == ["compute", "compute.cpt-1"]
    definitions = json.loads(content(make_tree(CONTROLLER), "/etc/rabbitmq/definitions.json"))
    assert definitions["topic_permissions"][1] == {
        "user": "compute_cell1",
        "vhost": "nova",
        "exchange": "nova",
        "write": ".*",
        "read": OF_COMPUTES.topics,
    }


def test_rabbitmqs_own_example_of_a_hash() -> None:
    """The worked example of RabbitMQ's documentation, "Computing Password Hashes"."""
    hashed = hash_rabbitmq_password("test12", bytes.fromhex("908DC60A"))
    assert hashed == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"


@given(password=PASSWORDS)
@example(password=NASTY)
@example(password='"')
@example(password="'")
@example(password="\\")
@example(password="%40")
def test_any_password_reaches_every_reader(password: str) -> None:
    """From the seed's YAML into oslo.config's options, URLs, Keystone's parameters, JSON and RabbitMQ's hash."""
    # Distinct values, so that a password in the wrong place is found as well.
    given = {name: f"{number}{password}" for number, name in enumerate(PASSWORD_NAMES)}
    tree = make_tree(CONTROLLER, secrets=make_secrets(**given))
    nova, placement, keystone = (options(tree, path) for path in (NOVA, PLACEMENT, KEYSTONE))
    logins = [
        (nova, "keystone_authtoken"),
        (nova, "service_user"),
        (nova, "placement"),
        (placement, "keystone_authtoken"),
    ]
    for found, section in logins:
        assert found[section]["password"] == given[f"identity_{found[section]['username']}"]
    for found, section in [(nova, "database"), (nova, "api_database"), (placement, "placement_database")]:
        url = urlsplit(found[section]["connection"])
        assert unquote(url.password or "") == given[f"database_{url.username}"]
        assert (url.hostname, url.port) == ("192.168.56.11", 3306)
    transport = urlsplit(nova["DEFAULT"]["transport_url"])
    assert unquote(transport.password or "") == given["messaging_openstack"]
    assert parse_qs(keystone["database"]["connection_parameters"]) == {"password": [given["database_keystone"]]}
    document = node_document(tree)
    assert {schema["user"]: schema["password"] for schema in document["database"]["schemas"]} == {
        user: given[f"database_{user}"] for user in ("keystone", "placement", "nova", "imagegen", "glance", "neutron")
    }
    assert {user["name"]: user["password"] for user in document["identity"]["users"]} == {
        user: given[f"identity_{user}"] for user in ("glance", "neutron", "nova", "placement", "nova_compute")
    }
    assert document["identity"]["admin_password"] == given["identity_admin"]
    assert document["messaging"]["password"] == given["messaging_openstack"]
    for user in json.loads(content(tree, "/etc/rabbitmq/definitions.json"))["users"]:
        salt = base64.b64decode(user["password_hash"])[:4]
        assert user["password_hash"] == hash_rabbitmq_password(given[f"messaging_{user['name']}"], salt)
    compute = make_tree(COMPUTE, secrets=make_secrets(**given))
    found = options(compute, NOVA)
    for section in ("service_user", "placement"):
        assert found[section]["username"] == "nova_compute"
        assert found[section]["password"] == given["identity_nova_compute"]
    transport = urlsplit(found["DEFAULT"]["transport_url"])
    assert transport.username == "compute_cell1"
    assert unquote(transport.password or "") == given["messaging_compute_cell1"]
    document = node_document(compute)
    assert document["messaging"]["password"] == given["messaging_compute_cell1"]
    assert [user["password"] for user in document["identity"]["users"]] == [given["identity_nova_compute"]]


def test_keystones_url_has_no_percent_sign() -> None:
    """keystone-manage db_sync gives the URL to ConfigParser, which takes a % for the start of a substitution."""
    connection = options(make_tree(CONTROLLER, secrets=make_secrets(database_keystone=NASTY)), KEYSTONE)["database"][
        "connection"
    ]
    assert connection == "mysql+pymysql://keystone@192.168.56.11:3306/keystone"


def test_no_file_lies_where_a_services_account_could_plant_a_link() -> None:
    """cloud-init follows links as root; the cluster tier asks a node whether these directories are root's indeed."""
    cluster = add_node(make_cluster(cells=("cell1", "cell2")), find_role("compute"), 13)
    for node in cluster.nodes:
        tree = seed_tree(cluster, node, make_secrets())
        assert {str(PurePosixPath(path).parent) for path in written_files(tree)} <= ROOT_OWNED


def test_keys_are_written_without_a_line_end() -> None:
    """Keystone and Erlang take the whole file."""
    tree, secrets = make_tree(CONTROLLER), make_secrets()
    assert content(tree, "/etc/keystone/fernet-keys/0") == secrets["keystone_fernet_key"]
    assert content(tree, "/etc/keystone/credential-keys/0") == secrets["keystone_credential_key"]
    assert node_document(tree)["erlang_cookie"] == secrets["messaging_cookie"]


@given(st.uuids())
@example(UUID("00000000-0000-0000-0000-000000000000"))
@example(UUID("12345e67-0000-4000-8000-000000000000"))
def test_an_instance_id_needs_no_quotes(value: UUID) -> None:
    """It is written as it is: YAML takes no uuid for a number or a date."""
    assert yaml.safe_load(f"instance-id: {value}\n") == {"instance-id": str(value)}


def instance_id(node: str, cluster: Cluster | None = None, secrets: Secrets | None = None) -> str:
    value = load(make_tree(node, cluster, secrets), "meta-data")["instance-id"]
    assert isinstance(value, str)
    return value


@pytest.mark.parametrize("name", EVERY_SECRET)
def test_a_rotated_secret_is_a_new_instance(name: str) -> None:
    """cloud-init writes the files anew when any of them differs."""
    assert instance_id(CONTROLLER) != instance_id(CONTROLLER, secrets=make_secrets(**{name: "changed"}))


def test_any_change_of_a_node_is_a_new_instance() -> None:
    """User-data, network-config and meta-data each count; so do the names of node and cluster."""
    network = make_cluster().network
    clusters = [
        make_cluster(),
        make_cluster(name="other"),
        make_cluster(region="elsewhere"),
        make_cluster(ssh_authorized_keys=("ssh-ed25519 AAAA you@here",)),
        make_cluster(network=replace(network, dns=())),
        make_cluster(network=replace(network, ntp=("ntp.example",))),
    ]
    ids = [instance_id(node, cluster) for cluster in clusters for node in (CONTROLLER, COMPUTE)]
    assert len(set(ids)) == len(ids)


def test_the_same_input_is_the_same_instance() -> None:
    """Generating again changes nothing."""
    assert make_tree(CONTROLLER) == make_tree(CONTROLLER)


def test_every_controller_has_its_own_cache() -> None:
    """On loopback, for its own Keystone, Nova and Placement; nobody else's."""
    cluster = add_node(make_cluster(), find_role("controller"), 13)
    for node in (CONTROLLER, "extra13"):
        tree = make_tree(node, cluster)
        lines = content(tree, "/etc/memcached.conf").splitlines()
        assert [line for line in lines if line.startswith(("-l", "-p", "-U"))] == ["-p 11211", "-U 0", "-l 127.0.0.1"]
        for path in (NOVA, PLACEMENT):
            assert options(tree, path)["keystone_authtoken"]["memcached_servers"] == "127.0.0.1:11211"
        assert node_document(tree)["cache"] == {"host": "127.0.0.1", "port": 11211}
    assert options(make_tree(CONTROLLER, cluster), KEYSTONE)["cache"]["memcache_servers"] == "127.0.0.1:11211"


def test_databases_take_controllers_alone() -> None:
    """Their host alone knows the addresses: no other seed changes when a controller is added."""
    cluster = add_node(make_cluster(), find_role("controller"), 13)
    assert node_document(make_tree(CONTROLLER, cluster))["database"]["clients"] == ["192.168.56.11", "192.168.56.13"]
    assert "clients" not in node_document(make_tree("extra13", cluster))["database"]
    grown = add_node(cluster, find_role("controller"), 14)
    assert make_tree("extra13", grown) == make_tree("extra13", cluster)
    assert make_tree(COMPUTE, grown) == make_tree(COMPUTE)


def test_users_have_the_least_roles_of_the_release() -> None:
    """`service` where Placement takes it, the administrator's before."""
    zed = make_cluster(release=find_release("zed", Distro(suite="bookworm")))
    for cluster, roles in ((make_cluster(), ["service"]), (zed, ["admin", "service"])):
        users = node_document(make_tree(CONTROLLER, cluster))["identity"]["users"]
        assert {user["name"]: user["roles"] for user in users} == {
            **dict.fromkeys(("glance", "nova", "placement", "nova_compute"), roles),
            "neutron": ["admin", "service"],
        }
        assert [user["name"] for user in node_document(make_tree(COMPUTE, cluster))["identity"]["users"]] == [
            "nova_compute"
        ]


def test_each_cell_has_its_own_console_proxy() -> None:
    """Its port counts from 6080, on every controller, whichever cell is the controller's own; computes name it."""
    cluster = add_node(make_cluster(cells=("cell1", "far")), find_role("compute"), 13, "far")
    cluster = add_node(cluster, find_role("controller"), 14, "far")
    base = {
        node: options(make_tree(node, cluster), NOVA)["vnc"]["novncproxy_base_url"] for node in (COMPUTE, "extra13")
    }
    assert base == {
        COMPUTE: "http://192.168.56.11:6080/vnc_auto.html",
        "extra13": "http://192.168.56.11:6081/vnc_auto.html",
    }
    for node, own, other, port in ((CONTROLLER, "6080", "far", "6081"), ("extra14", "6081", "cell1", "6080")):
        tree = make_tree(node, cluster)
        assert options(tree, NOVA)["vnc"]["novncproxy_port"] == own
        assert options(tree, f"/etc/nova/cells/{other}.conf")["vnc"] == {"novncproxy_port": port}
        assert node_document(tree)["console_ports"] == {"cell1": 6080, "far": 6081}


def test_more_computes_change_no_other_seed() -> None:
    """What grows with the fleet is in nobody's seed; the second compute alone lets resizes stay off their own host."""
    two = add_node(make_cluster(), find_role("compute"), 13)
    more = add_node(add_node(two, find_role("compute"), 14), find_role("compute"), 15)
    for node in (CONTROLLER, COMPUTE):
        assert make_tree(node, more) == make_tree(node, two)
    assert make_tree(COMPUTE, two) == make_tree(COMPUTE)
    one, another = (make_tree(CONTROLLER, cluster)["user-data"].data.decode() for cluster in (make_cluster(), two))
    option = "    # There is no other.\n    allow_resize_to_same_host = true\n"
    assert option in one and option not in another


def test_guests_resume_where_the_file_says_so() -> None:
    """Nova leaves them shut off by default, and so does every seed."""
    option = "resume_guests_state_on_host_boot = true"
    asked = replace(make_cluster(), resume_guests=True)
    texts = [make_tree(COMPUTE, cluster)["user-data"].data.decode() for cluster in (make_cluster(), asked)]
    assert [option in one for one in texts] == [False, True]
    assert make_tree(CONTROLLER, asked) == make_tree(CONTROLLER)


def test_files_keys_are_each_nodes_own() -> None:
    """A node cannot make digests for another one."""
    keys = {node_document(make_tree(node))["files_key"] for node in (CONTROLLER, COMPUTE)}
    assert len(keys) == 2
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)


def test_options_follow_the_release() -> None:
    """Only options that the release knows: no service token before 2023.2, Queens' words in Queens."""
    zed = make_cluster(release=find_release("zed", Distro(suite="bookworm")))
    assert "service_user" in options(make_tree(COMPUTE), NOVA)
    assert "service_user" not in options(make_tree(COMPUTE, zed), NOVA)
    assert node_document(make_tree(COMPUTE, zed))["compute_id"] is None
    queens = options(
        make_tree(CONTROLLER, make_cluster(release=find_release("queens", Distro("ubuntu", "bionic")))), NOVA
    )
    assert queens["DEFAULT"]["firewall_driver"] == "nova.virt.firewall.NoopFirewallDriver"
    assert queens["placement"]["os_region_name"] == "RegionOne"
    assert "auth_uri" in queens["keystone_authtoken"]
    new = options(make_tree(CONTROLLER), NOVA)
    assert not {"use_neutron", "firewall_driver"} & new["DEFAULT"].keys()
    assert "auth_uri" not in new["keystone_authtoken"] and "os_region_name" not in new["placement"]


def test_lock_path_is_the_distros() -> None:
    """RDO's packages do not make Debian's directory."""
    rdo = make_cluster(release=find_release("2024.2", Distro("centos", "9-stream")))
    assert options(make_tree(COMPUTE, rdo), NOVA)["oslo_concurrency"]["lock_path"] == "/var/lib/nova/tmp"
    assert options(make_tree(COMPUTE), NOVA)["oslo_concurrency"]["lock_path"] == "/var/lock/nova"


def test_services_bind_to_the_address_of_their_node() -> None:
    """Not to every interface; a cache, which serves its own node alone, to loopback."""
    cluster = make_cluster()
    moved = replace(cluster.node(CONTROLLER), address=IPv4Address("192.168.56.77"))
    tree = make_tree(CONTROLLER, replace(cluster, nodes=(moved, cluster.node(COMPUTE))))
    assert "bind-address = 192.168.56.77\n" in content(tree, "/etc/mysql/mariadb.conf.d/90-imagegen.cnf")
    assert "listeners.tcp.1 = 192.168.56.77:5672\n" in content(tree, "/etc/rabbitmq/conf.d/50-imagegen.conf")
    assert content(tree, "/etc/memcached.conf").splitlines()[-1] == "-l 127.0.0.1"
    assert options(tree, NOVA)["vnc"]["server_listen"] == "192.168.56.77"
    moved = replace(cluster.node(COMPUTE), address=IPv4Address("192.168.56.78"))
    vnc = options(make_tree(COMPUTE, replace(cluster, nodes=(cluster.node(CONTROLLER), moved))), NOVA)["vnc"]
    assert vnc["server_listen"] == vnc["server_proxyclient_address"] == "192.168.56.78"


@pytest.mark.parametrize("name", ["rabbitmq", "keystone", "nova", "root", "no", "0x10"])
def test_a_node_may_have_any_legal_name(name: str) -> None:
    """Names of services, and names that YAML would take for something else, stay text."""
    cluster = make_cluster()
    tree = make_tree(name, replace(cluster, nodes=(*cluster.nodes[:1], replace(cluster.node(COMPUTE), name=name))))
    assert load(tree, "meta-data")["local-hostname"] == name
    assert options(tree, NOVA)["DEFAULT"]["host"] == name
