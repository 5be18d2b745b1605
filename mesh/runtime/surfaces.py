# SPDX-License-Identifier: Apache-2.0
"""HTTP surfaces that proxies share: metrics, readiness, and plain values for JSON. Never a key."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from mesh.runtime.http import HttpServer, Request, Response, Route, text
from mesh.runtime.readiness import Readiness
from mesh.telemetry.exposition import TotalsCollector, render
from mesh.telemetry.series import Totals


def metrics_server(totals: Totals, before: Callable[[], None], *collectors: Collector) -> HttpServer:
    """Build the server of the metrics port; `before` runs ahead of each scrape."""
    registry = CollectorRegistry()
    registry.register(TotalsCollector(totals))
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)

    async def scrape(request: Request) -> Response:
        before()
        body, content_type = render(registry, request.headers.get("accept", ""))
        return Response(body=body, content_type=content_type)

    return HttpServer("metrics", {path: Route(scrape) for path in ("/metrics", "/stats/prometheus")})


def readiness_server(readiness: Readiness) -> HttpServer:
    """Build the server of the readiness port."""

    async def ready(_request: Request) -> Response:
        if readiness.ready:
            return text("ready")
        return text(f"not ready, pending: {', '.join(readiness.pending)}", 500)

    return HttpServer("readiness", {"/healthz/ready": Route(ready)})


def plain(value: object) -> object:
    """Turn model values into what JSON can hold; keys in camel case, as Istio's config_dump has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_camel(item.name): plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
