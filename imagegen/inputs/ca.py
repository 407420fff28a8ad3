"""The certificate authority of a cluster's provisioning: `imagegen init` makes it, nodes pin it by its sha256."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imagegen.base.errors import BadUsage

CERTIFICATE = "ca.pem"
KEY = "ca.key"

# A machine that is deployed for the first time may have any clock. What limits the trust in a certificate is the pin
# on the command line and the window of `imagegen serve`, not a date. The end is RFC 5280's "no expiry" (4.1.2.5).
BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True, repr=False)
class Authority:
    """Certificate and key, both as PEM. No repr: the key is a secret."""

    certificate: bytes
    key: bytes

    @property
    def sha256(self) -> str:
        """What nodes pin: the sha256 of the certificate's file, in hex."""
        return hashlib.sha256(self.certificate).hexdigest()

    @property
    def token_key(self) -> bytes:
        """The key for claims' tokens: the same after a restart, and useless for certificates."""
        return hmac.digest(self.key, b"imagegen: tokens for claims", hashlib.sha256)


def generate_authority() -> Authority:
    """A new authority: its key signs the certificates of servers, and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = common_name("imagegen provisioning CA")
    certificate = (
        certificate_builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def issue_certificate(authority: Authority, addresses: list[IPv4Address]) -> Authority:
    """Certificate and key of a TLS server at these addresses; each time with a new key."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise BadUsage(
            f"{KEY} is not a key that imagegen made",
            f"move {CERTIFICATE} and {KEY} away and run `imagegen init` for new ones",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(address) for address in addresses])
    certificate = (
        certificate_builder(common_name("imagegen serve"), issuer.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Authority(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def load_authority(directory: Path) -> Authority:
    """The authority in that directory. Raises BadUsage if its files are missing or do not belong together."""
    files = [directory / CERTIFICATE, directory / KEY]
    missing = [path for path in files if not path.is_file()]
    if len(missing) == 1:
        raise BadUsage(*explain_half(*(path for path in files if path not in missing), *missing))
    if missing:
        names = " and ".join(map(str, missing))
        raise BadUsage(f"{names} are missing: nodes recognise the server by them", f"run `imagegen init {directory}`")
    authority = Authority(*(path.read_bytes() for path in files))
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise BadUsage(
            f"{files[0]} or {files[1]} is damaged", "move both away and run `imagegen init` for new ones"
        ) from error
    if certificate.public_key() != key.public_key():
        raise BadUsage(
            f"{files[1]} is not the key for {files[0]}", "move both away and run `imagegen init` for new ones"
        )
    return authority


def explain_half(left: Path, lost: Path) -> tuple[str, str]:
    """Message and hint for when one file of the pair is lost."""
    return (
        f"{lost} is missing, and {left.name} is useless without it",
        f"restore {lost.name} from a backup, or move {left} away and run `imagegen init {left.parent}` for a new pair; "
        "then restart machines that are booting (no others are affected)",
    )


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    """A certificate that is valid for ever; without a serial number it gets one by chance."""
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=serial or x509.random_serial_number(),
        not_valid_before=BEGIN,
        not_valid_after=END,
    )


def key_usage(*, sign: bool) -> x509.KeyUsage:
    """What the key is for: to sign certificates, or what passes over a connection."""
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
