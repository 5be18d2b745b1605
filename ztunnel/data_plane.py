# SPDX-License-Identifier: Apache-2.0
"""One worker's data plane: pods, state, certificates and connections put together.

Driven by method calls only (from `worker`, or from a test in the same process); opens
sockets in pods and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from functools import partial

from mesh.hbone.limits import Limits
from mesh.identity.contexts import TlsContexts
from mesh.identity.spiffe import SpiffeId
from mesh.model.workload import Workload
from mesh.net.listener import OnAccept
from mesh.runtime.clock import Clock
from mesh.state.store import Changes, Store
from mesh.telemetry.reasons import Reason
from mesh.telemetry.series import Recorder
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Update
from mesh.xds.updates import decode_update
from ztunnel.certificates import WorkerCertificates
from ztunnel.config import DataPlaneConfig
from ztunnel.connections import Connections
from ztunnel.dial import TunnelDialer
from ztunnel.dns.server import DnsServer, PodDns, Resolvers
from ztunnel.inbound import Inbound
from ztunnel.inpod import HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT, ListenerMap, PodListeners
from ztunnel.netns import PodNamespace
from ztunnel.outbound import Outbound
from ztunnel.plane import Plane, Pod, PodInfo

_log = logging.getLogger("ztunnel")

RETIRE_MIN_S = 3.0
"""How long a retired listener is still accepted from: SYNs that chose it are on their way."""


class _Member:
    """A pod with what is open for it."""

    def __init__(self, pod: Pod, listeners: PodListeners, dns: PodDns | None) -> None:
        self.pod = pod
        self.listeners = listeners
        self._dns = dns

    def close(self) -> None:
        """Stop listening; what is queued is still accepted."""
        self.listeners.close()
        if self._dns is not None:
            self._dns.close()


class DataPlane:
    """Everything that one worker does; loop thread only."""

    def __init__(
        self,
        config: DataPlaneConfig,
        *,
        clock: Clock,
        want_certificate: Callable[[SpiffeId], None],
        limits: Limits | None = None,
        maps: ListenerMap | None = None,
        resolvers: Resolvers = lambda _cookie: (),
    ) -> None:
        """Build an empty data plane.

        Args:
            config: the worker's settings.
            clock: monotonic and wall time.
            want_certificate: asks for a certificate that `certificates` does not hold.
            limits: bounds of HBONE connections.
            maps: the capture's listener table; None: nothing to retire listeners from.
            resolvers: the pods' nameservers; a pod without gets no forwarded answers.
        """
        limits = limits or Limits()
        self.recorder = Recorder()
        self.certificates = WorkerCertificates(want_certificate, clock)
        self.connections = Connections(
            clock=clock, recorder=self.recorder, max_connections=config.max_connections
        )
        self.store = Store(network=config.network, root_namespace=config.root_namespace)
        self.plane = Plane(
            config=config,
            store=self.store,
            tls=TlsContexts(self.certificates, wait_s=config.certificate_wait_s),
            connections=self.connections,
            recorder=self.recorder,
            clock=clock,
            random=random.random,
        )
        self.dialer = TunnelDialer(self.plane, limits)
        self.inbound = Inbound(self.plane, limits)
        self.dns = DnsServer(self.plane, resolvers)
        self.outbound = Outbound(self.plane, self.dialer, random_bytes=os.urandom, dns=self.dns.take_stream)
        self._maps = maps
        self._members: dict[str, _Member] = {}
        self._received: set[str] = set()
        self._draining = False

    # --- pods

    async def add_pod(self, info: PodInfo, netns_fd: int) -> None:
        """Open a pod's listeners; takes the descriptor over. The same namespace again changes nothing.

        Raises:
            OSError: the namespace cannot be entered, or a reserved port is taken in it.
        """
        namespace = PodNamespace(netns_fd)
        old = self._members.get(info.uid)
        if old is not None:
            if old.pod.namespace.inode == namespace.inode and old.pod.info == info:
                namespace.close()
                return
            await self.remove_pod(info.uid)
        pod = Pod(self.plane, info, namespace)
        handlers: dict[int, OnAccept] = {
            OUTBOUND_PORT: partial(self.outbound.accept, pod),
            PLAINTEXT_PORT: partial(self.inbound.accept_plain, pod),
            HBONE_PORT: partial(self.inbound.accept_hbone, pod),
        }
        dns = None if info.hbone_only else self.dns.pod(pod)
        if info.hbone_only:
            handlers = {HBONE_PORT: handlers[HBONE_PORT]}
        elif self.plane.config.spoof_source:
            try:
                namespace.reflect_marks()
            except OSError as error:
                _log.warning("pod %s: refused connections will only time out: %s", info, error)
        try:
            if dns is not None:
                await dns.open()
            listeners = PodListeners(namespace, self.plane.config, handlers, str(info))
        except OSError:
            if dns is not None:
                dns.close()
            await pod.close()
            raise
        self._members[info.uid] = _Member(pod, listeners, dns)
        _log.info("pod %s (%s) is served", info, info.uid)

    async def remove_pod(self, uid: str) -> bool:
        """Cut everything of a pod that is gone; whether it was there."""
        member = self._members.pop(uid, None)
        if member is None:
            return False
        member.close()
        self.connections.close_where(
            lambda row: row.pod == uid,
            Reason.FORCED_CLOSE,
            f"pod {member.pod.info} left the node or the mesh",
        )
        self.inbound.close_pod(uid)
        await member.pod.close()
        self.dialer.close_pod(uid)
        _log.info("pod %s (%s) is no longer served", member.pod.info, uid)
        return True

    @property
    def pods(self) -> tuple[PodInfo, ...]:
        """The pods that are served."""
        return tuple(member.pod.info for member in self._members.values())

    # --- state

    def apply(self, update: Update) -> Changes:
        """Take over one xDS response; live connections are judged by the new state at once."""
        state, rejections = decode_update(update)
        for rejection in rejections:
            _log.warning("resource %s rejected: %s", rejection.name, rejection.reason)
        changes = self.store.apply(state)
        self._received.add(update.type_url)
        self.plane.synced = {ADDRESS_TYPE, AUTHORIZATION_TYPE} <= self._received
        if changes:
            closed = self.connections.judge_again(changes, self.store, self._local)
            if closed:
                _log.info("%d live connections closed after a policy or workload change", len(closed))
        self.plane.changed.fire()
        return changes

    def _local(self, uid: str) -> Workload | None:
        member = self._members.get(uid)
        return member.pod.workload() if member is not None else None

    def forget_certificate(self, identity: SpiffeId) -> None:
        """Drop an identity that no pod of this node has any more."""
        self.certificates.forget(identity)
        self.plane.tls.forget(identity)

    # --- time

    def tick(self) -> None:
        """Run what is due: byte counts of live connections, idle HBONE connections. About once a second."""
        self.connections.sample()
        self.dialer.tick()

    async def drain(self, deadline_s: float) -> int:
        """Stop accepting, let live connections run on to the deadline, then cut; return how many were cut."""
        self._draining = True
        started = self.plane.clock.monotonic()
        retired = sum(m.listeners.retire(self._maps) for m in self._members.values()) if self._maps else 0
        self.inbound.drain()
        if retired:
            await asyncio.sleep(min(RETIRE_MIN_S, deadline_s))
        for member in self._members.values():
            member.close()
        self.inbound.drain()
        left_s = deadline_s - (self.plane.clock.monotonic() - started)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0)):
                while len(self.connections) or len(self.inbound):
                    await self.connections.wait_empty()
                    await self.inbound.wait_empty()
        cut = self.connections.close_where(lambda _: True, Reason.DRAIN_DEADLINE)
        for uid in tuple(self._members):
            await self.remove_pod(uid)
        return cut
