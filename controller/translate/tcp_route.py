# SPDX-License-Identifier: Apache-2.0
"""TCPRoutes of services (Gateway API, mesh use) as stream tables.

A route shares out all connections to a port; of several on one port the oldest holds. An
invalid backend's share is refused. Source: gateway-api TCPRoute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.translate.gateway_route import (
    FieldError,
    Finding,
    Parent,
    Rank,
    RouteReader,
    as_list,
    collect_routes,
    source_of,
)
from mesh.config.objects import Path, RawObject
from mesh.model.route import RequestMatch
from mesh.model.service import Service
from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpRoutes:
    """The result: tables by resource name, and what was found on the way."""

    tables: Mapping[str, StreamTable]
    findings: tuple[Finding, ...]
    parents: tuple[Parent, ...]


def translate_tcp_routes(
    routes: Iterable[RawObject], services: Mapping[NamespacedHostname, Service], cluster_domain: str
) -> TcpRoutes:
    """Translate every TCPRoute; never raises for what a route holds."""
    written = list(routes)
    found = collect_routes(written, _TcpRouteReader, services, cluster_domain)
    findings = [*found.findings, *_left_out(written)]
    tables = {}
    for name, table in found.tables.items():
        if not table.rules:
            continue
        first, *others = table.rules
        tables[name] = StreamTable(
            service=table.service,
            port=table.port,
            source=first.source,
            backends=first.backends,
            client_namespace=table.client_namespace,
        )
        holder = first.source.partition("#")[0]
        losers = {rule.source.partition("#")[0] for rule in others} - {holder}
        findings += [
            Finding(
                route=route,
                path=("spec",),
                reason=f"{holder} is older and takes the connections to {table.service}; no effect there",
                severity="warning",
            )
            for route in written
            if source_of(route) in losers
        ]
    return TcpRoutes(tables=tables, findings=tuple(findings), parents=tuple(found.parents))


def _left_out(routes: Iterable[RawObject]) -> Iterable[Finding]:
    for route in routes:
        if len(as_list(route.spec.get("rules"))) > 1:
            reason = "a TCPRoute has one rule; the others have no effect"
            yield Finding(route=route, path=("spec", "rules", 1), reason=reason, severity="warning")


class _TcpRouteReader(RouteReader):
    fields = frozenset({"name", "backendRefs"})
    broken_status = 503

    def read_match(self, raw: Mapping[str, Any], path: Path) -> RequestMatch:
        if raw:
            raise FieldError(path, "a TCPRoute matches every connection")
        return RequestMatch()

    def rank(self, match: RequestMatch) -> Rank:
        return ()
