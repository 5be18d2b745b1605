# SPDX-License-Identifier: Apache-2.0
"""Names, types and label sets of every metric that a proxy exposes, and how labels are filled.

The TCP and HTTP metrics are Istio's, label for label and in its order, so that its dashboards
and Kiali read them unchanged. Values live in `series`, the exposition in `exposition`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.model.service import Service
from mesh.model.workload import Workload

UNKNOWN = "unknown"
Labels = tuple[str, ...]


class MetricType(enum.Enum):
    """How values of a metric add up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric family; a counter's name is without `_total`. Compared by identity: there is one of each."""

    name: str
    kind: MetricType
    help: str
    labels: Labels
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, ascending, without +Inf."""

    @property
    def width(self) -> int:
        """How many numbers one series holds: 1, or of a histogram the buckets, +Inf and the sum."""
        return len(self.buckets) + 2 if self.kind is MetricType.HISTOGRAM else 1

    def observe(self, value: float) -> tuple[float, ...]:
        """Return what one observation adds to a histogram's series."""
        cells = [0.0] * self.width
        for index, bound in enumerate(self.buckets):
            if value <= bound:
                cells[index] = 1.0
                break
        else:
            cells[len(self.buckets)] = 1.0
        cells[-1] = value
        return tuple(cells)


_PEER = (
    "workload",
    "canonical_service",
    "canonical_revision",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "cluster",
)
TCP_LABELS: Labels = (
    "reporter",
    *(f"source_{name}" for name in _PEER),
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    *(f"destination_{name}" for name in _PEER),
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
)
"""Source: Istio's standard metrics as its ztunnel emits them."""
HTTP_LABELS: Labels = (
    *TCP_LABELS[: TCP_LABELS.index("request_protocol") + 1],
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
)
"""Source: Istio's standard metrics as its waypoints emit them."""
_DNS_LABELS: Labels = (
    "request_query_type",
    "request_protocol",
    "source_canonical_service",
    "source_canonical_revision",
)


def _counter(name: str, text: str, labels: Labels) -> Metric:
    return Metric(name, MetricType.COUNTER, text, labels)


CONNECTIONS_OPENED = _counter("istio_tcp_connections_opened", "TCP connections opened", TCP_LABELS)
CONNECTIONS_CLOSED = _counter("istio_tcp_connections_closed", "TCP connections closed", TCP_LABELS)
CONNECTIONS_FAILED = _counter(
    "istio_tcp_connections_failed", "TCP connections that failed, by reason", TCP_LABELS
)
RECEIVED_BYTES = _counter("istio_tcp_received_bytes", "Bytes from client to server", TCP_LABELS)
SENT_BYTES = _counter("istio_tcp_sent_bytes", "Bytes from server to client", TCP_LABELS)
# Source: Envoy's stats filter, whose histograms these are bucket for bucket.
_BUCKETS = (
    *(0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0),
    *(1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0),
    *(300_000.0, 600_000.0, 1_800_000.0, 3_600_000.0),
)
HTTP_REQUESTS = _counter("istio_requests", "Requests answered", HTTP_LABELS)
HTTP_DURATION_MS = Metric(
    "istio_request_duration_milliseconds",
    MetricType.HISTOGRAM,
    "Time from a request's head to the end of its response",
    HTTP_LABELS,
    _BUCKETS,
)
HTTP_REQUEST_BYTES = Metric(
    "istio_request_bytes", MetricType.HISTOGRAM, "Size of request bodies", HTTP_LABELS, _BUCKETS
)
HTTP_RESPONSE_BYTES = Metric(
    "istio_response_bytes", MetricType.HISTOGRAM, "Size of response bodies", HTTP_LABELS, _BUCKETS
)
_ROUTE: Labels = ("destination_service", "destination_service_namespace", "rule")
ROUTE_REQUESTS = _counter(
    "ambit_route_requests",
    "Requests by the rule that decided them: kind/namespace/name#index, or default",
    (*_ROUTE, "response_code"),
)
ROUTE_DURATION_MS = Metric(
    "ambit_route_duration_milliseconds",
    MetricType.HISTOGRAM,
    "Time from a request's head to the end of its response, by the rule that decided it",
    _ROUTE,
    _BUCKETS,
)
HTTP_RETRIES = _counter(
    "ambit_http_retries",
    "Tries after the first, by the service that was asked for",
    ("destination_service", "destination_service_namespace"),
)
_CLUSTER: Labels = (
    "destination_service",
    "destination_service_namespace",
    "destination_port",
    "destination_subset",
)
ENDPOINTS_EJECTED = Metric(
    "ambit_endpoints_ejected", MetricType.GAUGE, "Endpoints left out by outlier detection now", _CLUSTER
)
ENDPOINT_EJECTIONS = _counter(
    "ambit_endpoint_ejections", "Endpoints left out by outlier detection, by cause", (*_CLUSTER, "cause")
)
CIRCUIT_OPEN = Metric(
    "ambit_circuit_open",
    MetricType.GAUGE,
    "1: a bound of the service's policy is reached",
    (*_CLUSTER, "limit"),
)
CIRCUIT_OVERFLOWS = _counter(
    "ambit_circuit_overflows",
    "Requests, retries and connections that a bound of the service's policy did not allow",
    (*_CLUSTER, "limit"),
)
SOCKETS_OPEN = Metric("istio_tcp_sockets_open", MetricType.GAUGE, "TCP connections open now", ("reporter",))
REASONS = _counter(
    "ambit_connections_ended", "Connections ended, by reporter and reason", ("reporter", "reason")
)
POLICY_DENIED = _counter(
    "ambit_policy_denied",
    "Connections refused or ended by policy; unknown: no ALLOW matched, or none could be judged",
    ("policy", "policy_namespace", "reason"),
)
TUNNEL_HANDSHAKE_SECONDS = Metric(
    "ambit_tunnel_handshake_seconds",
    MetricType.HISTOGRAM,
    "Time of the TLS handshake of an HBONE connection",
    ("reporter",),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
)
DNS_REQUESTS = _counter("istio_dns_requests", "DNS queries answered for pods", _DNS_LABELS)
DNS_UPSTREAM_REQUESTS = _counter("istio_dns_upstream_requests", "DNS queries forwarded", _DNS_LABELS)
DNS_UPSTREAM_FAILURES = _counter(
    "istio_dns_upstream_failures", "DNS queries that no resolver answered", _DNS_LABELS
)
DNS_UPSTREAM_SECONDS = Metric(
    "istio_dns_upstream_request_duration_seconds",
    MetricType.HISTOGRAM,
    "Time until a forwarded DNS query was answered",
    _DNS_LABELS,
    (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0),
)
DNS_DROPPED = _counter(
    "ambit_dns_questions_dropped", "DNS queries dropped: too many of one pod in flight", ()
)
ON_DEMAND_DNS = _counter(
    "istio_on_demand_dns",
    "Names resolved when dialled",
    (*(f"source_{name}" for name in _PEER), "hostname"),
)
XDS_MESSAGES = _counter("istio_xds_message", "xDS responses received", ("url",))
XDS_MESSAGE_BYTES = _counter("istio_xds_message_bytes", "Bytes of resources in xDS responses", ("url",))
XDS_TERMINATIONS = _counter("istio_xds_connection_terminations", "xDS streams that ended", ("reason",))
ACTIVE_PROXIES = Metric(
    "workload_manager_active_proxy_count", MetricType.GAUGE, "Pods whose listeners are open", ()
)
PENDING_PROXIES = Metric("workload_manager_pending_proxy_count", MetricType.GAUGE, "Pods being started", ())
PROXIES_STARTED = _counter("workload_manager_proxies_started", "Pods started", ())
PROXIES_STOPPED = _counter("workload_manager_proxies_stopped", "Pods stopped", ())
WORKERS_STARTED = _counter("ambit_workers_started", "Worker processes started, replacements included", ())
WORKERS_HUNG = _counter("ambit_workers_hung", "Worker processes killed because their loop stood still", ())
LOG_LINES_DROPPED = _counter(
    "ambit_log_lines_dropped", "Log lines dropped because the supervisor was behind", ()
)
TRACE_SPANS = _counter(
    "ambit_trace_spans",
    "Spans by collector: exported, dropped (no room, no time), failed (the collector did not take them)",
    ("provider", "result"),
)
SERIES_DROPPED = _counter(
    "ambit_metric_series_overflow", "Label sets folded into the overflow series", ("metric",)
)
BUILD = Metric("istio_build", MetricType.GAUGE, "Component and version", ("component", "tag"))

METRICS: tuple[Metric, ...] = (
    CONNECTIONS_OPENED,
    CONNECTIONS_CLOSED,
    CONNECTIONS_FAILED,
    RECEIVED_BYTES,
    SENT_BYTES,
    HTTP_REQUESTS,
    HTTP_DURATION_MS,
    HTTP_REQUEST_BYTES,
    HTTP_RESPONSE_BYTES,
    ROUTE_REQUESTS,
    ROUTE_DURATION_MS,
    HTTP_RETRIES,
    ENDPOINTS_EJECTED,
    ENDPOINT_EJECTIONS,
    CIRCUIT_OPEN,
    CIRCUIT_OVERFLOWS,
    SOCKETS_OPEN,
    REASONS,
    POLICY_DENIED,
    TUNNEL_HANDSHAKE_SECONDS,
    DNS_REQUESTS,
    DNS_UPSTREAM_REQUESTS,
    DNS_UPSTREAM_FAILURES,
    DNS_UPSTREAM_SECONDS,
    DNS_DROPPED,
    ON_DEMAND_DNS,
    XDS_MESSAGES,
    XDS_MESSAGE_BYTES,
    XDS_TERMINATIONS,
    ACTIVE_PROXIES,
    PENDING_PROXIES,
    PROXIES_STARTED,
    PROXIES_STOPPED,
    WORKERS_STARTED,
    WORKERS_HUNG,
    LOG_LINES_DROPPED,
    TRACE_SPANS,
    SERIES_DROPPED,
    BUILD,
)
BY_NAME = {metric.name: metric for metric in METRICS}


def peer_labels(workload: Workload | None, principal: str) -> Labels:
    """Fill the eight labels of one peer; what is not known is `unknown`."""
    if workload is None:
        return (UNKNOWN,) * 4 + (principal or UNKNOWN,) + (UNKNOWN,) * 3
    service, revision = workload.canonical_name or UNKNOWN, workload.canonical_revision or UNKNOWN
    return (
        workload.workload_name or UNKNOWN,
        service,
        revision,
        workload.namespace or UNKNOWN,
        principal or UNKNOWN,
        service,
        revision,
        workload.cluster_id or UNKNOWN,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpFlow:
    """Who talks to whom, as one reporter sees it."""

    reporter: str
    """`source` or `destination`."""
    source: Workload | None = None
    source_principal: str = ""
    destination: Workload | None = None
    destination_principal: str = ""
    service: Service | None = None
    mutual_tls: bool = False

    def labels(self, response_flags: str = "-") -> Labels:
        """Fill `TCP_LABELS`."""
        service = self.service
        named = (service.hostname, service.namespace, service.name) if service is not None else ("", "", "")
        return (
            self.reporter,
            *peer_labels(self.source, self.source_principal),
            *(name or UNKNOWN for name in named),
            *peer_labels(self.destination, self.destination_principal),
            "tcp",
            response_flags,
            "mutual_tls" if self.mutual_tls else UNKNOWN,
            *_place(self.source),
            *_place(self.destination),
        )


def _place(workload: Workload | None) -> Sequence[str]:
    if workload is None:
        return (UNKNOWN, UNKNOWN)
    return (workload.locality.region or UNKNOWN, workload.locality.zone or UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFlow:
    """Who asks whom for what, as a waypoint or an ingress gateway sees it."""

    reporter: str = "waypoint"
    """Or `source`: of the gateway's own requests, whose security the source does not tell (Istio)."""
    source: Workload | None
    source_principal: str
    destination: Workload | None
    service: Service | None

    def labels(self, *, protocol: str, status: str, grpc_status: str, flags: str) -> Labels:
        """Fill `HTTP_LABELS`."""
        service, destination = self.service, self.destination
        named = (service.hostname, service.namespace, service.name) if service is not None else ("", "", "")
        return (
            self.reporter,
            *peer_labels(self.source, self.source_principal),
            *(name or UNKNOWN for name in named),
            *peer_labels(destination, destination.identity if destination is not None else ""),
            protocol,
            status,
            grpc_status,
            flags,
            "mutual_tls" if self.reporter == "waypoint" else UNKNOWN,
        )
