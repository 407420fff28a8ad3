"""The server as nodes and strangers meet it: claims over TLS, clients that are slow, large or many, restarts."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import HOST, Site

from imagegen.base.errors import ImagegenError, MachineLacks
from imagegen.base.marks import MARK
from imagegen.inputs.ca import generate_authority
from imagegen.local.qemu import free_port
from imagegen.server import app, provisioning
from imagegen.server.admission import MOST_CONNECTIONS_EACH
from imagegen.server.listener import (
    HEAD_SECONDS,
    TAKE_SECONDS,
    Listener,
    Serving,
    listen,
)
from imagegen.server.provisioning import Provisioning, Window, describe_windows

SECONDS = 30.0
POST = b"POST /status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
LEDGER_FILES = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm")


def fetch(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    """Status and body; an HTTP error is an answer too."""
    headers = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def plan_of(at_work: Provisioning, node: str) -> Any:
    """What the node's initramfs makes of the script that it is served."""
    from imagegen_deploy.plan import parse_plan

    script = fetch(f"{at_work.url}/nodes/{node}.ipxe")[1].decode()
    arguments = re.search(r"^set seed-arguments (.*)$", script, re.M)
    kernel = re.search(r"^kernel \S+ (.*) \$\{seed-arguments\}", script, re.M)
    assert arguments and kernel
    return parse_plan(f"{kernel[1]} {arguments[1]}")


def status_of(at_work: Provisioning, node: str) -> dict[str, Any]:
    told = json.loads(fetch(f"{at_work.url}/nodes.json")[1])
    return next(each for each in told["nodes"] if each["name"] == node)


def document(node: str, role: str, state: str, step: str) -> bytes:
    """A status document."""
    return json.dumps(
        {
            "version": 1, "node": node, "role": role, "state": state, "step": step, "detail": "", "steps": [],
            "since": "2026-01-01T00:00:00Z",
        }
    ).encode()  # fmt: skip


def test_a_node_claims_its_seed_with_its_own_code(server: Provisioning, site: Site) -> None:
    """The initramfs' module pins the CA, gets the ISO over TLS, once; the second claim is refused and reported."""
    from imagegen_deploy.seed import claim_seed
    from imagegen_node.engine.errors import Refused

    plan = plan_of(server, "c-1")
    seed = claim_seed(plan)
    assert b"CD001" in seed[:40000] and b"c-1" in seed and server.url.encode() + b"/status" in seed
    with pytest.raises(
        Refused, match=r"refuses the seed \(403\): the seed of c-1 was already given out for this token"
    ):
        claim_seed(plan)
    assert status_of(server, "c-1")["seed"]["used"] == 1
    assert "c-1: its seed was claimed by 127.0.0.1" in site.said


def test_a_claim_after_the_window_is_refused(site: Site) -> None:
    """With what to do about it."""
    from imagegen_deploy.seed import claim_seed
    from imagegen_node.engine.errors import Refused

    with site.serve(Window(seconds=0.01)) as at_work:
        plan = plan_of(at_work, "c-1")
        with pytest.raises(Refused, match=r"the window of c-1 closed \d+ seconds ago.*imagegen serve --arm c-1"):
            claim_seed(plan)
        at_work.ledger.open_windows(["c-1"], 60, 1)
        assert b"CD001" in claim_seed(plan)


def test_a_server_of_another_ca_gets_no_question(server: Provisioning, site: Site) -> None:
    """The CA at the URL is not the pinned one: nothing is asked for, and the token stays good."""
    from imagegen_deploy.seed import claim_seed
    from imagegen_node.engine.errors import Refused

    good = plan_of(server, "c-1")
    from dataclasses import replace

    with pytest.raises(Refused, match="the seed is not requested"):
        claim_seed(replace(good, ca="0" * 64))
    assert b"CD001" in claim_seed(good)


def test_a_server_that_only_has_the_cas_certificate_is_refused(site: Site) -> None:
    """It serves the right ca.pem, but its own certificate is of somebody else: TLS fails before the question."""
    from imagegen_deploy.seed import claim_seed
    from imagegen_node.engine.errors import Refused

    with site.serve() as at_work:
        certificate = fetch(f"{at_work.url}/ca.pem")[1]
    other = generate_authority()
    (site.place / "ca.pem").write_bytes(other.certificate)
    (site.place / "ca.key").write_bytes(other.key)
    with site.serve() as forged:
        plan = plan_of(forged, "c-1")
        import dataclasses
        import hashlib
        from unittest import mock

        from imagegen_deploy import seed as module

        plan = dataclasses.replace(plan, ca=hashlib.sha256(certificate).hexdigest())
        with mock.patch.object(module, "fetch_ca", lambda plan: certificate.decode()):
            with pytest.raises(Refused, match="this is not the server that the node's script names"):
                claim_seed(plan)
        assert status_of(forged, "c-1")["seed"]["used"] == 0


def test_images_go_on_where_they_broke_off(server: Provisioning, site: Site) -> None:
    """A range is answered with 206 and the right bytes, as the initramfs asks for it."""
    name = "compute-222222222222.raw.zst"
    request = urllib.request.Request(f"{server.url}/images/{name}", headers={"Range": "bytes=3-"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (206, "bytes 3-14/15")
        assert answer.read() == b"compute raw.zst"[3:]
    beyond = urllib.request.Request(f"{server.url}/images/{name}", headers={"Range": "bytes=15-"})
    with pytest.raises(urllib.error.HTTPError, match="416") as caught:
        urllib.request.urlopen(beyond, timeout=SECONDS)
    assert caught.value.headers["Content-Range"] == "bytes */15"
    (site.place / "out/pxe/images/empty").touch()
    assert fetch(f"{server.url}/images/empty") == (200, b"")


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 80), timeout=SECONDS)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other end hangs up."""
    data = b""
    try:
        while block := connection.recv(65536):
            data += block
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_who_does_not_finish_a_request_is_hung_up_on(
    server: Provisioning, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """After a bounded time, also when a byte drips in now and then; others are served meanwhile."""
    monkeypatch.setattr("imagegen.server.listener.HEAD_SECONDS", 1.0)
    begun = time.monotonic()
    with connect(server.url) as connection:
        connection.sendall(sent)
        connection.settimeout(0.2)
        while True:
            assert time.monotonic() < begun + SECONDS, "the connection is kept for ever"
            try:
                if sent:
                    connection.sendall(b"x")
                if connection.recv(1000) == b"":
                    break
            except TimeoutError:
                assert fetch(f"{server.url}/boot.ipxe")[0] == 200
            except (ConnectionResetError, BrokenPipeError):
                break


def test_a_body_after_the_answer_ends_the_connection(server: Provisioning) -> None:
    """A GET that announces a body and sends it byte by byte once it was answered holds nothing."""
    with connect(server.url) as connection:
        connection.sendall(b"GET /favicon.ico HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 204")
        connection.sendall(b"x")
        assert read_all(connection) == b""


def test_a_handshake_that_is_not_begun_is_not_awaited_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the port for seeds, as for a request's head."""
    monkeypatch.setattr("imagegen.server.listener.HEAD_SECONDS", 1.0)
    with site.serve() as at_work, connect(at_work.seed_url) as connection:
        assert read_all(connection) == b""  # within this socket's own time-out


def test_what_strangers_send_fills_no_terminal(site: Site) -> None:
    """Garbage, and a client that hangs up in its body: neither traceback nor warning."""
    with running(site) as process:
        url = str(site.cluster.pxe_url)
        for data in (
            b"\x16\x03\x01\x00garbage\r\n\r\n",
            POST + b"Content-Length: 9\r\n\r\n{",
        ):
            with connect(url) as connection:
                connection.sendall(data)
        assert fetch(f"{url}/boot.ipxe")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.stderr
        said = process.stderr.read()
    assert "Traceback" not in said and "Invalid HTTP" not in said and said.count("\n") == 1, said


def test_a_second_request_has_no_more_time_than_the_first(
    server: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a connection that is kept alive."""
    monkeypatch.setattr("imagegen.server.listener.HEAD_SECONDS", 1.0)
    with connect(server.url) as connection:
        connection.sendall(b"GET /ca.pem HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(b"GET /ca.p")
        assert b"HTTP/1.1 200" not in read_all(connection)


def test_a_body_that_drips_is_not_awaited(server: Provisioning, monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST that announces more than it sends gets 408."""
    monkeypatch.setattr(app, "BODY_SECONDS", 0.5)
    with connect(server.url) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
        assert b" 408 " in read_all(connection).split(b"\r\n")[0]


def test_a_client_that_takes_nothing_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that nobody reads ends; the server goes on."""
    monkeypatch.setattr("imagegen.server.listener.TAKE_SECONDS", 0.5)
    large = site.place / "out/pxe/images/large"
    with large.open("wb") as stream:
        stream.truncate(256 << 20)
    with site.serve() as at_work, connect(at_work.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /images/large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        deadline = time.monotonic() + SECONDS
        assert fetch(f"{at_work.url}/boot.ipxe")[0] == 200
        while at_work.serving.admission.count(HOST):
            assert time.monotonic() < deadline, "the answer is offered for ever"
            time.sleep(0.1)
        assert fetch(f"{at_work.url}/boot.ipxe")[0] == 200


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (
            b"GET /boot.ipxe HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            + b"".join(b"X-%d: y\r\n" % n for n in range(60))
            + b"\r\n",
            b"431",
        ),
        (b"GET /boot.ipxe HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"414"),
        (b"POST /status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /../../cluster.yaml HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"GET /..%2f..%2fsecrets.yaml HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"BREW / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"4"),
    ],
)
def test_what_is_no_decent_request_is_refused(server: Provisioning, request_: bytes, code: bytes) -> None:
    """And the next one is answered."""
    with connect(server.url) as connection:
        connection.sendall(request_.replace(b"Host: x", b"Host: 127.0.0.1\r\nConnection: close"))
        answer = read_all(connection)
    assert answer.split(b" ")[1].startswith(code), answer[:200]
    assert b"password" not in answer and b"identity_admin" not in answer
    assert fetch(f"{server.url}/boot.ipxe")[0] == 200


def test_chunks_do_not_get_round_the_limit_of_a_body(server: Provisioning) -> None:
    """A body without a length is measured as it comes."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connect(server.url) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(chunk * 20)
        assert b" 413 " in read_all(connection).split(b"\r\n")[0]


def test_one_address_cannot_hold_all_connections(server: Provisioning) -> None:
    """Beyond its share it is hung up on; another address is served."""
    held = [connect(server.url) for _ in range(MOST_CONNECTIONS_EACH + 5)]
    try:
        assert read_all(held[-1]) == b""
        other = socket.create_connection((HOST, urlsplit(server.url).port or 0), SECONDS, ("127.0.0.9", 0))
        other.sendall(b"GET /ca.pem HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert read_all(other).startswith(b"HTTP/1.1 200")
        other.close()
    finally:
        for connection in held:
            connection.close()


@contextmanager
def running(site: Site, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command itself, once it serves; it is asked to end when the context is left."""
    words = ["-c", str(site.place / "cluster.yaml"), "-o", str(site.place / "out")]
    words += ["serve", "--any-address", "--tls-port", str(free_port())]
    process = subprocess.Popen([sys.executable, "-m", "imagegen", *words, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        said = []
        while not any(" seeds at " in line for line in said):
            line = process.stderr.readline()
            assert line, "".join(said)
            said.append(line)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if process.stderr:
            process.stderr.read()
        process.wait(SECONDS)


def imagegen(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ["-c", str(site.place / "cluster.yaml"), "-o", str(site.place / "out"), *words]
    return subprocess.run([sys.executable, "-m", "imagegen", *argv], capture_output=True, text=True, timeout=SECONDS)


def test_what_nodes_said_survives_a_restart(site: Site) -> None:
    """Killed outright; the next server and `imagegen status` know it, and no second claim is given."""
    from imagegen_deploy.seed import claim_seed
    from imagegen_node.engine.errors import Refused

    url = str(site.cluster.pxe_url)
    with running(site) as process:
        at_work: Any = type("AtWork", (), {"url": url})
        claim_seed(plan_of(at_work, "c-1"))
        assert fetch(f"{url}/status", document("c-2", "compute", "ready", ""))[0] == 204
        process.kill()
        process.wait()
    with running(site):
        assert status_of(at_work, "c-2")["state"] == "ready"
        with pytest.raises(Refused, match="as often as it may"):
            claim_seed(plan_of(at_work, "c-1"))
        done = imagegen(site, "status", "--output", "json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert {row["name"]: row["state"] for row in told["nodes"]} == {"c-1": "", "c-2": "ready", "ctl": ""}
    assert told["problems"][0]["message"] == "2 node(s) are not ready yet"
    assert "c-1 has claimed its seed as often as it may" in done.stderr


def test_a_window_is_opened_while_it_runs(site: Site) -> None:
    """By the same command; without --arm it says who is running. A signal ends the server with 0 and leaves no key."""
    from imagegen_deploy.seed import claim_seed

    url: Any = type("AtWork", (), {"url": str(site.cluster.pxe_url)})
    with running(site, "--arm", "c-2") as process:
        assert status_of(url, "c-1")["seed"] is None
        plan = plan_of(url, "c-1")
        armed = imagegen(site, "serve", "--arm", "c-1", "--for", "15m")
        assert armed.returncode == 0 and "c-1 may claim once until" in armed.stderr and "c-2 may claim" in armed.stderr
        assert b"CD001" in claim_seed(plan)
        again = imagegen(site, "serve")
        assert again.returncode == 2 and "is running" in again.stderr
        assert {path.name for path in site.directory.iterdir()} <= {MARK, "lock", *LEDGER_FILES}  # a key is on no disk
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0


def test_arming_leaves_no_other_window_open(site: Site) -> None:
    """A server that is started for one node gives the others nothing, whatever the one before it did; what is said at
    its start is what the ledger holds.
    """
    with site.serve(Window(seconds=30 * 86400.0, claims=100)):
        pass
    with site.serve(Window(("c-2",), 900.0)) as at_work:
        told = at_work.ledger.read()
        assert {node["name"]: bool(node["seed"]) for node in told["nodes"]} == {"ctl": False, "c-1": False, "c-2": True}
        assert describe_windows(told).startswith("c-2 may claim once until ")
    with site.serve() as at_work:
        claims = {node["name"]: node["seed"]["closes"] - told["now"] for node in at_work.ledger.read()["nodes"]}
        assert claims["c-2"] < 1000 < claims["c-1"] and at_work.left_out == []


def test_a_start_that_fails_opens_nothing(site: Site) -> None:
    """The port is another's: no node may claim later by a window that nobody saw."""
    with socket.socket() as taken:
        taken.bind((HOST, urlsplit(str(site.cluster.pxe_url)).port or 0))
        taken.listen()
        with pytest.raises(MachineLacks, match="Address already in use"), site.serve():
            pass
    assert not (site.directory / "ledger.sqlite").exists()


def test_arming_says_what_the_server_cannot_do(site: Site) -> None:
    """A node that is newer than the server, and a server without seeds."""
    with running(site, "--no-seeds"):
        done = imagegen(site, "serve", "--arm", "c-1")
        assert done.returncode == 2 and "gives out no seeds" in done.stderr
    with running(site):
        text = (site.place / "cluster.yaml").read_text()
        late = '- {name: late, role: compute, mac: "52:54:00:99:00:01", address: 10.77.9.9}'
        (site.place / "cluster.yaml").write_text(text.replace("nodes:\n", f"nodes:\n{late}\n"))
        done = imagegen(site, "serve", "--arm", "late")
        assert done.returncode == 2 and "does not know late" in done.stderr and "restart it" in done.stderr


def test_who_hears_the_server_does_not_stop_it(site: Site) -> None:
    """Its stderr has nobody any more: claims go on."""
    from imagegen_deploy.seed import claim_seed

    url: Any = type("AtWork", (), {"url": str(site.cluster.pxe_url)})
    with running(site) as process:
        assert process.stderr
        process.stderr.close()
        for name in ("c-1", "c-2"):
            assert b"CD001" in claim_seed(plan_of(url, name))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        process.stderr = None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arm", "c-9"], "has no node `c-9`; did you mean `c-"),
        (["--for", "soon"], "'soon' is not a valid duration"),
        (["--no-seeds", "--arm", "c-1"], "--no-seeds gives out no seed"),
        (["--listen", "192.0.2.1"], "192.0.2.1 is not an address of this machine"),
        (["--listen", "localhost"], "'localhost' is not an IPv4 address"),
    ],
)
def test_wrong_options_are_explained(site: Site, words: list[str], said: str) -> None:
    done = imagegen(site, "serve", *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_port_that_is_taken_is_named(server: Provisioning, site: Site) -> None:
    done = imagegen(site, "-o", str(site.place / "other"), "serve")
    assert done.returncode == 2 and "run `imagegen pxe`" in done.stderr
    shutil.copytree(site.place / "out/pxe", site.place / "other/pxe")
    done = imagegen(site, "-o", str(site.place / "other"), "serve")
    assert done.returncode == 3 and "Address already in use" in done.stderr and "`pxe: {url: ...}`" in done.stderr


def test_a_tls_port_that_is_taken_names_its_option(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        done = imagegen(site, "serve", "--tls-port", str(taken.getsockname()[1]))
    assert done.returncode == 3 and "Address already in use" in done.stderr and "--tls-port" in done.stderr


@pytest.mark.parametrize(
    "damage", ["", "DROP TABLE refused", "ALTER TABLE node RENAME TO nod", "UPDATE node SET heard = 'abc'"]
)
def test_a_damaged_ledger_is_named_by_serve_and_status(site: Site, damage: str) -> None:
    """With its cure, and no traceback."""
    with site.serve():
        pass
    (site.directory / MARK).touch()
    if damage:
        database = sqlite3.connect(site.directory / "ledger.sqlite")
        database.execute(damage)
        database.commit()
        database.close()
    else:
        (site.directory / "ledger.sqlite").write_bytes(b"garbage" * 1000)
    for command in ("serve", "status"):
        done = imagegen(site, command)
        assert done.returncode == 3 and "ledger.sqlite is damaged" in done.stderr and "--arm NODE" in done.stderr


def test_a_watch_ends_when_all_are_ready(site: Site) -> None:
    """It says each change, and its exit code is 0; a failed node is named by `status` with 5."""
    with site.serve() as at_work:
        assert fetch(f"{at_work.url}/status", document("c-1", "compute", "failed", "disk"))[0] == 204
        assert imagegen(site, "status").returncode == 5
        watch = subprocess.Popen(
            [
                *(sys.executable, "-m", "imagegen", "-c", str(site.place / "cluster.yaml")),
                *("-o", str(site.place / "out"), "status", "--watch"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, role in (("ctl", "controller"), ("c-1", "compute"), ("c-2", "compute")):
            assert fetch(f"{at_work.url}/status", document(name, role, "ready", ""))[0] == 204
        said, _ = watch.communicate(timeout=SECONDS)
    assert watch.returncode == 0
    assert "\n3 nodes: 3 ready\n" in said and re.search(r"^[\d:]{8} .*ready", said)


def test_the_server_writes_down_that_it_listens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it does, and no longer: a node is not lost because nobody heard it."""
    monkeypatch.setattr(provisioning, "LISTENING", 0.02)

    def until() -> float:
        return float(ledger._db.execute("SELECT until FROM listening").fetchone()[0])

    with site.serve() as at_work:
        ledger = at_work.ledger.reopen()
        ledger._db.execute("UPDATE listening SET until = 0")
        end = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < end
            time.sleep(0.01)
    ledger._db.execute("UPDATE listening SET until = 0")
    assert until() == 0
    ledger.close()


def test_nobody_served_yet(site: Site) -> None:
    done = imagegen(site, "-o", str(site.place / "none"), "status")
    assert done.returncode == 2 and "run `imagegen serve`" in done.stderr


def test_a_server_that_cannot_start_says_so() -> None:
    """Its socket is closed already: nobody waits for it."""
    listener = Listener(lambda *_: None, listen(HOST, 0))  # type: ignore[arg-type, return-value]
    listener.socket.close()
    with pytest.raises(ImagegenError, match="the server stopped unexpectedly"):
        with Serving([listener]):
            pass


def test_the_time_outs_are_what_the_docs_say() -> None:
    """The tests above shorten them."""
    assert (HEAD_SECONDS, app.BODY_SECONDS, TAKE_SECONDS) == (10.0, 10.0, 60.0)
