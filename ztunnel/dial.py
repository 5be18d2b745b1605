# SPDX-License-Identifier: Apache-2.0
"""Opening tunnels: pooled HBONE connections from inside a pod, peers verified by exact identity.

Which connection a tunnel takes is `mesh.hbone.pool`'s decision; this file does its I/O.
Concurrent first users wait for one handshake.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

from mesh.hbone.driver import ClientTunnel, HboneConnection, Role
from mesh.hbone.frames import TunnelError, TunnelLimitError
from mesh.hbone.limits import Limits
from mesh.hbone.pool import Pool, PoolKey, PoolLimits, Step
from mesh.hbone.tunnel import REASON_HEADER
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import require_identity
from mesh.model.address import format_host_port
from mesh.model.workload import Workload
from mesh.telemetry.metrics import TUNNEL_HANDSHAKE_SECONDS
from mesh.telemetry.reasons import Reason
from ztunnel.plane import Plane, Pod
from ztunnel.resolve.decide import Upstream
from ztunnel.sockets import DialError, Peer, dial

ATTEMPTS = 3
"""Connections tried for one tunnel when a pooled one turns out to be dead or full."""
MAX_CONNECTIONS_PER_KEY = 64
"""With 100 to 200 tunnels each: far more than one pod's ports towards one destination."""

Waiter = asyncio.Future[None]


class TunnelDialer:
    """Opens tunnels for all pods of a worker; owns their pooled connections. Loop thread only.

    Each pod has a pool of its own: its connections start in its own namespace.
    """

    def __init__(self, plane: Plane, limits: Limits) -> None:
        self._plane = plane
        self._limits = limits
        self._pools: dict[str, Pool[HboneConnection]] = {}
        self._identities: WeakKeyDictionary[HboneConnection, str] = WeakKeyDictionary()

    async def open(
        self, pod: Pod, source: Workload, upstream: Upstream, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[ClientTunnel, str]:
        """Open one tunnel; return it, answered with 200, and its peer's SPIFFE id.

        Raises:
            DialError: no connection, another identity, or the peer refused; says why.
        """
        address = upstream.address
        assert address is not None
        own = [own for own in source.addresses if own.version == address.version]
        key = PoolKey(
            source_identity=source.identity,
            destination_identities=upstream.identities,
            address=address,
            port=upstream.port,
            source_ip=own[0] if own else None,
        )
        for attempt in range(1, ATTEMPTS + 1):
            connection, fresh = await self._connection(key, pod)
            try:
                tunnel = connection.open_tunnel(upstream.authority, headers)
            except TunnelLimitError:
                continue
            try:
                return await self._answered(tunnel, upstream), self._identities[connection]
            except TunnelError as error:
                # A pooled connection may have died unseen: CONNECT was not answered, so ask again.
                if (fresh and not error.retryable) or attempt == ATTEMPTS:
                    raise DialError(error.reason, f"tunnel to {upstream.authority}: {error}") from error
        raise DialError(
            Reason.LIMIT_EXCEEDED, f"no HBONE connection to {address} takes a further tunnel; retry later"
        )

    async def _answered(self, tunnel: ClientTunnel, upstream: Upstream) -> ClientTunnel:
        limit = self._plane.config.tunnel_timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await tunnel.opened
        except TimeoutError as error:
            tunnel.abort(Reason.TUNNEL_TIMEOUT)
            raise DialError(
                Reason.TUNNEL_TIMEOUT,
                f"{upstream.address}:{upstream.port} did not answer CONNECT {upstream.authority} "
                f"within {limit:g} s",
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
            f"{upstream.address}:{upstream.port} answered {response.status} to CONNECT {upstream.authority}: "
            f"{named or reason.text}; the log of the ztunnel on its node says more",
        )

    async def _connection(self, key: PoolKey, pod: Pod) -> tuple[HboneConnection, bool]:
        """Return a connection with room, and whether it was dialled for this caller."""
        pool = self._pools.get(pod.info.uid)
        if pool is None:
            limits = PoolLimits(
                max_connections_per_key=MAX_CONNECTIONS_PER_KEY, idle_timeout_s=self._plane.config.pool_idle_s
            )
            pool = self._pools[pod.info.uid] = Pool(limits)
        while True:
            waiter: Waiter = asyncio.get_running_loop().create_future()
            step = pool.acquire(key, waiter)
            if step is Step.DIAL:
                return await self._dial(pool, key, pod), True
            if step is Step.WAIT:
                try:
                    await waiter
                except asyncio.CancelledError:
                    pool.cancel(key, waiter)
                    raise
            elif step is Step.FULL:
                raise DialError(
                    Reason.LIMIT_EXCEEDED,
                    f"pod {pod.info} has {len(pool)} HBONE connections, at most {MAX_CONNECTIONS_PER_KEY} "
                    "to one peer, and all are full",
                )
            else:
                return step, False

    async def _dial(self, pool: Pool[HboneConnection], key: PoolKey, pod: Pod) -> HboneConnection:
        try:
            connection = await self._handshake(pool, key, pod)
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

    async def _handshake(self, pool: Pool[HboneConnection], key: PoolKey, pod: Pod) -> HboneConnection:
        plane = self._plane
        context = await plane.tls.client(key.source_identity)
        target = Peer(key.address, key.port)
        timeout_s = plane.config.connect_timeout_s
        sock = await dial(pod.namespace, target, timeout_s=timeout_s, what=f"HBONE peer {target}")
        connection = HboneConnection(
            role=Role.CLIENT,
            limits=self._limits,
            on_request=None,
            on_close=lambda closed, _reason: pool.closed(key, closed),
            clock=plane.clock,
        )
        started = plane.clock.monotonic()
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
        plane.recorder.observe(TUNNEL_HANDSHAKE_SECONDS, ("source",), plane.clock.monotonic() - started)
        try:
            expected = [SpiffeId.parse(text) for text in key.destination_identities]
            self._identities[connection] = str(require_identity(connection.peer_der, expected))
        except IdentityError as error:
            connection.close(Reason.IDENTITY_MISMATCH)
            raise DialError(Reason.IDENTITY_MISMATCH, f"{target}: {error}") from error
        return connection

    def tick(self) -> None:
        """Close connections that have had no tunnel for the configured time."""
        now = self._plane.clock.monotonic()
        for pool in self._pools.values():
            for connection in pool.expire(now):
                connection.close(Reason.IDLE_TIMEOUT)

    def close_pod(self, uid: str) -> None:
        """Close the connections of a pod that is gone."""
        pool = self._pools.pop(uid, None)
        if pool is not None:
            for connection in pool.retire(lambda _: True):
                connection.close(Reason.FORCED_CLOSE)

    def view(self) -> list[dict[str, object]]:
        """Describe the pools for the admin port."""
        return [
            {
                "pod": uid,
                "source": key.source_identity,
                "destination": sorted(key.destination_identities),
                "address": format_host_port(key.address, key.port),
                "tunnels": connection.tunnels,
                "room": connection.room,
            }
            for uid, pool in self._pools.items()
            for key, connection in pool.connections()
        ]


def _wake(waiter: Hashable) -> None:
    assert isinstance(waiter, asyncio.Future)
    if not waiter.done():
        waiter.set_result(None)


def _fail(waiter: Hashable, error: DialError) -> None:
    assert isinstance(waiter, asyncio.Future)
    if not waiter.done():
        waiter.set_exception(DialError(error.reason, error.detail))
