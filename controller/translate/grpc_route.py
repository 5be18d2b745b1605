# SPDX-License-Identifier: Apache-2.0
"""GRPCRoutes of services (Gateway API, mesh use) as route tables.

A call is a request to `/SERVICE/METHOD`. Order of precedence is Gateway API's: longest
service, longest method, most headers, oldest route, name, first rule; regular expressions
come after names. An invalid backend is answered UNAVAILABLE. Source: gateway-api GRPCRoute v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from controller.translate.gateway_route import (
    FieldError,
    GatewayRoutes,
    Rank,
    RouteReader,
    as_mapping,
    check_regex,
    collect_routes,
    read_values,
)
from mesh.config.objects import Path, RawObject
from mesh.model.route import PathKind, PathMatch, RequestMatch
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

_SERVICE = re.compile(r"\.?[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_ANY = "[^/]+"


def translate_grpc_routes(
    routes: Iterable[RawObject], services: Mapping[NamespacedHostname, Service], cluster_domain: str
) -> GatewayRoutes:
    """Translate every GRPCRoute; never raises for what a route holds."""
    return collect_routes(routes, GrpcRouteReader, services, cluster_domain)


class GrpcRouteReader(RouteReader):
    """Reads one GRPCRoute."""

    fields = frozenset({"name", "matches", "filters", "backendRefs"})
    broken_status = 503
    """UNAVAILABLE, to a gRPC client."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ranks: dict[PathMatch | None, Rank] = {None: (False, 0, 0)}

    def read_match(self, raw: Mapping[str, Any], path: Path) -> RequestMatch:
        """Read one match."""
        for name in sorted(map(str, raw.keys() - {"method", "headers"})):
            raise FieldError((*path, name), "is not known")
        method = raw.get("method")
        return RequestMatch(
            path=self._path(as_mapping(method), (*path, "method")) if method is not None else None,
            headers=read_values(raw.get("headers"), (*path, "headers"), lower=True),
        )

    def rank(self, match: RequestMatch) -> Rank:
        """Return the sort key of a match."""
        return (*self._ranks[match.path], -len(match.headers))

    def _path(self, raw: Mapping[str, Any], path: Path) -> PathMatch:
        service, method = (_text(raw, name, path) for name in ("service", "method"))
        if not service and not method:
            raise FieldError(path, "needs a service, a method or both")
        kind = raw.get("type") or "Exact"
        if kind == "RegularExpression":
            made = _expression(service, method, path)
        elif kind == "Exact":
            made = _names(service, method, path)
        else:
            raise FieldError((*path, "type"), f"{kind!r} is not supported")
        self._ranks[made] = (kind == "RegularExpression", -len(service), -len(method))
        return made


def _names(service: str, method: str, path: Path) -> PathMatch:
    for name, value, valid in (("service", service, _SERVICE), ("method", method, _METHOD)):
        if value and valid.fullmatch(value) is None:
            raise FieldError((*path, name), f"{value[:100]!r} is no name of a gRPC {name}")
    if service and method:
        return PathMatch(kind=PathKind.EXACT, value=f"/{service}/{method}")
    if service:
        return PathMatch(kind=PathKind.PREFIX, value=f"/{service}/")
    return PathMatch(kind=PathKind.REGEX, value=f"/{_ANY}/{method}")


def _expression(service: str, method: str, path: Path) -> PathMatch:
    for name, value in (("service", service), ("method", method)):
        check_regex(value, (*path, name))
    parts = (f"(?:{part})" if part else _ANY for part in (service, method))
    return PathMatch(kind=PathKind.REGEX, value="/" + "/".join(parts))


def _text(raw: Mapping[str, Any], name: str, path: Path) -> str:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise FieldError((*path, name), "must be text")
    return value or ""
