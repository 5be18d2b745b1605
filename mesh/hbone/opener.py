# SPDX-License-Identifier: Apache-2.0
"""Opening tunnels over pooled HBONE connections, peers verified by exact identity.

Which connection a tunnel takes is `mesh.hbone.pool`'s decision; this file does its I/O.
Concurrent first users wait for one handshake.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mesh.hbone.driver import ClientTunnel, HboneConnection, Role
from mesh.hbone.frames import TunnelError, TunnelLimitError
from mesh.hbone.limits import Limits
from mesh.hbone.pool import Pool, PoolKey, PoolLimits, Step
from mesh.hbone.tunnel import REASON_HEADER
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import require_identity
from mesh.net.sockets import DialError, Peer
from mesh.runtime.clock import Clock
from mesh.telemetry.reasons import Reason

ATTEMPTS = 3
"""Connections tried for one tunnel when a pooled one turns out to be dead or full."""
MAX_CONNECTIONS_PER_KEY = 64
"""With 100 to 200 tunnels each: far more than one pod's ports towards one destination."""

Waiter = asyncio.Future[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenerSettings:
    """Deadlines and bounds, seconds."""

    connect_timeout_s: float
    """Of the TCP connection, and again of the TLS handshake."""
    tunnel_timeout_s: float
    """Until CONNECT is answered."""
    idle_s: float
    """Time without a tunnel after which a connection is closed."""
    limits: Limits


class TunnelOpener:
    """Opens the tunnels of one local workload; owns its pooled connections. Loop thread only."""

    def __init__(
        self,
        owner: str,
        settings: OpenerSettings,
        *,
        connect: Callable[[Peer], Awaitable[socket.socket]],
        context: Callable[[str], Awaitable[ssl.SSLContext]],
        on_handshake: Callable[[float], None],
        clock: Clock,
    ) -> None:
        """Build an opener without connections.

        Args:
            owner: who opens, for messages.
            settings: deadlines and bounds.
            connect: dials a peer; raises DialError.
            context: the client's TLS context of a local identity; raises DialError.
            on_handshake: told how long each handshake took, seconds.
            clock: monotonic time.
        """
        self._owner = owner
        self._settings = settings
        self._connect = connect
        self._context = context
        self._on_handshake = on_handshake
        self._clock = clock
        limits = PoolLimits(max_connections_per_key=MAX_CONNECTIONS_PER_KEY, idle_timeout_s=settings.idle_s)
        self._pool: Pool[HboneConnection] = Pool(limits)
        self._identities: WeakKeyDictionary[HboneConnection, str] = WeakKeyDictionary()

    async def open(
        self, key: PoolKey, authority: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[ClientTunnel, str]:
        """Open one tunnel; return it, answered with 200, and its peer's SPIFFE id.

        Raises:
            DialError: no connection, another identity, or the peer refused; says why.
        """
        for attempt in range(1, ATTEMPTS + 1):
            connection, fresh = await self._acquire(key)
            try:
                tunnel = connection.open_tunnel(authority, headers)
            except TunnelLimitError:
                continue
            try:
                return await self._answered(tunnel, key, authority), self._identities[connection]
            except TunnelError as error:
                # A pooled connection may have died unseen: CONNECT was not answered, so ask again.
                if (fresh and not error.retryable) or attempt == ATTEMPTS:
                    raise DialError(error.reason, f"tunnel to {authority}: {error}") from error
        raise DialError(
            Reason.LIMIT_EXCEEDED, f"no HBONE connection to {key.address} takes a further tunnel; retry later"
        )

    async def _answered(self, tunnel: ClientTunnel, key: PoolKey, authority: str) -> ClientTunnel:
        limit = self._settings.tunnel_timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await tunnel.opened
        except TimeoutError as error:
            tunnel.abort(Reason.TUNNEL_TIMEOUT)
            raise DialError(
                Reason.TUNNEL_TIMEOUT,
                f"{key.address}:{key.port} did not answer CONNECT {authority} within {limit:g} s",
            ) from error
        except asyncio.CancelledError:
            tunnel.abort(Reason.LOCAL_CLOSE)
            raise
        if response.reason is None:
            return tunnel
        reason = response.reason or Reason.TUNNEL_REFUSED
        named = response.get(REASON_HEADER).decode("latin-1")
        raise DialError(
            reason,
            f"{key.address}:{key.port} answered {response.status} to CONNECT {authority}: "
            f"{named or reason.text}; the log of the ztunnel on its node says more",
        )

    async def _acquire(self, key: PoolKey) -> tuple[HboneConnection, bool]:
        """Return a connection with room, and whether it was dialled for this caller."""
        pool = self._pool
        while True:
            waiter: Waiter = asyncio.get_running_loop().create_future()
            step = pool.acquire(key, waiter)
            if step is Step.DIAL:
                return await self._dial(key), True
            if step is Step.WAIT:
                try:
                    await waiter
                except asyncio.CancelledError:
                    pool.cancel(key, waiter)
                    raise
            elif step is Step.FULL:
                raise DialError(
                    Reason.LIMIT_EXCEEDED,
                    f"{self._owner} has {len(pool)} HBONE connections, at most {MAX_CONNECTIONS_PER_KEY} "
                    "to one peer, and all are full",
                )
            else:
                return step, False

    async def _dial(self, key: PoolKey) -> HboneConnection:
        pool = self._pool
        try:
            connection = await self._handshake(key)
        except DialError as error:
            for waiter in pool.failed(key):
                _fail(waiter, error)
            raise
        except BaseException:
            # This caller gave up, the others did not: they start again.
            for waiter in pool.failed(key):
                _wake(waiter)
            raise
        for waiter in pool.opened(key, connection):
            _wake(waiter)
        if connection.closed:
            pool.closed(key, connection)
        return connection

    async def _handshake(self, key: PoolKey) -> HboneConnection:
        context = await self._context(key.source_identity)
        target = Peer(key.address, key.port)
        sock = await self._connect(target)
        connection = HboneConnection(
            role=Role.CLIENT,
            limits=self._settings.limits,
            on_request=None,
            on_close=lambda closed, _reason: self._pool.closed(key, closed),
            clock=self._clock,
        )
        timeout_s = self._settings.connect_timeout_s
        started = self._clock.monotonic()
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                sock=sock,
                ssl=context,
                server_hostname="",
                ssl_handshake_timeout=timeout_s,
            )
        except (ssl.SSLError, OSError, TimeoutError) as error:
            sock.close()
            raise DialError(
                Reason.TLS_FAILURE,
                f"TLS with {target}: {error or f'no handshake within {timeout_s:g} s'}",
            ) from error
        except BaseException:
            sock.close()
            raise
        self._on_handshake(self._clock.monotonic() - started)
        try:
            expected = [SpiffeId.parse(text) for text in key.destination_identities]
            self._identities[connection] = str(require_identity(connection.peer_der, expected))
        except IdentityError as error:
            connection.close(Reason.IDENTITY_MISMATCH)
            raise DialError(Reason.IDENTITY_MISMATCH, f"{target}: {error}") from error
        return connection

    def expire(self) -> None:
        """Close connections that have had no tunnel for the configured time; call about once a second."""
        for connection in self._pool.expire(self._clock.monotonic()):
            connection.close(Reason.IDLE_TIMEOUT)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._pool.retire(lambda _: True):
            connection.close(Reason.FORCED_CLOSE)

    def connections(self) -> list[tuple[PoolKey, HboneConnection]]:
        """Return what is open, for the admin view."""
        return self._pool.connections()


def _wake(waiter: Hashable) -> None:
    assert isinstance(waiter, asyncio.Future)
    if not waiter.done():
        waiter.set_result(None)


def _fail(waiter: Hashable, error: DialError) -> None:
    assert isinstance(waiter, asyncio.Future)
    if not waiter.done():
        waiter.set_exception(DialError(error.reason, error.detail))
