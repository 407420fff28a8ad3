"""Two listeners of one process: plain HTTP and TLS, each for an application of its own, with bounds on connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagegen.errors import BadUsage, ImagegenError, MachineLacks

App = Callable[..., Awaitable[None]]

HEAD_SECONDS = 10.0  # from a request's first byte, or the connection, until its head is there
TAKE_SECONDS = 60.0  # for a client to take what fills its buffer
IDLE_SECONDS = 5  # between two requests of a connection
MOST_HEAD = 16 << 10  # bytes
MOST_CONNECTIONS = 4096
MOST_CONNECTIONS_EACH = 64  # of one address
STOP_SECONDS = 3  # for answers that are on their way


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on whoever does not finish a request's head, does not take an answer, or holds too many
    connections.
    """

    connections_of: ClassVar[Counter[str]] = Counter()
    _head: asyncio.TimerHandle | None = None
    _take: asyncio.TimerHandle | None = None
    _peer = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self.connections_of[self._peer] += 1
        if self.connections_of[self._peer] > MOST_CONNECTIONS_EACH:
            transport.abort()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()  # answered already, and the body that was announced drips in
        elif self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._forget_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._take = self._take or self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_take()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_take()
        self.connections_of[self._peer] -= 1
        if not self.connections_of[self._peer]:
            del self.connections_of[self._peer]
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head = self._head or self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head:
            self._head.cancel()
        self._head = None

    def _forget_take(self) -> None:
        if self._take:
            self._take.cancel()
        self._take = None


class QuietServer(Server):
    """Leaves signals to who runs it."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listen(address: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0: any. Raises BadUsage for an address that is not this machine's, MachineLacks."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise BadUsage(
                f"{address} is not an address of this machine",
                "give it that address, name the right one in `pxe: {url: ...}`, or listen elsewhere with --listen",
            ) from error
        raise MachineLacks(f"port {port} of {address}: {error.strerror}", "end what listens there") from error
    return listener


@dataclass(frozen=True)
class Listener:
    """A listening socket and the application behind it; with a certificate and its key it speaks TLS."""

    app: App
    socket: socket.socket
    certificate: Path | None = None
    key: Path | None = None


class Serving:
    """Servers that a thread runs until the context is left."""

    def __init__(self, listeners: Sequence[Listener], enter: Callable[[], None] = lambda: None) -> None:
        """`enter` is called by the thread first: it may go to another network namespace."""
        self._listeners = listeners
        self._servers = [QuietServer(_configure(listener)) for listener in listeners]
        self._failure: BaseException | None = None
        self._enter = enter
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Returns once all listen. Raises ImagegenError when one cannot."""
        raise_file_limit()
        silence_loggers()
        self._thread.start()
        try:
            while not all(server.started for server in self._servers):
                self.wait(0.01)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the servers; answers on their way get a few seconds."""
        for server in self._servers:
            server.should_exit = True
        self._thread.join(2 * STOP_SECONDS)

    def wait(self, seconds: float) -> None:
        """Waits so long for an end that nobody asked for. Raises ImagegenError when it came."""
        self._thread.join(seconds)
        if not self._thread.is_alive():
            raise ImagegenError(f"the server stopped unexpectedly: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            self._enter()
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.create_server = bound_handshakes(loop.create_server)  # type: ignore[assignment]
        pairs = zip(self._servers, self._listeners, strict=True)
        await asyncio.gather(*(server.serve([listener.socket]) for server, listener in pairs))


def bound_handshakes(create: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """asyncio's create_server, with the time of a head for a TLS handshake; uvicorn leaves it at a minute."""

    async def create_server(*args: Any, ssl: Any = None, **options: Any) -> Any:
        if ssl:
            options["ssl_handshake_timeout"] = HEAD_SECONDS
        return await create(*args, ssl=ssl, **options)

    return create_server


def silence_loggers() -> None:
    """What strangers send must not fill the operator's terminal; what the applications find wrong they say."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def raise_file_limit() -> None:
    """As many open connections as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _configure(listener: Listener) -> Config:
    return Config(
        listener.app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=MOST_HEAD,
        ssl_certfile=listener.certificate,
        ssl_keyfile=listener.key,
    )
