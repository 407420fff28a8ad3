"""What `imagegen serve` answers: the tree of `imagegen pxe`, one seed per claim over TLS, and what the nodes report.

Whoever is on the wire may ask: everything is bounded, and what is refused is written down (docs/threat-model.md).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from imagegen.authority import Authority
from imagegen.errors import BadUsage
from imagegen.handles import is_file, read_file
from imagegen.ledger import Ledger, Unclaimable, Unusable, check_document
from imagegen.model import Cluster, Node
from imagegen.resources import PACKAGE
from imagegen.server import MOST_HEAD

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 64 << 10  # bytes; a status document has about 4 KiB
MOST_HEADERS = 40
LONGEST_PATH = 1024  # characters
BODY_SECONDS = 10.0  # for a whole body to arrive
RATE = 20.0  # requests a second of one address, in the long run
BURST = 100.0
LOOK_RATE = 3.0  # of nodes.json, which costs more
LOOK_BURST = 15.0
FILE_BLOCK = 1 << 20  # bytes
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
    any_address: bool = False  # nodes come through a router or a translation: their addresses say nothing
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

    def wrong_speaker(self, node: Node, address: str) -> str:
        """What is wrong with who claims or reports as that node: it has to be at the node's address. Empty: nothing."""
        if self.any_address or address == str(node.address):
            return ""
        return f"came from {address}, but the node's address is {node.address}"

    def wrong_mac(self, node: Node, address: str) -> str:
        """The MAC address behind an address, when it is known and not the node's."""
        mac = self.find_mac(address)
        return mac if mac not in (None, node.mac) else ""

    def knows(self, node: Node, address: str) -> bool:
        """Whether who asks can be the node: by its address, by its MAC address, or because that cannot be seen."""
        if self.any_address or address == str(node.address) or node.serial:
            return True
        return self.find_mac(address) == node.mac


def client_address(request: Request) -> str:
    return request.client.host if request.client else ""


class Files(StaticFiles):
    """The tree's files, read in larger blocks than Starlette's: images are most of what is served."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        answer = super().file_response(*args, **options)
        if isinstance(answer, FileResponse):
            answer.chunk_size = FILE_BLOCK
        return answer


def make_files_app(site: Site) -> App:
    """The application for plain HTTP: files, scripts, status. Never a seed."""
    files = Files(directory=site.root)
    looks, looking = Rates(LOOK_RATE, LOOK_BURST), asyncio.Lock()

    def describe_nodes(since: int) -> bytes:
        """The page's data. In a thread, with a connection of its own: of a large cluster it takes a while."""
        ledger = site.ledger.reopen()
        try:
            told = ledger.read(since)
        finally:
            ledger.close()
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
            raise HTTPException(429, f"more than {LOOK_RATE:.0f} looks a second from this address")
        async with looking:
            data = await asyncio.to_thread(describe_nodes, int(since))
        return Response(data, media_type="application/json", headers=CLOSED)

    async def take_status(request: Request) -> Response:
        body = await read_body(request)
        try:
            document = check_document(body, site.roles)
        except ValueError as error:
            raise site.refuse(400, "", request, f"a status was refused: {error}") from error
        node = site.nodes[document["node"]]
        if told := site.wrong_speaker(node, client_address(request)):
            raise site.refuse(403, node.name, request, f"a status of {node.name} {told}")
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
        # A node with a serial number may boot by another interface than its own.
        if not node.serial and (mac := site.wrong_mac(node, address)):
            text = f"{mac} asked for the script of {node.name}, whose MAC address is {node.mac}"
            raise site.refuse(403, node.name, request, text)
        text = read_file(script).decode()
        if site.knows(node, address):
            reports_here = site.status_url == f"{site.url}/status"
            fetched = f"its iPXE script was fetched by {address}"
            site.ledger.begin_boot(node.name, "script", fetched, reports_here=reports_here)
            site.say(f"{node.name}: its script was fetched by {address}")
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
    """The application for TLS: each node's seed, once per claim. Nothing else."""

    async def give_seed(request: Request) -> Response:
        name, token = request.path_params["node"], request.path_params["token"]
        if (node := site.nodes.get(name)) is None:
            raise site.refuse(404, "", request, "the seed of an unknown node was requested")
        address = client_address(request)
        if told := site.wrong_speaker(node, address):
            raise site.refuse(403, name, request, f"a claim of the seed of {name} {told}")
        if mac := site.wrong_mac(node, address):
            text = f"{mac} asked for the seed of {name}, whose MAC address is {node.mac}"
            raise site.refuse(403, name, request, text)
        if site.make_seed is None:
            raise site.refuse(403, name, request, "this server gives out no seeds")
        seed = site.make_seed(node)  # before a claim is used up
        try:
            site.ledger.claim(name, token)
        except Unclaimable as error:
            raise site.refuse(403, name, request, str(error)) from error
        site.say(f"{name}: its seed was claimed by {address}")
        return Response(seed, media_type="application/octet-stream", headers=CLOSED)

    route = Route("/seed/{node}/{token}", give_seed, methods=["GET"])
    # Starlette answers HEAD where it answers GET; a HEAD must not use up a claim.
    route.methods = {"GET"}
    return make_app(site, [route])


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
        found = re.search(r" imagegen\.id=([0-9a-f]{12})\b", read_file(root / f"nodes/{node}.ipxe").decode())
    except (OSError, BadUsage):
        return ""
    return found[1] if found else ""


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
    """An application of these routes, within the bounds; whatever goes wrong in it has one line of text."""

    async def tell_unusable(request: Request, error: Exception) -> Response:
        site.say(f"the ledger cannot be used: {error}")
        return PlainTextResponse(
            "the server cannot use its ledger: its disk is full, or another process holds it\n", 503
        )

    async def tell_failure(request: Request, error: Exception) -> Response:
        # The text of an unforeseen error may quote any value, a secret too.
        site.say(f"a request for {request.url.path.split('/')[1]} failed ({type(error).__name__}): report it")
        return PlainTextResponse("the server failed\n", 500)

    handlers: dict[Any, Any] = {HTTPException: explain, Unusable: tell_unusable, Exception: tell_failure}
    return Bounds(Starlette(routes=routes, exception_handlers=handlers))


async def explain(request: Request, error: Exception) -> Response:
    """An error as one line of text."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for that alone
    headers = {"Connection": "close"} if error.status_code in (408, 413) else {}  # the rest of the body may never come
    return PlainTextResponse(f"{error.detail}\n", error.status_code, {**(error.headers or {}), **headers})


class Rates:
    """A token bucket an address."""

    def __init__(self, rate: float = RATE, burst: float = BURST, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, when)

    def allow(self, address: str) -> bool:
        """Whether one more request is within the address's rate; counts it."""
        now = self._now()
        left, when = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - when) * self._rate)
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
