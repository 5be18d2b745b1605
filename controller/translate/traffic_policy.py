# SPDX-License-Identifier: Apache-2.0
"""The trafficPolicy of a DestinationRule, block by block, and how its levels override each other.

A block that cannot be read has its default, and says so; an unreadable `tls` closes instead,
as nothing says how the connection was to be protected. Source: istio.io/api DestinationRule;
defaults as istiod fills them in for Envoy (pilot/pkg/networking/core/cluster_traffic_policy.go).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from controller.translate.fields import MAX_PORT, Fields, IllTypedError
from mesh.model.destination import (
    DEFAULT_RING_SIZE,
    DEFAULT_TABLE_SIZE,
    Balancer,
    Balancing,
    ClientTls,
    ConnectionPool,
    ConsistentHash,
    HashAlgorithm,
    HashKind,
    HttpUpgrade,
    Keepalive,
    LocalityPreference,
    LocalityShare,
    OutlierDetection,
    PortPolicy,
    RetryBudget,
    TlsMode,
    TrafficPolicy,
    Warmup,
)

T = TypeVar("T")
MAX_UINT32 = 2**32 - 1
MAX_TABLE_SIZE = 5_000_011
"""Envoy's bound on a Maglev table."""
MAX_RING_SIZE = 8 * 1024 * 1024
"""Envoy's bound on a hash ring."""
_BALANCERS = {
    "UNSPECIFIED": Balancer.LEAST_REQUEST,
    "LEAST_CONN": Balancer.LEAST_REQUEST,
    "LEAST_REQUEST": Balancer.LEAST_REQUEST,
    "RANDOM": Balancer.RANDOM,
    "ROUND_ROBIN": Balancer.ROUND_ROBIN,
    "PASSTHROUGH": Balancer.PASSTHROUGH,
}
_UPGRADES = {
    "DEFAULT": HttpUpgrade.DEFAULT,
    "DO_NOT_UPGRADE": HttpUpgrade.NEVER,
    "UPGRADE": HttpUpgrade.ALWAYS,
}
_HASH_KEYS = ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """What one level says; None: nothing."""

    balancing: Balancing | None = None
    pool: ConnectionPool | None = None
    outliers: OutlierDetection | None = None
    tls: ClientTls | None = None
    proxy_protocol: int | None = None
    retry_budget: RetryBudget | None = None

    def over(self, below: Blocks) -> Blocks:
        """Return this level's blocks, and those of the level below where it has none."""
        own = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        return replace(below, **own)

    def complete(self) -> TrafficPolicy:
        """Return the policy with defaults in place of what nobody said."""
        return TrafficPolicy(
            balancing=self.balancing or Balancing(),
            pool=self.pool or ConnectionPool(),
            outliers=self.outliers,
            tls=self.tls,
            proxy_protocol=self.proxy_protocol or 0,
            retry_budget=self.retry_budget,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A trafficPolicy: for all ports, and for some in place of that."""

    blocks: Blocks = field(default_factory=Blocks)
    ports: tuple[tuple[int, Blocks], ...] = ()

    def at(self, port: int) -> Blocks | None:
        """Return what is said for one port by its own number."""
        return next((blocks for number, blocks in self.ports if number == port), None)

    def policies(self, below: Level | None = None) -> tuple[TrafficPolicy, tuple[PortPolicy, ...]]:
        """Return the complete policies; `below` is the rule's level under that of a subset.

        A port's settings replace, block for block, all that is said for every port, also
        where they leave a block out; a subset's override the rule's of the same port.
        """
        numbers = [number for number, _ in self.ports]
        numbers += [number for number, _ in (below.ports if below else ()) if number not in numbers]
        found = [PortPolicy(port=number, policy=self._at(number, below).complete()) for number in numbers]
        own = self.blocks.over(below.blocks) if below else self.blocks
        return own.complete(), tuple(sorted(found, key=lambda entry: entry.port))

    def _at(self, port: int, below: Level | None) -> Blocks:
        under = Blocks() if below is None else (below.at(port) or below.blocks)
        own = self.at(port)
        if own is None:
            return self.blocks.over(under)
        # Of the rule only what a port cannot set stays.
        kept = Blocks(proxy_protocol=under.proxy_protocol, retry_budget=under.retry_budget)
        return own.over(kept)


def read_level(fields: Fields, refuse: Callable[[IllTypedError, str], None]) -> Level:
    """Read a trafficPolicy; `refuse` is told of what cannot be read, and what becomes of it."""
    blocks = _read_blocks(fields, refuse)
    ports: dict[int, Blocks] = {}
    for entry in fields.children("portLevelSettings"):
        try:
            number = entry.child("port").integer("number", 0, 0, MAX_PORT)
            if not number:
                raise entry.wrong("port", "names no port number")
        except IllTypedError as error:
            refuse(error, "the settings of this port are left out")
            continue
        if number in ports:
            entry.report("port", f"port {number} has settings already; these have no effect")
            continue
        ports[number] = _read_blocks(entry, refuse)
        entry.finish()
    fields.finish()
    return Level(blocks=blocks, ports=tuple(ports.items()))


def _read_blocks(fields: Fields, refuse: Callable[[IllTypedError, str], None]) -> Blocks:
    def read(name: str, parse: Callable[[Fields], T]) -> T | None:
        try:
            if not fields.has(name):
                return None
            child = fields.child(name)
            made = parse(child)
        except IllTypedError as error:
            refuse(error, f"{name} has its default")
            return None
        child.finish()
        return made

    tls: ClientTls | None
    try:
        tls = _tls(fields.child("tls")) if fields.has("tls") else None
    except IllTypedError as error:
        refuse(error, "connections that it is for are refused")
        tls = ClientTls(mode=TlsMode.INVALID, problem=error.reason)
    return Blocks(
        balancing=read("loadBalancer", _balancing),
        pool=read("connectionPool", _pool),
        outliers=read("outlierDetection", _outliers),
        tls=tls,
        proxy_protocol=read("proxyProtocol", _proxy_protocol),
        retry_budget=read("retryBudget", _retry_budget),
    )


def _balancing(fields: Fields) -> Balancing:
    if fields.has("simple") and fields.has("consistentHash"):
        raise fields.wrong("consistentHash", "stands beside simple; one of them is allowed")
    simple = fields.choice("simple", _BALANCERS, "UNSPECIFIED")
    return Balancing(
        balancer=_BALANCERS[simple],
        hash=_hash(fields.child("consistentHash")) if fields.has("consistentHash") else None,
        locality=_locality(fields.child("localityLbSetting")) if fields.has("localityLbSetting") else None,
        warmup=_warmup(fields),
    )


def _hash(fields: Fields) -> ConsistentHash:
    given = [name for name in _HASH_KEYS if fields.has(name)]
    if len(given) != 1:
        raise fields.wrong("", f"needs exactly one of {', '.join(_HASH_KEYS)}")
    made = _hash_key(fields, given[0])
    if fields.has("maglev"):
        if fields.has("ringHash"):
            raise fields.wrong("maglev", "stands beside ringHash; one of them is allowed")
        maglev = fields.child("maglev")
        size = maglev.integer("tableSize", DEFAULT_TABLE_SIZE, 0, MAX_TABLE_SIZE) or DEFAULT_TABLE_SIZE
        if not _is_prime(size):
            raise maglev.wrong("tableSize", f"{size} is no prime number")
        maglev.finish()
        made = replace(made, algorithm=HashAlgorithm.MAGLEV, size=size)
    else:
        ring = fields.child("ringHash")
        old = fields.integer("minimumRingSize", 0, 0, MAX_RING_SIZE)
        size = ring.integer("minimumRingSize", old, 0, MAX_RING_SIZE) or DEFAULT_RING_SIZE
        ring.finish()
        made = replace(made, size=size)
    fields.finish()
    return made


def _hash_key(fields: Fields, name: str) -> ConsistentHash:
    if name == "useSourceIp":
        if not fields.boolean(name):
            raise fields.wrong(name, "is false, which leaves nothing to hash by")
        return ConsistentHash(kind=HashKind.SOURCE_IP)
    if name == "httpCookie":
        cookie = fields.child(name)
        if not cookie.text("name"):
            raise cookie.wrong("name", "is missing")
        attributes = tuple(
            (entry.text("name"), entry.text("value")) for entry in cookie.children("attributes")
        )
        made = ConsistentHash(
            kind=HashKind.COOKIE,
            name=cookie.text("name"),
            cookie_path=cookie.text("path"),
            cookie_ttl_s=cookie.duration("ttl"),
            cookie_attributes=attributes,
        )
        cookie.finish()
        return made
    text = fields.text(name)
    if not text:
        raise fields.wrong(name, "is empty")
    if name == "httpHeaderName":
        return ConsistentHash(kind=HashKind.HEADER, name=text.lower())
    return ConsistentHash(kind=HashKind.QUERY, name=text)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _locality(fields: Fields) -> LocalityPreference:
    given = [name for name in ("distribute", "failover", "failoverPriority") if fields.has(name)]
    if len(given) > 1 and given != ["failover", "failoverPriority"]:
        raise fields.wrong(given[1], f"stands beside {given[0]}; one of them is allowed")
    distribute = []
    for entry in fields.children("distribute"):
        target = entry.child("to")
        shares = tuple((str(place), target.integer(str(place), 0, 0, 100)) for place in target.names())
        if sum(percent for _, percent in shares) != 100:
            raise entry.wrong("to", "the percentages do not make 100")
        distribute.append(LocalityShare(source=entry.text("from"), shares=shares))
        entry.finish()
    failover = []
    for entry in fields.children("failover"):
        source, region = entry.text("from"), entry.text("to")
        if not source or not region or source == region:
            raise entry.wrong("to", "names no other region than from")
        failover.append((source, region))
        entry.finish()
    made = LocalityPreference(
        enabled=fields.boolean("enabled", True),
        distribute=tuple(distribute),
        failover=tuple(failover),
        failover_priority=fields.strings("failoverPriority"),
    )
    fields.finish()
    return made


def _warmup(fields: Fields) -> Warmup | None:
    if fields.has("warmup"):
        warmup = fields.child("warmup")
        duration_s = warmup.duration("duration")
        if not duration_s:
            raise warmup.wrong("duration", "is missing or 0")
        made = Warmup(
            duration_s=duration_s,
            minimum_percent=warmup.number("minimumPercent", 10, 0, 100),
            aggression=warmup.number("aggression", 1, 1, 1000),
        )
        warmup.finish()
        return made
    old_s = fields.duration("warmupDurationSecs")
    return Warmup(duration_s=old_s) if old_s else None


def _pool(fields: Fields) -> ConnectionPool:
    tcp, http = fields.child("tcp"), fields.child("http")
    connect_s = tcp.duration("connectTimeout")
    if connect_s is not None and connect_s < 0.001:
        raise tcp.wrong("connectTimeout", "must be 1ms or more")
    ping = http.child("http2KeepAlive")
    tcp_idle_s = tcp.duration("idleTimeout")
    idle_s = http.duration("idleTimeout")
    if idle_s is None:
        idle_s = tcp_idle_s
    made = ConnectionPool(
        max_connections=_count(tcp, "maxConnections"),
        connect_timeout_s=10.0 if connect_s is None else connect_s,
        keepalive=_keepalive(tcp.child("tcpKeepalive")) if tcp.has("tcpKeepalive") else None,
        tcp_idle_timeout_s=_timeout(tcp_idle_s),
        max_connection_age_s=tcp.duration("maxConnectionDuration") or None,
        max_pending_requests=_count(http, "http1MaxPendingRequests"),
        max_requests=_count(http, "http2MaxRequests"),
        max_requests_per_connection=_count(http, "maxRequestsPerConnection"),
        max_retries=_count(http, "maxRetries"),
        idle_timeout_s=_timeout(idle_s),
        http_upgrade=_UPGRADES[http.choice("h2UpgradePolicy", _UPGRADES, "DEFAULT")],
        use_client_protocol=http.boolean("useClientProtocol"),
        max_concurrent_streams=_count(http, "maxConcurrentStreams"),
        ping_interval_s=ping.duration("interval") or None,
        ping_timeout_s=ping.duration("timeout") or None,
    )
    ping.finish()
    tcp.finish()
    http.finish()
    return made


def _count(fields: Fields, name: str) -> int | None:
    """Read a bound; 0 and nothing are alike, as in the API."""
    return fields.integer(name, 0, 0, MAX_UINT32) or None


def _timeout(seconds: float | None) -> float | None:
    """Fill in an hour; 0 switches the timeout off."""
    return 3600.0 if seconds is None else seconds or None


def _keepalive(fields: Fields) -> Keepalive:
    made = Keepalive(
        probes=_count(fields, "probes"),
        time_s=fields.duration("time"),
        interval_s=fields.duration("interval"),
    )
    fields.finish()
    return made


def _outliers(fields: Fields) -> OutlierDetection:
    gateway_errors = fields.integer("consecutiveGatewayErrors", 0, 0, MAX_UINT32)
    errors = fields.integer("consecutive5xxErrors", 5, 0, MAX_UINT32)
    if fields.has("consecutiveErrors"):
        # Until Istio 1.5 it counted gateway errors, and those only.
        old = fields.integer("consecutiveErrors", 5, 0, MAX_UINT32)
        if fields.has("consecutive5xxErrors") or fields.has("consecutiveGatewayErrors"):
            fields.report("consecutiveErrors", "stands beside its successors and has no effect")
        else:
            reason = "is deprecated and taken for consecutiveGatewayErrors with consecutive5xxErrors: 0"
            fields.report("consecutiveErrors", reason)
            gateway_errors, errors = old, 0
    interval_s, base_s = fields.duration("interval"), fields.duration("baseEjectionTime")
    for name, seconds in (("interval", interval_s), ("baseEjectionTime", base_s)):
        if seconds is not None and seconds < 0.001:
            raise fields.wrong(name, "must be 1ms or more")
    return OutlierDetection(
        consecutive_5xx=errors,
        consecutive_gateway_errors=gateway_errors,
        split_local_errors=fields.boolean("splitExternalLocalOriginErrors"),
        consecutive_local_failures=fields.integer("consecutiveLocalOriginFailures", 5, 0, MAX_UINT32) or 5,
        interval_s=10.0 if interval_s is None else interval_s,
        base_ejection_s=30.0 if base_s is None else base_s,
        max_ejection_percent=fields.integer("maxEjectionPercent", 10, 0, 100) or 10,
        min_health_percent=fields.integer("minHealthPercent", 0, 0, 100),
    )


def _tls(fields: Fields) -> ClientTls:
    mode = TlsMode[fields.choice("mode", ("DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"), "DISABLE")]
    made = ClientTls(
        mode=mode,
        sni=fields.text("sni"),
        subject_alt_names=fields.strings("subjectAltNames"),
        credential=fields.text("credentialName"),
        ca_file=fields.text("caCertificates"),
        certificate_file=fields.text("clientCertificate"),
        key_file=fields.text("privateKey"),
        insecure=fields.boolean("insecureSkipVerify"),
    )
    if mode is TlsMode.MUTUAL and not made.credential and not (made.certificate_file and made.key_file):
        raise fields.wrong("", "MUTUAL needs credentialName, or clientCertificate and privateKey")
    fields.refuse_unknown()
    return made


def _proxy_protocol(fields: Fields) -> int:
    return {"V1": 1, "V2": 2}[fields.choice("version", ("V1", "V2"), "V1")]


def _retry_budget(fields: Fields) -> RetryBudget:
    percent = fields.number("percent", 20, 0, 100)
    least = fields.integer("minRetryConcurrency", 3, 0, MAX_UINT32) or 3
    interval_s = fields.duration("budgetInterval") or 0.0
    return RetryBudget(percent=percent, min_concurrent=least, interval_s=interval_s)
