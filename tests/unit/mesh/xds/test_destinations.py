# SPDX-License-Identifier: Apache-2.0
"""Destination policies survive the wire, and what is none is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from mesh.proto import destinations_pb2
from mesh.xds.destinations import (
    decode_destination_policy,
    decode_endpoint_labels,
    destination_policy_name,
    encode_destination_policy,
    encode_endpoint_labels,
)

TEXT = st.text("abc/-.*", min_size=1, max_size=6)
TEXTS = st.lists(TEXT, max_size=2).map(tuple)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple)
COUNT = st.none() | st.integers(0, 2**32 - 1)
SECONDS = st.integers(0, 10**8).map(lambda ms: ms / 1000)
PERCENT = st.integers(0, 100)
TENTHS = st.integers(0, 1000).map(lambda tenths: tenths / 10)
HASHES = st.builds(
    ConsistentHash,
    kind=st.sampled_from(HashKind),
    name=TEXT,
    cookie_path=TEXT,
    cookie_ttl_s=st.none() | SECONDS,
    cookie_attributes=PAIRS,
    algorithm=st.sampled_from(HashAlgorithm),
    size=st.integers(0, 2**40),
)
LOCALITIES = st.builds(
    LocalityPreference,
    enabled=st.booleans(),
    distribute=st.lists(
        st.builds(
            LocalityShare, source=TEXT, shares=st.lists(st.tuples(TEXT, PERCENT), max_size=2).map(tuple)
        ),
        max_size=2,
    ).map(tuple),
    failover=PAIRS,
    failover_priority=TEXTS,
)
POOLS = st.builds(
    ConnectionPool,
    max_connections=COUNT,
    connect_timeout_s=SECONDS,
    keepalive=st.none()
    | st.builds(Keepalive, probes=COUNT, time_s=st.none() | SECONDS, interval_s=st.none() | SECONDS),
    tcp_idle_timeout_s=st.none() | SECONDS,
    max_connection_age_s=st.none() | SECONDS,
    max_pending_requests=COUNT,
    max_requests=COUNT,
    max_requests_per_connection=COUNT,
    max_retries=COUNT,
    idle_timeout_s=st.none() | SECONDS,
    http_upgrade=st.sampled_from(HttpUpgrade),
    use_client_protocol=st.booleans(),
    max_concurrent_streams=COUNT,
    ping_interval_s=st.none() | SECONDS,
    ping_timeout_s=st.none() | SECONDS,
)
OUTLIERS = st.builds(
    OutlierDetection,
    consecutive_5xx=PERCENT,
    consecutive_gateway_errors=PERCENT,
    split_local_errors=st.booleans(),
    consecutive_local_failures=PERCENT,
    interval_s=SECONDS,
    base_ejection_s=SECONDS,
    max_ejection_s=SECONDS,
    max_ejection_percent=PERCENT,
    min_health_percent=PERCENT,
)
TLS = st.builds(
    ClientTls,
    mode=st.sampled_from(TlsMode),
    sni=TEXT,
    subject_alt_names=TEXTS,
    credential=TEXT,
    ca_file=TEXT,
    certificate_file=TEXT,
    key_file=TEXT,
    insecure=st.booleans(),
    problem=TEXT,
)
POLICIES = st.builds(
    TrafficPolicy,
    balancing=st.builds(
        Balancing,
        balancer=st.sampled_from(Balancer),
        hash=st.none() | HASHES,
        locality=st.none() | LOCALITIES,
        warmup=st.none() | st.builds(Warmup, duration_s=SECONDS, minimum_percent=TENTHS, aggression=TENTHS),
    ),
    pool=POOLS,
    outliers=st.none() | OUTLIERS,
    tls=st.none() | TLS,
    proxy_protocol=st.integers(0, 2),
    retry_budget=st.none()
    | st.builds(
        RetryBudget, percent=TENTHS, interval_s=SECONDS, min_concurrent=PERCENT, min_per_second=TENTHS
    ),
)
PORTS = st.lists(st.builds(PortPolicy, port=st.integers(1, 65535), policy=POLICIES), max_size=2).map(tuple)
DESTINATIONS = st.builds(
    DestinationPolicy,
    service=st.builds(NamespacedHostname, namespace=TEXT, hostname=TEXT),
    sources=TEXTS,
    client_namespace=TEXT,
    policy=POLICIES,
    ports=PORTS,
    subsets=st.lists(
        st.builds(Subset, name=TEXT, labels=PAIRS, policy=POLICIES, ports=PORTS), max_size=2
    ).map(tuple),
)
REVIEWS = NamespacedHostname(namespace="prod", hostname="reviews.prod.svc.cluster.local")


@given(DESTINATIONS)
def test_a_policy_survives_the_wire(policy: DestinationPolicy) -> None:
    assert decode_destination_policy(encode_destination_policy(policy)) == policy


def test_equal_policies_have_equal_bytes_and_different_ones_do_not() -> None:
    policy = DestinationPolicy(service=REVIEWS)
    assert encode_destination_policy(policy) == encode_destination_policy(replace(policy))
    other = replace(policy, subsets=(Subset(name="v1"),))
    assert encode_destination_policy(policy) != encode_destination_policy(other)


def test_the_name_is_that_of_the_service() -> None:
    policy = DestinationPolicy(service=REVIEWS)
    assert destination_policy_name(policy) == "prod/reviews.prod.svc.cluster.local"
    of_one = replace(policy, client_namespace="edge")
    assert destination_policy_name(of_one) == "prod/reviews.prod.svc.cluster.local@edge"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xff", "not a destination policy"),
        (b"", "names its service"),
        (
            destinations_pb2.DestinationPolicy(
                namespace="n",
                hostname="h",
                policy=destinations_pb2.TrafficPolicy(balancing=destinations_pb2.Balancing(balancer=99)),  # type: ignore[arg-type]
            ).SerializeToString(),
            "99",
        ),
    ],
)
def test_what_is_no_policy_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_destination_policy(value)


@given(st.builds(EndpointLabels, uid=TEXT, labels=PAIRS))
def test_labels_survive_the_wire(labels: EndpointLabels) -> None:
    assert decode_endpoint_labels(encode_endpoint_labels(labels)) == labels


@pytest.mark.parametrize(("value", "reason"), [(b"\xff\xff", "not the labels"), (b"", "name its workload")])
def test_what_are_no_labels_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_endpoint_labels(value)


def test_a_port_and_a_subset_are_looked_up_and_an_undefined_subset_is_told_apart() -> None:
    port = TrafficPolicy(proxy_protocol=1)
    subset = TrafficPolicy(proxy_protocol=2)
    policy = DestinationPolicy(
        service=REVIEWS,
        ports=(PortPolicy(port=80, policy=port),),
        subsets=(Subset(name="v1", policy=subset),),
    )
    assert policy.find(80) is port
    assert policy.find(81) == TrafficPolicy()
    assert policy.find(80, "v1") is subset
    assert policy.find(80, "v2") is None
