"""app.py: who gets what, called without a network. Real sockets, TLS and load are in tests/serve."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fakes.reports import document
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from imagegen.inputs.ca import generate_authority
from imagegen.inputs.cluster_file import load_cluster
from imagegen.server import app
from imagegen.server.app import Site, choose_part, find_mac, make_files_app, make_seeds_app
from imagegen.server.bounds import BURST, MOST_ADDRESSES, MOST_BODY, Bounds, Rates
from imagegen.server.evidence import MALFORMED
from imagegen.server.ledger import Ledger
from imagegen.server.tables import Unusable

CLUSTER = load_cluster(None)
NODE = CLUSTER.node("linux-node2")
URL = "http://192.168.56.1:8080"
SCRIPT = "#!ipxe\n# linux-node2\nkernel x imagegen.id=0123456789ab ${seed-arguments}\n"
AUTHORITY = generate_authority()
OUTSIDE = "203.0.113.9"  # through a relay or a translation: no address of the cluster's network


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Served:
    """The two applications, what was said, and the neighbour table."""

    files: app.App
    seeds: app.App
    ledger: Ledger
    said: list[str]
    macs: dict[str, str] = field(default_factory=dict)
    faults: list[Exception] = field(default_factory=list)  # of the next seeds

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        client: str = str(NODE.address),
        body: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        tls: bool = False,
        host: bytes = b"",
        kind: bytes = b"application/json",
    ) -> Answer:
        port = 8443 if tls else 8080
        headers += ((b"host", host or f"192.168.56.1:{port}".encode()),)
        headers += ((b"content-type", kind),) if method == "POST" and kind else ()
        target, _, query = path.partition("?")
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": target, "raw_path": target.encode(),
            "query_string": query.encode(), "root_path": "", "headers": list(headers), "client": (client, 40000),
            "server": ("192.168.56.1", port), "scheme": "https" if tls else "http",
        }  # fmt: skip
        sent: list[Any] = []
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run((self.seeds if tls else self.files)(scope, receive, send))
        answered = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))

    def fetch_token(self, **how: Any) -> str:
        """The path of the claim that the node's script holds."""
        script = self.ask(f"/nodes/{NODE.name}.ipxe", **how).body.decode()
        found = re.search(r" imagegen\.seed=https://192\.168\.56\.1:8443(/seed/\S+)", script)
        assert found, script
        return found[1]

    def reports(self) -> list[str]:
        return [report["text"] for report in self.ledger.read()["reports"]]


def make_served(place: Path, cluster: Any = CLUSTER, give_seeds: bool = True, any_address: bool = False) -> Served:
    root = place / "pxe"
    (root / "nodes").mkdir(parents=True)
    (root / "boot.ipxe").write_text("#!ipxe\n")
    (root / "nodes/linux-node2.ipxe").write_text(SCRIPT)
    (place / "secret").write_text("outside the tree")
    ledger = Ledger(place / "ledger.sqlite")
    ledger.enter_nodes({node.name: str(node.role) for node in cluster.nodes})
    ledger.open_windows([NODE.name], 60, 1)
    said: list[str] = []
    macs: dict[str, str] = {}
    faults: list[Exception] = []

    def make_seed(node: Any) -> bytes:
        if faults:
            raise faults.pop()
        return f"seed of {node.name}".encode()

    seeds, tls = make_seed if give_seeds else None, "https://192.168.56.1:8443"
    site = Site(cluster, URL, tls, root, AUTHORITY, ledger, seeds, said.append, macs.get, any_address)
    return Served(make_files_app(site), make_seeds_app(site), ledger, said, macs, faults)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return make_served(tmp_path)


def status(**changes: Any) -> bytes:
    return json.dumps({**document("c-1", "working", "disk", 0), "node": NODE.name, **changes}).encode()


def test_a_script_gets_a_token_the_pin_and_where_to_report(served: Served) -> None:
    """In a line of its own, before the kernel's; what `imagegen pxe` wrote is left as it is."""
    answer = served.ask("/nodes/linux-node2.ipxe")
    lines = answer.body.decode().splitlines()
    assert lines[0] == "#!ipxe" and lines[2:] == SCRIPT.splitlines()[1:]
    words = lines[1].split()
    assert words[:2] == ["set", "seed-arguments"]
    assert words[2] == f"imagegen.status={URL}/status"
    assert re.fullmatch(r"imagegen\.seed=https://192\.168\.56\.1:8443/seed/linux-node2/[\w-]{32}", words[3])
    assert words[4] == f"imagegen.ca={AUTHORITY.sha256}"
    assert answer.headers["cache-control"] == "no-store"
    assert served.ledger.find_document(NODE.name)["step"] == "script"  # type: ignore[index]


def test_a_cluster_that_reports_elsewhere_is_not_told_otherwise(tmp_path: Path) -> None:
    """The status URL of the cluster file is in the script already, and stands in the seed."""
    served = make_served(tmp_path, replace(CLUSTER, status_url="http://192.168.56.9/status"))
    (tmp_path / "pxe/nodes/linux-node2.ipxe").write_text(SCRIPT.replace("${", "imagegen.status=http://x/ ${"))
    assert "imagegen.status=http://192" not in served.ask("/nodes/linux-node2.ipxe").body.decode()


def test_a_seed_is_given_once(served: Served) -> None:
    """Over TLS, to who fetched the script; then never again, and the second question is reported."""
    path = served.fetch_token()
    answer = served.ask(path, tls=True)
    assert (answer.status, answer.body) == (200, b"seed of linux-node2")
    again = served.ask(path, tls=True)
    assert again.status == 403 and b"was already given out for this token" in again.body
    assert served.reports() == ["the seed of linux-node2 was already given out for this token"]
    assert any("its seed was claimed by 192.168.56.12" in line for line in served.said)


def test_no_seed_by_plain_http(served: Served) -> None:
    """The path exists for TLS alone; and the TLS port has nothing else."""
    path = served.fetch_token()
    assert served.ask(path).status == 404
    assert served.ask(path, tls=True).status == 200
    for other in ("/", "/boot.ipxe", "/nodes/linux-node2.ipxe", "/nodes.json", "/ca.pem", "/status"):
        assert served.ask(other, tls=True).status == 404


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "FOO"])
def test_only_a_get_claims(served: Served, method: str) -> None:
    """Any other method is refused and uses nothing up."""
    path = served.fetch_token()
    assert served.ask(path, tls=True, method=method).status == 405
    assert served.ask(path, tls=True).status == 200


def test_a_head_of_the_script_makes_no_token(served: Served) -> None:
    """Nor a boot: the token before it stays good."""
    path = served.fetch_token()
    assert served.ask("/nodes/linux-node2.ipxe", method="HEAD").status == 200
    assert served.ask(path, tls=True).status == 200


def test_a_closed_window_gives_nothing(served: Served) -> None:
    """With the reason for the node and for the operator; the machine is told where to ask."""
    served.ledger.close_windows()
    answer = served.ask(served.fetch_token(), tls=True)
    assert answer.status == 403 and b"no window is open for linux-node2" in answer.body
    assert served.reports() == ["no window is open for linux-node2"]


def test_without_seeds_scripts_have_no_token(tmp_path: Path) -> None:
    """Seeds come on media then: a machine is not sent to ask for one."""
    served = make_served(tmp_path, give_seeds=False)
    assert "imagegen.seed" not in served.ask("/nodes/linux-node2.ipxe").body.decode()
    assert served.ask("/seed/linux-node2/x", tls=True).status == 403


def test_a_forged_mac_gets_no_token(served: Served) -> None:
    """Who asks for a node's script with another MAC address than the node's is refused and reported, by both."""
    served.macs["192.168.56.200"] = "02:00:00:00:00:66"
    answer = served.ask("/nodes/linux-node2.ipxe", client="192.168.56.200")
    assert answer.status == 403 and b"imagegen.seed" not in answer.body
    assert served.reports() == [
        "02:00:00:00:00:66 asked for the script of linux-node2, whose MAC address is 52:54:00:56:00:12"
    ]
    path = served.fetch_token()
    served.macs[str(NODE.address)] = "02:00:00:00:00:66"
    assert served.ask(path, tls=True).status == 403
    served.macs[str(NODE.address)] = NODE.mac
    assert served.ask(path, tls=True).status == 200


def test_from_outside_nothing_is_had_by_asking(served: Served) -> None:
    """Behind a router there is no MAC address to see: neither token nor seed, and nobody's token becomes void."""
    path = served.fetch_token()
    script = served.ask("/nodes/linux-node2.ipxe", client=OUTSIDE)
    assert script.status == 200 and b"imagegen.seed" not in script.body
    assert served.ask(path, tls=True, client=OUTSIDE).status == 403
    assert served.ask("/status", method="POST", body=status(), client=OUTSIDE).status == 403
    assert served.ask(path, tls=True).status == 200


def test_a_look_at_a_script_leaves_a_ready_node_ready(served: Served) -> None:
    """Whoever cannot be the node resets nothing."""
    served.ask("/status", method="POST", body=status(state="ready", step=""))
    served.ask("/nodes/linux-node2.ipxe", client="192.168.56.1")
    assert served.ledger.find_document(NODE.name)["state"] == "ready"  # type: ignore[index]


def test_any_address_will_do_when_told(tmp_path: Path) -> None:
    """Where nodes come through a router; a MAC address that is seen still counts."""
    served = make_served(tmp_path, any_address=True)
    path = served.fetch_token(client=OUTSIDE)
    served.macs[OUTSIDE] = "02:00:00:00:00:66"
    assert served.ask(path, tls=True, client=OUTSIDE).status == 403
    del served.macs[OUTSIDE]
    assert served.ask(path, tls=True, client=OUTSIDE).status == 200


def test_a_node_with_a_serial_number_may_boot_by_another_interface(tmp_path: Path) -> None:
    """Its script comes whatever the MAC address; the claim is made by its own interface."""
    node = replace(NODE, serial="M-1")
    served = make_served(tmp_path, replace(CLUSTER, nodes=(CLUSTER.nodes[0], node)))
    served.macs["192.168.56.77"] = "02:00:00:00:00:66"
    path = served.fetch_token(client="192.168.56.77")
    assert served.ask(path, tls=True, client="192.168.56.77").status == 403
    assert served.ask(path, tls=True).status == 200


@pytest.mark.parametrize(
    ("asked", "size", "part"),
    [
        ("", 10, None), ("bytes=3-", 10, (3, 10)), ("bytes=3-5", 10, (3, 6)), ("bytes=0-99", 10, (0, 10)),
        ("bytes=10-", 10, (10, 10)), ("bytes=0-", 0, (0, 0)), ("bytes=5-3", 10, None), ("bytes=-3", 10, None),
        ("bytes=1-2,4-5", 10, None), ("lines=1-", 10, None), ("bytes=1-" + "9" * 40, 10, None),
    ],
)  # fmt: skip
def test_a_part_of_a_file(asked: str, size: int, part: tuple[int, int] | None) -> None:
    """What cannot be understood is no part: the whole file is sent; so it is when the file is another by now."""
    assert choose_part(Headers({"range": asked}), "e", size) == part
    assert choose_part(Headers({"range": asked, "if-range": "older"}), "e", size) is None


@pytest.mark.parametrize("how", ["serial", "any-address"])
def test_fetching_a_script_changes_nothing_where_anybody_may(tmp_path: Path, how: str) -> None:
    """Whoever cannot be told from the node gets a token; he voids none, and no boot is entered for him."""
    node = replace(NODE, serial="M-1") if how == "serial" else NODE
    cluster = replace(CLUSTER, nodes=(CLUSTER.nodes[0], node))
    served = make_served(tmp_path, cluster, any_address=how == "any-address")
    served.ask("/status", method="POST", body=status(state="ready", step=""))
    path, before = served.fetch_token(client=OUTSIDE), served.ledger.read()
    for number in range(50):
        served.fetch_token(client=f"198.51.100.{number}")
    assert served.ledger.read()["revision"] == before["revision"] and served.reports() == []
    assert served.ledger.find_document(NODE.name)["state"] == "ready"  # type: ignore[index]
    assert served.ask(path, tls=True).status == 200


def test_a_node_that_fetches_its_script_twice_keeps_both_tokens(served: Served) -> None:
    """One claim is all that the window has, by whichever."""
    first, second = served.fetch_token(), served.fetch_token()
    assert served.ask(first, tls=True).status == 200
    assert b"as often as it may" in served.ask(second, tls=True).body


@pytest.mark.parametrize(
    ("headers", "kind", "code"),
    [
        ((), b"application/json", 204),
        ((), b"text/plain", 415),
        ((), b"", 415),
        (((b"origin", b"http://evil.example"),), b"application/json", 403),
        (((b"sec-fetch-site", b"cross-site"),), b"application/json", 403),
    ],
)
def test_a_status_is_json_of_no_foreign_page(served: Served, headers: Any, kind: bytes, code: int) -> None:
    """A form of another site can send neither; what is no JSON is counted as malformed."""
    answer = served.ask("/status", method="POST", body=status(), headers=headers, kind=kind)
    assert answer.status == code
    assert (served.ledger.find_document(NODE.name) is None) == (code != 204)
    assert served.reports() == ([MALFORMED] if code == 415 else [])


def test_a_name_of_somebody_else_is_not_answered(served: Served) -> None:
    """Whatever is asked for, by either port (DNS rebinding)."""
    path = served.fetch_token()
    for what, tls in (("/", False), ("/boot.ipxe", False), ("/nodes/linux-node2.ipxe", False), (path, True)):
        assert served.ask(what, tls=tls, host=b"evil.example").status == 403
    assert served.ask(path, tls=True, host=b"192.168.56.1").status == 200


@pytest.mark.parametrize("url", ["http://192.168.56.9/status", "https://collector.example:8080/status"])
def test_where_nodes_report_to_elsewhere_is_not_this_server(tmp_path: Path, url: str) -> None:
    """Neither its name as a Host nor its pages' origin: it is somebody else's."""
    served = make_served(tmp_path, replace(CLUSTER, status_url=url))
    scheme, _, authority, _ = url.split("/")
    assert served.ask("/nodes.json", host=authority.encode()).status == 403
    origin = ((b"origin", f"{scheme}//{authority}".encode()),)
    assert served.ask("/status", method="POST", body=status(), headers=origin).status == 403
    assert served.ask("/status", method="POST", body=status()).status == 204


def test_a_token_is_worth_nothing_once_the_node_has_booted(served: Served) -> None:
    """A machine whose disk bears the image asks for no seed: its unused token stands on its command line."""
    path = served.fetch_token()
    served.ask("/status", method="POST", body=status(step="role"))
    answer = served.ask(path, tls=True)
    assert answer.status == 403 and b"this token is void: linux-node2 has booted since" in answer.body


def test_a_seed_that_cannot_be_made_uses_no_claim(tmp_path: Path) -> None:
    """The server says so, and the next try is answered."""
    served = make_served(tmp_path)
    path = served.fetch_token()
    served.faults.append(RuntimeError("a secret in its text"))
    with pytest.raises(RuntimeError):  # for the server that runs the application; the client has its answer by then
        served.ask(path, tls=True)
    assert "a request for seed failed (RuntimeError): please report it" in served.said
    assert served.ask(path, tls=True).status == 200


def test_a_ledger_that_cannot_be_used_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, which a node waits for, and a line for the operator."""
    path = served.fetch_token()

    def claim(*_: object) -> None:
        raise Unusable("database or disk is full")

    monkeypatch.setattr(served.ledger, "claim", claim)
    answer = served.ask(path, tls=True)
    assert answer.status == 503 and b"its disk is full" in answer.body
    assert any("the ledger cannot be used: " in line and "database or disk is full" in line for line in served.said)


def test_what_a_node_says_cannot_steer_a_terminal(served: Served) -> None:
    """Neither escapes nor new lines."""
    served.ask("/status", method="POST", body=status(state="failed", detail="\x1b[2Jgone\nc-9 ready\x07"))
    told = served.ledger.find_document(NODE.name)
    assert told and told["detail"] == " [2Jgone c-9 ready "
    assert all(line.isprintable() for line in served.said)


def test_another_node_cannot_claim_or_speak_for_it(served: Served) -> None:
    """By its address: of the cluster's network only the node itself."""
    path = served.fetch_token()
    assert served.ask(path, tls=True, client="192.168.56.11").status == 403
    said = served.ask("/status", method="POST", body=status(), client="192.168.56.11")
    assert said.status == 403
    assert len(served.reports()) == 2 and all("the node's address is 192.168.56.12" in r for r in served.reports())
    assert served.ask(path, tls=True).status == 200


@pytest.mark.parametrize("name", ["linux-node9", "..", "%2e%2e", "linux-node1", "LINUX-NODE2", "linux-node2/x"])
def test_an_unknown_node_has_neither_script_nor_seed(served: Served, name: str) -> None:
    """linux-node1 has no script yet."""
    assert served.ask(f"/nodes/{name}.ipxe").status == 404
    assert served.ask(f"/seed/{name}/{'x' * 32}", tls=True).status in (403, 404)
    assert served.ledger.find_document("linux-node1") is None


def test_a_status_is_kept(served: Served) -> None:
    """And shown, with what the page needs."""
    assert served.ask("/status", method="POST", body=status(detail="<b>x</b>")).status == 204
    told = json.loads(served.ask("/nodes.json?since=0", client=OUTSIDE).body)
    assert (told["version"], told["cluster"]) == (1, "demo")
    node = next(each for each in told["nodes"] if each["name"] == NODE.name)
    assert (node["state"], node["step"], node["detail"]) == ("working", "disk", "<b>x</b>")
    assert (node["address"], node["image"]) == ("192.168.56.12", "0123456789ab")
    assert node["seed"]["claims"] == 1 and node["timeline"][0]["step"] == "disk"
    assert json.loads(served.ask(f"/nodes.json?since={told['revision']}").body)["nodes"] == []


@pytest.mark.parametrize("since", ["-1", "x", "1.5", "9" * 16, "1;drop"])
def test_a_revision_is_a_number(served: Served, since: str) -> None:
    assert served.ask(f"/nodes.json?since={since}").status == 400


def test_a_wrong_status_is_refused_and_reported(served: Served) -> None:
    """With what is wrong."""
    answer = served.ask("/status", method="POST", body=status(node="linux-node9"))
    assert answer.status == 400 and b"not a node of this cluster" in answer.body
    assert served.reports() == [MALFORMED]


def test_sizes_are_bounded(served: Served) -> None:
    """Bodies by what is announced and by what comes, headers, paths: each has its own answer."""
    big = b" " * (MOST_BODY + 1)
    length = ((b"content-length", str(len(big)).encode()),)
    assert served.ask("/status", method="POST", body=big, headers=length).status == 413
    assert served.ask("/status", method="POST", body=big).status == 413
    assert served.ask("/status", method="POST", headers=((b"content-length", b"9" * 30),)).status == 413
    assert served.ask("/status", method="POST", headers=((b"content-length", b"-1"),)).status == 413
    assert served.ask("/boot.ipxe", headers=((b"x", b"y"),) * 41).status == 431
    assert served.ask("/boot.ipxe", headers=((b"x", b"y"),) * 39).status == 200
    assert served.ask("/boot.ipxe", headers=((b"x", b"y" * (16 << 10)),)).status == 431
    assert served.ask("/" + "a" * 2000).status == 414
    assert served.ask("/nodes.json?" + "a" * 2000).status == 414


def test_rates_are_bounded_for_each_address(served: Served) -> None:
    """One that asks too often waits; the others notice nothing."""
    hosts = frozenset({("192.168.56.1", 8080)})
    hurried = replace(served, files=Bounds(served.files, hosts, Rates(now=lambda: 0.0)))  # all at the same time
    answers = [hurried.ask("/boot.ipxe", client="192.0.2.7").status for _ in range(int(BURST) + 20)]
    assert answers == [200] * int(BURST) + [429] * 20
    assert hurried.ask("/boot.ipxe", client="192.0.2.8").status == 200


def test_a_rate_recovers_and_is_forgotten_in_the_end() -> None:
    """20 a second come back; the table of addresses does not grow for ever."""
    clock = [0.0]
    rates = Rates(now=lambda: clock[0])
    assert all(rates.allow("a") for _ in range(int(BURST))) and not rates.allow("a")
    clock[0] = 1.0
    assert [rates.allow("a") for _ in range(21)] == [True] * 20 + [False]
    for number in range(MOST_ADDRESSES + 10):
        rates.allow(str(number))
    assert len(rates._buckets) == MOST_ADDRESSES


@pytest.mark.parametrize(
    "path",
    ["/../secret", "/..%2fsecret", "/nodes/../../secret", "/%2e%2e/secret", "//secret", "/nodes/..\\..\\secret", "/.."],
)
def test_nothing_outside_the_tree_is_served(served: Served, path: str) -> None:
    """However the path is spelled, decoded or not."""
    from urllib.parse import unquote

    for spelled in (path, unquote(path)):
        answer = served.ask(spelled)
        assert answer.status in (404, 405) and b"outside" not in answer.body


@given(st.text(max_size=60))
def test_no_path_reaches_outside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    """Whatever is asked for, the answer is a file of the tree, or none."""
    served = make_served(tmp_path_factory.mktemp("served"))
    answer = served.ask("/" + path)
    assert answer.status in (200, 307, 400, 403, 404, 405) and b"outside the tree" not in answer.body


def test_a_link_out_of_the_tree_is_not_followed(served: Served, tmp_path: Path) -> None:
    """`imagegen pxe` makes hard links only."""
    (tmp_path / "pxe/link").symlink_to(tmp_path / "secret")
    assert served.ask("/link").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "CONNECT"])
@pytest.mark.parametrize("path", ["/boot.ipxe", "/", "/nodes.json", "/nodes/linux-node2.ipxe", "/ca.pem"])
def test_wrong_methods_are_refused(served: Served, method: str, path: str) -> None:
    assert served.ask(path, method=method).status == 405


@pytest.mark.parametrize(
    ("url", "heard"), [(None, True), (f"{URL}/status", True), ("http://192.168.56.9/status", False)]
)
def test_a_node_that_reports_elsewhere_is_not_waited_for(tmp_path: Path, url: str | None, heard: bool) -> None:
    """This server hears of its script alone: it must not call the node lost."""
    served = make_served(tmp_path, replace(CLUSTER, status_url=url))
    served.ask("/nodes/linux-node2.ipxe")
    node = next(node for node in served.ledger.read()["nodes"] if node["name"] == NODE.name)
    assert (node["state"], node["heard"] is not None) == ("working", heard)


def test_a_status_cannot_be_fetched(served: Served) -> None:
    """There is no such file: nodes.json has what is shown."""
    assert served.ask("/status").status == 404


def test_the_page_needs_nothing_from_elsewhere(served: Served) -> None:
    """Page, style and script are served from here, and the browser is told to take nothing else."""
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = served.ask(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(rb"https?://(?!www\.w3\.org)", answer.body)


def test_the_authority_is_public_and_its_key_is_not(served: Served) -> None:
    answer = served.ask("/ca.pem")
    assert answer.body == AUTHORITY.certificate and b"PRIVATE" not in answer.body


def test_no_token_is_said(served: Served) -> None:
    """Neither in what the operator reads nor in the ledger's reports."""
    path = served.fetch_token()
    token = path.rpartition("/")[2]
    served.ask(path, tls=True)
    served.ask(path, tls=True)
    assert token not in " ".join([*served.said, *served.reports()])


def test_a_mac_is_found_in_the_kernels_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """proc(5): incomplete entries and strangers have none."""
    table = tmp_path / "arp"
    table.write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "192.168.56.12    0x1         0x2         52:54:00:56:00:AB     *        br0\n"
        "192.168.56.13    0x1         0x0         00:00:00:00:00:00     *        br0\n"
    )
    monkeypatch.setattr(app, "ARP", table)
    found = [find_mac(f"192.168.56.{n}") for n in (12, 13, 1)]
    assert found == ["52:54:00:56:00:ab", None, None]
