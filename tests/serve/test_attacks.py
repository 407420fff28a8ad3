"""What somebody on the wire tries: each attack as it is made, on the loopback, and that the server goes on."""

from __future__ import annotations

import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import HOST, MakeSite, Site
from test_serving import SECONDS, document, fetch, imagegen, plan_of, read_all, running, status_of

from imagegen.server.admission import MOST_CONNECTIONS_EACH, MOST_WAITING_EACH, Admission, Backlog
from imagegen.server.provisioning import Provisioning, describe_left_out

ATTACKER, VICTIM = "127.0.0.2", "127.0.0.3"
HANDSHAKES = 1015
READERS = 200
IMAGE = 256 << 20  # bytes
BUDGET = 64 << 20  # bytes that the server may grow by
WITHIN = 1.0  # seconds


def connect_from(address: str, url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 80), SECONDS, (address, 0))


def ask_from(address: str, url: str, head: str = "GET /boot.ipxe") -> bytes:
    """The first line of the answer."""
    with connect_from(address, url) as connection:
        connection.settimeout(WITHIN)
        connection.sendall(f"{head} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return read_all(connection).partition(b"\r\n")[0]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Closes the connections that a test leaves open."""
    with ExitStack() as stack:
        yield stack


def test_unfinished_handshakes_of_one_address_stop_nobody(server: Provisioning, held: ExitStack) -> None:
    """They are counted when they are accepted; another address is served within a second, by TLS too."""
    for _ in range(HANDSHAKES):
        held.enter_context(connect_from(ATTACKER, server.seed_url)).sendall(b"\x16\x03\x01")
    assert ask_from(VICTIM, server.url) == b"HTTP/1.1 200 OK"
    context = ssl._create_unverified_context()
    plain = connect_from(VICTIM, server.seed_url)
    plain.settimeout(WITHIN)
    with context.wrap_socket(plain) as connection:
        assert connection.version()
    assert server.serving.admission.count(ATTACKER) <= MOST_CONNECTIONS_EACH


def test_a_handshake_that_ends_gives_its_place_back(server: Provisioning) -> None:
    """However it ends: hung up, garbage, or not finished in time."""
    for sent in (b"", b"\x16\x03\x01", b"garbage\r\n\r\n"):
        for _ in range(MOST_CONNECTIONS_EACH):
            with connect_from(ATTACKER, server.seed_url) as connection:
                connection.sendall(sent)
    deadline = time.monotonic() + SECONDS
    while server.serving.admission.count(ATTACKER):
        assert time.monotonic() < deadline, "connections that are closed still count"
        time.sleep(0.05)


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def test_slow_readers_cost_no_memory(site: Site, held: ExitStack) -> None:
    """Hundreds that each take an image byte by byte: the process stays within its budget, and others get theirs."""
    with (site.place / "out/pxe/images/large").open("wb") as stream:
        stream.truncate(IMAGE)
    with running(site) as process:
        url = str(site.cluster.pxe_url)
        assert fetch(f"{url}/boot.ipxe")[0] == 200
        before = resident(process.pid)
        readers = []
        for number in range(READERS):
            reader = held.enter_context(connect_from(f"127.0.1.{1 + number // 50}", url))
            reader.sendall(f"GET /images/large HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            readers.append(reader)
        for reader in readers:
            assert reader.recv(100).startswith(b"HTTP/1.1 200")
        assert len(fetch(f"{url}/images/large")[1]) == IMAGE
        assert resident(process.pid) - before < BUDGET
        assert ask_from(VICTIM, url) == b"HTTP/1.1 200 OK"


def test_readers_of_a_large_answer_share_a_budget(
    make_site: MakeSite, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no file waits in this process: who leaves more there than his share is hung up on."""
    from imagegen.server.listener import BoundedProtocol

    monkeypatch.setattr(BoundedProtocol, "waiting", Backlog(1 << 30, 256 << 10))
    site = make_site(400)
    with site.serve() as at_work:
        for number in range(400):
            at_work.ledger.begin_boot(f"c-{number}" if number else "ctl", "script", "x" * 5000)
        readers = [held.enter_context(connect_from(ATTACKER, at_work.url)) for _ in range(6)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(f"GET /nodes.json HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        deadline = time.monotonic() + SECONDS
        while at_work.serving.admission.count(ATTACKER):
            assert time.monotonic() < deadline, "answers wait without a bound"
            time.sleep(0.05)
        assert ask_from(VICTIM, at_work.url) == b"HTTP/1.1 200 OK"


def test_shares_are_counted() -> None:
    """An address has its share, all together have one, and what was taken is free again."""
    admission, waiting = Admission(3, 2), Backlog(100, 60)
    assert [admission.admit(address) for address in "aaabb"] == [True, True, False, True, False]
    admission.release("a")
    assert admission.admit("b") and not admission.admit("a")
    assert waiting.hold(1, "a", 60) and not waiting.hold(2, "a", 1) and not waiting.hold(3, "b", 50)
    waiting.free(1)
    assert waiting.hold(3, "b", 50) and MOST_WAITING_EACH > 5 << 20


def test_a_browser_cannot_be_made_to_ask(server: Provisioning) -> None:
    """Under another name (DNS rebinding), for a page of elsewhere, or by a form: nothing is read or changed."""
    document_ = document("c-1", "compute", "ready", "")
    for path, headers, code in (
        ("/", {"Host": "evil.example"}, 403),
        ("/nodes.json", {"Host": f"evil.example:{urlsplit(server.url).port}"}, 403),
        ("/nodes/c-1.ipxe", {"Host": "evil.example"}, 403),
        ("/nodes/c-1.ipxe", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("/nodes.json", {"Origin": "http://evil.example"}, 403),
        ("/status", {"Content-Type": "application/json", "Origin": "http://evil.example"}, 403),
        ("/status", {"Content-Type": "application/json", "Host": "evil.example"}, 403),
        ("/status", {"Content-Type": "text/plain"}, 415),
        ("/status", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("/", {"Sec-Fetch-Site": "none"}, 200),
        ("/status", {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}, 204),
    ):
        request = urllib.request.Request(f"{server.url}{path}", headers=headers)
        request.data = document_ if path == "/status" else None
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                found = answer.status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == code, (path, headers)
        assert status_of(server, "c-1")["state"] == ("ready" if code == 204 else "")


def test_fetching_a_script_takes_nothing_from_the_node(server: Provisioning) -> None:
    """With --any-address everybody gets a token; in a loop, from many addresses: the node's own stays good, its state
    is what it was.
    """
    from imagegen_deploy.seed import claim_seed

    assert fetch(f"{server.url}/status", document("c-1", "compute", "waiting", "disk"))[0] == 204
    before = server.ledger.read()
    plan = plan_of(server, "c-1")
    for number in range(300):
        assert ask_from(f"127.0.2.{1 + number % 100}", server.url, "GET /nodes/c-1.ipxe") == b"HTTP/1.1 200 OK"
    after = server.ledger.read()
    assert after["revision"] == before["revision"] and after["reports"] == []
    assert b"CD001" in claim_seed(plan)


def test_a_flood_of_refusals_is_seen_and_hides_nothing(server: Provisioning, site: Site) -> None:
    """A second claim is refused, then thousands of false statuses come: it is still on top, of page and `status`."""
    from imagegen_deploy.seed import claim_seed
    from imagegen_node.engine.errors import Refused

    plan = plan_of(server, "c-1")
    claim_seed(plan)
    with pytest.raises(Refused):
        claim_seed(plan)
    for number in range(400):
        source = f"127.{1 + number // 100}.3.{1 + number % 100}"
        with connect_from(source, server.url) as connection:
            body = b'{"node": "forged"}'
            head = f"POST /status HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            assert b" 400 " in read_all(connection).split(b"\r\n")[0]
    told = json.loads(fetch(f"{server.url}/nodes.json")[1])
    assert "already given out for this token" in told["reports"][0]["text"] and told["more"] > 0
    assert status_of(server, "c-1")["claimed"][0]["address"] == HOST
    done = imagegen(site, "status", "--output", "json")
    claims = json.loads(done.stdout)["claims"]
    assert [(row["node"], row["address"]) for row in claims["granted"]] == [("c-1", HOST)]
    assert "already given out for this token" in claims["refused"][0]["text"]
    assert "claimed" in done.stderr and f"{HOST}: the seed of c-1" in done.stderr


def test_a_restart_opens_no_window_of_a_node_that_has_its_seed(site: Site) -> None:
    """Ready yesterday, or claimed: they are named, with how to arm them; a node that is new gets its window."""
    from imagegen_deploy.seed import claim_seed

    with site.serve() as at_work:
        claim_seed(plan_of(at_work, "c-1"))
        assert fetch(f"{at_work.url}/status", document("ctl", "controller", "ready", ""))[0] == 204
        at_work.ledger.close_windows()
    with site.serve() as at_work:
        assert {node["name"]: bool(node["seed"]) for node in at_work.ledger.read()["nodes"]} == {
            "ctl": False, "c-1": False, "c-2": True
        }  # fmt: skip
        told = describe_left_out(at_work.left_out)
        assert "ctl, c-1" in told and "imagegen serve --arm ctl" in told
