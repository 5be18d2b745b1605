# SPDX-License-Identifier: Apache-2.0
"""The controller process: watch, translate, serve; one loop, no state but files.

Order of start: authority, ports, first snapshot. Calls that need the snapshot wait for
it, so that no proxy ever takes an empty mesh for the real one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.exposition import choose_encoder

from controller.ca.authorise import Tenants, is_ztunnel
from controller.ca.issue import Authority, server_pair
from controller.ca.service import CertificateService
from controller.metrics import Metrics
from controller.platform import Platform
from controller.translate.mesh import Mesh, translate
from controller.translate.types import Options, Problem
from controller.xds.server import AdsServer
from controller.xds.snapshot import Resources
from mesh.config.objects import Rejection
from mesh.config.source import Snapshot
from mesh.identity.token import TokenClaims
from mesh.runtime.clock import Clock, SystemClock
from mesh.runtime.http import HttpServer, Request, Response, Route, json_response, text
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.runtime.version import VERSION
from mesh.xds.destinations import (
    DESTINATION_TYPE,
    ENDPOINT_LABELS_TYPE,
    encode_destination_policy,
    encode_endpoint_labels,
)
from mesh.xds.encode import encode_address, encode_authorization
from mesh.xds.gateways import GATEWAY_TYPE, encode_gateway
from mesh.xds.http_policy import HTTP_AUTHORIZATION_TYPE, encode_http_authorization
from mesh.xds.providers import AUTHORISER_TYPE, encode_authoriser
from mesh.xds.request_authentication import (
    REQUEST_AUTHENTICATION_TYPE,
    encode_request_authentication,
)
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.xds.routes import ROUTE_TABLE_TYPE, encode_route_table
from mesh.xds.streams import STREAM_TABLE_TYPE, encode_stream_table
from mesh.xds.telemetry import TELEMETRY_TYPE, encode_telemetry

import grpc  # isort: skip

_log = logging.getLogger("controller")

DNS_NAMES = (
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "ambit-controller.istio-system.svc",
    "localhost",
)
SERVER_TTL_S = 86_400.0
DRAIN_S = 3.0
_SERVER_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", 200 * 1024 * 1024),
    # Another process on the port is an error, never a silent share.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one controller runs with."""

    xds_listen: tuple[tuple[str, int], ...]
    admin_listen: tuple[str, int]
    options: Options
    ztunnels: frozenset[str]
    max_ttl_s: float = 86_400.0


class StartError(Exception):
    """The controller cannot start; says what is in the way and what to do."""


class App:
    """Composition root: owns every task, port and file of the process."""

    def __init__(self, settings: Settings, platform: Platform, clock: Clock | None = None) -> None:
        self._settings = settings
        self._platform = platform
        self._clock = clock or SystemClock()
        self._metrics = Metrics()
        self._synced = asyncio.Event()
        self._tasks = TaskOwner("controller")
        self._resources = Resources(
            {
                ADDRESS_TYPE: encode_address,
                AUTHORIZATION_TYPE: encode_authorization,
                HTTP_AUTHORIZATION_TYPE: encode_http_authorization,
                REQUEST_AUTHENTICATION_TYPE: encode_request_authentication,
                # Before the routes that name their subsets.
                ENDPOINT_LABELS_TYPE: encode_endpoint_labels,
                DESTINATION_TYPE: encode_destination_policy,
                ROUTE_TABLE_TYPE: encode_route_table,
                STREAM_TABLE_TYPE: encode_stream_table,
                GATEWAY_TYPE: encode_gateway,
                AUTHORISER_TYPE: encode_authoriser,
                TELEMETRY_TYPE: encode_telemetry,
            },
            # A waypoint that learns of a service has its policies by then.
            named_by_others=frozenset(
                {
                    # Among them whether a service is to be reached by TLS, and the subsets of routes.
                    DESTINATION_TYPE,
                    ENDPOINT_LABELS_TYPE,
                    AUTHORIZATION_TYPE,
                    HTTP_AUTHORIZATION_TYPE,
                    REQUEST_AUTHENTICATION_TYPE,
                    AUTHORISER_TYPE,
                    TELEMETRY_TYPE,
                }
            ),
        )
        self._snapshot = Snapshot(objects={})
        self._mesh: Mesh | None = None
        self._tenants = Tenants(frozenset(), frozenset())
        self._authority = platform.authority
        self._ads = AdsServer(
            resources=self._resources,
            authenticate=platform.tokens.check,
            allow=self._may_read,
            metrics=self._metrics,
            clock=self._clock,
            synced=self._synced,
        )
        self._ca = CertificateService(
            authority=self._authority,
            authenticate=platform.tokens.check,
            tenants=lambda: self._tenants,
            trust_domain=settings.options.trust_domain,
            ztunnels=settings.ztunnels,
            max_ttl_s=settings.max_ttl_s,
            metrics=self._metrics,
            clock=self._clock,
            synced=self._synced,
        )
        self._admin = HttpServer("controller admin", self._routes())

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            StartError: a port or directory cannot be had.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = await self._listen()
        host, port = self._settings.admin_listen
        try:
            await self._admin.start(host, port)
        except OSError as error:
            await server.stop(None)
            raise StartError(
                f"{error.strerror}; end what holds the port or choose another --admin-listen"
            ) from error
        self._metrics.build.labels("controller", VERSION).set(1)
        self._metrics.root_expiry.set(self._authority.certificate.not_valid_after_utc.timestamp())
        loops = {"the objects cannot be followed": self._watch, **self._platform.loops}
        tasks = [create_task(work(), name=name, owner=self._tasks) for name, work in loops.items()]
        for task in tasks:
            task.add_done_callback(lambda _: stop.set())
        try:
            await stop.wait()
            for task in tasks:
                if task.done() and not task.cancelled() and (failure := task.exception()) is not None:
                    raise StartError(f"{task.get_name()}: {failure}") from failure
        finally:
            self._ads.end_streams()
            await server.stop(DRAIN_S)
            await self._admin.close()
            await self._tasks.close()

    async def _listen(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self._ads.handler(), self._ca.handler()))
        for host, port in self._settings.xds_listen:
            # One object a port: gRPC takes dynamic credentials over.
            credentials = _credentials(self._authority, self._settings.xds_listen, self._clock)
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            try:
                bound = server.add_secure_port(address, credentials)
            except RuntimeError as error:
                raise StartError(
                    f"cannot listen on {address}: in use or no address of this machine; "
                    "end what holds it or choose another --xds-listen"
                ) from error
            _log.info("xds and certificates on %s:%d", host, bound)
        await server.start()
        return server

    def _may_read(self, claims: TokenClaims) -> str:
        """Return why a caller may not read the configuration; empty: it may."""
        if is_ztunnel(claims, self._settings.ztunnels):
            return ""
        waypoints = self._mesh.waypoint_pods if self._mesh is not None else frozenset()
        if (claims.namespace, claims.pod_name, claims.pod_uid) in waypoints:
            return ""
        accounts = ", ".join(sorted(self._settings.ztunnels))
        return (
            f"pod {claims.namespace}/{claims.pod_name} of {claims.subject} may not read the mesh's "
            f"configuration, only {accounts} and the pods of waypoints may"
        )

    # --- configuration

    async def _watch(self) -> None:
        async for snapshot in self._platform.source.watch():
            began = time.monotonic()
            self._apply(snapshot)
            self._metrics.convergence.observe(time.monotonic() - began)
            self._synced.set()

    def _apply(self, snapshot: Snapshot) -> None:
        """Take a snapshot over: translate, publish, report. A bug in translation keeps the last state."""
        try:
            with self._metrics.translation.time():
                mesh = translate(
                    self._platform.output.with_statuses(snapshot.objects), self._settings.options
                )
                changes = self._resources.update(_served(mesh))
        except Exception:  # noqa: BLE001 - one bad object must not end the control plane
            _log.exception("the objects cannot be translated; the last state stays in force")
            return
        before = self._reports()
        self._snapshot, self._mesh = snapshot, mesh
        self._tenants = Tenants.of(snapshot.objects)
        self._ads.publish(changes)
        self._count()
        for report in self._reports() - before:
            _log.warning("%s", report)
        for change in changes:
            _log.info("%d of %s changed", len(change.names), change.type_url.rpartition(".")[2])
        wanted = [*self._roots(snapshot), *mesh.derived]
        self._platform.output.write(wanted, mesh.statuses, self._clock.wall())

    def _reports(self) -> set[str]:
        problems = self._mesh.problems if self._mesh is not None else ()
        return {str(rejection) for rejection in self._snapshot.rejections} | {
            str(problem) for problem in problems
        }

    def _count(self) -> None:
        kinds = Counter(key.kind for key in self._snapshot.objects)
        for kind, number in kinds.items():
            self._metrics.objects.labels(kind).set(number)
        for type_url in self._resources.types:
            self._metrics.resources.labels(type_url.rpartition(".")[2]).set(len(self._resources.of(type_url)))
        problems = self._mesh.problems if self._mesh is not None else ()
        severities = Counter(problem.severity for problem in problems)
        self._metrics.problems.labels("rejected").set(len(self._snapshot.rejections))
        for severity in ("error", "warning"):
            self._metrics.problems.labels(severity).set(severities[severity])

    def _roots(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Return the trust bundle of every namespace, as istiod gives it."""
        namespaces = {key.name for key in snapshot.objects if key.kind == "Namespace"}
        # Those of waypoints too: in directories a namespace needs no object.
        namespaces |= {key.namespace for key in snapshot.objects if key.kind == "Gateway"}
        return [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "istio-ca-root-cert", "namespace": namespace},
                "data": {"root-cert.pem": self._authority.bundle_pem.decode()},
            }
            for namespace in sorted(namespaces)
        ]

    # --- admin

    def _routes(self) -> Mapping[str, Route]:
        return {
            "/ready": Route(self._ready, help="200 when the first snapshot is served"),
            "/healthz/ready": Route(self._ready, help="the same, where all our processes have it"),
            "/metrics": Route(self._scrape, help="Prometheus"),
            "/debug/registry": Route(
                self._registry, help="what is served: workloads, services, policies, routes"
            ),
            "/debug/problems": Route(self._problems, help="documents refused, fields not honoured"),
            "/debug/proxies": Route(self._proxies, help="connected proxies and what they refused"),
            "/debug/source": Route(self._source, help="where objects come from, how each kind is followed"),
            "/debug/config": Route(self._config, help="settings"),
        }

    async def _ready(self, _request: Request) -> Response:
        return text("ready") if self._synced.is_set() else text("the objects have not been read yet", 503)

    async def _scrape(self, request: Request) -> Response:
        for row in self._platform.describe():
            if "failingSeconds" in row:
                self._metrics.unfollowed.labels(row["kind"]).set(row["failingSeconds"])
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(body=encode(self._metrics.registry), content_type=content_type)

    async def _registry(self, _request: Request) -> Response:
        mesh = self._mesh
        if mesh is None:
            return json_response({}, 503)
        return json_response(
            {
                "workloads": [_plain(workload) for workload in mesh.workloads.values()],
                "services": [_plain(service) for service in mesh.services.values()],
                "policies": [_plain(policy) for policy in mesh.policies.values()],
                "routes": [_plain(table) for table in mesh.routes.values()],
                "httpPolicies": [_plain(policy) for policy in mesh.http_policies.values()],
                "destinations": [_plain(policy) for policy in mesh.destinations.values()],
                "gateways": [_plain(gateway) for gateway in mesh.gateways.values()],
            }
        )

    async def _problems(self, _request: Request) -> Response:
        problems = self._mesh.problems if self._mesh is not None else ()
        return json_response(
            {
                "rejected": [_rejection(rejection) for rejection in self._snapshot.rejections],
                "problems": [_problem(problem) for problem in problems],
            }
        )

    async def _proxies(self, _request: Request) -> Response:
        return json_response([proxy.describe() for proxy in self._ads.proxies])

    async def _source(self, _request: Request) -> Response:
        return json_response(self._platform.describe())

    async def _config(self, _request: Request) -> Response:
        return json_response(_plain(self._settings))


def _served(mesh: Mesh) -> dict[str, Mapping[str, Any]]:
    """Return what is served of each type, by resource name."""
    return {
        ADDRESS_TYPE: {
            **mesh.workloads,
            **{str(key): service for key, service in mesh.services.items()},
        },
        AUTHORIZATION_TYPE: mesh.policies,
        HTTP_AUTHORIZATION_TYPE: mesh.http_policies,
        REQUEST_AUTHENTICATION_TYPE: mesh.authentications,
        ENDPOINT_LABELS_TYPE: mesh.endpoint_labels,
        DESTINATION_TYPE: mesh.destinations,
        ROUTE_TABLE_TYPE: mesh.routes,
        STREAM_TABLE_TYPE: mesh.streams,
        GATEWAY_TYPE: mesh.gateways,
        AUTHORISER_TYPE: mesh.authorisers,
        TELEMETRY_TYPE: mesh.telemetry,
    }


def _credentials(
    authority: Authority, listen: tuple[tuple[str, int], ...], clock: Clock
) -> grpc.ServerCredentials:
    """Make TLS credentials whose certificate is renewed at half its life."""
    names = [*DNS_NAMES, *(host for host, _ in listen if not ipaddress.ip_address(host).is_unspecified)]
    made_s = clock.wall()

    def configuration() -> grpc.ServerCertificateConfiguration:
        pair = server_pair(authority, names, ttl_s=SERVER_TTL_S, now_s=clock.wall())
        return grpc.ssl_server_certificate_configuration([pair])

    def renew() -> Any:
        nonlocal made_s
        if clock.wall() - made_s < SERVER_TTL_S / 2:
            return None  # gRPC: as it was.
        made_s = clock.wall()
        return configuration()

    return grpc.dynamic_ssl_server_credentials(configuration(), renew)


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "object": str(problem.key),
        "file": problem.file,
        "line": problem.line,
        "path": list(problem.path),
        "severity": problem.severity,
        "reason": problem.reason,
    }


def _rejection(rejection: Rejection) -> dict[str, Any]:
    return {"file": rejection.file, "line": rejection.line, "reason": rejection.reason}


def _plain(value: Any) -> Any:
    """Turn model values into what JSON knows."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(getattr(value, "value", value))
