# SPDX-License-Identifier: Apache-2.0
"""Opening tunnels: pooled HBONE connections from inside a pod, peers verified by exact identity.

A connection is shared only by tunnels with the same pod, source identity, expected peer
identities and address. Concurrent first users wait for one handshake.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.hbone.driver import ClientTunnel, HboneConnection, Role
from mesh.hbone.frames import TunnelError, TunnelLimitError
from mesh.hbone.limits import Limits
from mesh.hbone.tunnel import REASON_HEADER
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import require_identity
from mesh.model.address import IPAddress
from mesh.model.workload import Workload
from mesh.telemetry.reasons import Reason
from ztunnel.plane import Plane, Pod
from ztunnel.resolve.decide import Upstream
from ztunnel.sockets import DialError, Peer, dial

_log = logging.getLogger("ztunnel.dial")

ATTEMPTS = 3
"""Connections tried for one tunnel when a pooled one turns out to be dead or full."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """What two tunnels must share to share a connection."""

    pod: str
    """uid: connections start in the pod's own namespace, so with its address."""
    source: str
    identities: frozenset[str]
    address: IPAddress
    port: int


class _Slot:
    """The connections of one key."""

    def __init__(self) -> None:
        self.ready: list[_Pooled] = []
        self.opening: asyncio.Future[_Pooled] | None = None


@dataclass(slots=True, eq=False)
class _Pooled:
    connection: HboneConnection
    identity: str
    idle_since_s: float
    used: bool = False


class TunnelDialer:
    """Opens tunnels for all pods of a worker; owns its pooled connections. Loop thread only."""

    def __init__(self, plane: Plane, limits: Limits) -> None:
        self._plane = plane
        self._limits = limits
        self._slots: dict[PoolKey, _Slot] = {}

    async def open(
        self, pod: Pod, source: Workload, upstream: Upstream, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[ClientTunnel, str]:
        """Open one tunnel; return it, answered with 200, and its peer's SPIFFE id.

        Raises:
            DialError: no connection, another identity, or the peer refused; says why.
        """
        assert upstream.address is not None
        key = PoolKey(pod.info.uid, source.identity, upstream.identities, upstream.address, upstream.port)
        for attempt in range(1, ATTEMPTS + 1):
            pooled = await self._connection(key, pod)
            fresh, pooled.used = not pooled.used, True
            try:
                tunnel = pooled.connection.open_tunnel(upstream.authority, headers)
            except TunnelLimitError:
                continue
            try:
                return await self._answered(tunnel, upstream), pooled.identity
            except TunnelError as error:
                # A pooled connection may have died unseen: CONNECT was not answered, so ask again.
                if (fresh and not error.retryable) or attempt == ATTEMPTS:
                    raise DialError(error.reason, f"tunnel to {upstream.authority}: {error}") from error
        raise DialError(Reason.LIMIT_EXCEEDED, f"no HBONE connection to {key.address} takes a further tunnel")

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

    async def _connection(self, key: PoolKey, pod: Pod) -> _Pooled:
        while True:
            slot = self._slots.setdefault(key, _Slot())
            for pooled in slot.ready:
                if pooled.connection.usable:
                    return pooled
            if slot.opening is None:
                return await self._open(key, slot, pod)
            try:
                await asyncio.shield(slot.opening)
            except asyncio.CancelledError:
                if slot.opening is None or not slot.opening.cancelled():
                    raise
                # The one who was opening gave up, we did not: open it ourselves.

    async def _open(self, key: PoolKey, slot: _Slot, pod: Pod) -> _Pooled:
        slot.opening = future = asyncio.get_running_loop().create_future()
        try:
            pooled = await self._handshake(key, slot, pod)
        except DialError as error:
            future.set_exception(error)
            future.exception()  # Perhaps nobody else waits.
            raise
        except BaseException:
            future.cancel()
            raise
        else:
            slot.ready.append(pooled)
            future.set_result(pooled)
            return pooled
        finally:
            slot.opening = None

    async def _handshake(self, key: PoolKey, slot: _Slot, pod: Pod) -> _Pooled:
        plane = self._plane
        context = await plane.tls.client(key.source)
        target = Peer(key.address, key.port)
        timeout_s = plane.config.connect_timeout_s
        sock = await dial(pod.namespace, target, timeout_s=timeout_s, what=f"HBONE peer {target}")
        connection = HboneConnection(
            role=Role.CLIENT,
            limits=self._limits,
            on_request=None,
            on_close=lambda closed, reason: self._closed(key, closed, reason),
            clock=plane.clock,
        )
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
        try:
            expected = [SpiffeId.parse(text) for text in key.identities]
            identity = require_identity(connection.peer_der, expected)
        except IdentityError as error:
            connection.close(Reason.IDENTITY_MISMATCH)
            raise DialError(Reason.IDENTITY_MISMATCH, f"{target}: {error}") from error
        return _Pooled(connection, str(identity), plane.clock.monotonic())

    def _closed(self, key: PoolKey, closed: HboneConnection, reason: Reason) -> None:
        slot = self._slots.get(key)
        if slot is None:
            return
        slot.ready = [pooled for pooled in slot.ready if pooled.connection is not closed]
        if not slot.ready and slot.opening is None:
            del self._slots[key]
        _log.debug("hbone connection to %s:%d closed: %s", key.address, key.port, reason)

    def tick(self) -> None:
        """Close connections that have had no tunnel for the configured time."""
        now = self._plane.clock.monotonic()
        for slot in tuple(self._slots.values()):
            for pooled in tuple(slot.ready):
                if pooled.connection.tunnels:
                    pooled.idle_since_s = now
                elif now - pooled.idle_since_s >= self._plane.config.pool_idle_s:
                    pooled.connection.close(Reason.IDLE_TIMEOUT)

    def close_pod(self, uid: str) -> None:
        """Close the connections of a pod that is gone."""
        for key, slot in tuple(self._slots.items()):
            if key.pod == uid:
                for pooled in tuple(slot.ready):
                    pooled.connection.close(Reason.FORCED_CLOSE)

    def view(self) -> list[dict[str, object]]:
        """Describe the pool for the admin port."""
        return [
            {
                "pod": key.pod,
                "source": key.source,
                "peer": pooled.identity,
                "address": f"{key.address}:{key.port}",
                "tunnels": pooled.connection.tunnels,
            }
            for key, slot in self._slots.items()
            for pooled in slot.ready
        ]
