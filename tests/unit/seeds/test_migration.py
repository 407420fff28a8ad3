"""migration.py: computes that know one another by an authority, and nobody else."""

from __future__ import annotations

import ssl
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.hazmat.primitives.serialization.ssh import (
    SSHCertificate,
    SSHCertificateType,
    load_ssh_private_key,
    load_ssh_public_identity,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from fakes.world import make_secrets
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base.commands import run
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import find_role
from imagegen.seeds.migration import Migration
from imagegen.seeds.seed import seed_tree
from imagegen.seeds.service_files import SeedFile, node_files

CLUSTER = load_cluster(None)
SECRETS = make_secrets()
ONE = CLUSTER.node("linux-node2")
TWO = replace(ONE, name="other", address=IPv4Address("192.168.56.13"), mac="52:54:00:56:00:13")
KEYS = ("host_key", "user_key", "tls_key")
CERTIFICATES = ("host_certificate", "user_certificate", "tls_certificate")
AUTHORITIES = ("ssh_authority", "tls_authority")
ALL = (*KEYS, *CERTIFICATES, *AUTHORITIES)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
passwords = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=8, max_size=40)


def make(node: Node = ONE, cluster: Cluster = CLUSTER, secrets: Secrets = SECRETS) -> Migration:
    return Migration(cluster, node, secrets)


def texts(migration: Migration, names: tuple[str, ...] = ALL) -> list[str]:
    return [getattr(migration, name) for name in names]


def read_ssh(line: str) -> SSHCertificate:
    certificate = load_ssh_public_identity(line.encode())
    assert isinstance(certificate, SSHCertificate)
    return certificate


def read_tls(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


@given(labels, passwords)
def test_the_same_input_gives_the_same_bytes(name: str, secret: str) -> None:
    """For a node of any name and any secret; a seed that is made again keeps its instance-id."""
    secrets = make_secrets(migration_ca=secret)
    node = replace(ONE, name=name)
    assert texts(make(node, secrets=secrets)) == texts(make(node, secrets=secrets))


def test_each_key_is_of_one_purpose() -> None:
    """No two are the same, and none of them is an authority's."""
    private = [load_ssh_private_key(text.encode(), None) for text in texts(make(), KEYS[:2])]
    private.append(load_pem_private_key(make().tls_key.encode(), None))
    public = [load_ssh_public_key(make().ssh_authority.encode()), read_tls(make().tls_authority).public_key()]
    keys = [key.public_key() for key in private if isinstance(key, Ed25519PrivateKey)] + public
    assert len({key.public_bytes_raw() for key in keys if isinstance(key, Ed25519PublicKey)}) == 5


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (make(TWO), AUTHORITIES),
        (make(cluster=replace(CLUSTER, name="other")), ()),
        (make(secrets=make_secrets(migration_ca="another secret")), ()),
        (make(secrets=make_secrets(seed_key="b" * 64)), ()),
    ],
    ids=["node", "cluster", "migration_ca", "seed_key"],
)
def test_others_have_other_keys(other: Migration, same: tuple[str, ...]) -> None:
    """Another node has nothing in common but the authorities, another cluster or another secret nothing at all."""
    assert [name for name in ALL if getattr(other, name) == getattr(make(), name)] == list(same)


def test_a_secret_of_its_own_goes_before_the_derived_one() -> None:
    """Without migration_ca the keys come from seed_key; with it they do not."""
    own = {"migration_ca": "another secret"}
    assert texts(make(secrets=make_secrets(**own))) == texts(make(secrets=make_secrets(seed_key="b" * 64, **own)))


def test_a_host_is_known_by_name_and_address() -> None:
    """As ssh reads it: a host's certificate of the host's key, signed by what known_hosts calls the authority."""
    read = read_ssh(make().host_certificate)
    read.verify_cert_signature()
    key = load_ssh_private_key(make().host_key.encode(), None)
    assert isinstance(key, Ed25519PrivateKey) and read.public_key() == key.public_key()
    assert read.signature_key() == load_ssh_public_key(make().ssh_authority.encode())
    assert (read.type, read.critical_options) == (SSHCertificateType.HOST, {})
    assert sorted(read.valid_principals) == [b"192.168.56.12", b"linux-node2"]


def test_a_compute_logs_in_as_nova_from_the_clusters_network() -> None:
    """As no other user and from no other network, without terminal or forwarding."""
    read = read_ssh(make().user_certificate)
    read.verify_cert_signature()
    key = load_ssh_private_key(make().user_key.encode(), None)
    assert isinstance(key, Ed25519PrivateKey) and read.public_key() == key.public_key()
    assert (read.type, read.valid_principals) == (SSHCertificateType.USER, [b"nova"])
    assert read.critical_options == {b"source-address": b"192.168.56.0/24"}
    assert read.extensions == {}
    assert b"linux-node2" in read.key_id  # what sshd logs


@given(labels)
def test_qemus_certificates_are_of_the_authority(name: str) -> None:
    """By X.509's own rules: signed, for both ends, for name and address, no authority itself, for any clock."""
    migration = make(replace(ONE, name=name))
    authority, leaf = read_tls(migration.tls_authority), read_tls(migration.tls_certificate)
    authority.verify_directly_issued_by(authority)
    leaf.verify_directly_issued_by(authority)
    constraints = [each.extensions.get_extension_for_class(x509.BasicConstraints) for each in (authority, leaf)]
    assert [(each.critical, each.value.ca) for each in constraints] == [(True, True), (True, False)]
    assert constraints[0].value.path_length == 0
    usage = [each.extensions.get_extension_for_class(x509.KeyUsage).value for each in (authority, leaf)]
    assert [each.key_cert_sign for each in usage] == [True, False]
    assert [each.digital_signature for each in usage] == [False, True]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]
    assert names.get_values_for_type(x509.IPAddress) == [ONE.address]
    both = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(both) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    for each in (authority, leaf):
        assert (each.not_valid_before_utc.year, each.not_valid_after_utc.year) == (1970, 9999)
        assert 0 < each.serial_number < 2**159
    assert authority.serial_number != leaf.serial_number


def test_another_clusters_certificate_is_refused() -> None:
    """Though the name of its authority is the same."""
    stranger = read_tls(make(secrets=make_secrets(migration_ca="another secret")).tls_certificate)
    authority = read_tls(make().tls_authority)
    assert stranger.issuer == authority.subject
    with pytest.raises(InvalidSignature):
        stranger.verify_directly_issued_by(authority)


def shake_hands(place: Path, source: Migration, target: Migration, name: str) -> None:
    """A whole TLS handshake in memory in which both ends show a certificate, as QEMU's do. Raises ssl.SSLError."""

    def context(migration: Migration, purpose: ssl.Purpose) -> ssl.SSLContext:
        (place / "cert.pem").write_text(migration.tls_certificate)
        (place / "key.pem").write_text(migration.tls_key)
        made = ssl.create_default_context(purpose, cadata=migration.tls_authority)
        # QEMU's library asks for no key identifiers.
        made.verify_flags &= ~ssl.VERIFY_X509_STRICT
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(place / "cert.pem", place / "key.pem")
        return made

    asking, listening = context(source, ssl.Purpose.SERVER_AUTH), context(target, ssl.Purpose.CLIENT_AUTH)
    to_source, to_target = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        asking.wrap_bio(to_source, to_target, server_hostname=name),
        listening.wrap_bio(to_target, to_source, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not ends:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("name", ["other", "192.168.56.13"])
def test_two_computes_trust_one_another(tmp_path: Path, name: str) -> None:
    """By name and by address, each way."""
    shake_hands(tmp_path, make(ONE), make(TWO), name)
    with pytest.raises(ssl.SSLError, match="mismatch"):
        shake_hands(tmp_path, make(TWO), make(ONE), name)


@pytest.mark.parametrize("stranger", ["source", "target"])
def test_a_stranger_gets_no_memory(tmp_path: Path, stranger: str) -> None:
    """Neither to send nor to receive."""
    ends = {"source": make(ONE), "target": make(TWO)}
    ends[stranger] = replace(ends[stranger], secrets=make_secrets(migration_ca="another secret"))
    with pytest.raises(ssl.SSLError, match="VERIFY_FAILED"):
        shake_hands(tmp_path, **ends, name="other")


def test_a_key_is_not_said() -> None:
    assert "PRIVATE" not in repr(make()) and SECRETS["migration_ca"] not in repr(make())


# In a seed.


def add_compute(cluster: Cluster, number: int) -> Cluster:
    """With one more."""
    address = cluster.network.cidr.network_address + number
    mac = f"52:54:00:56:01:{number:02x}"
    node = Node(f"extra{number}", find_role("compute"), mac, address, "cell1")
    return replace(cluster, nodes=(*cluster.nodes, node))


def files_of(cluster: Cluster, name: str) -> dict[str, SeedFile]:
    return {file.path: file for file in node_files(cluster, cluster.node(name), SECRETS)}


def test_a_computes_seed_stays_when_the_fleet_grows() -> None:
    """Not a byte of it changes: keys of others are not listed anywhere."""
    trees = []
    cluster = CLUSTER
    for number in (50, 51):
        cluster = add_compute(cluster, number)
        trees.append(seed_tree(cluster, ONE, SECRETS))
    assert trees[0] == trees[1] == seed_tree(CLUSTER, ONE, SECRETS)


def test_a_controllers_seed_changes_once() -> None:
    """With the second compute an instance need not be resized where it is any more; with the third nothing changes."""
    one, two = CLUSTER, add_compute(CLUSTER, 50)
    three = add_compute(two, 51)
    before, after = files_of(one, "linux-node1"), files_of(two, "linux-node1")
    changed = [path for path in before if before[path] != after[path]]
    assert changed == ["/etc/nova/nova.conf.d/50-imagegen.conf"] and before.keys() == after.keys()
    lost = set(before[changed[0]].content.splitlines()) - set(after[changed[0]].content.splitlines())
    assert "allow_resize_to_same_host = true" in lost and len(lost) == 2
    assert files_of(three, "linux-node1") == after


def test_no_seed_names_another_compute() -> None:
    """And no controller has a key of migration."""
    cluster = add_compute(CLUSTER, 50)
    for name, others in (("linux-node1", ["linux-node2", "extra50"]), ("linux-node2", ["extra50"])):
        said = "".join(file.content for file in files_of(cluster, name).values())
        assert [other for other in others if other in said] == []
    controllers = "".join(file.content for file in files_of(cluster, "linux-node1").values())
    assert "OPENSSH PRIVATE KEY" not in controllers and "BEGIN PRIVATE KEY" not in controllers


def test_the_files_are_those_that_ssh_and_qemu_read() -> None:
    """Keys are closed to others; what is trusted is where sshd, ssh and QEMU look."""
    files, migration = files_of(CLUSTER, "linux-node2"), make()
    assert files["/etc/nova/migration_key"].content == migration.user_key
    assert files["/etc/ssh/imagegen_host_key"].content == migration.host_key
    assert files["/etc/ssh/imagegen_ca.pub"].content == migration.ssh_authority
    assert files["/etc/pki/qemu/server-key.pem"].content == migration.tls_key
    private = [file for file in files.values() if "PRIVATE KEY" in file.content]
    assert len(private) == 5 and [file.path for file in private if file.mode & 0o007] == []
    known = next(file for file in files.values() if "known_hosts" in file.path)
    marker, hosts, key = known.content.split(" ", 2)
    assert (marker, hosts) == ("@cert-authority", "*")
    assert load_ssh_public_key(key.strip().encode()) == load_ssh_public_key(migration.ssh_authority.encode())


@pytest.mark.allow_process("ssh-keygen")
@pytest.mark.parametrize("holder", ["host", "user"])
def test_openssh_itself_reads_them(tmp_path: Path, holder: str) -> None:
    """The key is that of its certificate, which is valid for ever and of the cluster's authority."""
    key, certificate, authority = (tmp_path / name for name in ("key", "key-cert.pub", "ca.pub"))
    for path, name in ((key, f"{holder}_key"), (certificate, f"{holder}_certificate"), (authority, "ssh_authority")):
        path.touch(mode=0o600)
        path.write_text(getattr(make(), name))

    def ask(*words: str | Path) -> str:
        return run(["ssh-keygen", *words]).stdout.decode()

    said = ask("-L", "-f", certificate)
    assert f"Type: ssh-ed25519-cert-v01@openssh.com {holder} certificate" in said and "Valid: forever" in said
    fingerprints = {}
    for path in (key, authority):
        (tmp_path / "public").write_text(ask("-y", "-f", path) if path == key else path.read_text())
        fingerprints[path] = ask("-l", "-f", tmp_path / "public").split()[1]
    assert f"Public key: ED25519-CERT {fingerprints[key]}" in said
    assert f"Signing CA: ED25519 {fingerprints[authority]} (using ssh-ed25519)" in said
