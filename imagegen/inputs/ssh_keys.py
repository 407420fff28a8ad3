"""OpenSSH public keys as they stand in an authorized_keys file: [OPTIONS] TYPE BASE64 [COMMENT] (sshd(8))."""

from __future__ import annotations

import base64
import re

# Type -> the lengths in bytes of its fields after the type itself (RFC 4253, 5656, 8709 and OpenSSH's PROTOCOL.u2f);
# None: any length but 0. A curve's point is uncompressed: 04, x and y.
_FIELDS: dict[str, tuple[int | None, ...]] = {
    "ssh-ed25519": (32,),
    "ssh-rsa": (None, None),
    "ecdsa-sha2-nistp256": (8, 65),
    "ecdsa-sha2-nistp384": (8, 97),
    "ecdsa-sha2-nistp521": (8, 133),
    "sk-ssh-ed25519@openssh.com": (32, None),
    "sk-ecdsa-sha2-nistp256@openssh.com": (8, 65, None),
}
_SMALLEST_RSA = 1024  # bits; sshd takes no smaller key
_OPTION = r'[A-Za-z0-9-]+(?:="(?:[^"\\]|\\.)*")?'
_LINE = re.compile(
    rf"(?:(?P<options>{_OPTION}(?:,{_OPTION})*)[ \t]+)?(?P<type>[a-z][\w@.-]*)[ \t]+(?P<data>\S+)(?:\s.*)?"
)

# sshd(8), AUTHORIZED_KEYS FILE FORMAT. True: the option has a value.
_OPTIONS = {
    **dict.fromkeys(("command", "environment", "expiry-time", "from", "permitlisten", "permitopen"), True),
    **dict.fromkeys(("principals", "tunnel"), True),
    **dict.fromkeys(("agent-forwarding", "port-forwarding", "pty", "user-rc", "x11-forwarding"), False),
    **dict.fromkeys(("no-agent-forwarding", "no-port-forwarding", "no-pty", "no-user-rc", "no-x11-forwarding"), False),
    **dict.fromkeys(("cert-authority", "restrict", "no-touch-required", "verify-required"), False),
}


def find_key_fault(line: str) -> str:
    """What is wrong with a public key, as the end of a sentence about it; empty when sshd takes it."""
    match = _LINE.fullmatch(line)
    if match is None or match["type"] not in _FIELDS:
        return "must be one line with an OpenSSH public key: ssh-ed25519 AAAA... comment"
    for name, value in re.findall(r'([A-Za-z0-9-]+)(="(?:[^"\\]|\\.)*")?,?', match["options"] or ""):
        if _OPTIONS.get(name.lower()) is not bool(value):
            return f"has an option before the key that sshd does not accept: {name}"
    try:
        blob = base64.b64decode(match["data"], validate=True)
    except ValueError:
        return "is broken: what follows the key's type is not base64; copy the whole line of the .pub file"
    return _find_blob_fault(match["type"], blob)


def _find_blob_fault(kind: str, blob: bytes) -> str:
    """What is wrong with a key's data. Its fields are each a length in four bytes and as many bytes (RFC 4251)."""
    fields = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length:
            return "is cut off: its data ends too early; copy the whole line of the .pub file"
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    if not fields or fields[0] != kind.encode():
        held = fields[0].decode(errors="replace") if fields else ""
        return f"says {kind}, but its data is that of {held if held in _FIELDS else 'another type'}"
    lengths = [len(field) for field in fields[1:]]
    wanted = _FIELDS[kind]
    if len(lengths) != len(wanted) or not all(n == (w or n) and n for n, w in zip(lengths, wanted, strict=True)):
        return f"is not a whole key of type {kind}; copy the whole line of the .pub file"
    if "ecdsa" in kind and (fields[1].decode(errors="replace") not in kind or fields[2][0] != 4):
        return f"says {kind}, but its data is on another curve"
    if kind == "ssh-rsa" and (bits := int.from_bytes(fields[2], "big").bit_length()) < _SMALLEST_RSA:
        return f"has {bits} bits; sshd accepts no RSA key below {_SMALLEST_RSA}"
    return ""
