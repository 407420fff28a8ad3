"""Public keys: whole ones of their type are taken, with and without options; what was cut or mixed up is not."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from imagegen.inputs.ssh_keys import find_key_fault

KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
KINDS += ("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")


# A point of each curve, by a library that knows them.
POINTS = {
    str(curve.key_size): ec.derive_private_key(7, curve)
    .public_key()
    .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
}


def make_blob(kind: str) -> bytes:
    """A key's data as RFC 4253 and its successors lay it out; no real key, but of the right form."""
    bits = kind.partition("nistp")[2][:3]
    curve = [f"nistp{bits}".encode(), POINTS[bits]] if bits else []
    fields = {"ssh-rsa": [b"\1\0\1", b"\0" + b"\x80" * 256]}.get(kind, curve or [b"k" * 32])
    fields += [b"ssh:"] if kind.startswith("sk-") else []
    return b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))


def encode(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


OPTIONS = ["restrict", "no-pty", 'command="a \\"b\\", c d"', 'from="10.*,!10.1.*"', "No-Agent-Forwarding"]


@given(
    st.sampled_from(KINDS),
    st.lists(st.sampled_from(OPTIONS), max_size=3, unique=True),
    st.sampled_from(["", " me@here", " two words", " "]),
)
def test_a_whole_key_is_taken(kind: str, before: list[str], comment: str) -> None:
    """Of every type that sshd takes, with options before it and with or without a comment."""
    line = f"{','.join(before)} {kind} {encode(make_blob(kind))}{comment}".lstrip()
    assert find_key_fault(line) == ""


@given(st.sampled_from(KINDS), st.data())
def test_a_key_that_was_cut_is_not(kind: str, data: st.DataObject) -> None:
    """Wherever it ends, and when more follows."""
    blob = make_blob(kind)
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    assert find_key_fault(f"{kind} {encode(cut)}")
    assert find_key_fault(f"{kind} {encode(blob + b'more')}")


@given(st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_a_key_of_another_type_is_not(kind: str, other: str) -> None:
    """The type is in the data too."""
    assert (find_key_fault(f"{kind} {encode(make_blob(other))}") == "") is (kind == other)


def pack(*fields: bytes) -> str:
    return encode(b"".join(len(field).to_bytes(4, "big") + field for field in fields))


POINT = POINTS["256"]
BROKEN = {
    "negative modulus": f"ssh-rsa {pack(b'ssh-rsa', bytes([1, 0, 1]), bytes([0x80]) * 256)}",
    "modulus too long": f"ssh-rsa {pack(b'ssh-rsa', bytes([1, 0, 1]), bytes([1]) + bytes(2048))}",
    "point off the curve": "ecdsa-sha2-nistp256 " + pack(b"ecdsa-sha2-nistp256", b"nistp256", POINT[:-1] + b"\0"),
    "point beyond the field": "ecdsa-sha2-nistp256 " + pack(b"ecdsa-sha2-nistp256", b"nistp256", b"\4" + b"\xff" * 64),
    "part of a curve's name": "ecdsa-sha2-nistp256 " + pack(b"ecdsa-sha2-nistp256", b"a2-nistp", POINT),
    "no end of the option": f'command="echo \\\\" ssh-ed25519 {encode(make_blob("ssh-ed25519"))}',
    **{
        before: f"{before} ssh-ed25519 {encode(make_blob('ssh-ed25519'))}"
        for before in (
            'command="a",command="b"', 'tunnel="x"', 'environment="x"', 'expiry-time="tomorrow"', 'permitopen="x"',
            'restrict="yes"', "command",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_sshd_refuses_is_refused(name: str) -> None:
    """Numbers and points that are none, strings that do not end, values that an option does not take."""
    assert find_key_fault(BROKEN[name])


@pytest.mark.parametrize(
    "before",
    ['tunnel="0"', 'environment="A=b c"', 'expiry-time="20271231"', 'permitopen="h:80"', 'permitlisten="8080"',
     'command="echo \\\\"'.replace('\\\\"', '\\\\n"'), 'from="10.*",restrict,pty'],
)  # fmt: skip
def test_options_that_sshd_takes_are_taken(before: str) -> None:
    """Each with a value of its own kind."""
    assert find_key_fault(f"{before} ssh-ed25519 {encode(make_blob('ssh-ed25519'))}") == ""


@given(st.text() | st.builds("{} {} {}".format, st.text(), st.sampled_from(KINDS), st.text()))
def test_any_text_is_judged(line: str) -> None:
    """No text ends in an exception."""
    assert isinstance(find_key_fault(line), str)


@pytest.mark.allow_process("ssh-keygen")
@pytest.mark.parametrize(("kind", "bits"), [("ed25519", ""), ("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "521")])
def test_what_ssh_keygen_makes_is_taken(kind: str, bits: str, tmp_path: Path) -> None:
    """As it stands in the .pub file."""
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is missing: it comes with the Debian package openssh-client")
    argv = [program, "-q", "-N", "", "-t", kind, *(["-b", bits] if bits else []), "-f", str(tmp_path / "id")]
    subprocess.run(argv, check=True)
    assert find_key_fault((tmp_path / "id.pub").read_text().rstrip("\n")) == ""
