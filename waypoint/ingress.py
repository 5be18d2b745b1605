# SPDX-License-Identifier: Apache-2.0
"""The listeners of an ingress gateway: plain TCP and TLS in, requests of clients without a mesh identity.

What becomes of a request is decided as in a waypoint; only the route is found by the name
that it asks for. A connection with TLS is for the listener that its SNI named: requests
for another's names are misdirected (421), so that no certificate vouches for another's routes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial

from mesh.model.workload import NamespacedHostname
from mesh.net.listener import Listener
from mesh.net.relay import CountedEnd, End, RelayOwner
from mesh.net.sockets import DialError, Peer, parse_sockaddr, plain_socket, reset, tcp_end
from mesh.runtime.notify import Signal
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.reasons import Reason
from waypoint.config import Config
from waypoint.http.detect import HttpVersion, detect
from waypoint.http.message import RequestHead
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.server1 import Http1Server
from waypoint.proxy.server2 import Http2Server
from waypoint.proxy.streams import Downstream
from waypoint.requests import Proxy, Requests
from waypoint.routing.front import FrontListener, host_of
from waypoint.routing.plan import Answer, Forward, answer, plan_request
from waypoint.telemetry import Client, Destination
from waypoint.transport.server_certificates import ServerCertificates
from waypoint.transport.tls_end import TlsEnd

_log = logging.getLogger("waypoint.ingress")
BACKLOG = 1024
FIRST_BYTE_S = 60.0
"""How long a client may be silent after it connected."""


class Ingress:
    """Serves the listeners' ports; loop thread only."""

    def __init__(self, config: Config, proxy: Proxy, tasks: TaskOwner) -> None:
        self.config = config
        self.proxy = proxy
        self.tasks = tasks
        self.certificates = ServerCertificates(self._find)
        self.winding_down = False
        self.problems: dict[int, str] = {}
        """Ports that cannot be had, and why."""
        self._listeners: dict[int, list[Listener]] = {}
        self._connections: set[Connection] = set()
        self._emptied = Signal()
        self._destinations: dict[NamespacedHostname, Destination] = {}

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def streams(self) -> int:
        """Connections that are served now."""
        return len(self._connections)

    @property
    def ports(self) -> list[int]:
        """Ports that are listened on."""
        return sorted(self._listeners)

    @property
    def complete(self) -> bool:
        """Whether the gateway is known and all its ports are listened on."""
        front = self.proxy.tables.front
        return front is not None and front.ports.keys() == self._listeners.keys()

    # --- ports

    def update(self) -> None:
        """Listen where the gateway has listeners now, and nowhere else; a port that failed is tried again."""
        front = self.proxy.tables.front
        wanted = front.ports if front is not None and not self.winding_down else {}
        for port in self._listeners.keys() - wanted.keys():
            for listener in self._listeners.pop(port):
                listener.close()
            _log.info("port %d: closed", port)
        for port in sorted(wanted.keys() - self._listeners.keys()):
            self._open(port)
        self.problems = {port: why for port, why in self.problems.items() if port in wanted}

    def _open(self, port: int) -> None:
        try:
            sockets = _bind(port)
        except OSError as error:
            why = f"port {port} cannot be had: {error.strerror or error}"
            if self.problems.get(port) != why:
                self.problems[port] = why
                _log.error("%s; end what holds it or change the Gateway's listener", why)
            return
        self.problems.pop(port, None)
        accept = partial(self.accept, port)
        self._listeners[port] = [Listener(sock, accept, f"port {port}") for sock in sockets]
        _log.info("port %d: listening", port)

    def accept(self, port: int, sock: socket.socket, peer: Peer) -> None:
        """Begin one accepted connection."""
        if len(self._connections) >= self.config.max_connections or self.tasks.closed:
            reset(sock)
            _log.warning(
                "%s: refused, %d connections are open (AMBIT_MAX_CONNECTIONS)", peer, len(self._connections)
            )
            return
        front = self.proxy.tables.front
        connection = Connection(self, port, peer)
        self._connections.add(connection)
        secure = front is not None and front.ports.get(port, False)
        create_task(connection.serve(sock, secure=secure), name="ingress", owner=self.tasks)

    def _find(self, port: int, host: str) -> FrontListener | None:
        front = self.proxy.tables.front
        return front.listener(port, host) if front is not None else None

    # --- the end

    def drain(self) -> None:
        """Serve as before a moment longer: clients are told by `wind_down`."""

    def wind_down(self) -> None:
        """Take no further connections, and tell the clients to go elsewhere for their next requests."""
        self.winding_down = True
        self.update()
        for connection in tuple(self._connections):
            connection.wind_down()

    def end_idle(self) -> None:
        """End the clients' connections: at once, or after the requests that run."""
        for connection in tuple(self._connections):
            connection.shut_down()

    def left(self, connection: Connection) -> None:
        """A connection is over."""
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.fire()

    async def wait_empty(self) -> None:
        """Return once no connection is open."""
        while self._connections:
            await self._emptied.wait()

    def close(self) -> None:
        """Cut what is left."""
        self.winding_down = True
        self.update()
        for connection in tuple(self._connections):
            connection.abort(Reason.DRAIN_DEADLINE)

    def destination(self, key: NamespacedHostname, peer: Peer) -> Destination | None:
        """Return who a request went to, for telemetry; equal for equal services."""
        service = self.proxy.tables.service(key)
        if service is None:
            return None
        known = self._destinations.get(key)
        if known is None or known.service is not service:
            known = self._destinations[key] = Destination(service=service, workload=None, peer=peer)
        return known


class Connection:
    """One client connection from accept to its end; until the version is known, its end's peer and owner."""

    def __init__(self, ingress: Ingress, port: int, peer: Peer) -> None:
        self._ingress = ingress
        self._port = port
        self._peer = peer
        self._first = b""
        self._end: CountedEnd | None = None
        self._http: Http1Server | Http2Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listener = ""
        """That SNI chose; empty: no TLS."""
        self._secure = False
        self._local = peer
        self._closed = False

    async def serve(self, sock: socket.socket, *, secure: bool) -> None:
        """Bring the connection up; requests then arrive by themselves."""
        self._secure = secure
        try:
            self._local = parse_sockaddr(sock.getsockname())
            end = self._end = await tcp_end(sock)
            if not secure:
                self._timer = asyncio.get_running_loop().call_later(
                    FIRST_BYTE_S, self.abort, Reason.IDLE_TIMEOUT
                )
                end.start(self, self)
                return
            await self._shake_hands(end)
        except DialError as error:
            _log.info("%s: %s (%s)", self._peer, error.detail, error.reason.value)
            self._finish()
        except OSError:
            sock.close()  # The client left before it said anything.
            self._finish()
        except BaseException:
            self._finish()
            raise

    async def _shake_hands(self, end: CountedEnd) -> None:
        ingress = self._ingress
        timeout_s = ingress.config.connect_timeout_s
        context = ingress.certificates.front(self._port)
        secured = TlsEnd(end, context, "", f"client {self._peer}", server_side=True)
        try:
            async with asyncio.timeout(timeout_s):
                tls = await secured.handshake()
        except TimeoutError as error:
            why = f"TLS with {self._peer}: no handshake within {timeout_s:g} s"
            raise DialError(Reason.TLS_FAILURE, why) from error
        self._end = secured
        self._listener = ingress.certificates.listener_of(tls)
        http2 = tls.selected_alpn_protocol() == "h2"
        self._serve_http(HttpVersion.HTTP2 if http2 else HttpVersion.HTTP1)

    def _serve_http(self, version: HttpVersion) -> None:
        ingress, end = self._ingress, self._end
        assert end is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        client = Client(identity="", namespace="", peer=self._peer, workload=None)
        requests = IngressRequests(ingress, client, self._local, self._port, self._listener, self._secure)
        requests.http2 = version is HttpVersion.HTTP2
        make = Http2Server if requests.http2 else Http1Server
        server = self._http = make(
            service=requests, call_later=ingress.proxy.call_later, on_closed=self._finish
        )
        server.start(end, server)
        first, self._first = self._first, b""
        if first:
            server.write(first)
        end.start(server, server)
        if ingress.winding_down:
            self.wind_down()

    def wind_down(self) -> None:
        """Tell the client to go elsewhere for its next requests."""
        if isinstance(self._http, Http1Server):
            self._http.wind_down()  # HTTP/1.1 has no way to say so before the next response.
        elif self._http is not None:
            self._http.shut_down()

    def shut_down(self) -> None:
        """End after the requests that run."""
        if self._http is not None:
            self._http.shut_down()
        else:
            self.abort(Reason.DRAIN_DEADLINE)

    # --- the client's end, until it is known what it speaks

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Nothing to take: the end is known (End)."""

    def write(self, data: bytes) -> None:
        """Take first bytes of the client."""
        self._first += data
        version = detect(self._first)
        if version is not None:
            self._serve_http(version)

    def write_eof(self) -> None:
        """The client sends no more: what it sent is no preface of HTTP/2."""
        self._serve_http(HttpVersion.HTTP1)

    def abort(self, reason: Reason) -> None:
        """Break the connection off."""
        if self._end is not None and not self._closed:
            self._end.abort(reason)

    def pause_reading(self) -> None:
        """Nothing is sent to the client yet."""

    def resume_reading(self) -> None:
        """Nothing is sent to the client yet."""

    def end_closed(self, end: End, reason: Reason) -> None:
        """The client left before it asked for anything (RelayOwner)."""
        self._finish()

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._ingress.left(self)


class IngressRequests(Requests):
    """The requests of one client connection: routed by the name that each asks for."""

    def __init__(
        self, ingress: Ingress, client: Client, local: Peer, port: int, listener: str, secure: bool
    ) -> None:
        peer = Peer(local.address, port)
        super().__init__(
            ingress.proxy, client, Destination(service=None, workload=None, peer=peer), route=self._find_route
        )
        self._ingress = ingress
        self._peer = peer
        self._listener = listener
        self._scheme = "https" if secure else "http"

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        """Make the exchange of a request; what the client says of its scheme does not count."""
        head.headers = [(name, value) for name, value in head.headers if name != "x-forwarded-proto"]
        head.headers.append(("x-forwarded-proto", self._scheme))
        return super().begin(head, downstream)

    def reported(self, record: ExchangeRecord) -> Destination:
        """Say who the request was for: the service of the backend that was drawn."""
        plan = record.plan
        found = self._ingress.destination(plan.service, self._peer) if isinstance(plan, Forward) else None
        return found or super().reported(record)

    def _find_route(self, head: RequestHead) -> Forward | Answer:
        proxy, port = self._proxy, self._peer.port
        front = proxy.tables.front
        host = host_of(head.authority)
        listener = front.listener(port, host) if front is not None else None
        if listener is None:
            return answer(404, flag="NR", detail=f"no listener of port {port} is for {host or 'no host'}")
        if self._listener and listener.listener.name != self._listener:
            detail = f"{host} is not for listener {self._listener}, which this connection was made to"
            return answer(421, flag="NR", detail=detail)
        matcher = listener.hosts.find(host)
        if matcher is None:
            return answer(404, flag="NR", detail=f"no route of {listener.key} is for {host or 'no host'}")
        return plan_request(
            head,
            service=listener.key,
            port=port,
            matcher=matcher,
            random=proxy.random,
            scheme=self._scheme,
        )


def _bind(port: int) -> list[socket.socket]:
    """Return listening sockets of every family that this machine has.

    Raises:
        OSError: the port cannot be had.
    """
    found: list[socket.socket] = []
    try:
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                sock = plain_socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # This machine has no IPv6.
            found.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
    except OSError:
        for sock in found:
            sock.close()
        raise
    return found
