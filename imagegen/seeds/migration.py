"""How computes know one another when they hand over instances: keys and certificates of an authority of the cluster.

All are derived from secrets, so no seed lists the fleet, and the same input gives the same bytes: Ed25519 signs without
chance.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from imagegen.inputs.ca import certificate_builder, common_name, key_usage
from imagegen.inputs.secrets_file import Secrets
from imagegen.model.cluster import Cluster, Node
from imagegen.seeds.openssh import Certificate, Holder, certificate_line, private_file, public_line

SECRET = "migration_ca"  # noqa: S105 - the key of it
USER = "nova"  # as whom computes log in to one another


@dataclass(frozen=True, repr=False)
class Migration:
    """One compute's keys and certificates, as its files hold them. No repr: keys are secrets."""

    cluster: Cluster
    node: Node
    secrets: Secrets

    @cached_property
    def ssh_authority(self) -> str:
        """What a computes' sshd and ssh trust, as a line of a .pub file."""
        return public_line(self._key("ssh"), f"imagegen {self.cluster.name}")

    @cached_property
    def host_key(self) -> str:
        return private_file(self._key(f"ssh/host/{self.node.name}"), self.node.name)

    @cached_property
    def host_certificate(self) -> str:
        names = [str(self.node.address), self.node.name]
        said = Certificate(Holder.HOST, self.node.name, names)
        return certificate_line(self._key("ssh"), self._key(f"ssh/host/{self.node.name}"), said)

    @cached_property
    def user_key(self) -> str:
        return private_file(self._key(f"ssh/user/{self.node.name}"), f"{USER}@{self.node.name}")

    @cached_property
    def user_certificate(self) -> str:
        options = {"source-address": str(self.cluster.network.cidr)}
        said = Certificate(Holder.USER, f"{USER}@{self.node.name}", [USER], options)
        return certificate_line(self._key("ssh"), self._key(f"ssh/user/{self.node.name}"), said)

    @cached_property
    def tls_authority(self) -> str:
        """The authority's certificate, in PEM."""
        key, name = self._key("tls"), common_name(self.cluster.name)
        return _pem(
            certificate_builder(name, name, key.public_key(), self._serial("tls"))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(sign=True), critical=True)
            .sign(key, None)
        )

    @cached_property
    def tls_certificate(self) -> str:
        """QEMU's, for both ends of a migration."""
        key = self._key(f"tls/{self.node.name}")
        names = x509.SubjectAlternativeName([x509.DNSName(self.node.name), x509.IPAddress(self.node.address)])
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        issuer, serial = common_name(self.cluster.name), self._serial(f"tls/{self.node.name}")
        return _pem(
            certificate_builder(common_name(self.node.name), issuer, key.public_key(), serial)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(sign=False), critical=True)
            .add_extension(both, critical=False)
            .add_extension(names, critical=False)
            .sign(self._key("tls"), None)
        )

    @cached_property
    def tls_key(self) -> str:
        key = self._key(f"tls/{self.node.name}")
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def _key(self, purpose: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._derive(f"key/{purpose}"))

    def _serial(self, purpose: str) -> int:
        """A positive number of at most 20 bytes (RFC 5280, 4.1.2.2)."""
        return int.from_bytes(self._derive(f"serial/{purpose}")[:19], "big") or 1

    def _derive(self, purpose: str) -> bytes:
        return hmac.digest(self.secrets[SECRET].encode(), f"imagegen/{self.cluster.name}/{purpose}".encode(), sha256)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
