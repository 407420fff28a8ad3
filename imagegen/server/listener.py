"""Two listeners of one process, plain HTTP and TLS, each with its own application and limits on connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Self

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagegen.base.errors import BadUsage, ImagegenError, MachineLacks
from imagegen.server.admission import Admission, Backlog, Entrance, raise_file_limit

App = Callable[..., Awaitable[None]]

HEAD_SECONDS = 10.0  # from the connection, or a request's first byte, to the end of its head
TAKE_SECONDS = 60.0  # for a client to empty its buffer
IDLE_SECONDS = 5  # between two requests on a connection
MOST_HEAD = 16 << 10  # bytes
FILE_PART = 1 << 20  # bytes of a file for which a client has TAKE_SECONDS
STOP_SECONDS = 3  # for answers being sent
SEND_FILE = "imagegen.send_file"
"""An ASGI extension of plain HTTP: `await scope["extensions"][SEND_FILE](file, offset, count)` sends a part of the body
that was announced."""


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on clients that do not finish a request's head or do not take an answer."""

    waiting: ClassVar[Backlog] = Backlog()
    _head: asyncio.TimerHandle | None = None
    _take: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._app, self.app = self.app, self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["scheme"] == "http":
            scope["extensions"] = {SEND_FILE: self.send_file}
        await self._app(scope, receive, send)

    async def send_file(self, file: IO[bytes], offset: int, count: int) -> None:
        """Sends the part of a file that the answer's head announced, without reading it into this process's memory.

        Raises ConnectionError, with the connection closed, if the client does not take it or the file has shrunk.
        """
        end = offset + count
        try:
            while offset < end:
                part = min(end - offset, FILE_PART)
                os.posix_fadvise(file.fileno(), offset, 2 * FILE_PART, os.POSIX_FADV_WILLNEED)
                # h11 only asks for the length of what its caller sends itself.
                self.conn.send_with_data_passthrough(h11.Data(data=range(part)))  # type: ignore[arg-type]
                async with asyncio.timeout(TAKE_SECONDS):
                    sent = await self.loop.sendfile(self.transport, file, offset, part, fallback=False)
                if sent < part:
                    raise ConnectionError("the file has shrunk")
                offset += sent
        except BaseException as error:
            self.transport.abort()
            if isinstance(error, OSError | RuntimeError):  # from asyncio, for a connection that is closing or gone
                raise ConnectionError(str(error)) from error
            raise

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()  # already answered, while the announced body trickles in
        elif self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._forget_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._take = self._take or self.loop.call_later(TAKE_SECONDS, self.transport.abort)
        address = self.client[0] if self.client else ""
        if not self.waiting.hold(self, address, self.transport.get_write_buffer_size()):
            self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_take()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_take()
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
        self.waiting.free(self)


class QuietServer(Server):
    """Leaves signals to its caller."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listen(address: str, port: int, elsewhere: str = "") -> socket.socket:
    """A listening TCP socket; port 0: any. `elsewhere` is the hint for choosing another port.

    Raises MachineLacks, and BadUsage for an address that is not this machine's.
    """
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
        cure = "run this as root" if error.errno == errno.EACCES else "stop what listens there"
        raise MachineLacks(
            f"port {port} of {address}: {error.strerror}", f"{cure}, or {elsewhere}" if elsewhere else cure
        ) from error
    return listener


def make_tls_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """A server's TLS context with this certificate and key, both PEM. Raises ssl.SSLError if they are not valid.

    OpenSSL's loader wants a file. It gets one without a name, so that a killed server leaves no key on a disk.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with os.fdopen(os.memfd_create("tls", os.MFD_CLOEXEC), "wb", 0) as stream:
        stream.write(certificate + key)
        context.load_cert_chain(f"/proc/self/fd/{stream.fileno()}")
    return context


@dataclass(frozen=True)
class Listener:
    """A listening socket, which Serving takes over, and the application behind it; with `tls` it speaks TLS."""

    app: App
    socket: socket.socket
    tls: ssl.SSLContext | None = None


class Serving:
    """Runs the servers in a thread until the context is left."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners
        self._servers = [QuietServer(_configure(listener)) for listener in listeners]
        self.admission = Admission(raise_file_limit())
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Returns once all are listening. Raises ImagegenError if one cannot."""
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
        """Ends the servers; answers being sent get a few seconds."""
        for server in self._servers:
            server.should_exit = True
        self._thread.join(2 * STOP_SECONDS)

    def wait(self, seconds: float) -> None:
        """Waits that long. Raises ImagegenError if a server ends unexpectedly."""
        self._thread.join(seconds)
        if not self._thread.is_alive():
            raise ImagegenError(f"the server stopped unexpectedly: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.create_server = bound_connections(loop.create_server, self.admission)  # type: ignore[assignment]
        pairs = zip(self._servers, self._listeners, strict=True)
        await asyncio.gather(*(server.serve([listener.socket]) for server, listener in pairs))


def bound_connections(create: Callable[..., Awaitable[Any]], admission: Admission) -> Callable[..., Awaitable[Any]]:
    """asyncio's create_server for admitted connections; TLS gets as long as a head to begin, and to end."""

    async def create_server(*args: Any, sock: socket.socket, ssl: Any = None, **options: Any) -> Any:
        if ssl:  # uvicorn's are a minute and half a minute
            options |= {"ssl_handshake_timeout": HEAD_SECONDS, "ssl_shutdown_timeout": HEAD_SECONDS}
        return await create(*args, sock=Entrance(sock, admission), ssl=ssl, **options)

    return create_server


def silence_loggers() -> None:
    """What strangers send must not fill the operator's terminal; what the applications find wrong they say."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _configure(listener: Listener) -> Config:
    context = listener.tls
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
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=MOST_HEAD,
        ssl_context_factory=(lambda *_: context) if context else None,
    )
