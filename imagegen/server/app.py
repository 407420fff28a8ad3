"""What `imagegen serve` answers: the tree of `imagegen pxe`, one seed per claim over TLS, and what the nodes report.

Anybody on the network may ask, so everything is limited, and refusals are recorded (docs/threat-model.md).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from imagegen.base.handles import is_file, read_file
from imagegen.base.resources import PACKAGE
from imagegen.base.streams import Say
from imagegen.inputs.ca import Authority
from imagegen.model.cluster import Cluster, Node
from imagegen.outputs.pxe import read_image
from imagegen.server.bounds import MOST_BODY, App, Bounds, Rates, Receive, Scope, Send
from imagegen.server.callers import announced_authorities, is_json
from imagegen.server.evidence import Reason
from imagegen.server.ledger import Ledger, Unclaimable
from imagegen.server.listener import SEND_FILE
from imagegen.server.statuses import check_document
from imagegen.server.tables import Unusable, explain_unusable
from imagegen.server.tokens import make_token, read_token

BODY_SECONDS = 10.0  # for a whole body
LOOK_RATE = 3.0  # of nodes.json, which costs more
LOOK_BURST = 15.0

ARP = Path("/proc/thread-self/net/arp")  # of this thread's network namespace
PAGE = PACKAGE / "data"
CLOSED = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def find_mac(address: str) -> str | None:
    """The MAC address behind an IPv4 address, from the kernel's neighbour table; None: not in this network."""
    for line in ARP.read_text().splitlines()[1:]:  # proc(5): address, type, flags, MAC, mask, device
        fields = line.split()
        if fields[0] == address and fields[2] != "0x0":
            return fields[3].lower()
    return None


@dataclass(frozen=True)
class Site:
    """What is served, and to whom."""

    cluster: Cluster
    url: str  # of the tree, without a trailing slash
    seed_url: str  # https://ADDRESS:PORT
    root: Path  # the directory that `imagegen pxe` wrote
    authority: Authority
    ledger: Ledger
    make_seed: Callable[[Node], bytes] | None  # None: this server gives out no seeds
    say: Say
    find_mac: Callable[[str], str | None] = find_mac
    any_address: bool = False  # nodes are behind a router or NAT: their addresses prove nothing
    nodes: Mapping[str, Node] = field(init=False)
    roles: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", {node.name: node for node in self.cluster.nodes})
        object.__setattr__(self, "roles", {node.name: str(node.role) for node in self.cluster.nodes})

    @property
    def status_url(self) -> str:
        """Where the nodes report: the cluster file's URL, or else this server."""
        return self.cluster.status_url or f"{self.url}/status"

    def refuse(self, code: int, node: str, reason: Reason, request: Request, text: str) -> HTTPException:
        """Records a refusal in the ledger; returns the answer."""
        address = client_address(request)
        own = str(self.nodes[node].address) if node in self.nodes else ""
        self.ledger.refuse(node, reason, address, text, own)
        self.say(f"refused: {address}: {text}")
        return HTTPException(code, text)

    def wrong_speaker(self, node: Node, address: str) -> str:
        """What is wrong with the address of a claim or report as that node: it must be the node's. Empty: nothing."""
        if self.any_address or address == str(node.address):
            return ""
        return f"came from {address}, but the node's address is {node.address}"

    def wrong_mac(self, node: Node, address: str) -> str:
        """The MAC address behind an address, if it is known and not the node's."""
        mac = self.find_mac(address)
        return mac if mac not in (None, node.mac) else ""

    def knows(self, node: Node, address: str) -> bool:
        """Whether the client is the node, by its IP or MAC address."""
        return address == str(node.address) or self.find_mac(address) == node.mac

    def may_be(self, node: Node, address: str) -> bool:
        """Whether the client may be the node, which cannot be seen if it may boot from any interface or address."""
        return self.any_address or bool(node.serial) or self.knows(node, address)

    @property
    def announced(self) -> frozenset[tuple[str, int]]:
        """The hosts and ports of this server that nodes and people are told.

        Not that of status_url, which may be somebody else's: then its pages would be taken for our own.
        """
        return announced_authorities([self.url, self.seed_url])


def client_address(request: Request) -> str:
    return request.client.host if request.client else ""


class Files(StaticFiles):
    """The tree's files, with their own way to send large ones."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        answer = super().file_response(*args, **options)
        return SentFile(answer) if isinstance(answer, FileResponse) else answer


class SentFile(Response):
    """A file, or a range of it, sent from the page cache to the client without passing through this process's memory.

    It supports the ranges `bytes=N-` and `bytes=N-M`, by which clients resume downloads; RFC 9110 (14.2) lets a server
    ignore all others.
    """

    def __init__(self, answer: FileResponse) -> None:
        self.answer, self.background = answer, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if SEND_FILE not in scope.get("extensions", {}):
            await self.answer(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(self.answer.raw_headers))
        size = int(headers["content-length"])
        part = choose_part(Headers(scope=scope), headers["etag"], size)
        begin, end = part or (0, size)
        status = 206 if part else 200
        if part:
            headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
        if part and begin >= size:
            status, begin, end, headers["content-range"] = 416, 0, 0, f"bytes */{size}"
        headers["content-length"] = str(end - begin)
        with Path(self.answer.path).open("rb", 0) as file, suppress(ConnectionError):
            await send({"type": "http.response.start", "status": status, "headers": headers.raw})
            if scope["method"] != "HEAD":
                await scope["extensions"][SEND_FILE](file, begin, end - begin)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def choose_part(headers: Headers, etag: str, size: int) -> tuple[int, int] | None:
    """(begin, end) of the requested bytes, where begin may be beyond the file; None: the whole file."""
    found = re.fullmatch(r"bytes=([0-9]{1,15})-([0-9]{1,15})?", headers.get("range", ""))
    if found is None or headers.get("if-range", etag) != etag:
        return None
    begin, last = int(found[1]), int(found[2] or size)
    return None if last < begin else (begin, min(last + 1, size))


def make_files_app(site: Site) -> App:
    """The application for plain HTTP: files, scripts, statuses. Never a seed."""
    files = Files(directory=site.root)
    looks, looking = Rates(LOOK_RATE, LOOK_BURST), asyncio.Lock()

    def describe_nodes(since: int) -> bytes:
        """The page's data. Runs in a thread, with its own connection: for a large cluster it takes a while."""
        ledger = site.ledger.reopen()
        try:
            told = ledger.read(since)
        finally:
            ledger.close()
        del told["grants"]  # each node has its own
        for row in told["nodes"]:
            node = site.nodes.get(row["name"])
            row["address"] = str(node.address) if node else ""
            row["image"] = read_image(site.root, row["name"])
        return json.dumps({"version": 1, "cluster": site.cluster.name, **told}).encode()

    def page(name: str, kind: str) -> Route:
        async def show(request: Request) -> Response:
            return Response((PAGE / name).read_bytes(), media_type=kind, headers=CLOSED)

        return Route("/" if name == "page.html" else f"/{name}", show)

    async def show_no_icon(request: Request) -> Response:
        return Response(status_code=204)

    async def show_nodes(request: Request) -> Response:
        since = request.query_params.get("since", "0")
        if not re.fullmatch(r"[0-9]{1,15}", since):
            raise HTTPException(400, "since must be a number")
        if not looks.allow(client_address(request)):
            raise HTTPException(429, f"more than {LOOK_RATE:.0f} requests for nodes.json a second from this address")
        async with looking:
            data = await asyncio.to_thread(describe_nodes, int(since))
        return Response(data, media_type="application/json", headers=CLOSED)

    async def take_status(request: Request) -> Response:
        if not is_json(request.scope["headers"]):
            site.ledger.refuse_malformed(client_address(request))
            raise HTTPException(415, "a status is sent as application/json")
        body = await read_body(request)
        try:
            document = check_document(body, site.roles)
        except ValueError as error:
            site.ledger.refuse_malformed(client_address(request))
            raise HTTPException(400, f"bad status: {error}") from error
        node = site.nodes[document["node"]]
        if told := site.wrong_speaker(node, client_address(request)):
            text = f"a status of {node.name} {told}"
            raise site.refuse(403, node.name, Reason.STATUS_ADDRESS, request, text)
        if site.ledger.record(document) and document["state"] in ("ready", "failed"):
            site.say(" ".join(filter(None, (node.name, document["state"], document["step"], document["detail"]))))
        return Response(status_code=204)

    async def show_authority(request: Request) -> Response:
        return Response(site.authority.certificate, media_type="application/x-pem-file")

    async def give_script(request: Request) -> Response:
        node = site.nodes.get(request.path_params["node"])
        script = site.root / f"nodes/{node.name}.ipxe" if node else None
        if node is None or script is None or not is_file(script):
            raise HTTPException(404, "no such node: after a change, run `imagegen pxe` and restart `imagegen serve`")
        if request.method == "HEAD":
            return Response()
        address = client_address(request)
        # A node with a serial number may boot from another interface than its own.
        if not node.serial and (mac := site.wrong_mac(node, address)):
            text = f"{mac} asked for the script of {node.name}, whose MAC address is {node.mac}"
            raise site.refuse(403, node.name, Reason.SCRIPT_MAC, request, text)
        text = read_file(script).decode()
        # Anybody may read it. Only a request from the node itself counts as its boot; giving others a token voids none.
        if site.knows(node, address):
            reports_here = site.status_url == f"{site.url}/status"
            fetched = f"its iPXE script was fetched by {address}"
            site.ledger.begin_boot(node.name, "script", fetched, reports_here=reports_here)
            site.say(f"{node.name}: its script was fetched by {address}")
        if site.may_be(node, address):
            text = add_arguments(site, node, text)
        return PlainTextResponse(text, headers={"Cache-Control": "no-store"})

    routes = [
        page("page.html", "text/html"),
        page("page.css", "text/css"),
        page("page.js", "text/javascript"),
        Route("/favicon.ico", show_no_icon),
        Route("/nodes.json", show_nodes),
        Route("/status", take_status, methods=["POST"]),
        Route("/ca.pem", show_authority),
        Route("/nodes/{node}.ipxe", give_script),
        Mount("/", files),
    ]
    return make_app(site, routes)


def make_seeds_app(site: Site) -> App:
    """The application for TLS: each node's seed, once per claim, and nothing else."""

    async def give_seed(request: Request) -> Response:
        name, token = request.path_params["node"], request.path_params["token"]
        if (node := site.nodes.get(name)) is None:
            raise site.refuse(404, "", Reason.UNKNOWN, request, "the seed of an unknown node was requested")
        address = client_address(request)
        if told := site.wrong_speaker(node, address):
            text = f"a claim of the seed of {name} {told}"
            raise site.refuse(403, name, Reason.CLAIM_ADDRESS, request, text)
        if mac := site.wrong_mac(node, address):
            text = f"{mac} asked for the seed of {name}, whose MAC address is {node.mac}"
            raise site.refuse(403, name, Reason.CLAIM_MAC, request, text)
        if site.make_seed is None:
            raise site.refuse(403, name, Reason.NO_SEEDS, request, "this server gives out no seeds")
        if (boot := read_token(site.authority.token_key, name, token)) is None:
            raise site.refuse(403, name, Reason.NO_TOKEN, request, f"this token was never given out for {name}")
        seed = site.make_seed(node)  # before the claim is used up
        try:
            site.ledger.claim(name, address, token, boot)
        except Unclaimable as error:
            raise site.refuse(403, name, error.reason, request, str(error)) from error
        site.say(f"{name}: its seed was claimed by {address}")
        return Response(seed, media_type="application/octet-stream", headers=CLOSED)

    route = Route("/seed/{node}/{token}", give_seed, methods=["GET"])
    # Starlette answers HEAD where it answers GET; a HEAD must not use up a claim.
    route.methods = {"GET"}
    return make_app(site, [route])


def add_arguments(site: Site, node: Node, script: str) -> str:
    """The node's script with this server's kernel arguments: where to report, the token, the CA's sha256."""
    words = []
    if " imagegen.status=" not in script:
        words.append(f"imagegen.status={site.status_url}")
    if site.make_seed is not None:
        token = make_token(site.authority.token_key, node.name, site.ledger.find_boot(node.name))
        words += [
            f"imagegen.seed={site.seed_url}/seed/{node.name}/{token}",
            f"imagegen.ca={site.authority.sha256}",
        ]
    first, _, rest = script.partition("\n")
    return f"{first}\nset seed-arguments {' '.join(words)}\n{rest}" if words else script


async def read_body(request: Request) -> bytes:
    """The whole body. Raises HTTPException when it is too large or too slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                body += block
                if len(body) > MOST_BODY:
                    raise HTTPException(413, f"a status has at most {MOST_BODY} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the body was cut off") from error
    except TimeoutError as error:
        raise HTTPException(408, f"the body took longer than {BODY_SECONDS:.0f} seconds") from error
    return body


def make_app(site: Site, routes: list[BaseRoute]) -> App:
    """An application with these routes and the limits; every error in it becomes one line of text."""

    async def tell_unusable(request: Request, error: Exception) -> Response:
        told = explain_unusable(site.ledger.path, error)
        site.say(f"the ledger cannot be used: {told.message}: {told.hint}")
        return PlainTextResponse(
            "the server cannot use its ledger: its disk is full, another process holds it, or it is damaged\n", 503
        )

    async def tell_failure(request: Request, error: Exception) -> Response:
        # The text of an unforeseen error may contain anything, even a secret.
        site.say(f"a request for {request.url.path.split('/')[1]} failed ({type(error).__name__}): please report it")
        return PlainTextResponse("the server failed\n", 500)

    handlers: dict[Any, Any] = {HTTPException: explain, Unusable: tell_unusable, Exception: tell_failure}
    return Bounds(Starlette(routes=routes, exception_handlers=handlers), site.announced)


async def explain(request: Request, error: Exception) -> Response:
    """An error as one line of text."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for that alone
    headers = (
        {"Connection": "close"} if error.status_code in (408, 413, 415) else {}
    )  # the rest of the body may never arrive
    return PlainTextResponse(f"{error.detail}\n", error.status_code, {**(error.headers or {}), **headers})
