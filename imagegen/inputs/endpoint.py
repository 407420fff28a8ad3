"""Checks hosts, ports and URLs as people write them, everywhere in the same way."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from urllib.parse import urlsplit

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def find_host_fault(host: str) -> str:
    """What is wrong with a host name (RFC 1123) or an IPv4 address, as the end of a sentence; empty: nothing."""
    labels = host.split(".")
    # No name ends in a number (RFC 1123, 2.1): this is meant as an address. inet_aton() takes 0x7f000001, too.
    if labels[-1].isdecimal() or re.fullmatch("0[xX][0-9A-Fa-f]*", labels[-1]):
        try:
            return find_address_fault(IPv4Address(host))
        except ValueError:
            return f"`{host[:60]}` is not an IPv4 address; write one such as 192.168.56.11"
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        return f"`{host[:60]}` is not a host name: each part must be 1 to 63 letters, digits or inner dashes"
    return ""


def find_address_fault(address: IPv4Address) -> str:
    """Why an address cannot be reached, as the end of a sentence; empty: it can."""
    if address.is_multicast or address.is_reserved or int(address) >> 24 == 0:
        return f"{address} is not an address that can be reached"
    return ""


def find_url_fault(url: str) -> str:
    """What is wrong with a URL's host or port, as the end of a sentence; empty: nothing."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # above 65535
        port = 0
    if port == 0:
        return "the port must be 1 to 65535"
    return find_host_fault(parts.hostname or "")
