"""openssh.py: what a reader of OpenSSH's formats that knows nothing of us makes of the files."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.hazmat.primitives.serialization.ssh import (
    SSHCertificate,
    SSHCertificateType,
    load_ssh_private_key,
    load_ssh_public_identity,
    load_ssh_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from imagegen.seeds.openssh import Certificate, Holder, certificate_line, private_file, public_line

seeds = st.binary(min_size=32, max_size=32).map(Ed25519PrivateKey.from_private_bytes)
words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=70)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
AUTHORITY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def read_certificate(line: str) -> SSHCertificate:
    certificate = load_ssh_public_identity(line.encode())
    assert isinstance(certificate, SSHCertificate)
    return certificate


@given(seeds, words)
def test_a_private_key_is_read_back(key: Ed25519PrivateKey, comment: str) -> None:
    """Whatever the length of its comment, which moves the padding; the same key gives the same bytes."""
    text = private_file(key, comment)
    read = load_ssh_private_key(text.encode(), password=None)
    assert isinstance(read, Ed25519PrivateKey)
    assert read.private_bytes_raw() == key.private_bytes_raw()
    assert text == private_file(key, comment)
    assert text.endswith("\n") and max(map(len, text.splitlines())) == 70


@given(seeds, words)
def test_a_public_key_is_one_line(key: Ed25519PrivateKey, comment: str) -> None:
    line = public_line(key, comment)
    read = load_ssh_public_key(line.encode())
    assert isinstance(read, Ed25519PublicKey) and read == key.public_key()
    assert line.count("\n") == 1 and line.split(" ", 2)[2] == f"{comment}\n"


@given(seeds, seeds, words, st.lists(words, min_size=1, max_size=3), st.dictionaries(words, words, max_size=1))
def test_a_certificate_says_what_it_was_told(
    authority: Ed25519PrivateKey, key: Ed25519PrivateKey, key_id: str, principals: list[str], options: dict[str, str]
) -> None:
    """Of which key, for whom, for ever, with critical options and without any permission beyond a command."""
    made = Certificate(Holder.USER, key_id, principals, options)
    line = certificate_line(authority, key, made)
    read = read_certificate(line)
    read.verify_cert_signature()
    signer, subject = read.signature_key(), read.public_key()
    assert isinstance(signer, Ed25519PublicKey) and signer == authority.public_key()
    assert isinstance(subject, Ed25519PublicKey) and subject == key.public_key()
    assert (read.type, read.key_id) == (SSHCertificateType.USER, key_id.encode())
    assert read.valid_principals == [name.encode() for name in principals]
    assert read.critical_options == {name.encode(): value.encode() for name, value in options.items()}
    assert (read.valid_after, read.valid_before, read.extensions) == (0, 2**64 - 1, {})
    assert line == certificate_line(authority, key, made)


def test_a_hosts_certificate_is_no_users() -> None:
    """One for a host logs nobody in, and the other way round."""
    kinds = {
        holder: read_certificate(certificate_line(AUTHORITY, KEY, Certificate(holder, "x", ["x"]))).type
        for holder in Holder
    }
    assert kinds == {Holder.USER: SSHCertificateType.USER, Holder.HOST: SSHCertificateType.HOST}


@pytest.mark.parametrize("place", [b"nova", b"10.0.0.0/24", raw(KEY)[:8]], ids=["principal", "option", "key"])
def test_a_changed_certificate_is_refused(place: bytes) -> None:
    """Who changes a principal, an option or the key has no signature for it."""
    made = Certificate(Holder.USER, "of somebody", ["nova"], {"source-address": "10.0.0.0/24"})
    kind, data, _ = certificate_line(AUTHORITY, KEY, made).split(" ", 2)
    body = b64decode(data)
    changed = body.replace(place, bytes(byte ^ 1 for byte in place[:1]) + place[1:])
    assert changed != body
    with pytest.raises(InvalidSignature):
        read_certificate(f"{kind} {b64encode(changed).decode()} x").verify_cert_signature()


def test_no_key_is_said_by_a_certificate() -> None:
    """Neither that of the authority nor that of whose it is."""
    body = b64decode(certificate_line(AUTHORITY, KEY, Certificate(Holder.HOST, "x", ["x"])).split(" ")[1])
    assert KEY.private_bytes_raw() not in body and AUTHORITY.private_bytes_raw() not in body
