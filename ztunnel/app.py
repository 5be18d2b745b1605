# SPDX-License-Identifier: Apache-2.0
"""The composition root: builds every part of the supervisor process, starts and ends them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Mapping

from mesh.config.environment import ListenAddress
from mesh.identity.ca_client import CaClient, CaSettings
from mesh.identity.manager import CertificateManager, CertificateUnavailableError
from mesh.identity.spiffe import SpiffeId
from mesh.runtime.clock import Clock, SystemClock
from mesh.runtime.http import HttpServer
from mesh.runtime.readiness import Readiness
from mesh.runtime.surfaces import metrics_server, readiness_server
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.runtime.version import VERSION
from mesh.telemetry.metrics import BUILD, XDS_MESSAGE_BYTES, XDS_MESSAGES, XDS_TERMINATIONS, Metric
from mesh.xds.client import Node, Settings, Status, XdsClient
from mesh.xds.gauges import StateCollector
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Rejection, Update
from mesh.zds.connection import ZdsClient
from ztunnel.admin import Admin
from ztunnel.config import Config
from ztunnel.supervisor import Supervisor

_log = logging.getLogger("ztunnel")

EVICT_PERIOD_S = 60.0
NODE_AGENT = "node agent"
CONTROLLER = "controller"


class App:
    """One ztunnel process; `run` returns when it has drained."""

    def __init__(self, config: Config, environ: Mapping[str, str], clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.readiness = Readiness((NODE_AGENT, CONTROLLER))
        self.supervisor = Supervisor(config, environ=environ, clock=self.clock, readiness=self.readiness)
        self._tasks = TaskOwner("ztunnel")
        self._stopping = asyncio.Event()
        self._seen: Counter[tuple[Metric, str]] = Counter()
        data_plane = config.data_plane
        self.xds = XdsClient(
            settings=Settings(
                address=config.xds_address,
                roots=config.xds_root_ca,
                server_name=config.xds_server_name,
                token=config.auth_token,
                cluster_id=data_plane.cluster_id,
            ),
            node=_node(config, environ),
            types=(ADDRESS_TYPE, AUTHORIZATION_TYPE),
            on_update=self._updated,
            clock=self.clock,
            on_status=self._xds_status,
        )
        ca = CaClient(
            CaSettings(
                address=config.ca_address,
                roots=config.ca_root_ca,
                server_name=config.ca_server_name,
                token=config.auth_token,
                cluster_id=data_plane.cluster_id,
            ),
            self.clock,
        )
        self.certificates = CertificateManager(
            lambda identity: ca.fetch(identity, config.secret_ttl_s), self.clock
        )
        self.certificates.on_update(self.supervisor.certificate)
        self.zds = ZdsClient(config.inpod_uds, self.supervisor, on_state=self._zds_state)
        self.servers: dict[str, HttpServer] = {}

    async def run(self) -> None:
        """Start, serve until told to end, drain.

        Raises:
            OSError: an address of the admin, metrics or readiness port cannot be had.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self._serve_http()
        self.supervisor.want_certificate = self._want
        self.supervisor.identities_changed = self._identities_changed
        self.supervisor.recorder.add(BUILD, ("ztunnel", VERSION), 1)
        self.supervisor.start()
        if self.config.self_pod is not None:
            create_task(self.supervisor.serve_own(*self.config.self_pod), name="own pod", owner=self._tasks)
        create_task(self.xds.run(), name="xds", owner=self._tasks)
        create_task(self.zds.run(), name="zds", owner=self._tasks)
        create_task(self._housekeeping(), name="housekeeping", owner=self._tasks)
        await self._stopping.wait()
        await self._drain()

    def stop(self) -> None:
        """Begin the drain; a second call ends the process at once."""
        if self._stopping.is_set():
            _log.warning("told to end twice: ending now, live connections are cut")
            # Workers end when they see the channel close.
            os._exit(1)
        self._stopping.set()

    async def _drain(self) -> None:
        deadline_s = self.config.drain_deadline_s
        _log.info("draining: no new connections, live ones have %g s", deadline_s)
        self.readiness.block("draining")
        await self._tasks.close()
        await self.supervisor.drain(deadline_s)
        await self.certificates.close()
        for server in self.servers.values():
            await server.close()
        _log.info("drained")

    async def _serve_http(self) -> None:
        admin = Admin(self.supervisor, self.config, quit_now=self._stopping.set, status=self.status)
        gauges = StateCollector(
            lambda: self.supervisor.certificates,
            lambda: self.xds.status,
            component="ztunnel",
            version=VERSION,
        )
        wanted: tuple[tuple[HttpServer, ListenAddress], ...] = (
            (admin.server(), self.config.admin),
            (metrics_server(self.supervisor.totals, self._before_scrape, gauges), self.config.metrics),
            (readiness_server(self.readiness), self.config.readiness),
        )
        for server, address in wanted:
            await server.start(address.host, address.port)
            self.servers[server.name] = server

    # --- configuration

    def _updated(self, update: Update) -> tuple[Rejection, ...]:
        return self.supervisor.update(update)

    def _xds_status(self, status: Status) -> None:
        # Once in force, state stays in force: a lost controller does not make a node unready.
        if status.synced:
            self.readiness.done(CONTROLLER)

    def _zds_state(self, ready: bool) -> None:
        self.readiness.set(NODE_AGENT, ready=ready)

    def status(self) -> dict[str, object]:
        """Describe the process for the admin port."""
        xds = self.xds.status
        return {
            "ready": self.readiness.ready,
            "pending": list(self.readiness.pending),
            "controller": {
                "address": self.config.xds_address,
                "connected": xds.connected,
                "synced": xds.synced,
                "age_s": xds.age_s,
                "last_error": xds.last_error,
                "rejected": dict(xds.rejected),
            },
            "node_agent": {"socket": str(self.config.inpod_uds), "last_error": self.zds.last_error},
            "pods": len(self.supervisor.pods),
        }

    # --- certificates

    def _want(self, identity: SpiffeId) -> None:
        create_task(self._fetch(identity), name=f"certificate {identity}", owner=self._tasks)

    async def _fetch(self, identity: SpiffeId) -> None:
        try:
            certificate = await self.certificates.get(identity)
        except CertificateUnavailableError as error:
            self.supervisor.no_certificate(identity, str(error))
        else:
            self.supervisor.certificate(certificate)

    def _identities_changed(self, added: frozenset[SpiffeId], gone: frozenset[SpiffeId]) -> None:
        for identity in gone:
            self.certificates.forget(identity)
        for identity in added:
            self.certificates.prefetch(identity)

    # --- metrics

    def _before_scrape(self) -> None:
        """Bring the process's own counters into the totals."""
        recorder = self.supervisor.recorder
        for metric, counter in (
            (XDS_MESSAGES, self.xds.messages),
            (XDS_MESSAGE_BYTES, self.xds.message_bytes),
            (XDS_TERMINATIONS, self.xds.terminations),
        ):
            for label, value in counter.items():
                grown = value - self._seen[metric, label]
                if grown:
                    recorder.add(metric, (label,), grown)
                    self._seen[metric, label] = value
        self.supervisor.totals.apply("supervisor", recorder.take(), self.clock.monotonic())

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(EVICT_PERIOD_S)
            self._before_scrape()
            self.supervisor.totals.evict(self.clock.monotonic() - self.config.series_idle_s)


def _node(config: Config, environ: Mapping[str, str]) -> Node:
    """Build the node that the controller knows us by; Istio's form."""
    pod, namespace = environ.get("POD_NAME", "ztunnel"), environ.get("POD_NAMESPACE", "istio-system")
    address = environ.get("INSTANCE_IP", "1.1.1.1")
    metadata = {
        "NAME": pod,
        "NAMESPACE": namespace,
        "INSTANCE_IPS": address,
        "NODE_NAME": config.data_plane.node_name,
        "CLUSTER_ID": config.data_plane.cluster_id,
    }
    for name, value in environ.items():
        if name.startswith("ISTIO_META_"):
            metadata[name.removeprefix("ISTIO_META_")] = value
    return Node(id=f"ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local", metadata=metadata)
