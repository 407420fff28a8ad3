"""ca.py: what a TLS library that knows nothing of us makes of the certificates."""

from __future__ import annotations

import ssl
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from imagegen.base.errors import BadUsage
from imagegen.inputs.ca import Authority, generate_authority, issue_certificate, load_authority

ADDRESS = IPv4Address("192.168.56.1")


def shake_hands(trusted: Authority, server: Authority, place: Path, name: str = str(ADDRESS)) -> None:
    """A whole TLS handshake in memory, as a node's Python does it. Raises ssl.SSLError."""
    (place / "server.pem").write_bytes(server.certificate)
    (place / "server.key").write_bytes(server.key)
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(place / "server.pem", place / "server.key")
    asking = ssl.create_default_context(cadata=trusted.certificate.decode())
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        asking.wrap_bio(to_client, to_server, server_hostname=name),
        listening.wrap_bio(to_server, to_client, server_side=True),
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


def test_a_node_trusts_the_server_that_its_ca_signed(tmp_path: Path) -> None:
    """By the address, under the strict checks of X.509."""
    authority = generate_authority()
    shake_hands(authority, issue_certificate(authority, [ADDRESS]), tmp_path)


def test_another_ca_or_another_address_is_refused(tmp_path: Path) -> None:
    """A server of a CA that is not pinned, and a right one at another address."""
    authority = generate_authority()
    server = issue_certificate(authority, [ADDRESS])
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(generate_authority(), server, tmp_path)
    with pytest.raises(ssl.SSLError, match="IP address mismatch"):
        shake_hands(authority, server, tmp_path, "192.168.56.2")


def test_a_servers_key_signs_nobody(tmp_path: Path) -> None:
    """Who steals it cannot make another server's certificate."""
    authority = generate_authority()
    server = issue_certificate(authority, [ADDRESS])
    forged = issue_certificate(server, [ADDRESS])
    forged = Authority(forged.certificate + server.certificate, forged.key)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(authority, forged, tmp_path)


def test_any_clock_will_do() -> None:
    """A new machine's clock may say anything from 1970 on (RFC 5280, 4.1.2.5, for the end)."""
    from cryptography import x509

    authority = generate_authority()
    for each in (authority, issue_certificate(authority, [ADDRESS])):
        certificate = x509.load_pem_x509_certificate(each.certificate)
        assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (1970, 9999)


def test_a_key_is_not_said() -> None:
    """Neither by repr nor by a message."""
    authority = generate_authority()
    assert "PRIVATE" not in repr(authority) and "BEGIN" not in repr(authority)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Missing, damaged, or of two CAs: each says what to do."""
    with pytest.raises(BadUsage, match=r"ca\.pem and .*ca\.key are missing") as caught:
        load_authority(tmp_path)
    assert "imagegen init" in caught.value.hint
    one, two = generate_authority(), generate_authority()
    (tmp_path / "ca.pem").write_bytes(one.certificate)
    (tmp_path / "ca.key").write_bytes(two.key)
    with pytest.raises(BadUsage, match="is not the key for"):
        load_authority(tmp_path)
    (tmp_path / "ca.key").write_bytes(b"-----BEGIN")
    with pytest.raises(BadUsage, match="is damaged"):
        load_authority(tmp_path)
    (tmp_path / "ca.key").write_bytes(one.key)
    assert load_authority(tmp_path) == one


@pytest.mark.parametrize(("left", "lost"), [("ca.pem", "ca.key"), ("ca.key", "ca.pem")])
def test_half_a_pair_has_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str, lost: str) -> None:
    """The server and `init` name it, and what they say to do works."""
    from imagegen.cli.run import run_command

    assert run_command(["-q", "init", str(tmp_path)]) == 0
    (tmp_path / lost).unlink()
    with pytest.raises(BadUsage, match=f"{lost} is missing") as caught:
        load_authority(tmp_path)
    assert f"move {tmp_path / left} away and run `imagegen init {tmp_path}`" in caught.value.hint
    capsys.readouterr()
    assert run_command(["-q", "init", str(tmp_path)]) == 2
    assert f"move {tmp_path / left} away" in capsys.readouterr().err
    (tmp_path / left).rename(tmp_path / "old")
    assert run_command(["-q", "init", str(tmp_path)]) == 0
    load_authority(tmp_path)


def test_a_key_of_the_ca_that_others_read_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As secrets.yaml is, by each command that reads them."""
    from imagegen.cli.run import run_command

    assert run_command(["-q", "init", str(tmp_path)]) == 0
    (tmp_path / "ca.key").chmod(0o644)
    words = ["-q", "-c", str(tmp_path / "cluster.yaml"), "-o", str(tmp_path / "out")]
    capsys.readouterr()
    assert run_command([*words, "seed"]) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'ca.key'} can be read or changed by others (mode 0644)" in said and "chmod 600" in said
    assert run_command([*words, "serve", "--no-seeds"]) != 0  # `imagegen pxe` was not run
    assert "ca.key can be read" in capsys.readouterr().err


def test_tokens_have_a_key_of_their_own() -> None:
    """The same as long as the CA is; it says nothing about the CA's own key."""
    authority = generate_authority()
    assert authority.token_key == Authority(authority.certificate, authority.key).token_key
    assert authority.token_key != generate_authority().token_key and authority.token_key not in authority.key
