# SPDX-License-Identifier: Apache-2.0
"""What every handler of a worker works with, and the pods that it serves.

`Plane` is passed to handlers instead of globals. A `Pod` is one enrolled pod as a worker
sees it: its namespace, its tasks and, looked up afresh each time, its workload.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mesh.hbone.metadata import BaggageCache
from mesh.identity.contexts import TlsContexts
from mesh.model.workload import Workload
from mesh.net.sockets import DialError
from mesh.runtime.clock import Clock
from mesh.runtime.notify import Signal
from mesh.runtime.tasks import TaskOwner
from mesh.state.balance import Random
from mesh.state.store import Store
from mesh.telemetry.reasons import Reason
from mesh.telemetry.series import Recorder
from ztunnel.config import DataPlaneConfig
from ztunnel.connections import Connections
from ztunnel.netns import PodNamespace


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
