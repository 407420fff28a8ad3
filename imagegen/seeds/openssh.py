"""OpenSSH's files for Ed25519 keys; the same key gives the same bytes. Sources: PROTOCOL.key and PROTOCOL.certkeys."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from textwrap import wrap

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

KIND = b"ssh-ed25519"
CERTIFICATE_KIND = b"ssh-ed25519-cert-v01@openssh.com"
FOR_EVER = 2**64 - 1
BLOCK = 8  # bytes to which the private part is padded, without a cipher


class Holder(IntEnum):
    """Whose certificate it is."""

    USER = 1
    HOST = 2


@dataclass(frozen=True)
class Certificate:
    """What an authority says of a key."""

    holder: Holder
    key_id: str  # what sshd logs
    principals: Sequence[str]
    options: Mapping[str, str] = field(default_factory=dict)  # critical ones


def public_line(key: Ed25519PrivateKey, comment: str) -> str:
    """A line of a .pub file."""
    return f"{KIND.decode()} {b64encode(_public_blob(key)).decode()} {comment}\n"


def private_file(key: Ed25519PrivateKey, comment: str) -> str:
    """A private key's file, without a passphrase."""
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    check = sha256(_public_blob(key)).digest()[:4] * 2  # random in OpenSSH: both halves must be equal, no more
    private = check + _string(KIND) + _string(_raw(key)) + _string(seed + _raw(key)) + _string(comment.encode())
    private += bytes(range(1, 1 + -len(private) % BLOCK))
    head = b"openssh-key-v1\0" + _string(b"none") * 2 + _string(b"") + (1).to_bytes(4, "big")
    text = b64encode(head + _string(_public_blob(key)) + _string(private)).decode()
    return "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *wrap(text, 70), "-----END OPENSSH PRIVATE KEY-----", ""])


def certificate_line(authority: Ed25519PrivateKey, key: Ed25519PrivateKey, certificate: Certificate) -> str:
    """The certificate of that key, signed by the authority, as a line of a -cert.pub file. It never expires."""
    options = (_string(name.encode()) + _string(_string(value.encode())) for name, value in certificate.options.items())
    body = b"".join(
        (
            _string(CERTIFICATE_KIND),
            # A nonce keeps an attacker who chooses the contents from a collision; Ed25519 has none to fear.
            _string(sha256(_public_blob(key) + certificate.key_id.encode()).digest()),
            _string(_raw(key)),
            (0).to_bytes(8, "big"),  # serial
            certificate.holder.to_bytes(4, "big"),
            _string(certificate.key_id.encode()),
            _string(b"".join(_string(name.encode()) for name in certificate.principals)),
            (0).to_bytes(8, "big"),
            FOR_EVER.to_bytes(8, "big"),
            _string(b"".join(options)),
            _string(b""),  # extensions: no terminal, no forwarding
            _string(b""),
            _string(_public_blob(authority)),
        )
    )
    signed = body + _string(_string(KIND) + _string(authority.sign(body)))
    return f"{CERTIFICATE_KIND.decode()} {b64encode(signed).decode()} {certificate.key_id}\n"


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _public_blob(key: Ed25519PrivateKey) -> bytes:
    return _string(KIND) + _string(_raw(key))


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
