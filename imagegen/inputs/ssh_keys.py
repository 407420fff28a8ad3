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
_SMALLEST_RSA, _LARGEST_RSA = 1024, 16384  # bits that sshd takes
# Curve -> p and b of y^2 = x^3 - 3x + b modulo p (SEC 2).
_CURVES = {
    b"nistp256": (
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    b"nistp384": (
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    b"nistp521": (
        2**521 - 1,
        0x51953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
    ),
}
_VALUE = r'"(?:\\"|[^"\\]|\\(?!"))*"'  # sshd's opt_dequote(): a backslash escapes a quote and nothing else
_OPTION = rf"[A-Za-z0-9-]+(?:={_VALUE})?"
_LINE = re.compile(
    rf"(?:(?P<options>{_OPTION}(?:,{_OPTION})*)[ \t]+)?(?P<type>[a-z][\w@.-]*)[ \t]+(?P<data>\S+)(?:\s.*)?"
)

# sshd(8), AUTHORIZED_KEYS FILE FORMAT, and auth-options.c: option -> what its value is; None: it has none.
_OPTIONS: dict[str, str | None] = {
    "command": r".*",
    "environment": r"[A-Za-z0-9_]+=.*",
    "expiry-time": r"\d{8}(\d{4}(\d{2})?)?Z?",
    "from": r".+",
    "permitlisten": r"(.+:)?(\d+|\*)",
    "permitopen": r".+:(\d+|\*)",
    "principals": r".+",
    "tunnel": r"any|\d+",
    **dict.fromkeys(("agent-forwarding", "port-forwarding", "pty", "user-rc", "x11-forwarding")),
    **dict.fromkeys(("no-agent-forwarding", "no-port-forwarding", "no-pty", "no-user-rc", "no-x11-forwarding")),
    **dict.fromkeys(("cert-authority", "restrict", "no-touch-required", "verify-required")),
}
_ONCE = ("command", "from", "principals", "tunnel")


def find_key_fault(line: str) -> str:
    """What is wrong with a public key, as the end of a sentence about it; empty when sshd takes it."""
    match = _LINE.fullmatch(line)
    if match is None or match["type"] not in _FIELDS:
        return "must be one line with an OpenSSH public key: ssh-ed25519 AAAA... comment"
    if fault := _find_option_fault(match["options"] or ""):
        return fault
    try:
        blob = base64.b64decode(match["data"], validate=True)
    except ValueError:
        return "is broken: what follows the key's type is not base64; copy the whole line of the .pub file"
    return _find_blob_fault(match["type"], blob)


def _find_option_fault(text: str) -> str:
    """What is wrong with the options before a key: one that sshd refuses, and with it the key."""
    seen = set()
    for found in re.finditer(rf"(?P<name>[A-Za-z0-9-]+)(?:=(?P<value>{_VALUE}))?,?", text):
        name, value = found["name"].lower(), found["value"] and found["value"][1:-1]
        form = _OPTIONS.get(name)
        if name not in _OPTIONS or (form is None) != (value is None) or name in seen:
            return f"has an option before the key that sshd does not accept: {found['name']}"
        if form is not None and not re.fullmatch(form, value):
            return f"has an option with a value that sshd does not accept: {found[0].rstrip(',')[:60]}"
        if name in _ONCE:
            seen.add(name)
    return ""


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
    if "ecdsa" in kind:
        return _find_point_fault(kind, fields[1], fields[2])
    if kind == "ssh-rsa":
        bits = int.from_bytes(fields[2], "big").bit_length()
        if fields[2][0] & 0x80 or not _SMALLEST_RSA <= bits <= _LARGEST_RSA:
            negative = "a negative modulus" if fields[2][0] & 0x80 else f"{bits} bits"
            return f"has {negative}; sshd accepts RSA keys of {_SMALLEST_RSA} to {_LARGEST_RSA} bits"
    return ""


def _find_point_fault(kind: str, curve: bytes, point: bytes) -> str:
    """What is wrong with a key on a curve: the curve's name, or a point that is not on it."""
    if not kind.partition("@")[0].endswith(f"-{curve.decode(errors='replace')}") or point[0] != 4:
        return f"says {kind}, but its data is on another curve"
    prime, b = _CURVES[curve]
    half = len(point) // 2
    x, y = int.from_bytes(point[1 : 1 + half], "big"), int.from_bytes(point[1 + half :], "big")
    if max(x, y) >= prime or (y * y - x * x * x + 3 * x - b) % prime:
        return f"is no key of type {kind}: its point is not on the curve; copy the whole line of the .pub file"
    return ""
