# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server for admin, metrics and readiness ports; never for user traffic.

One request at a time per connection, bounded head and body, no chunked requests, a
deadline on each request and a cap on open connections. Handlers are looked up by path;
a path with another method answers 405, an unknown one 404 with the list of paths.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.http")

MAX_HEAD_BYTES = 16384
MAX_BODY_BYTES = 65536
REQUEST_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 64
"""Open connections per listener; one more is closed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One parsed request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    peer: str
    """Address of the caller, without port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a handler answers."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


def text(body: str, status: int = 200) -> Response:
    """Answer plain text; a final newline is added."""
    return Response(status=status, body=(body + "\n").encode())


def json_response(value: object, status: int = 200) -> Response:
    """Answer JSON, indented for people."""
    return Response(
        status=status, body=json.dumps(value, indent=2).encode() + b"\n", content_type="application/json"
    )


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path: its handler, its methods and one line of help."""

    handler: Handler
    methods: tuple[str, ...] = ("GET",)
    help: str = ""


class BadRequestError(ValueError):
    """The request cannot be served; the peer's fault. `status` says how."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpServer:
    """Serves a table of routes on one address; owned by the process's composition root."""

    def __init__(
        self, name: str, routes: Mapping[str, Route], *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self.name = name
        self.routes = dict(routes)
        self._timeout_s = timeout_s
        self._tasks = TaskOwner(f"http {name}")
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 picks a free one, see `port`.

        Raises:
            OSError: the address is in use or not local; names server and address.
        """
        try:
            self._server = await asyncio.start_server(self._accepted, host, port, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise OSError(
                error.errno, f"{self.name} cannot listen on {host}:{port}: {error.strerror}"
            ) from error

    @property
    def port(self) -> int:
        """The port it listens on; 0 when it does not."""
        if self._server is None or not self._server.sockets:
            return 0
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        await self._tasks.close()
        if self._server is not None:
            await self._server.wait_closed()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS or self._tasks.closed:
            writer.transport.abort()
            return
        self._open += 1
        create_task(self._connection(reader, writer), name=f"http {self.name}", owner=self._tasks)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # The caller went away or was too slow: nothing to tell it.
        finally:
            self._open -= 1
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False when the connection ends."""
        keep_alive = False
        head_only = False
        async with asyncio.timeout(self._timeout_s):
            try:
                request = await _read(reader, _peer(writer))
                if request is None:
                    return False
                keep_alive = request.headers.get("connection", "").lower() != "close"
                head_only = request.method == "HEAD"
                response = await self._handle(request)
            except BadRequestError as error:
                response, keep_alive = text(str(error), error.status), False
            writer.write(_encode(response, keep_alive=keep_alive, head_only=head_only))
            await writer.drain()
        return keep_alive

    async def _handle(self, request: Request) -> Response:
        route = self.routes.get(request.path)
        if route is None:
            listing = "\n".join(f"{path}  {r.help}" for path, r in sorted(self.routes.items()))
            return text(f"no such path: {request.path}\n{listing}", 404)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in route.methods:
            return Response(
                status=405,
                body=f"{request.path} takes {', '.join(route.methods)}\n".encode(),
                headers={"allow": ", ".join(route.methods)},
            )
        try:
            return await route.handler(request)
        except BadRequestError as error:
            return text(str(error), error.status)
        except Exception:  # noqa: BLE001 - one bad admin request must not end the process
            _log.exception("%s %s failed", request.method, request.path)
            return text(f"{request.path} failed; see the log", 500)


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


async def _read(reader: asyncio.StreamReader, peer: str) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise BadRequestError(431, f"the request head exceeds {MAX_HEAD_BYTES} bytes") from error
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadRequestError(400, "the request head is incomplete") from error
        return None
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError(400, "not an HTTP/1 request line")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise BadRequestError(400, "malformed header line")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise BadRequestError(411, "send a Content-Length; transfer codings are not taken here")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
        raise BadRequestError(413, f"the body may have up to {MAX_BODY_BYTES} bytes")
    body = await reader.readexactly(int(length))
    target = urlsplit(words[1])
    return Request(
        method=words[0],
        path=target.path,
        query=dict(parse_qsl(target.query, keep_blank_values=True)),
        headers=headers,
        body=body,
        peer=peer,
    )


def _encode(response: Response, *, keep_alive: bool, head_only: bool) -> bytes:
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [
        f"HTTP/1.1 {response.status} {phrase}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        "cache-control: no-store",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    if not keep_alive:
        lines.append("connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + response.body
