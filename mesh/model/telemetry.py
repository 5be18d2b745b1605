# SPDX-License-Identifier: Apache-2.0
"""What waypoints trace, log and count: one `TelemetryPolicy` for each scope, and what the scopes add up to.

Pure. Scopes from wide to narrow: the mesh's configuration, the root namespace, the waypoint's
namespace, the waypoint, the service; what a narrower one leaves unsaid it has from the wider.
Source: istio.telemetry.v1.Telemetry.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mesh.model.workload import NamespacedHostname

DEFAULT_SAMPLING_PERCENT = 1.0
"""Source: Istio, MeshConfig.defaultConfig.tracing.sampling."""
DEFAULT_TAG_LENGTH = 256
"""Source: Istio, maxTagLength."""


class TracerProtocol(enum.Enum):
    """What a collector is sent."""

    OTLP_GRPC = "otlp-grpc"
    OTLP_HTTP = "otlp-http"
    ZIPKIN = "zipkin"
    """JSON of Zipkin's API v2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracer:
    """A collector of spans (MeshConfig's extensionProviders `opentelemetry` and `zipkin`)."""

    name: str
    service: NamespacedHostname
    port: int
    """Service port, host-order."""
    protocol: TracerProtocol
    path: str = ""
    """HTTP: path of the request; gRPC has its own."""
    headers: tuple[tuple[str, str], ...] = ()
    """Added to each export; names in lower case."""
    timeout_s: float = 10.0
    max_tag_length: int = DEFAULT_TAG_LENGTH
    """Longest value of an attribute, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomTag:
    """An attribute of every span: a text, or a request's header with the text where it is missing."""

    name: str
    value: str = ""
    header: str = ""
    """Lower case; empty: always `value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """What one scope says of spans; None is unsaid."""

    tracers: tuple[Tracer, ...] | None = None
    sampling_percent: float | None = None
    """Of the requests that come without a decision."""
    disabled: bool | None = None
    """No spans; contexts that come are passed on as they are."""
    tags: tuple[CustomTag, ...] | None = None

    def under(self, wider: Tracing) -> Tracing:
        """Return this with what it leaves unsaid from a wider scope."""
        return Tracing(
            tracers=wider.tracers if self.tracers is None else self.tracers,
            sampling_percent=(
                wider.sampling_percent if self.sampling_percent is None else self.sampling_percent
            ),
            disabled=wider.disabled if self.disabled is None else self.disabled,
            tags=wider.tags if self.tags is None else self.tags,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOverride:
    """What becomes of one of Istio's metrics."""

    metric: str
    """Of the exposition, without `_total`; empty: every one."""
    disabled: bool | None = None
    removed: tuple[str, ...] = ()
    """Labels left empty, which to Prometheus is the same as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryPolicy:
    """What one scope says."""

    name: str
    """Empty: the mesh's configuration."""
    namespace: str
    services: tuple[NamespacedHostname, ...] = ()
    waypoints: tuple[str, ...] = ()
    """`namespace/name` of gateways; `*`: every waypoint. Neither these nor services: the namespace."""
    tracing: Tracing = Tracing()
    log: bool | None = None
    """Whether requests leave a line in the access log; None is unsaid."""
    log_above: int = 0
    """Of those with a line: only the ones whose status is this or more."""
    metrics: tuple[MetricOverride, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`, its name on the wire."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What holds for one destination."""

    tracers: tuple[Tracer, ...] = ()
    """Empty: nothing is traced, contexts are passed on as they are."""
    sampling_percent: float = DEFAULT_SAMPLING_PERCENT
    tags: tuple[CustomTag, ...] = ()
    log: bool | None = None
    log_above: int = 0
    metrics: tuple[MetricOverride, ...] = ()

    @property
    def zipkin(self) -> bool:
        """Whether a collector is Zipkin, whose clients know B3."""
        return any(tracer.protocol is TracerProtocol.ZIPKIN for tracer in self.tracers)

    def without(self, metric: str) -> bool:
        """Whether a metric is not counted."""
        found = False
        for override in self.metrics:
            if override.metric in ("", metric) and override.disabled is not None:
                found = override.disabled
        return found

    def removed(self, metric: str) -> frozenset[str]:
        """Return the labels that a metric has lost."""
        return frozenset(
            label
            for override in self.metrics
            if override.metric in ("", metric)
            for label in override.removed
        )


def observe(
    policies: Iterable[TelemetryPolicy], *, gateway: str, service: NamespacedHostname | None, root: str
) -> Observed:
    """Add up what holds for a service, or (None) a workload, at the waypoint `gateway` (`namespace/name`)."""
    namespace = gateway.partition("/")[0]
    ranked = []
    for policy in policies:
        rank = _rank(policy, gateway, namespace, service, root)
        if rank is not None:
            ranked.append((rank, policy.key, policy))
    tracing, found = Tracing(), Observed()
    for _, _, policy in sorted(ranked, key=lambda entry: entry[:2]):
        tracing = policy.tracing.under(tracing)
        if policy.log is not None:
            found = replace(found, log=policy.log, log_above=policy.log_above)
        found = replace(found, metrics=(*found.metrics, *policy.metrics))
    sampling = tracing.sampling_percent
    return replace(
        found,
        tracers=() if tracing.disabled else tracing.tracers or (),
        sampling_percent=DEFAULT_SAMPLING_PERCENT if sampling is None else sampling,
        tags=tracing.tags or (),
    )


def _rank(
    policy: TelemetryPolicy, gateway: str, namespace: str, service: NamespacedHostname | None, root: str
) -> int | None:
    """Return how narrow a policy's scope is; None: it is for others."""
    if service is not None and service in policy.services:
        return 5
    if gateway in policy.waypoints:
        return 4
    if "*" in policy.waypoints:
        return 2
    if policy.services or policy.waypoints:
        return None
    if not policy.name:
        return 0
    if policy.namespace == root:
        return 1
    return 3 if policy.namespace == namespace else None
