# SPDX-License-Identifier: Apache-2.0
"""The admin port of a waypoint (loopback only): what is in force, what is open, log levels.

Reads state; the only things that it changes are log levels and, on request, the process's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from mesh.identity.manager import CertificateStatus
from mesh.model.telemetry import TelemetryPolicy
from mesh.runtime.http import BadRequestError, HttpServer, Request, Response, Route, json_response, text
from mesh.runtime.surfaces import plain
from mesh.runtime.version import VERSION
from mesh.telemetry.logging import level_name, set_level
from waypoint.config import Config
from waypoint.tables import Tables


class Admin:
    """Answers the admin port's requests."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        *,
        certificates: Callable[[], Iterable[CertificateStatus]],
        clusters: Callable[[], object],
        status: Callable[[], object],
        explain: Callable[[Request], Response],
        quit_now: Callable[[], None],
    ) -> None:
        self._config = config
        self._tables = tables
        self._certificates = certificates
        self._clusters = clusters
        self._status = status
        self._explain = explain
        self._quit = quit_now
        self._routes = {
            "/": Route(self._index, help="this list"),
            "/config_dump": Route(self._config_dump, help="state, settings and certificates (no keys)"),
            "/routes": Route(self._show_routes, help="route tables in force"),
            "/policies": Route(self._show_policies, help="L7 policies in force, and those that are broken"),
            "/clusters": Route(
                self._show_clusters, help="services in use: endpoints, their load and health, bounds"
            ),
            "/explain": Route(
                self._answer,
                help="what would become of a request: ?identity=SPIFFE&source_ip=IP&authority=IP:PORT"
                "[&method=M&path=P&host=H&headers=K:V]",
            ),
            "/status": Route(self._show_status, help="controller, connections, requests"),
            "/logging": Route(self._logging, ("GET", "POST"), "log level; POST ?level=debug"),
            "/quitquitquit": Route(self._quitquitquit, ("POST",), "POST: drain and end"),
        }

    def server(self) -> HttpServer:
        """Build the server of the admin port."""
        return HttpServer("admin", self._routes)

    async def _index(self, _request: Request) -> Response:
        return text("\n".join(f"{path:16} {route.help}" for path, route in self._routes.items()))

    async def _config_dump(self, _request: Request) -> Response:
        store = self._tables.store
        return json_response(
            {
                "version": VERSION,
                "config": plain(self._config),
                "certificates": [_certificate(status) for status in self._certificates()],
                "services": [plain(service) for service in store.services.values()],
                "workloads": [plain(workload) for workload in store.workloads.values()],
                "routes": [plain(table) for table in self._tables.tables()],
                "destinations": [plain(policy) for policy in self._tables.destinations()],
                "policies": [plain(policy) for policy in self._tables.policies()],
                "brokenPolicies": self._tables.broken,
                "telemetry": [_telemetry(policy) for policy in self._tables.telemetry()],
            }
        )

    async def _show_routes(self, _request: Request) -> Response:
        return json_response([plain(table) for table in self._tables.tables()])

    async def _show_policies(self, _request: Request) -> Response:
        return json_response(
            {
                "policies": [plain(policy) for policy in self._tables.policies()],
                "broken": self._tables.broken,
            }
        )

    async def _show_clusters(self, _request: Request) -> Response:
        return json_response(self._clusters())

    async def _answer(self, request: Request) -> Response:
        return self._explain(request)

    async def _show_status(self, _request: Request) -> Response:
        return json_response(self._status())

    async def _logging(self, request: Request) -> Response:
        if request.method == "POST":
            try:
                set_level(request.query.get("level", ""))
            except ValueError as error:
                raise BadRequestError(400, f"{error}; use ?level=debug") from error
        return text(f"current log level is {level_name()}")

    async def _quitquitquit(self, _request: Request) -> Response:
        self._quit()
        return text("shutdown now")


def _telemetry(policy: TelemetryPolicy) -> object:
    """Show a policy without the values of headers, which may be keys of a collector."""
    tracers = policy.tracing.tracers
    if tracers is not None:
        hidden = tuple(
            replace(tracer, headers=tuple((name, "...") for name, _ in tracer.headers)) for tracer in tracers
        )
        policy = replace(policy, tracing=replace(policy.tracing, tracers=hidden))
    return plain(policy)


def _certificate(status: CertificateStatus) -> dict[str, object]:
    certificate = status.certificate
    return {
        "identity": str(status.identity),
        "state": status.state.value,
        "error": status.error,
        "serialNumber": certificate.serial if certificate is not None else "",
        "expirationTime": certificate.not_after_s if certificate is not None else None,
    }
