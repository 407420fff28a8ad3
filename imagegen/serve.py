"""What `imagegen serve` answers: the tree of `imagegen pxe`, one seed a claim over TLS, and what the nodes report.

Whoever is on the wire may ask: everything is bounded, and what is refused is written down (docs/threat-model.md).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from imagegen.authority import Authority
from imagegen.ledger import Ledger, Unclaimable, check_document
from imagegen.model import Cluster, Node
from imagegen.resources import PACKAGE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 64 << 10  # bytes; a status document has about 4 KiB
MOST_HEADERS = 40
MOST_HEAD = 16 << 10  # bytes of all headers
LONGEST_PATH = 1024  # characters
BODY_SECONDS = 10.0  # for a whole body to arrive
RATE = 20.0  # requests a second of one address, in the long run
BURST = 100.0
MOST_ADDRESSES = 10_000  # whose rate is remembered

ARP = Path("/proc/thread-self/net/arp")  # of the network that this thread serves
PAGE = PACKAGE / "data"
CLOSED = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def find_mac(address: str) -> str | None:
    """The MAC address behind an IPv4 address, as the kernel's neighbour table knows it; None: not of this network."""
    for line in ARP.read_text().splitlines()[1:]:  # proc(5): address, type, flags, MAC, mask, device
        fields = line.split()
        if fields[0] == address and fields[2] != "0x0":
            return fields[3].lower()
    return None


@dataclass(frozen=True)
class Site:
    """What is served, and to whom."""

    cluster: Cluster
    url: str  # of the tree, without a slash at its end
    seed_url: str  # https://ADDRESS:PORT
    root: Path  # the directory that `imagegen pxe` wrote
    authority: Authority
    ledger: Ledger
    make_seed: Callable[[Node], bytes] | None  # None: this server gives no seeds out
    say: Callable[[str], None]
    find_mac: Callable[[str], str | None] = find_mac
    nodes: Mapping[str, Node] = field(init=False)
    roles: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", {node.name: node for node in self.cluster.nodes})
        object.__setattr__(self, "roles", {node.name: str(node.role) for node in self.cluster.nodes})

    @property
    def status_url(self) -> str:
        """Where the nodes report to: what the cluster file says, else here."""
        return self.cluster.status_url or f"{self.url}/status"

    def refuse(self, code: int, node: str, request: Request, text: str) -> HTTPException:
        """The answer to what is refused, once it stands in the ledger."""
        address = client_address(request)
        self.ledger.report(node, address, text)
        self.say(f"refused: {address}: {text}")
        return HTTPException(code, text)


def client_address(request: Request) -> str:
    return request.client.host if request.client else ""


def make_files_app(site: Site) -> App:
    """The application for plain HTTP: files, scripts, status. Never a seed."""
    files = StaticFiles(directory=site.root)

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
        told = site.ledger.read(int(since))
        for row in told["nodes"]:
            node = site.nodes.get(row["name"])
            row["address"] = str(node.address) if node else ""
            row["image"] = read_image(site.root, row["name"])
        return JSONResponse({"version": 1, "cluster": site.cluster.name, **told}, headers=CLOSED)

    async def take_status(request: Request) -> Response:
        body = await read_body(request)
        try:
            document = check_document(body, site.roles)
        except ValueError as error:
            raise site.refuse(400, "", request, f"a status was refused: {error}") from error
        node = site.nodes[document["node"]]
        if told := wrong_address(site, node, client_address(request)):
            raise site.refuse(403, node.name, request, f"a status of {node.name} {told}")
        if site.ledger.record(document) and document["state"] in ("ready", "failed"):
            site.say(" ".join(filter(None, (node.name, document["state"], document["step"], document["detail"]))))
        return Response(status_code=204)

    async def show_authority(request: Request) -> Response:
        return Response(site.authority.certificate, media_type="application/x-pem-file")

    async def give_script(request: Request) -> Response:
        node = site.nodes.get(request.path_params["node"])
        script = site.root / f"nodes/{node.name}.ipxe" if node else None
        if node is None or script is None or not script.is_file():
            raise HTTPException(404, "there is no such node, or `imagegen pxe` has not written its script yet")
        if request.method == "HEAD":
            return Response()
        address = client_address(request)
        mac = site.find_mac(address)
        if mac not in (None, node.mac):
            text = f"{mac} asked for the script of {node.name}, whose MAC address is {node.mac}"
            raise site.refuse(403, node.name, request, text)
        site.ledger.begin_boot(node.name, "script", f"its iPXE script was fetched by {address}")
        site.say(f"{node.name}: its script was fetched by {address}")
        return PlainTextResponse(add_arguments(site, node, script.read_text()), headers={"Cache-Control": "no-store"})

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
    return Bounds(Starlette(routes=routes, exception_handlers={HTTPException: explain}))


def make_seeds_app(site: Site) -> App:
    """The application for TLS: each node's seed, once a claim. Nothing else."""

    async def give_seed(request: Request) -> Response:
        name, token = request.path_params["node"], request.path_params["token"]
        if (node := site.nodes.get(name)) is None:
            raise site.refuse(404, "", request, "a seed of an unknown node was asked for")
        address = client_address(request)
        if told := wrong_address(site, node, address):
            raise site.refuse(403, name, request, f"a claim of the seed of {name} {told}")
        mac = site.find_mac(address)
        if mac not in (None, node.mac):
            text = f"{mac} asked for the seed of {name}, whose MAC address is {node.mac}"
            raise site.refuse(403, name, request, text)
        if site.make_seed is None:
            raise site.refuse(403, name, request, "this server gives no seeds out")
        try:
            site.ledger.claim(name, token)
        except Unclaimable as error:
            raise site.refuse(403, name, request, str(error)) from error
        site.say(f"{name}: its seed was claimed by {address}")
        return Response(site.make_seed(node), media_type="application/octet-stream", headers=CLOSED)

    route = Route("/seed/{node}/{token}", give_seed, methods=["GET"])
    # Starlette answers HEAD where it answers GET; a HEAD must not use a claim up.
    route.methods = {"GET"}
    return Bounds(Starlette(routes=[route], exception_handlers={HTTPException: explain}))


def add_arguments(site: Site, node: Node, script: str) -> str:
    """The node's script and what this server adds to the kernel's command line: where to report, token, pin."""
    words = []
    if " imagegen.status=" not in script:
        words.append(f"imagegen.status={site.status_url}")
    if site.make_seed is not None:
        token = site.ledger.make_token(node.name)
        words += [
            f"imagegen.seed={site.seed_url}/seed/{node.name}/{token}",
            f"imagegen.ca={site.authority.sha256}",
        ]
    first, _, rest = script.partition("\n")
    return f"{first}\nset seed-arguments {' '.join(words)}\n{rest}" if words else script


def read_image(root: Path, node: str) -> str:
    """The content id that the node's script names; empty when there is no script."""
    try:
        found = re.search(r" imagegen\.id=([0-9a-f]{12})\b", (root / f"nodes/{node}.ipxe").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def wrong_address(site: Site, node: Node, address: str) -> str:
    """What is wrong with who speaks for the node: of the cluster's network only the node itself. Empty: nothing."""
    try:
        theirs = IPv4Address(address)
    except ValueError:
        return ""
    inside = theirs in site.cluster.network.cidr and theirs != node.address
    return f"came from {address}, and the node's address is {node.address}" if inside else ""


async def read_body(request: Request) -> bytes:
    """The whole body. Raises HTTPException when it is too large or too slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                body += block
                if len(body) > MOST_BODY:
                    raise HTTPException(413, f"a status has at most {MOST_BODY} bytes")
    except TimeoutError as error:
        raise HTTPException(408, f"the body took longer than {BODY_SECONDS:.0f} seconds") from error
    return body


async def explain(request: Request, error: Exception) -> Response:
    """An error as one line of text."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for that alone
    headers = {"Connection": "close"} if error.status_code in (408, 413) else {}  # the rest of the body may never come
    return PlainTextResponse(f"{error.detail}\n", error.status_code, {**(error.headers or {}), **headers})


class Rates:
    """A token bucket an address."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, when)

    def allow(self, address: str) -> bool:
        """Whether one more request is within the address's rate; counts it."""
        now = self._now()
        left, when = self._buckets.pop(address, (BURST, now))
        left = min(BURST, left + (now - when) * RATE)
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return left >= 1


class Bounds:
    """Refuses what is too large or too much before an application sees it."""

    def __init__(self, app: App, rates: Rates | None = None) -> None:
        self._app = app
        self._rates = rates or Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if refusal := self._refuse(scope):
            await PlainTextResponse(f"{refusal[1]}\n", refusal[0], {"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the text of a refusal."""
        if not self._rates.allow(scope["client"][0] if scope.get("client") else ""):
            return 429, f"more than {RATE:.0f} requests a second from this address"
        if len(scope["headers"]) > MOST_HEADERS or sum(len(b"".join(pair)) for pair in scope["headers"]) > MOST_HEAD:
            return 431, f"more than {MOST_HEADERS} headers, or {MOST_HEAD} bytes of them"
        if len(scope["path"]) + len(scope["query_string"]) > LONGEST_PATH:
            return 414, f"a path of more than {LONGEST_PATH} characters"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > MOST_BODY:
            return 413, f"a body of more than {MOST_BODY} bytes"
        return None
