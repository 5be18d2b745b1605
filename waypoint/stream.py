# SPDX-License-Identifier: Apache-2.0
"""One accepted tunnel: told apart by what its port is declared to speak, else by its first bytes.

A client that waits for its server to speak first is never stalled: when no byte has come
for a moment, the endpoint is dialled as for plain TCP, and whoever speaks first decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.hbone.tunnel import ServerTunnel
from mesh.model.service import AppProtocol
from mesh.model.workload import Workload
from mesh.net.relay import CountedEnd, End, Relay, RelayOwner, RelayResult
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.reasons import Reason
from waypoint.http.detect import HttpVersion, detect
from waypoint.http.sniff import Sniffed, sniff
from waypoint.passage import Passage
from waypoint.proxy.server1 import Http1Server
from waypoint.proxy.server2 import Http2Server
from waypoint.requests import Proxy, Requests
from waypoint.telemetry import Client, Destination

QUIET_S = 0.05
"""How long a client of an undeclared port may be silent before its server is dialled."""
TCP_ATTEMPTS = 3
"""Endpoints tried for one TCP connection."""
_BY_VERSION = {HttpVersion.HTTP1: Sniffed.HTTP1, HttpVersion.HTTP2: Sniffed.HTTP2}


class ClientStream:
    """Owns one tunnel from its request to its end; `on_closed` is called once.

    Until it is known what the tunnel carries, it is the tunnel's peer and owner itself.
    """

    def __init__(
        self,
        proxy: Proxy,
        tunnel: ServerTunnel,
        client: Client,
        destination: Destination,
        *,
        tasks: TaskOwner,
        on_closed: Callable[[ClientStream], None],
    ) -> None:
        self._proxy = proxy
        self._tunnel = tunnel
        self._client = client
        self._destination = destination
        self._tasks = tasks
        self._on_closed = on_closed
        self._requests = Requests(proxy, client, destination)
        self._http: Http1Server | Http2Server | None = None
        self._declared = AppProtocol.UNKNOWN
        self._first = b""
        self._ended = False
        self._decided: Sniffed | None = None
        self._quiet: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._server: CountedEnd | None = None
        self._passage: Passage | None = None
        self._relay: Relay | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._reached: Workload | None = None
        self._closed = False
        self._started_s = proxy.telemetry.monotonic()

    def serve(self, declared: AppProtocol) -> None:
        """Let bytes flow, by the declared protocol or by what comes."""
        self._declared = declared
        if declared in (AppProtocol.TCP, AppProtocol.TLS):
            self._decided = Sniffed.TCP
            self._dial()
            return
        self._tunnel.accept()
        self._tunnel.start(self, self)
        if declared is AppProtocol.UNKNOWN and self._decided is None and not self._closed:
            self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._dial)

    def wind_down(self) -> None:
        """Tell the client to go elsewhere for its next requests; what is not HTTP runs on."""
        if isinstance(self._http, Http1Server):
            # HTTP/1.1 has no way to say so before the next response.
            self._http.wind_down()
        elif self._http is not None:
            self._http.shut_down()

    def shut_down(self) -> None:
        """End after the requests that run; what is not HTTP runs on."""
        if self._http is not None:
            self._http.shut_down()

    # --- the tunnel, until it is known what it carries

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Nothing to take: the tunnel is known (End)."""

    def write(self, data: bytes) -> None:
        """Take first bytes of the client."""
        self._first += data
        if self._decided is not None:
            self._tunnel.pause_reading()
            return
        found: Sniffed | None
        if self._declared is AppProtocol.UNKNOWN:
            found = sniff(self._first)
        else:
            version = detect(self._first)
            found = _BY_VERSION[version] if version is not None else None
        if found is not None:
            self._decide(found)

    def write_eof(self) -> None:
        """The client sends no more."""
        self._ended = True
        if self._decided is None:
            self._decide(Sniffed.TCP if self._declared is AppProtocol.UNKNOWN else Sniffed.HTTP1)

    def abort(self, reason: Reason) -> None:
        """The tunnel broke; `end_closed` follows."""

    def pause_reading(self) -> None:
        """Nothing is sent to the client yet."""

    def resume_reading(self) -> None:
        """Nothing is sent to the client yet."""

    def end_closed(self, end: End, reason: Reason) -> None:
        """The tunnel is gone before bytes flowed (RelayOwner)."""
        if self._task is not None:
            self._task.cancel()
        if self._server is not None:
            self._server.abort(Reason.LOCAL_CLOSE)
        self._finish()

    # --- decisions

    def _decide(self, found: Sniffed) -> None:
        self._decided = found
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if found is Sniffed.TCP:
            if self._server is not None:
                self._join(self._server)
            elif self._task is None:
                self._dial()
            return
        if self._task is not None:
            self._task.cancel()
        if self._server is not None:
            self._server.abort(Reason.LOCAL_CLOSE)
            self._server = None
        self._leave()
        self._serve(found)

    def _serve(self, found: Sniffed) -> None:
        make = Http2Server if found is Sniffed.HTTP2 else Http1Server
        self._requests.http2 = found is Sniffed.HTTP2
        server = self._http = make(
            service=self._requests, call_later=self._proxy.call_later, on_closed=self._finish
        )
        server.start(self._tunnel, server)
        first, self._first = self._first, b""
        server.write(first)
        if self._ended:
            server.write_eof()
        self._tunnel.start(server, server)

    def server_spoke(self, data: bytes) -> None:
        """The server was first: plain TCP."""
        self._tunnel.write(data)
        self._decide(Sniffed.TCP)

    def server_left(self) -> None:
        """The server ended before anyone spoke: dial another when the client does."""
        self._server = self._task = None
        self._leave()

    # --- TCP

    def _dial(self) -> None:
        self._quiet = None
        self._task = create_task(self._connect(), name="tcp", owner=self._tasks)

    async def _connect(self) -> None:
        try:
            self._requests.admit_connection()
            server = await self._reach()
        except DialError as error:
            self._refuse(error)
            return
        self._server = server
        if self._decided is Sniffed.TCP:
            self._join(server)
        else:
            early = _EarlyServer(self)
            server.start(early, early)

    async def _reach(self) -> CountedEnd:
        avoid: frozenset[str] = frozenset()
        for attempt in range(1, TCP_ATTEMPTS + 1):
            passage = self._requests.passage(avoid)
            self._reached = passage.address.workload
            try:
                server = await self._proxy.dialer.dial(passage.address, str(self._client.peer))
            except DialError:
                passage.failed(self._proxy.upstreams.now())
                if attempt == TCP_ATTEMPTS:
                    raise
                avoid |= {passage.address.label}
            except BaseException:
                passage.close()
                raise
            else:
                passage.connected()
                self._leave()
                self._passage = passage
                return server
        raise AssertionError("the last attempt returns or raises")

    def _join(self, server: CountedEnd) -> None:
        if self._declared in (AppProtocol.TCP, AppProtocol.TLS):
            self._tunnel.accept()
        if self._first:
            server.write(self._first)
        self._relay = Relay(self._tunnel, server, self._relayed)
        self._relay.start()
        if self._ended:
            server.write_eof()
        passage = self._passage
        if passage is not None and not self._closed:
            now_s = self._proxy.telemetry.monotonic()
            self._watch(self._relay, passage, 0, now_s, now_s)

    def _watch(self, relay: Relay, passage: Passage, seen: int, since_s: float, began_s: float) -> None:
        """End a connection that is idle or old, as the service's policy says; looks again in time."""
        now_s = self._proxy.telemetry.monotonic()
        moved = relay.sent + relay.received
        if moved != seen:
            seen, since_s = moved, now_s
        ends = []
        if passage.idle_s is not None:
            ends.append(since_s + passage.idle_s)
        if passage.age_s is not None:
            ends.append(began_s + passage.age_s)
        if not ends:
            return
        if min(ends) <= now_s:
            relay.close(Reason.IDLE_TIMEOUT if moved == seen else Reason.LOCAL_CLOSE)
            return
        self._watching = asyncio.get_running_loop().call_later(
            min(ends) - now_s, self._watch, relay, passage, seen, since_s, began_s
        )

    def _leave(self) -> None:
        """Count the connection to the server out."""
        if self._passage is not None:
            self._passage.close()
            self._passage = None

    def _relayed(self, result: RelayResult) -> None:
        failed = result.reason is not Reason.COMPLETE
        self._record(
            result.reason.response_flag if failed else "-",
            result.reason.text if failed else "",
            result.sent,
            result.received,
        )
        self._finish()

    def _refuse(self, error: DialError) -> None:
        if self._closed:
            return
        self._record(error.reason.response_flag, error.detail, len(self._first), 0)
        if self._declared in (AppProtocol.TCP, AppProtocol.TLS):
            denied = error.reason in (Reason.POLICY_DENIED, Reason.POLICY_UNKNOWN)
            self._tunnel.refuse(401 if denied else 503, error.reason)
        else:
            self._tunnel.abort(error.reason)
        self._finish()

    def _record(self, flags: str, detail: str, sent: int, received: int) -> None:
        service = self._destination.service
        self._proxy.telemetry.connection(
            self._client,
            self._destination,
            reached=self._reached,
            flags=flags,
            sent=sent,
            received=received,
            started_s=self._started_s,
            detail=detail,
            observed=self._proxy.tables.observed(service.key if service is not None else None),
        )

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            for timer in (self._quiet, self._watching):
                if timer is not None:
                    timer.cancel()
            self._leave()
            self._on_closed(self)


class _EarlyServer:
    """Listens to a server that was dialled while the client was silent."""

    __slots__ = ("_stream",)

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Nothing to take: never joined by itself (End)."""

    def write(self, data: bytes) -> None:
        """The server speaks first."""
        self._stream.server_spoke(data)

    def write_eof(self) -> None:
        """The server ends; what follows tells how."""
        self._stream.server_spoke(b"")

    def abort(self, reason: Reason) -> None:
        """The server's connection broke; `end_closed` follows."""

    def pause_reading(self) -> None:
        """The way to the server is full: nothing is sent there yet."""

    def resume_reading(self) -> None:
        """The way to the server has room."""

    def end_closed(self, end: End, reason: Reason) -> None:
        """The server is gone before anyone spoke."""
        self._stream.server_left()
