# SPDX-License-Identifier: Apache-2.0
"""Destination policies and endpoint labels between model and wire.

Ours alone: Istio sends Envoy's clusters. Resource names are `namespace/hostname[@waypoint
namespace]` and the workload's uid.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.destination import (
    Balancer,
    Balancing,
    ClientTls,
    ConnectionPool,
    ConsistentHash,
    DestinationPolicy,
    EndpointLabels,
    HashAlgorithm,
    HashKind,
    HttpUpgrade,
    Keepalive,
    LocalityPreference,
    LocalityShare,
    OutlierDetection,
    PortPolicy,
    RetryBudget,
    Subset,
    TlsMode,
    TrafficPolicy,
    Warmup,
)
from mesh.model.workload import NamespacedHostname
from mesh.proto import destinations_pb2 as pb

DESTINATION_TYPE = "type.googleapis.com/ambit.mesh.v1.DestinationPolicy"
ENDPOINT_LABELS_TYPE = "type.googleapis.com/ambit.mesh.v1.EndpointLabels"

_POOL_COUNTS = (
    "max_connections",
    "max_pending_requests",
    "max_requests",
    "max_requests_per_connection",
    "max_retries",
    "max_concurrent_streams",
)


def destination_policy_name(policy: DestinationPolicy) -> str:
    """Return the policy's resource name."""
    scope = f"@{policy.client_namespace}" if policy.client_namespace else ""
    return f"{policy.service}{scope}"


def encode_destination_policy(policy: DestinationPolicy) -> bytes:
    """Encode deterministically, so that equal policies have equal bytes and versions."""
    message = pb.DestinationPolicy(
        namespace=policy.service.namespace,
        hostname=policy.service.hostname,
        sources=policy.sources,
        policy=_encode_policy(policy.policy),
        ports=_encode_ports(policy.ports),
        subsets=[
            pb.DestinationSubset(
                name=subset.name,
                labels=_encode_labels(subset.labels),
                policy=_encode_policy(subset.policy),
                ports=_encode_ports(subset.ports),
            )
            for subset in policy.subsets
        ],
        client_namespace=policy.client_namespace,
    )
    return message.SerializeToString(deterministic=True)


def decode_destination_policy(value: bytes) -> DestinationPolicy:
    """Decode one policy.

    Raises:
        ValueError: the bytes are no policy or hold a kind that we do not know; whoever
            sent it is at fault, and the policy in force stays.
    """
    message = pb.DestinationPolicy()
    _parse(message, value, "a destination policy")
    if not message.namespace or not message.hostname:
        raise ValueError("a destination policy names its service")
    return DestinationPolicy(
        service=NamespacedHostname(namespace=message.namespace, hostname=message.hostname),
        sources=tuple(message.sources),
        policy=_decode_policy(message.policy),
        ports=_decode_ports(message.ports),
        subsets=tuple(
            Subset(
                name=subset.name,
                labels=_decode_labels(subset.labels),
                policy=_decode_policy(subset.policy),
                ports=_decode_ports(subset.ports),
            )
            for subset in message.subsets
        ),
        client_namespace=message.client_namespace,
    )


def encode_endpoint_labels(endpoint: EndpointLabels) -> bytes:
    """Encode deterministically."""
    message = pb.EndpointLabels(uid=endpoint.uid, labels=_encode_labels(endpoint.labels))
    return message.SerializeToString(deterministic=True)


def decode_endpoint_labels(value: bytes) -> EndpointLabels:
    """Decode the labels of one workload.

    Raises:
        ValueError: the bytes are no such message, or name no workload.
    """
    message = pb.EndpointLabels()
    _parse(message, value, "the labels of an endpoint")
    if not message.uid:
        raise ValueError("the labels of an endpoint name its workload")
    return EndpointLabels(uid=message.uid, labels=_decode_labels(message.labels))


def _parse(message: pb.DestinationPolicy | pb.EndpointLabels, value: bytes, what: str) -> None:
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise ValueError(f"not {what}: {error}") from error


def _encode_labels(labels: Iterable[tuple[str, str]]) -> list[pb.LabelValue]:
    return [pb.LabelValue(key=key, value=value) for key, value in labels]


def _decode_labels(labels: Iterable[pb.LabelValue]) -> tuple[tuple[str, str], ...]:
    return tuple((label.key, label.value) for label in labels)


def _encode_ports(ports: Iterable[PortPolicy]) -> list[pb.PortPolicy]:
    return [pb.PortPolicy(port=entry.port, policy=_encode_policy(entry.policy)) for entry in ports]


def _decode_ports(ports: Iterable[pb.PortPolicy]) -> tuple[PortPolicy, ...]:
    return tuple(PortPolicy(port=entry.port, policy=_decode_policy(entry.policy)) for entry in ports)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _encode_policy(policy: TrafficPolicy) -> pb.TrafficPolicy:
    message = pb.TrafficPolicy(
        balancing=_encode_balancing(policy.balancing),
        pool=_encode_pool(policy.pool),
        proxy_protocol=policy.proxy_protocol,
    )
    if (out := policy.outliers) is not None:
        message.outliers.CopyFrom(
            pb.OutlierDetection(
                consecutive_5xx=out.consecutive_5xx,
                consecutive_gateway_errors=out.consecutive_gateway_errors,
                split_local_errors=out.split_local_errors,
                consecutive_local_failures=out.consecutive_local_failures,
                interval_ms=round(out.interval_s * 1000),
                base_ejection_ms=round(out.base_ejection_s * 1000),
                max_ejection_ms=round(out.max_ejection_s * 1000),
                max_ejection_percent=out.max_ejection_percent,
                min_health_percent=out.min_health_percent,
            )
        )
    if (tls := policy.tls) is not None:
        message.tls.CopyFrom(
            pb.ClientTls(
                mode=tls.mode.name,
                sni=tls.sni,
                subject_alt_names=tls.subject_alt_names,
                credential=tls.credential,
                ca_file=tls.ca_file,
                certificate_file=tls.certificate_file,
                key_file=tls.key_file,
                insecure=tls.insecure,
                problem=tls.problem,
            )
        )
    if policy.retry_budget is not None:
        message.retry_budget.CopyFrom(encode_retry_budget(policy.retry_budget))
    return message


def _decode_policy(message: pb.TrafficPolicy) -> TrafficPolicy:
    outliers = tls = None
    if message.HasField("outliers"):
        out = message.outliers
        outliers = OutlierDetection(
            consecutive_5xx=out.consecutive_5xx,
            consecutive_gateway_errors=out.consecutive_gateway_errors,
            split_local_errors=out.split_local_errors,
            consecutive_local_failures=out.consecutive_local_failures,
            interval_s=out.interval_ms / 1000,
            base_ejection_s=out.base_ejection_ms / 1000,
            max_ejection_s=out.max_ejection_ms / 1000,
            max_ejection_percent=out.max_ejection_percent,
            min_health_percent=out.min_health_percent,
        )
    if message.HasField("tls"):
        wire = message.tls
        tls = ClientTls(
            mode=TlsMode[pb.ClientTls.Mode.Name(wire.mode)],
            sni=wire.sni,
            subject_alt_names=tuple(wire.subject_alt_names),
            credential=wire.credential,
            ca_file=wire.ca_file,
            certificate_file=wire.certificate_file,
            key_file=wire.key_file,
            insecure=wire.insecure,
            problem=wire.problem,
        )
    budget = message.retry_budget if message.HasField("retry_budget") else None
    return TrafficPolicy(
        balancing=_decode_balancing(message.balancing),
        pool=_decode_pool(message.pool),
        outliers=outliers,
        tls=tls,
        proxy_protocol=message.proxy_protocol,
        retry_budget=None if budget is None else decode_retry_budget(budget),
    )


def encode_retry_budget(budget: RetryBudget) -> pb.RetryBudget:
    """Encode a budget as part of another message."""
    return pb.RetryBudget(
        percent=budget.percent,
        interval_ms=round(budget.interval_s * 1000),
        min_concurrent=budget.min_concurrent,
        min_per_second=budget.min_per_second,
    )


def decode_retry_budget(message: pb.RetryBudget) -> RetryBudget:
    """Decode a budget that is part of another message."""
    return RetryBudget(
        percent=message.percent,
        interval_s=message.interval_ms / 1000,
        min_concurrent=message.min_concurrent,
        min_per_second=message.min_per_second,
    )


def _encode_balancing(balancing: Balancing) -> pb.Balancing:
    message = pb.Balancing(balancer=balancing.balancer.name)
    if (by := balancing.hash) is not None:
        message.hash.CopyFrom(
            pb.ConsistentHash(
                kind=by.kind.name,
                name=by.name,
                cookie_path=by.cookie_path,
                cookie_ttl_ms=_ms(by.cookie_ttl_s),
                cookie_attributes=_encode_labels(by.cookie_attributes),
                algorithm=by.algorithm.name,
                size=by.size,
            )
        )
    if (place := balancing.locality) is not None:
        message.locality.CopyFrom(_encode_locality(place))
    if (warmup := balancing.warmup) is not None:
        message.warmup.CopyFrom(
            pb.Warmup(
                duration_ms=round(warmup.duration_s * 1000),
                minimum_percent=warmup.minimum_percent,
                aggression=warmup.aggression,
            )
        )
    return message


def _encode_locality(preference: LocalityPreference) -> pb.LocalityPreference:
    kinds = pb.LocalityPreference
    return kinds(
        enabled=preference.enabled,
        distribute=[
            kinds.Distribution(
                source=entry.source,
                shares=[kinds.Share(place=place, percent=percent) for place, percent in entry.shares],
            )
            for entry in preference.distribute
        ],
        failover=[kinds.Failover(source=source, target=target) for source, target in preference.failover],
        failover_priority=preference.failover_priority,
    )


def _decode_balancing(message: pb.Balancing) -> Balancing:
    by = locality = warmup = None
    if message.HasField("hash"):
        wire = message.hash
        by = ConsistentHash(
            kind=HashKind[pb.ConsistentHash.Kind.Name(wire.kind)],
            name=wire.name,
            cookie_path=wire.cookie_path,
            cookie_ttl_s=wire.cookie_ttl_ms / 1000 if wire.HasField("cookie_ttl_ms") else None,
            cookie_attributes=_decode_labels(wire.cookie_attributes),
            algorithm=HashAlgorithm[pb.ConsistentHash.Algorithm.Name(wire.algorithm)],
            size=wire.size,
        )
    if message.HasField("locality"):
        place = message.locality
        locality = LocalityPreference(
            enabled=place.enabled,
            distribute=tuple(
                LocalityShare(
                    source=entry.source, shares=tuple((share.place, share.percent) for share in entry.shares)
                )
                for entry in place.distribute
            ),
            failover=tuple((entry.source, entry.target) for entry in place.failover),
            failover_priority=tuple(place.failover_priority),
        )
    if message.HasField("warmup"):
        warmup = Warmup(
            duration_s=message.warmup.duration_ms / 1000,
            minimum_percent=message.warmup.minimum_percent,
            aggression=message.warmup.aggression,
        )
    balancer = Balancer[pb.Balancing.Balancer.Name(message.balancer)]
    return Balancing(balancer=balancer, hash=by, locality=locality, warmup=warmup)


def _encode_pool(pool: ConnectionPool) -> pb.ConnectionPool:
    message = pb.ConnectionPool(
        connect_timeout_ms=round(pool.connect_timeout_s * 1000),
        tcp_idle_timeout_ms=_ms(pool.tcp_idle_timeout_s),
        max_connection_age_ms=_ms(pool.max_connection_age_s),
        idle_timeout_ms=_ms(pool.idle_timeout_s),
        ping_interval_ms=_ms(pool.ping_interval_s),
        ping_timeout_ms=_ms(pool.ping_timeout_s),
        http_upgrade=pool.http_upgrade.name,
        use_client_protocol=pool.use_client_protocol,
    )
    for name in _POOL_COUNTS:
        if (count := getattr(pool, name)) is not None:
            setattr(message, name, count)
    if (alive := pool.keepalive) is not None:
        message.keepalive.CopyFrom(
            pb.Keepalive(probes=alive.probes, time_ms=_ms(alive.time_s), interval_ms=_ms(alive.interval_s))
        )
    return message


def _decode_pool(message: pb.ConnectionPool) -> ConnectionPool:
    keepalive = None
    if message.HasField("keepalive"):
        alive = message.keepalive
        keepalive = Keepalive(
            probes=alive.probes if alive.HasField("probes") else None,
            time_s=alive.time_ms / 1000 if alive.HasField("time_ms") else None,
            interval_s=alive.interval_ms / 1000 if alive.HasField("interval_ms") else None,
        )

    def seconds(name: str) -> float | None:
        return getattr(message, name) / 1000 if message.HasField(name) else None

    return ConnectionPool(
        connect_timeout_s=message.connect_timeout_ms / 1000,
        keepalive=keepalive,
        tcp_idle_timeout_s=seconds("tcp_idle_timeout_ms"),
        max_connection_age_s=seconds("max_connection_age_ms"),
        idle_timeout_s=seconds("idle_timeout_ms"),
        ping_interval_s=seconds("ping_interval_ms"),
        ping_timeout_s=seconds("ping_timeout_ms"),
        http_upgrade=HttpUpgrade[pb.ConnectionPool.HttpUpgrade.Name(message.http_upgrade)],
        use_client_protocol=message.use_client_protocol,
        **{name: getattr(message, name) for name in _POOL_COUNTS if message.HasField(name)},
    )
