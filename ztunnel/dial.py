# SPDX-License-Identifier: Apache-2.0
"""Tunnels of the pods of a worker: each pod has an opener whose connections start in its own namespace."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial

from mesh.hbone.driver import ClientTunnel
from mesh.hbone.limits import Limits
from mesh.hbone.opener import OpenerSettings, TunnelOpener
from mesh.hbone.pool import PoolKey
from mesh.model.address import format_host_port
from mesh.model.workload import Workload
from mesh.net.sockets import Peer, dial
from mesh.telemetry.metrics import TUNNEL_HANDSHAKE_SECONDS
from ztunnel.plane import Plane, Pod
from ztunnel.resolve.decide import Upstream


class TunnelDialer:
    """Opens tunnels for all pods of a worker. Loop thread only."""

    def __init__(self, plane: Plane, limits: Limits) -> None:
        self._plane = plane
        self._limits = limits
        self._openers: dict[str, TunnelOpener] = {}

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
        return await self._opener(pod).open(key, upstream.authority, headers)

    def _opener(self, pod: Pod) -> TunnelOpener:
        opener = self._openers.get(pod.info.uid)
        if opener is None:
            plane, config = self._plane, self._plane.config
            opener = self._openers[pod.info.uid] = TunnelOpener(
                f"pod {pod.info}",
                OpenerSettings(
                    connect_timeout_s=config.connect_timeout_s,
                    tunnel_timeout_s=config.tunnel_timeout_s,
                    idle_s=config.pool_idle_s,
                    limits=self._limits,
                ),
                connect=partial(self._connect, pod),
                context=plane.tls.client,
                on_handshake=partial(plane.recorder.observe, TUNNEL_HANDSHAKE_SECONDS, ("source",)),
                clock=plane.clock,
            )
        return opener

    async def _connect(self, pod: Pod, target: Peer) -> socket.socket:
        timeout_s = self._plane.config.connect_timeout_s
        return await dial(pod.namespace.socket, target, timeout_s=timeout_s, what=f"HBONE peer {target}")

    def tick(self) -> None:
        """Close connections that have had no tunnel for the configured time."""
        for opener in self._openers.values():
            opener.expire()

    def close_pod(self, uid: str) -> None:
        """Close the connections of a pod that is gone."""
        opener = self._openers.pop(uid, None)
        if opener is not None:
            opener.close()

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
            for uid, opener in self._openers.items()
            for key, connection in opener.connections()
        ]
