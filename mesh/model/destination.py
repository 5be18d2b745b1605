# SPDX-License-Identifier: Apache-2.0
"""How a service's endpoints are chosen, connected to, limited and ejected.

One policy a service, complete: what a dialect leaves to a default is filled in, and what
it lets one level inherit from another is resolved, so that a proxy looks up one
`TrafficPolicy` by port and subset. Nothing here says which request goes where.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mesh.model.workload import NamespacedHostname

DEFAULT_RING_SIZE = 1024
DEFAULT_TABLE_SIZE = 65537


class Balancer(enum.Enum):
    """How an endpoint is chosen where no hash applies."""

    LEAST_REQUEST = "least_request"
    """Of two drawn by weight, the one with fewer open requests."""
    PEAK_EWMA = "peak_ewma"
    """Of two drawn by weight, the one whose latency (moving average, peaks at once) is less."""
    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    PASSTHROUGH = "passthrough"
    """The address that the client asked for."""


class HashKind(enum.Enum):
    """What of a request decides its endpoint."""

    HEADER = "header"
    COOKIE = "cookie"
    SOURCE_IP = "source_ip"
    QUERY = "query"


class HashAlgorithm(enum.Enum):
    """How a hash is turned into an endpoint."""

    RING = "ring"
    MAGLEV = "maglev"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentHash:
    """Requests with an equal key go to one endpoint; a request without the key goes anywhere."""

    kind: HashKind
    name: str = ""
    """Header (lower case), cookie or query parameter; empty for SOURCE_IP."""
    cookie_path: str = ""
    cookie_ttl_s: float | None = None
    """None: the proxy reads the cookie and sets none; 0: it sets a session cookie."""
    cookie_attributes: tuple[tuple[str, str], ...] = ()
    algorithm: HashAlgorithm = HashAlgorithm.RING
    size: int = DEFAULT_RING_SIZE
    """RING: least number of points on the ring; MAGLEV: entries of the table, a prime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityShare:
    """Where the traffic of one place goes; places are `region/zone/subzone`, `*` for any."""

    source: str
    shares: tuple[tuple[str, int], ...]
    """Place and percentage; the percentages make 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityPreference:
    """Preference for near endpoints; at most one of the three lists is given."""

    enabled: bool = True
    distribute: tuple[LocalityShare, ...] = ()
    failover: tuple[tuple[str, str], ...] = ()
    """Region, and the region that takes over from it."""
    failover_priority: tuple[str, ...] = ()
    """Labels, `key` or `key=value`: an endpoint is nearer the more of them, from the first on, it shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """A new endpoint's share grows from `minimum_percent` to all of it."""

    duration_s: float
    minimum_percent: float = 10.0
    aggression: float = 1.0
    """Exponent of the growth; 1: linear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    """How an endpoint is chosen."""

    balancer: Balancer = Balancer.LEAST_REQUEST
    hash: ConsistentHash | None = None
    """In place of `balancer`, for requests that have the key."""
    locality: LocalityPreference | None = None
    """None: the service's own preference holds."""
    warmup: Warmup | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """TCP keepalive; None: the kernel's value."""

    probes: int | None = None
    time_s: float | None = None
    interval_s: float | None = None


class HttpUpgrade(enum.Enum):
    """Whether requests of HTTP/1.1 go on as HTTP/2."""

    DEFAULT = "default"
    """As the port's protocol says."""
    NEVER = "never"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool:
    """Bounds on the connections to a service, for each proxy; None: unbounded.

    A request above a bound is answered 503 at once (flag UO).
    """

    max_connections: int | None = None
    connect_timeout_s: float = 10.0
    keepalive: Keepalive | None = None
    tcp_idle_timeout_s: float | None = 3600.0
    max_connection_age_s: float | None = None
    max_pending_requests: int | None = None
    max_requests: int | None = None
    """Requests open at once."""
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    """Retries under way at once."""
    idle_timeout_s: float | None = 3600.0
    """Of an HTTP connection without a request."""
    http_upgrade: HttpUpgrade = HttpUpgrade.DEFAULT
    use_client_protocol: bool = False
    max_concurrent_streams: int | None = None
    """On one HTTP/2 connection."""
    ping_interval_s: float | None = None
    """Between pings on an HTTP/2 connection; None: none are sent."""
    ping_timeout_s: float | None = None
    """Without an answer for this long the connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """When an endpoint is left out for a time; a count of 0 is never reached."""

    consecutive_5xx: int = 5
    consecutive_gateway_errors: int = 0
    """Answers 502, 503, 504."""
    split_local_errors: bool = False
    """Count failures to connect by themselves, not among the 5xx."""
    consecutive_local_failures: int = 5
    """Used only when they are counted by themselves."""
    interval_s: float = 10.0
    base_ejection_s: float = 30.0
    """Times the number of ejections in a row, up to `max_ejection_s`."""
    max_ejection_s: float = 300.0
    max_ejection_percent: int = 10
    """Of the endpoints; one may be ejected in any case."""
    min_health_percent: int = 0
    """With fewer healthy endpoints than this, ejection is ignored."""


class TlsMode(enum.Enum):
    """TLS towards an endpoint, above the mesh's own transport."""

    DISABLE = "disable"
    SIMPLE = "simple"
    MUTUAL = "mutual"
    ISTIO_MUTUAL = "istio_mutual"
    """With the mesh's certificates; HBONE is that already."""
    INVALID = "invalid"
    """What was written cannot be read: connections fail, as nothing says how to protect them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """TLS that the proxy originates; towards an HBONE endpoint it is inside the tunnel."""

    mode: TlsMode
    sni: str = ""
    """Empty: the request's authority."""
    subject_alt_names: tuple[str, ...] = ()
    credential: str = ""
    """Secret with keys and roots."""
    ca_file: str = ""
    """Empty: the system's roots."""
    certificate_file: str = ""
    key_file: str = ""
    insecure: bool = False
    """Accept any certificate."""
    problem: str = ""
    """Why the mode is INVALID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Retries for each request; the larger of the two bounds holds."""

    percent: float = 20.0
    """Of the requests open, or, with `interval_s`, of those of that time."""
    interval_s: float = 0.0
    min_concurrent: int = 0
    """Retries open at once that are always allowed."""
    min_per_second: float = 0.0
    """Retries that are always allowed, for budgets with an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """Everything about the endpoints of one port, of one subset or of all."""

    balancing: Balancing = field(default_factory=Balancing)
    pool: ConnectionPool = field(default_factory=ConnectionPool)
    outliers: OutlierDetection | None = None
    """None: no endpoint is ever ejected."""
    tls: ClientTls | None = None
    """None: HBONE where the endpoint has it, else plaintext."""
    proxy_protocol: int = 0
    """Version of the PROXY header in front of each connection; 0: none."""
    retry_budget: RetryBudget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPolicy:
    """The policy of one service port, in place of that for all ports."""

    port: int
    policy: TrafficPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """The endpoints that have all labels; no labels: all endpoints."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted by key."""
    policy: TrafficPolicy = field(default_factory=TrafficPolicy)
    ports: tuple[PortPolicy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationPolicy:
    """All of one service; a service without one has `TrafficPolicy()` and no subset."""

    service: NamespacedHostname
    sources: tuple[str, ...] = ()
    """Objects that wrote it, `kind/namespace/name`."""
    policy: TrafficPolicy = field(default_factory=TrafficPolicy)
    ports: tuple[PortPolicy, ...] = ()
    subsets: tuple[Subset, ...] = ()
    client_namespace: str = ""
    """Only for waypoints of this namespace, in place of the policy for all; empty: all."""

    def subset(self, name: str) -> Subset | None:
        """Return a subset; None: it is not defined, and its requests are answered 503 (flag NC)."""
        return next((subset for subset in self.subsets if subset.name == name), None)

    def find(self, port: int, subset: str = "") -> TrafficPolicy | None:
        """Return what holds for a service port and subset; None: the subset is not defined."""
        level: DestinationPolicy | Subset | None = self.subset(subset) if subset else self
        if level is None:
            return None
        return next((entry.policy for entry in level.ports if entry.port == port), level.policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLabels:
    """The labels of one workload that some subset or failover priority asks for."""

    uid: str
    labels: tuple[tuple[str, str], ...]
    """Sorted by key."""
