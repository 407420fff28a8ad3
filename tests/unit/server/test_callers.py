"""callers.py: which requests are meant for this server, by what browsers and the nodes' programs send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.server.callers import announced_authorities, find_foreign, is_json

REACHED = ("192.168.56.1", 8080)
ANNOUNCED = announced_authorities(["http://10.0.0.9:80", "https://10.0.0.9:8443", "http://pxe.example/status"])


def ask(*headers: tuple[str, str], reached: tuple[str, int] = REACHED) -> str | None:
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return find_foreign(pairs, "http", reached, ANNOUNCED)


@pytest.mark.parametrize(
    "host", ["192.168.56.1:8080", "192.168.56.1", "10.0.0.9", "10.0.0.9:80", "pxe.example", "PXE.example:80"]
)
def test_who_means_this_server_is_heard(host: str) -> None:
    """By the address that it came to or that is announced; iPXE's older versions and GRUB leave the port out."""
    assert ask(("Host", host), ("User-Agent", "iPXE/1.21.1"), ("Connection", "keep-alive")) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "192.168.56.1:81", "192.168.56.1:8080.evil.example", "192.168.56.1@evil",
        "evil@192.168.56.1:8080", "localhost:8080", "", ":8080", "[::1]:8080", "192.168.56.1:x", "192.168.56.1:99999",
        "192.168.56.1/", "192.168.56.1#", "192.168.56.1?x", "10.0.0.9:8080",
    ],
)  # fmt: skip
def test_another_name_is_refused(host: str) -> None:
    """A name that somebody else pointed at this address (DNS rebinding), or that is none."""
    assert "not this server" in (ask(("Host", host)) or "")


def test_a_host_stands_there_once() -> None:
    assert ask() and ask(("Host", "192.168.56.1:8080"), ("Host", "evil.example"))


def test_localhost_is_this_server_where_it_listens_there() -> None:
    for host in ("localhost:8080", "127.0.0.1:8080", "LOCALHOST"):
        assert ask(("Host", host), reached=("127.0.0.1", 8080)) is None
    assert ask(("Host", "localhost:81"), reached=("127.0.0.1", 8080))


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("Origin", "http://192.168.56.1:8080", True),
        ("Origin", "http://10.0.0.9", True),
        ("Origin", "http://192.168.56.1", False),  # another port is another origin
        ("Origin", "http://evil.example", False),
        ("Origin", "http://192.168.56.1:8080.evil.example", False),
        ("Origin", "null", False),
        ("Origin", "", False),
        ("Origin", "file://", False),
        ("Sec-Fetch-Site", "same-origin", True),
        ("Sec-Fetch-Site", "none", True),
        ("Sec-Fetch-Site", "cross-site", False),
        ("Sec-Fetch-Site", "same-site", False),
        ("Sec-Fetch-Site", "CROSS-SITE", False),
    ],
)
def test_a_page_of_elsewhere_is_refused(name: str, value: str, good: bool) -> None:
    assert (ask(("Host", "192.168.56.1:8080"), (name, value)) is None) == good


@pytest.mark.parametrize(
    ("kinds", "good"),
    [
        (["application/json"], True),
        (["Application/JSON; charset=utf-8"], True),
        ([], False),
        (["text/plain"], False),
        (["application/x-www-form-urlencoded"], False),
        (["text/plain; application/json"], False),
        (["application/json", "text/plain"], False),
    ],
)
def test_what_a_form_can_send_is_no_json(kinds: list[str], good: bool) -> None:
    """A page elsewhere sends these without asking (CORS' simple requests)."""
    assert is_json([(b"content-type", kind.encode()) for kind in kinds]) == good


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_host_breaks_it(host: str) -> None:
    """Any bytes: the known names and nothing else."""
    if ask(("Host", host)) is None:
        assert host.strip().rpartition("@")[0] == "" and host.strip().split(":")[0].lower() in (
            "192.168.56.1", "10.0.0.9", "pxe.example"
        )  # fmt: skip
