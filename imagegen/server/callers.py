"""Whether a request was meant for this server, from what a browser says about itself and the page behind it.

Any page on the Internet can make a browser in the nodes' network ask this server, even under the page's own name (DNS
rebinding). Requests from iPXE, curl and the nodes have a Host and none of the other headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}
OWN_SITES = ("same-origin", "none")  # Fetch Metadata's: by our own page, or typed by the user

Headers = Iterable[tuple[bytes, bytes]]


def read_authority(text: str, scheme: str) -> tuple[str, int] | None:
    """(host, port) of `HOST[:PORT]`; port 0 if there is none. None: not of that form."""
    try:
        parts = urlsplit(f"{scheme}://{text}")
        port = parts.port or 0
    except ValueError:
        return None
    if parts.netloc != text or not parts.hostname or "@" in text:
        return None
    return parts.hostname.lower(), port


def announced_authorities(urls: Iterable[str]) -> frozenset[tuple[str, int]]:
    """(host, port) of each URL of this server that nodes or people are given."""
    parts = [urlsplit(url) for url in urls]
    return frozenset((str(each.hostname).lower(), each.port or PORTS.get(each.scheme, 0)) for each in parts)


def find_foreign(
    headers: Headers, scheme: str, reached: tuple[str, int], announced: frozenset[tuple[str, int]]
) -> str | None:
    """Why the request is refused; None: it is not. `reached` is the address and port that it came to."""
    known = announced | {reached}
    if is_loopback(reached[0]):
        known |= {("localhost", reached[1])}
    hosts = _values(headers, b"host")
    host = read_authority(hosts[0], scheme) if len(hosts) == 1 else None
    # Some firmware always leaves the port out; a browser never does.
    if host is None or not any(host[0] == name and host[1] in (0, port) for name, port in known):
        return "the request's Host is not this server: use the address that `imagegen serve` prints"
    for origin in _values(headers, b"origin"):
        asked_by, _, text = origin.partition("://")
        where = read_authority(text, asked_by) if asked_by in PORTS else None
        if where is None or (where[0], where[1] or PORTS[asked_by]) not in known:
            return "the request comes from a page of another origin: open this server's own page"
    if any(site.lower() not in OWN_SITES for site in _values(headers, b"sec-fetch-site")):
        return "the request comes from another site: type this address, or open it from a bookmark"
    return None


def is_loopback(address: str) -> bool:
    """Whether an address is a loopback address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def is_json(headers: Headers) -> bool:
    """Whether the request declares its body as JSON, which other sites' pages may not do without permission (CORS)."""
    kinds = _values(headers, b"content-type")
    return len(kinds) == 1 and kinds[0].partition(";")[0].strip().lower() == "application/json"


def _values(headers: Headers, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]
