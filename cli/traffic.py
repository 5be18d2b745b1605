# SPDX-License-Identifier: Apache-2.0
"""Who talked to whom and how it went, from the proxies' counters; both sides of a connection made one.

Source and destination report the same connection. Per pair the larger of the two counts holds,
so that a connection counts once and one that only one side saw counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cli.metrics import Series, quantile

UNKNOWN = "unknown"
TCP = ("opened", "closed", "failed", "sent", "received")
NAMES = {
    "istio_tcp_connections_opened_total": "opened",
    "istio_tcp_connections_closed_total": "closed",
    "istio_tcp_connections_failed_total": "failed",
    "istio_tcp_sent_bytes_total": "sent",
    "istio_tcp_received_bytes_total": "received",
}
REQUESTS = "istio_requests_total"
LATENCY = "istio_request_duration_milliseconds_bucket"
PREFIXES = ("istio_tcp_", "istio_request")
DENIED = "DENY"


@dataclass(frozen=True, slots=True)
class Peer:
    """One end; empty strings where the proxy did not know."""

    namespace: str
    workload: str

    @property
    def key(self) -> str:
        """`namespace/name`; `unknown` where it is not known."""
        return f"{self.namespace}/{self.workload}" if self.workload else UNKNOWN


@dataclass(slots=True, kw_only=True)
class Counts:
    """What one reporter, or both merged, counted."""

    opened: float = 0.0
    closed: float = 0.0
    failed: float = 0.0
    sent: float = 0.0
    """Bytes from server to client."""
    received: float = 0.0
    """Bytes from client to server."""
    denied: float = 0.0
    """Of `failed`, by policy."""

    def add(self, other: Counts) -> None:
        """Add another's counts."""
        for name in (*TCP, "denied"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def larger(self, other: Counts) -> Counts:
        """Return the larger of each count."""
        return Counts(**{name: max(getattr(self, name), getattr(other, name)) for name in (*TCP, "denied")})

    @property
    def success(self) -> float | None:
        """Share of connections that did not fail; None: there were none."""
        # A connection that was opened and then broken counts in both.
        tried = max(self.opened, self.closed) + self.failed
        return 1 - self.failed / tried if tried else None


@dataclass(slots=True, kw_only=True)
class Http:
    """Requests that a waypoint saw."""

    requests: float = 0.0
    failed: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)
    """Upper bound in ms -> requests up to it."""

    def add(self, other: Http) -> None:
        """Add another's requests."""
        self.requests += other.requests
        self.failed += other.failed
        for bound, count in other.buckets.items():
            self.buckets[bound] = self.buckets.get(bound, 0.0) + count

    def latency_ms(self, q: float) -> float | None:
        """Estimate a quantile of the latency."""
        return quantile(self.buckets, q)


@dataclass(slots=True, kw_only=True)
class Edge:
    """Everything from one workload to another through one service."""

    source: Peer
    destination: Peer
    service: str
    """`namespace/name` of the service that was asked for; empty: an address was."""
    client_id: str = ""
    server_id: str = ""
    mutual_tls: bool = False
    plain: bool = False
    """Some of it ran without mutual TLS."""
    tcp: Counts = field(default_factory=Counts)
    http: Http = field(default_factory=Http)
    failures: dict[str, float] = field(default_factory=dict)
    """Response flag -> connections, as the side that saw more has it."""


EdgeKey = tuple[Peer, Peer, str]


def _known(labels: Mapping[str, str], name: str) -> str:
    value = labels.get(name, "")
    return "" if value == UNKNOWN else value


def _key(labels: Mapping[str, str]) -> EdgeKey:
    service, namespace = (
        _known(labels, "destination_service_name"),
        _known(labels, "destination_service_namespace"),
    )
    return (
        Peer(_known(labels, "source_workload_namespace"), _known(labels, "source_workload")),
        Peer(_known(labels, "destination_workload_namespace"), _known(labels, "destination_workload")),
        f"{namespace}/{service}" if service else "",
    )


def edges(many: Iterable[Series]) -> list[Edge]:
    """Build the edges of all series, in order of their names."""
    found: dict[EdgeKey, Edge] = {}
    sides: dict[EdgeKey, dict[str, Counts]] = {}
    flags: dict[EdgeKey, dict[str, dict[str, float]]] = {}
    for one in many:
        name = NAMES.get(one.name)
        if name is None and one.name not in (REQUESTS, LATENCY):
            continue
        key = _key(one.labels)
        edge = found.setdefault(key, Edge(source=key[0], destination=key[1], service=key[2]))
        _describe(edge, one)
        if name is None:
            _add_http(edge.http, one)
            continue
        reporter = one.labels.get("reporter", "")
        counts = sides.setdefault(key, {}).setdefault(reporter, Counts())
        setattr(counts, name, getattr(counts, name) + one.value)
        flag = one.labels.get("response_flags", "-")
        if name == "failed":
            counts.denied += one.value if flag == DENIED else 0
            seen = flags.setdefault(key, {}).setdefault(reporter, {})
            seen[flag] = seen.get(flag, 0.0) + one.value
    for key, edge in found.items():
        for counts in sides.get(key, {}).values():
            edge.tcp = edge.tcp.larger(counts)
        # The destination knows the cause; the source often only that it was refused.
        both = flags.get(key, {})
        causes = both.get("destination") or both.get("source") or {}
        edge.failures = {flag: count for flag, count in causes.items() if count}
    return sorted(found.values(), key=lambda e: (e.source.key, e.destination.key, e.service))


def _describe(edge: Edge, one: Series) -> None:
    labels = one.labels
    edge.client_id = edge.client_id or _known(labels, "source_principal")
    edge.server_id = edge.server_id or _known(labels, "destination_principal")
    if one.value and (NAMES.get(one.name) in ("opened", "closed") or one.name == REQUESTS):
        secured = labels.get("connection_security_policy") == "mutual_tls"
        edge.mutual_tls |= secured
        edge.plain |= not secured


def _add_http(http: Http, one: Series) -> None:
    # A waypoint sees each request; proxies beside it would count it again.
    if one.labels.get("reporter") not in ("waypoint", "destination"):
        return
    if one.name == LATENCY:
        bound = float(one.labels.get("le", "inf"))
        http.buckets[bound] = http.buckets.get(bound, 0.0) + one.value
        return
    http.requests += one.value
    code = one.labels.get("response_code", "")
    grpc = one.labels.get("grpc_response_status", "")
    if code.startswith("5") or code in ("0", "-") or grpc in ("2", "4", "7", "13", "14", "15"):
        http.failed += one.value


@dataclass(slots=True, kw_only=True)
class Total:
    """Everything that came in to one thing."""

    tcp: Counts = field(default_factory=Counts)
    http: Http = field(default_factory=Http)

    @property
    def any(self) -> bool:
        """Whether anything came in."""
        tcp = self.tcp
        return bool(tcp.opened or tcp.closed or tcp.failed or tcp.sent or tcp.received or self.http.requests)

    @property
    def success(self) -> float | None:
        """Of requests where there are any, else of connections."""
        if self.http.requests:
            return 1 - self.http.failed / self.http.requests
        return self.tcp.success


def totals(all_edges: Sequence[Edge], group: Callable[[Edge], str]) -> dict[str, Total]:
    """Add up edges by the group that each belongs to; an empty group leaves the edge out."""
    found: dict[str, Total] = {}
    for edge in all_edges:
        name = group(edge)
        if name:
            total = found.setdefault(name, Total())
            total.tcp.add(edge.tcp)
            total.http.add(edge.http)
    return found
