"""Public keys: whole ones of their type are taken, with and without options; what was cut or mixed up is not."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.inputs.ssh_keys import find_key_fault

KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
KINDS += ("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")


def make_blob(kind: str) -> bytes:
    """A key's data as RFC 4253 and its successors lay it out; no real key, but of the right form."""
    size = {"256": 32, "384": 48, "521": 66}.get(kind.partition("nistp")[2][:3], 0)
    curve = [f"nistp{kind.partition('nistp')[2][:3]}".encode(), b"\4" + b"k" * (2 * size)]
    fields = {"ssh-rsa": [b"\1\0\1", b"\0" + b"\x80" * 256]}.get(kind, curve if size else [b"k" * 32])
    fields += [b"ssh:"] if kind.startswith("sk-") else []
    return b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))


def encode(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


OPTIONS = ["restrict", "no-pty", 'command="a \\"b\\", c d"', 'from="10.*,!10.1.*"', "No-Agent-Forwarding"]


@given(
    st.sampled_from(KINDS),
    st.lists(st.sampled_from(OPTIONS), max_size=3),
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
