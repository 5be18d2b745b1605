# SPDX-License-Identifier: Apache-2.0
"""The ZDS socket: joins `mesh.zds`'s server to the gate, the handoff and the map of ztunnels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from daemonset.gate import ForeignPeerError, Gate, Peer
from daemonset.handoff import Handoff, LinkLostError, Offer
from mesh.zds.connection import ZdsPeer, ZdsServer
from mesh.zds.messages import AddWorkload
from mesh.zds.packet import Credentials, ZdsClosedError

_log = logging.getLogger("ambit.agent.zds")


class _PeerLink:
    """`daemonset.handoff.Link` on one connection."""

    def __init__(self, peer: ZdsPeer) -> None:
        self._peer = peer

    async def add(self, offer: Offer, netns_fd: int) -> str:
        workload = AddWorkload(
            uid=offer.uid,
            name=offer.name,
            namespace=offer.namespace,
            service_account=offer.service_account,
        )
        try:
            return await self._peer.add(workload, netns_fd)
        except ZdsClosedError as error:
            raise LinkLostError(str(error)) from error
        except ValueError as error:
            return str(error)  # Names longer than a datagram: this pod's fault alone.

    async def keep(self, uid: str) -> str:
        try:
            return await self._peer.keep(uid)
        except ZdsClosedError as error:
            raise LinkLostError(str(error)) from error

    async def delete(self, uid: str) -> str:
        try:
            return await self._peer.delete(uid)
        except ZdsClosedError as error:
            raise LinkLostError(str(error)) from error

    async def snapshot_sent(self) -> str:
        try:
            return await self._peer.snapshot_sent()
        except ZdsClosedError as error:
            raise LinkLostError(str(error)) from error

    def close(self) -> None:
        self._peer.close("given up by the agent")


class ZdsListener:
    """Listens for ztunnels; owned by the agent."""

    def __init__(
        self,
        path: Path,
        gate: Gate,
        handoff: Handoff,
        *,
        known: frozenset[int],
        set_ztunnel: Callable[[frozenset[int]], None],
        ack_timeout_s: float,
    ) -> None:
        """Create it; `known` are the cgroup ids that the map of ztunnels holds already."""
        self._gate = gate
        self._handoff = handoff
        self._known = known
        self._set_ztunnel = set_ztunnel
        self._links: dict[ZdsPeer, _PeerLink] = {}
        self._server = ZdsServer(
            path, on_open=self._opened, on_close=self._closed, admit=self._admit, ack_timeout_s=ack_timeout_s
        )

    @property
    def refused(self) -> int:
        """Connections that were no ztunnel's."""
        return self._server.refused

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the path cannot be bound.
        """
        self._server.path.parent.mkdir(parents=True, exist_ok=True)
        await self._server.start()

    async def close(self) -> None:
        """Stop listening and end every connection; ztunnel keeps its pods."""
        await self._server.close()

    def _admit(self, credentials: Credentials) -> int:
        return self._gate.check(Peer(pid=credentials.pid, uid=credentials.uid))

    async def _opened(self, peer: ZdsPeer) -> None:
        try:
            cgroup_id = self._admit(peer.credentials)
        except ForeignPeerError as error:
            peer.close(str(error))
            return
        # An older ztunnel that drains must not be captured: it stays ztunnel while its cgroup lives.
        self._known = self._gate.living(self._known) | {cgroup_id}
        self._set_ztunnel(self._known)
        link = self._links[peer] = _PeerLink(peer)
        await self._handoff.opened(link, str(peer.credentials))

    def _closed(self, peer: ZdsPeer, why: str) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            self._handoff.lost(link)
        _log.debug("connection of %s ended: %s", peer.credentials, why)
