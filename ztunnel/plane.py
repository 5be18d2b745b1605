# SPDX-License-Identifier: Apache-2.0
"""What every handler of a worker works with, and the pods that it serves.

`Plane` is passed to handlers instead of globals. A `Pod` is one enrolled pod as a worker
sees it: its namespace, its tasks and, looked up afresh each time, its workload.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.tls import client_context, server_context
from mesh.model.workload import Workload
from mesh.runtime.clock import Clock
from mesh.runtime.notify import Signal
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from mesh.telemetry.series import Recorder
from ztunnel.config import DataPlaneConfig
from ztunnel.connections import Connections
from ztunnel.headers import BaggageCache
from ztunnel.netns import PodNamespace
from ztunnel.resolve.balance import Random
from ztunnel.sockets import DialError
from ztunnel.state.store import Store


class CertificateUnavailableError(Exception):
    """No usable certificate for a local identity; says whose and why (the authority's or network's fault)."""


class Certificates(Protocol):
    """Where certificates come from: in a worker, the supervisor."""

    async def get(self, identity: SpiffeId) -> WorkloadCertificate:
        """Return a certificate that has not expired, waiting for its first issue.

        Raises:
            CertificateUnavailableError: there is none; says why.
        """
        ...


class TlsContexts:
    """One pair of contexts per certificate; a rotated certificate gets new ones for new handshakes."""

    def __init__(self, certificates: Certificates, *, wait_s: float) -> None:
        self._certificates = certificates
        self._wait_s = wait_s
        self._client: dict[SpiffeId, tuple[str, ssl.SSLContext]] = {}
        self._server: dict[SpiffeId, tuple[str, ssl.SSLContext]] = {}

    async def client(self, identity: str) -> ssl.SSLContext:
        """Return the context with which a local identity dials.

        Raises:
            DialError: no certificate in time.
        """
        return await self._context(identity, self._client, client_context)

    async def server(self, identity: str) -> ssl.SSLContext:
        """Return the context with which a local identity is served.

        Raises:
            DialError: no certificate in time.
        """
        return await self._context(identity, self._server, server_context)

    async def _context(
        self,
        text: str,
        cache: dict[SpiffeId, tuple[str, ssl.SSLContext]],
        build: Callable[[WorkloadCertificate], ssl.SSLContext],
    ) -> ssl.SSLContext:
        try:
            identity = SpiffeId.parse(text)
            async with asyncio.timeout(self._wait_s):
                certificate = await self._certificates.get(identity)
            # The serial alone does not change when only the roots do.
            version = f"{certificate.serial}/{hash(certificate.roots_pem)}"
            known = cache.get(identity)
            if known is None or known[0] != version:
                known = cache[identity] = (version, build(certificate))
        except TimeoutError as error:
            raise DialError(
                Reason.CERTIFICATE_UNAVAILABLE,
                f"no certificate for {text} within {self._wait_s:g} s; see /certs and the controller's log",
            ) from error
        except (CertificateUnavailableError, IdentityError) as error:
            raise DialError(Reason.CERTIFICATE_UNAVAILABLE, f"no certificate for {text}: {error}") from error
        return known[1]

    def forget(self, identity: SpiffeId) -> None:
        """Drop the contexts of an identity that no pod here has any more."""
        self._client.pop(identity, None)
        self._server.pop(identity, None)


@dataclass(slots=True, kw_only=True)
class Plane:
    """The parts that handlers share."""

    config: DataPlaneConfig
    store: Store
    tls: TlsContexts
    connections: Connections
    recorder: Recorder
    clock: Clock
    random: Random
    synced: bool = False
    """Whether addresses and policies were both received once: before, a verdict would be a guess."""
    baggage: BaggageCache = field(default_factory=BaggageCache)
    changed: Signal = field(default_factory=Signal)
    """Fires after each change of the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodInfo:
    """What the node agent says of a pod."""

    uid: str
    name: str
    namespace: str
    service_account: str
    hbone_only: bool = False
    """ztunnel's own namespace: reached through HBONE, nothing of it is captured."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Pod:
    """One enrolled pod in this worker; `tasks` end with it."""

    def __init__(self, plane: Plane, info: PodInfo, namespace: PodNamespace) -> None:
        self.info = info
        self.namespace = namespace
        self.tasks = TaskOwner(f"pod {info}")
        self._plane = plane

    def workload(self) -> Workload | None:
        """Find the pod's workload as xDS has it now; name, namespace, account and node must all agree."""
        return self._plane.store.find_local(
            name=self.info.name,
            namespace=self.info.namespace,
            service_account=self.info.service_account,
            node=self._plane.config.node_name,
        )

    async def close(self) -> None:
        """End the pod's tasks and let its namespace go."""
        await self.tasks.close()
        self.namespace.close()

    async def known_workload(self) -> Workload:
        """Return the pod's workload, waiting up to the configured limit for xDS to bring it.

        Raises:
            DialError: UNKNOWN_SOURCE after the limit.
        """
        if self._plane.synced and (found := self.workload()) is not None:
            return found
        limit = self._plane.config.workload_wait_s
        try:
            async with asyncio.timeout(limit):
                while True:
                    if self._plane.synced and (found := self.workload()) is not None:
                        return found
                    await self._plane.changed.wait()
        except TimeoutError as error:
            if not self._plane.synced:
                raise DialError(
                    Reason.UNKNOWN_SOURCE,
                    f"policies were not received within {limit:g} s (AMBIT_WORKLOAD_WAIT_S): nothing is let "
                    "through unjudged; is the controller reachable?",
                ) from error
            raise DialError(
                Reason.UNKNOWN_SOURCE,
                f"failed to fetch information about local workload: {self.info.service_account}."
                f"{self.info.namespace} ({self.info.name}) on node {self._plane.config.node_name} "
                f"did not come over xDS within {limit:g} s (AMBIT_WORKLOAD_WAIT_S); "
                "is the controller reachable?",
            ) from error
