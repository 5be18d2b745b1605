# SPDX-License-Identifier: Apache-2.0
"""The composition root of a waypoint: builds every part, starts and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from mesh.config.environment import ListenAddress
from mesh.hbone.limits import Limits
from mesh.hbone.opener import OpenerSettings, TunnelOpener
from mesh.identity.ca_client import CaClient, CaSettings
from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.contexts import TlsContexts
from mesh.identity.manager import CertificateManager
from mesh.identity.spiffe import SpiffeId
from mesh.model.telemetry import Tracer, TracerProtocol
from mesh.model.workload import Workload
from mesh.net.listener import Listener
from mesh.net.relay import End
from mesh.net.sockets import Peer, dial, plain_socket
from mesh.runtime.clock import Clock, SystemClock
from mesh.runtime.http import HttpServer
from mesh.runtime.readiness import Readiness
from mesh.runtime.surfaces import metrics_server, readiness_server
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.runtime.version import VERSION
from mesh.telemetry.metrics import (
    BUILD,
    TRACE_SPANS,
    TUNNEL_HANDSHAKE_SECONDS,
    XDS_MESSAGE_BYTES,
    XDS_MESSAGES,
    XDS_TERMINATIONS,
    Metric,
)
from mesh.telemetry.series import Recorder, Totals
from mesh.telemetry.trace_export import Emitter
from mesh.xds.client import Node, Settings, Status, XdsClient
from mesh.xds.destinations import DESTINATION_TYPE, ENDPOINT_LABELS_TYPE
from mesh.xds.gateways import GATEWAY_TYPE
from mesh.xds.gauges import StateCollector
from mesh.xds.resource import ADDRESS_TYPE, Rejection, Update
from waypoint.admin import Admin
from waypoint.config import Config
from waypoint.dial import Dialer
from waypoint.explain import answer_question
from waypoint.fetch import Fetcher, begin_own
from waypoint.filters.keys import KeyStore
from waypoint.filters.tokens import TokenChecker
from waypoint.gauges import OpenCollector
from waypoint.inbound import Inbound
from waypoint.ingress import Ingress
from waypoint.proxy.call import Open
from waypoint.proxy.pool import Endpoint, Pool, PoolLimits
from waypoint.proxy.pool2 import Http2Pool
from waypoint.requests import Proxy
from waypoint.tables import TYPES, Tables
from waypoint.telemetry import Telemetry
from waypoint.trace_queue import TraceQueues
from waypoint.tracing import Tracing
from waypoint.tries import Shared
from waypoint.upstreams import Address, Upstreams

_log = logging.getLogger("waypoint")

TICK_S = 1.0
PIECE_PAUSE_S = 0.001
TRACES_DRAIN_S = 2.0
"""What a process that ends waits for collectors at most."""
POOL_IDLE_S = 300.0
TUNNEL_TIMEOUT_S = 15.0
WANT_CERTIFICATE_S = 5.0
BACKLOG = 1024
LINGER_S = 3.0
"""How long a waypoint that ends goes on as before."""
CONTROLLER = "controller"
CERTIFICATE = "certificate"
OWN = "own workload"
LISTENERS = "listeners"


class App:
    """One waypoint process; `run` returns when it has drained."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.readiness = Readiness((CONTROLLER, CERTIFICATE, OWN, *([LISTENERS] if config.ingress else [])))
        self._tasks = TaskOwner("waypoint")
        self._stopping = asyncio.Event()
        self._seen: Counter[tuple[Metric, str]] = Counter()
        self._recorder = Recorder()
        self._totals = Totals(max_series=config.max_series)
        self.tables = Tables(
            namespace=config.namespace,
            gateway=config.gateway,
            network=config.network,
            root_namespace=config.root_namespace,
            ingress=config.ingress,
        )
        self._identity = SpiffeId.parse(config.identity)
        ca = CaClient(
            CaSettings(
                address=config.ca_address,
                roots=config.ca_root_ca,
                server_name=config.ca_server_name,
                token=config.auth_token,
                cluster_id=config.cluster_id,
            ),
            self.clock,
        )
        self.certificates = CertificateManager(
            lambda identity: ca.fetch(identity, config.secret_ttl_s), self.clock
        )
        self.certificates.on_update(self._certified)
        self._tls = TlsContexts(self.certificates, wait_s=WANT_CERTIFICATE_S)
        self._opener = TunnelOpener(
            f"waypoint {self.tables.gateway}",
            OpenerSettings(
                connect_timeout_s=config.connect_timeout_s,
                tunnel_timeout_s=TUNNEL_TIMEOUT_S,
                idle_s=POOL_IDLE_S,
                limits=Limits(),
            ),
            connect=self._connect,
            context=self._tls.client,
            on_handshake=partial(self._recorder.observe, TUNNEL_HANDSHAKE_SECONDS, ("source",)),
            clock=self.clock,
        )
        self.proxy = self._make_proxy()
        self.inbound = Inbound(
            config,
            self.proxy,
            self._tls,
            limits=Limits(),
            clock=self.clock,
            tasks=self._tasks,
        )
        self.ingress = Ingress(config, self.proxy, self._tasks) if config.ingress else None
        self._front: Inbound | Ingress = self.ingress or self.inbound
        """Where the clients are."""
        self.xds = XdsClient(
            settings=Settings(
                address=config.xds_address,
                roots=config.xds_root_ca,
                server_name=config.xds_server_name,
                token=config.auth_token,
                cluster_id=config.cluster_id,
            ),
            node=_node(config),
            types=TYPES,
            on_update=self._updated,
            clock=self.clock,
            on_status=self._xds_status,
        )
        self._certificate: WorkloadCertificate | None = None
        self._listeners: list[Listener] = []
        self._servers: list[HttpServer] = []

    def _make_proxy(self) -> Proxy:
        config = self.config
        limits = PoolLimits(
            connections=config.max_upstream_connections,
            pending=config.max_pending,
            connect_s=config.connect_timeout_s,
        )
        pool = Pool(
            dial=partial(self._dial, "http/1.1"), call_later=_call_later, owner=self._tasks, limits=limits
        )
        pool2 = Http2Pool(
            dial=partial(self._dial, "h2"), call_later=_call_later, owner=self._tasks, limits=limits
        )

        def close_idle(keys: Sequence[Hashable]) -> None:
            pool.close_idle(keys)
            pool2.close_idle(keys)

        source = self.own if config.ingress else None
        telemetry = Telemetry(self._recorder, config.access_log, self.clock.monotonic, source)
        upstreams = Upstreams(
            self.tables,
            own=self.own,
            recorder=self._recorder,
            now=self.clock.monotonic,
            random=random.random,
            close_idle=close_idle,
            defer=_in_pieces,
        )
        dialer = Dialer(
            self._opener,
            own=self.own,
            identity=config.identity,
            connect_timeout_s=config.connect_timeout_s,
            random=random.random,
        )

        def open_tracer(tracer: Tracer) -> Open:
            chosen = pool2 if tracer.protocol is TracerProtocol.OTLP_GRPC else pool
            return begin_own(self.tables, upstreams, chosen, tracer.service, tracer.port)

        self.traces = TraceQueues(_emitter(config), open_tracer, self._count_spans, self._tasks)
        fetcher = Fetcher(self.tables, upstreams, pool, config.namespace)
        return Proxy(
            tables=self.tables,
            upstreams=upstreams,
            dialer=dialer,
            pool=pool,
            pool2=pool2,
            shared=Shared(
                tables=self.tables, upstreams=upstreams, pool=pool, pool2=pool2, call_later=_call_later
            ),
            tasks=self._tasks,
            keys=KeyStore(fetcher.fetch, self.clock.monotonic, self._tasks),
            checker=TokenChecker(),
            clock=self.clock,
            telemetry=telemetry,
            tracing=Tracing(
                self.traces.offer, self.clock, random.random, random.getrandbits, config.cluster_id
            ),
            call_later=_call_later,
            random=random.random,
        )

    async def run(self) -> None:
        """Start, serve until told to end, drain.

        Raises:
            OSError: a port cannot be had; names it.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self._recorder.add(BUILD, ("waypoint", VERSION), 1)
        await self._serve_http()
        if self.ingress is None:
            self._listen()
        self.certificates.prefetch(self._identity)
        create_task(self.xds.run(), name="xds", owner=self._tasks)
        create_task(self._tick(), name="tick", owner=self._tasks)
        await self._stopping.wait()
        await self._drain()

    def stop(self) -> None:
        """Begin the drain; a second call ends the process at once."""
        if self._stopping.is_set():
            _log.warning("told to end twice: ending now, live requests are cut")
            os._exit(1)
        self._stopping.set()

    def own(self) -> Workload | None:
        """Find this pod's workload as the controller has it now."""
        config = self.config
        return self.tables.store.find_local(
            name=config.pod,
            namespace=config.namespace,
            service_account=config.service_account,
            node=config.node,
        )

    # --- ports

    async def _serve_http(self) -> None:
        config = self.config
        admin = Admin(
            config,
            self.tables,
            certificates=self.certificates.statuses,
            clusters=self.proxy.upstreams.clusters,
            status=self.status,
            explain=partial(answer_question, self.inbound),
            quit_now=self._stopping.set,
        )
        gauges = StateCollector(
            lambda: (self._certificate,) if self._certificate is not None else (),
            lambda: self.xds.status,
            component="waypoint",
            version=VERSION,
        )
        wanted: tuple[tuple[HttpServer, ListenAddress], ...] = (
            (admin.server(), config.admin),
            (metrics_server(self._totals, self._collect, gauges, OpenCollector(self._open)), config.metrics),
            (readiness_server(self.readiness), config.readiness),
        )
        for server, address in wanted:
            await server.start(address.host, address.port)
            self._servers.append(server)

    def _listen(self) -> None:
        port = self.config.hbone_port
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                sock = plain_socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # This machine has no IPv6.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((host, port))
                sock.listen(BACKLOG)
            except OSError as error:
                sock.close()
                raise OSError(
                    error.errno, f"port {port} cannot be had: {error.strerror}; AMBIT_HBONE_PORT sets another"
                ) from error
            self._listeners.append(Listener(sock, self.inbound.accept, "HBONE"))

    async def _connect(self, target: Peer) -> socket.socket:
        timeout_s = self.config.connect_timeout_s
        return await dial(plain_socket, target, timeout_s=timeout_s, what=f"HBONE peer {target}")

    async def _dial(self, alpn: str, endpoint: Endpoint) -> End:
        assert isinstance(endpoint, Address)
        return await self.proxy.dialer.dial(endpoint, alpn=alpn)

    # --- configuration

    def _updated(self, update: Update) -> tuple[Rejection, ...]:
        rejected = self.tables.apply(update)
        for rejection in rejected:
            _log.warning("resource %s rejected: %s", rejection.name, rejection.reason)
        if update.type_url in (ADDRESS_TYPE, DESTINATION_TYPE, ENDPOINT_LABELS_TYPE):
            self.proxy.upstreams.forget()
        if update.type_url == ADDRESS_TYPE and self.own() is not None:
            self.readiness.done(OWN)
        if update.type_url == GATEWAY_TYPE:
            self._open_listeners()
        return rejected

    def _open_listeners(self) -> None:
        if self.ingress is not None:
            self.ingress.update()
            if self.ingress.complete:
                self.readiness.done(LISTENERS)

    def _xds_status(self, status: Status) -> None:
        # Once in force, state stays in force: a lost controller does not make a waypoint unready.
        if status.synced:
            self.readiness.done(CONTROLLER)

    def _certified(self, certificate: WorkloadCertificate) -> None:
        self._certificate = certificate
        self.readiness.done(CERTIFICATE)

    def status(self) -> dict[str, object]:
        """Describe the process for the admin port."""
        xds = self.xds.status
        return {
            "ready": self.readiness.ready,
            "pending": list(self.readiness.pending),
            "gateway": self.tables.gateway,
            "controller": {
                "address": self.config.xds_address,
                "connected": xds.connected,
                "synced": xds.synced,
                "age_s": xds.age_s,
                "last_error": xds.last_error,
                "rejected": dict(xds.rejected),
            },
            "connections": len(self._front),
            "streams": self._front.streams,
            "listeners": self.ingress.ports if self.ingress is not None else [self.config.hbone_port],
            "listener_problems": list(self.ingress.problems.values()) if self.ingress is not None else [],
            "upstream_connections": self.proxy.pool.connections + self.proxy.pool2.connections,
            "upstream_pending": self.proxy.pool.pending + self.proxy.pool2.pending,
        }

    def _open(self) -> dict[str, int]:
        pools = (self.proxy.pool, self.proxy.pool2)
        return {
            "hbone": len(self.inbound),
            "tunnel": self.inbound.streams,
            "upstream": sum(pool.connections for pool in pools),
            "pending": sum(pool.pending for pool in pools),
        }

    # --- time

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._opener.expire()
            self._open_listeners()
            self.proxy.upstreams.tick()
            self._collect()
            self._totals.evict(self.clock.monotonic() - self.config.series_idle_s)

    def _count_spans(self, provider: str, result: str, spans: int) -> None:
        self._recorder.add(TRACE_SPANS, (provider, result), spans)

    def _collect(self) -> None:
        """Bring what was counted into the totals."""
        for metric, counter in (
            (XDS_MESSAGES, self.xds.messages),
            (XDS_MESSAGE_BYTES, self.xds.message_bytes),
            (XDS_TERMINATIONS, self.xds.terminations),
        ):
            for label, value in counter.items():
                grown = value - self._seen[metric, label]
                if grown:
                    self._recorder.add(metric, (label,), grown)
                    self._seen[metric, label] = value
        self.proxy.telemetry.flush()
        self._totals.apply("waypoint", self._recorder.take(), self.clock.monotonic())

    async def _drain(self) -> None:
        deadline_s = self.config.drain_deadline_s
        _log.info("draining: no new tunnels, running requests have %g s", deadline_s)
        self.readiness.block("draining")
        self._front.drain()
        # Clients that have not heard of the end yet open tunnels a moment longer.
        await asyncio.sleep(min(LINGER_S, deadline_s / 4))
        self._front.wind_down()
        if not await self._emptied(deadline_s / 2):
            self._front.end_idle()
            if not await self._emptied(deadline_s / 4):
                _log.warning("%d connections cut at the drain deadline", len(self._front))
        for listener in self._listeners:
            listener.close()
        self._front.close()
        await self.traces.drain(TRACES_DRAIN_S)
        await self._tasks.close()
        self.proxy.pool.close_idle()
        self.proxy.pool2.close_idle()
        self._opener.close()
        await self.certificates.close()
        for server in self._servers:
            await server.close()
        _log.info("drained")

    async def _emptied(self, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._front.wait_empty()
        return not len(self._front)


def _call_later(delay_s: float, callback: object) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, callback)  # type: ignore[arg-type]


def _emitter(config: Config) -> Emitter:
    """Build the resource that spans are of; `service.name` as Istio's waypoints have it."""
    attributes = {
        "service.namespace": config.namespace,
        "service.instance.id": config.pod,
        "service.version": VERSION,
        "k8s.pod.name": config.pod,
        "k8s.namespace.name": config.namespace,
        "k8s.node.name": config.node,
        "k8s.cluster.name": config.cluster_id,
    }
    return Emitter(
        service=f"{config.gateway}.{config.namespace}", version=VERSION, attributes=tuple(attributes.items())
    )


def _in_pieces(step: Callable[[], bool]) -> None:
    """Run a piece of long work on each turn of the loop, so that requests are served in between."""
    if step():
        _call_later(PIECE_PAUSE_S, lambda: _in_pieces(step))


def _node(config: Config) -> Node:
    """Build the node that the controller knows us by; Istio's form."""
    metadata = {
        "NAME": config.pod,
        "NAMESPACE": config.namespace,
        "INSTANCE_IPS": config.address,
        "NODE_NAME": config.node,
        "CLUSTER_ID": config.cluster_id,
        "GATEWAY_NAME": config.gateway,
    }
    name = f"{config.pod}.{config.namespace}"
    return Node(
        id=f"waypoint~{config.address}~{name}~{config.namespace}.svc.cluster.local", metadata=metadata
    )
