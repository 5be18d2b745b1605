# SPDX-License-Identifier: Apache-2.0
"""DestinationRules: whose rule holds, what its levels override, each field and its default."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.destination_rule import endpoint_labels, translate_destination_rules
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.destination import (
    Balancer,
    ConnectionPool,
    DestinationPolicy,
    EndpointLabels,
    HashAlgorithm,
    HashKind,
    HttpUpgrade,
    Keepalive,
    LocalityPreference,
    LocalityShare,
    OutlierDetection,
    RetryBudget,
    TlsMode,
    TrafficPolicy,
    Warmup,
)
from mesh.model.service import Service, ServicePort
from mesh.model.workload import GatewayAddress, NamespacedHostname, PortMap, Workload
from mesh.xds.destinations import (
    decode_destination_policy,
    destination_policy_name,
    encode_destination_policy,
)


def key(name: str, namespace: str = "app") -> NamespacedHostname:
    return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.cluster.local")


def service(name: str, namespace: str = "app", waypoint: str = "app") -> Service:
    address = GatewayAddress(destination=key("waypoint", waypoint), hbone_mtls_port=15008)
    return Service(
        name=name,
        namespace=namespace,
        hostname=key(name, namespace).hostname,
        ports=(
            ServicePort(service_port=80, target_port=8080),
            ServicePort(service_port=81, target_port=8081),
        ),
        waypoint=address if waypoint else None,
        canonical=True,
    )


SERVICES = {
    made.key: made
    for made in (
        service("reviews"),
        service("ratings"),
        service("bare", waypoint=""),
        service("shop", "edge", "gate"),
    )
}


def rule(
    spec: str, name: str = "r", namespace: str = "app", created: str = "2026-01-01T00:00:00Z"
) -> RawObject:
    return make_object(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
            "spec": yaml.safe_load(spec),
        }
    )


def translated(*rules: RawObject) -> tuple[dict[str, DestinationPolicy], list[str]]:
    world = World({obj.key: obj for obj in rules}, Options())
    found = translate_destination_rules(world, SERVICES)
    return found, [
        f"{'.'.join(str(step) for step in problem.path)}: {problem.reason}" for problem in world.problems
    ]


def policy(spec: str) -> TrafficPolicy:
    """Translate a trafficPolicy, and require that nothing is wrong with it."""
    found, problems = translated(rule(f"host: reviews\ntrafficPolicy: {spec}"))
    assert problems == []
    return found[str(key("reviews"))].policy


# --- which rule


def test_a_short_name_is_a_service_of_the_rules_namespace() -> None:
    found, problems = translated(rule("host: reviews"))
    assert list(found) == ["app/reviews.app.svc.cluster.local"]
    (made,) = found.values()
    assert (made.service, made.sources, problems) == (key("reviews"), ("DestinationRule/app/r",), [])
    assert destination_policy_name(made) == next(iter(found))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("reviews", '"*.app.svc.cluster.local"', "first"),
        ('"*.local"', '"*.app.svc.cluster.local"', "second"),
        ('"*"', '"*.local"', "second"),
    ],
)
def test_the_most_specific_host_of_a_namespace_wins(first: str, second: str, expected: str) -> None:
    found, _ = translated(rule(f"host: {first}", "first"), rule(f"host: {second}", "second"))
    assert found[str(key("reviews"))].sources == (f"DestinationRule/app/{expected}",)


def test_the_waypoints_namespace_comes_before_the_services_and_that_before_the_root() -> None:
    host = "host: shop.edge.svc.cluster.local"
    root = rule(host, "root", "istio-system")
    found, _ = translated(root)
    assert {name: made.sources for name, made in found.items()} == {
        str(key("shop", "edge")): ("DestinationRule/istio-system/root",)
    }
    found, _ = translated(root, rule(host, "own", "edge"))
    assert found[str(key("shop", "edge"))].sources == ("DestinationRule/edge/own",)
    found, _ = translated(root, rule(host, "own", "edge"), rule(host, "way", "gate"))
    assert {name: made.sources for name, made in found.items()} == {
        str(key("shop", "edge")): ("DestinationRule/edge/own",),
        f"{key('shop', 'edge')}@gate": ("DestinationRule/gate/way",),
    }


def test_a_rule_in_any_other_namespace_is_not_read_and_says_so() -> None:
    found, problems = translated(rule("host: reviews.app.svc.cluster.local", namespace="stranger"))
    assert found == {}
    assert problems[0].startswith("spec.host: no waypoint reads it")


def test_a_rule_is_seen_only_where_it_is_exported_to() -> None:
    private = 'host: shop\nexportTo: ["."]'
    found, problems = translated(rule(private, namespace="edge"))
    assert found == {}
    assert "no waypoint reads it" in problems[0]
    found, _ = translated(rule("host: shop\nexportTo: [gate]", namespace="edge"))
    assert list(found) == [f"{key('shop', 'edge')}@gate"]
    found, _ = translated(rule('host: reviews\nexportTo: ["."]'))
    assert list(found) == [f"{key('reviews')}@app"]


def test_rules_for_one_host_are_one_with_the_oldest_policy_and_all_subsets() -> None:
    old = rule(
        "host: reviews\nsubsets: [{name: v1, labels: {version: v1}}]\n"
        "trafficPolicy: {loadBalancer: {simple: RANDOM}}",
        "z",
        created="2026-01-01T00:00:00Z",
    )
    young = rule(
        "host: reviews\nsubsets: [{name: v1, labels: {version: other}}, {name: v2, labels: {version: v2}}]\n"
        "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}",
        "a",
        created="2026-02-01T00:00:00Z",
    )
    found, problems = translated(young, old)
    made = found[str(key("reviews"))]
    assert made.policy.balancing.balancer is Balancer.RANDOM
    assert [(subset.name, subset.labels) for subset in made.subsets] == [
        ("v1", (("version", "v1"),)),
        ("v2", (("version", "v2"),)),
    ]
    assert [text.partition(":")[0] for text in problems] == ["spec.subsets.0.name", "spec.trafficPolicy"]


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("host: nothing", "spec.host", "names no service"),
        ("host: bare", "spec.host", "only waypoints honour"),
        ("{}", "spec.host", "is missing"),
        ("host: 5", "spec.host", "must be text"),
        ("host: reviews\nworkloadSelector: {matchLabels: {a: b}}", "spec.workloadSelector", "no effect"),
        ("host: reviews\nspeed: 5", "spec.speed", "not known"),
        ("host: reviews\nsubsets: [{labels: {a: b}}]", "spec.subsets.0.name", "answered 503"),
        ("host: reviews\nsubsets: [{name: a, labels: {a: 1}}]", "spec.subsets.0.labels.a", "answered 503"),
        (
            "host: reviews\ntrafficPolicy: {portLevelSettings: [{port: {number: 9}}]}",
            "spec.trafficPolicy.portLevelSettings",
            "has no port 9",
        ),
        (
            "host: reviews\ntrafficPolicy: {portLevelSettings: [{}]}",
            "spec.trafficPolicy.portLevelSettings.0.port",
            "names no port",
        ),
        (
            "host: reviews\ntrafficPolicy: {tunnel: {protocol: CONNECT}}",
            "spec.trafficPolicy.tunnel",
            "not known",
        ),
    ],
)
def test_what_is_not_honoured_is_reported_by_its_path(spec: str, path: str, reason: str) -> None:
    _, problems = translated(rule(spec))
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    assert reason in problems[0]


# --- levels


LEVELS = """
host: reviews
trafficPolicy:
  loadBalancer: {simple: RANDOM}
  connectionPool: {tcp: {maxConnections: 1}}
  proxyProtocol: {version: V2}
  portLevelSettings:
  - {port: {number: 80}, connectionPool: {tcp: {maxConnections: 80}}}
subsets:
- name: plain
- name: own
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    portLevelSettings:
    - {port: {number: 81}, connectionPool: {tcp: {maxConnections: 81}}}
"""


@pytest.mark.parametrize(
    ("port", "subset", "balancer", "connections", "proxy"),
    [
        (99, "", Balancer.RANDOM, 1, 2),
        # A port's settings replace the destination's, also what they leave out.
        (80, "", Balancer.LEAST_REQUEST, 80, 0),
        (99, "plain", Balancer.RANDOM, 1, 2),
        (80, "plain", Balancer.LEAST_REQUEST, 80, 0),
        # A subset's blocks override, the others are the rule's for that port.
        (99, "own", Balancer.ROUND_ROBIN, 1, 2),
        (80, "own", Balancer.ROUND_ROBIN, 80, 0),
        (81, "own", Balancer.LEAST_REQUEST, 81, 2),
    ],
)
def test_levels_override_each_other_as_istio_has_it(
    port: int, subset: str, balancer: Balancer, connections: int, proxy: int
) -> None:
    # Source of the expectations: istio pilot/pkg/networking/util MergeSubsetTrafficPolicy.
    found, _ = translated(rule(LEVELS))
    made = found[str(key("reviews"))].find(port, subset)
    assert made is not None
    assert (made.balancing.balancer, made.pool.max_connections, made.proxy_protocol) == (
        balancer,
        connections,
        proxy,
    )


def test_a_subset_that_is_not_defined_is_not_found() -> None:
    found, _ = translated(rule(LEVELS))
    assert found[str(key("reviews"))].find(80, "none") is None


# --- blocks


def test_a_policy_that_says_nothing_has_the_defaults() -> None:
    assert policy("{}") == TrafficPolicy()


@pytest.mark.parametrize(
    ("simple", "expected"),
    [
        ("UNSPECIFIED", Balancer.LEAST_REQUEST),
        ("LEAST_CONN", Balancer.LEAST_REQUEST),
        ("LEAST_REQUEST", Balancer.LEAST_REQUEST),
        ("RANDOM", Balancer.RANDOM),
        ("ROUND_ROBIN", Balancer.ROUND_ROBIN),
        ("PASSTHROUGH", Balancer.PASSTHROUGH),
    ],
)
def test_simple_balancers(simple: str, expected: Balancer) -> None:
    assert policy(f"{{loadBalancer: {{simple: {simple}}}}}").balancing.balancer is expected


@pytest.mark.parametrize(
    ("spec", "kind", "name", "algorithm", "size", "ttl_s"),
    [
        ("httpHeaderName: X-User", HashKind.HEADER, "x-user", HashAlgorithm.RING, 1024, None),
        ("useSourceIp: true", HashKind.SOURCE_IP, "", HashAlgorithm.RING, 1024, None),
        ("httpQueryParameterName: Id", HashKind.QUERY, "Id", HashAlgorithm.RING, 1024, None),
        ("httpCookie: {name: Sid}", HashKind.COOKIE, "Sid", HashAlgorithm.RING, 1024, None),
        ("httpCookie: {name: Sid, ttl: 0s}", HashKind.COOKIE, "Sid", HashAlgorithm.RING, 1024, 0),
        ("httpCookie: {name: Sid, ttl: 1.5h}", HashKind.COOKIE, "Sid", HashAlgorithm.RING, 1024, 5400),
        ("useSourceIp: true, minimumRingSize: 7", HashKind.SOURCE_IP, "", HashAlgorithm.RING, 7, None),
        (
            "useSourceIp: true, ringHash: {minimumRingSize: 99}",
            HashKind.SOURCE_IP,
            "",
            HashAlgorithm.RING,
            99,
            None,
        ),
        ("useSourceIp: true, maglev: {}", HashKind.SOURCE_IP, "", HashAlgorithm.MAGLEV, 65537, None),
        ("useSourceIp: true, maglev: {tableSize: 5}", HashKind.SOURCE_IP, "", HashAlgorithm.MAGLEV, 5, None),
    ],
)
def test_consistent_hashes(
    spec: str, kind: HashKind, name: str, algorithm: HashAlgorithm, size: int, ttl_s: float | None
) -> None:
    made = policy(f"{{loadBalancer: {{consistentHash: {{{spec}}}}}}}").balancing.hash
    assert made is not None
    assert (made.kind, made.name, made.algorithm, made.size) == (kind, name, algorithm, size)
    assert made.cookie_ttl_s == ttl_s


def test_locality_and_warmup() -> None:
    made = policy(
        "{loadBalancer: {localityLbSetting: {distribute: [{from: r/a/*, to: {r/a/*: 80, r/b/*: 20}}]},"
        " warmup: {duration: 60s, minimumPercent: 5, aggression: 2}}}"
    ).balancing
    share = LocalityShare(source="r/a/*", shares=(("r/a/*", 80), ("r/b/*", 20)))
    assert made.locality == LocalityPreference(distribute=(share,))
    assert made.warmup == Warmup(duration_s=60, minimum_percent=5, aggression=2)
    made = policy(
        "{loadBalancer: {localityLbSetting: {enabled: false, failover: [{from: a, to: b}]},"
        " warmupDurationSecs: 30s}}"
    ).balancing
    assert made.locality == LocalityPreference(enabled=False, failover=(("a", "b"),))
    assert made.warmup == Warmup(duration_s=30)


def test_every_field_of_the_connection_pool() -> None:
    made = policy("""
      connectionPool:
        tcp:
          maxConnections: 100
          connectTimeout: 250ms
          tcpKeepalive: {probes: 3, time: 2h, interval: 75s}
          idleTimeout: 5m
          maxConnectionDuration: 1h30m
        http:
          http1MaxPendingRequests: 1
          http2MaxRequests: 2
          maxRequestsPerConnection: 3
          maxRetries: 4
          idleTimeout: 30s
          h2UpgradePolicy: UPGRADE
          useClientProtocol: true
          maxConcurrentStreams: 5
          http2KeepAlive: {interval: 1m, timeout: 5s}
    """)
    assert made.pool == ConnectionPool(
        max_connections=100,
        connect_timeout_s=0.25,
        keepalive=Keepalive(probes=3, time_s=7200, interval_s=75),
        tcp_idle_timeout_s=300,
        max_connection_age_s=5400,
        max_pending_requests=1,
        max_requests=2,
        max_requests_per_connection=3,
        max_retries=4,
        idle_timeout_s=30,
        http_upgrade=HttpUpgrade.ALWAYS,
        use_client_protocol=True,
        max_concurrent_streams=5,
        ping_interval_s=60,
        ping_timeout_s=5,
    )


def test_bounds_of_0_are_none_and_idle_timeouts_of_0_are_off() -> None:
    made = policy("{connectionPool: {tcp: {maxConnections: 0, idleTimeout: 0s}, http: {maxRetries: 0}}}")
    assert made.pool == ConnectionPool(tcp_idle_timeout_s=None, idle_timeout_s=None)


def test_every_field_of_outlier_detection_and_its_defaults() -> None:
    assert policy("{outlierDetection: {}}").outliers == OutlierDetection()
    made = policy(
        "{outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, interval: 1s,"
        " baseEjectionTime: 1m, maxEjectionPercent: 100, minHealthPercent: 30,"
        " splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 7}}"
    )
    assert made.outliers == OutlierDetection(
        consecutive_5xx=0,
        consecutive_gateway_errors=2,
        split_local_errors=True,
        consecutive_local_failures=7,
        interval_s=1,
        base_ejection_s=60,
        max_ejection_percent=100,
        min_health_percent=30,
    )


def test_consecutive_errors_of_old_articles_are_gateway_errors() -> None:
    found, problems = translated(
        rule("host: reviews\ntrafficPolicy: {outlierDetection: {consecutiveErrors: 7}}")
    )
    made = found[str(key("reviews"))].policy.outliers
    assert made == OutlierDetection(consecutive_5xx=0, consecutive_gateway_errors=7)
    assert problems[0].startswith("spec.trafficPolicy.outlierDetection.consecutiveErrors: is deprecated")


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ("{mode: DISABLE}", TlsMode.DISABLE),
        ("{mode: ISTIO_MUTUAL}", TlsMode.ISTIO_MUTUAL),
        ("{mode: SIMPLE, sni: a.example, subjectAltNames: [a.example]}", TlsMode.SIMPLE),
        ("{mode: MUTUAL, credentialName: keys}", TlsMode.MUTUAL),
    ],
)
def test_tls_modes(spec: str, mode: TlsMode) -> None:
    made = policy(f"{{tls: {spec}}}").tls
    assert made is not None
    assert made.mode is mode


def test_a_retry_budget_has_its_defaults() -> None:
    assert policy("{retryBudget: {}}").retry_budget == RetryBudget(percent=20, min_concurrent=3)
    made = policy("{retryBudget: {percent: 50, minRetryConcurrency: 1}}")
    assert made.retry_budget == RetryBudget(percent=50, min_concurrent=1)


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ("{loadBalancer: {simple: FAST}}", "loadBalancer.simple"),
        (
            "{loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}",
            "loadBalancer.consistentHash",
        ),
        ("{loadBalancer: {consistentHash: {}}}", "loadBalancer.consistentHash"),
        ("{loadBalancer: {consistentHash: {useSourceIp: false}}}", "loadBalancer.consistentHash.useSourceIp"),
        (
            "{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 4}}}}",
            "loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            "{loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 99}}]}}}",
            "loadBalancer.localityLbSetting.distribute.0.to",
        ),
        ("{connectionPool: {tcp: {connectTimeout: soon}}}", "connectionPool.tcp.connectTimeout"),
        ("{connectionPool: {tcp: {connectTimeout: 0s}}}", "connectionPool.tcp.connectTimeout"),
        ("{connectionPool: {http: {maxRetries: -1}}}", "connectionPool.http.maxRetries"),
        ("{connectionPool: [1]}", "connectionPool"),
        ("{outlierDetection: {maxEjectionPercent: 101}}", "outlierDetection.maxEjectionPercent"),
        ("{outlierDetection: {interval: 0s}}", "outlierDetection.interval"),
        ("{retryBudget: {percent: 101}}", "retryBudget.percent"),
        ("{proxyProtocol: {version: V3}}", "proxyProtocol.version"),
    ],
)
def test_a_block_that_cannot_be_read_has_its_default_and_the_others_stay(block: str, path: str) -> None:
    other = "tls: {mode: DISABLE}, " + block[1:]
    found, problems = translated(rule(f"host: reviews\ntrafficPolicy: {{{other}"))
    made = found[str(key("reviews"))].policy
    assert made.tls is not None
    assert made == TrafficPolicy(tls=made.tls)
    assert len(problems) == 1
    assert problems[0].startswith(f"spec.trafficPolicy.{path}: ")
    assert problems[0].endswith("has its default")


@pytest.mark.parametrize("tls", ["{mode: STRICT}", "{mode: MUTUAL}", "[1]", "{mode: SIMPLE, verify: no}"])
def test_tls_that_cannot_be_read_closes(tls: str) -> None:
    found, problems = translated(rule(f"host: reviews\ntrafficPolicy: {{tls: {tls}}}"))
    made = found[str(key("reviews"))].policy.tls
    assert made is not None
    assert made.mode is TlsMode.INVALID
    assert made.problem
    assert "refused" in problems[0]


# --- labels of endpoints


def test_only_labels_that_a_policy_asks_for_are_sent() -> None:
    found, _ = translated(
        rule("host: reviews\nsubsets: [{name: v1, labels: {version: v1}}]"),
        rule(
            "host: ratings\ntrafficPolicy: {loadBalancer: {localityLbSetting:"
            " {failoverPriority: [rack, 'region=eu']}}}",
            "f",
        ),
    )
    labels = {"version": "v2", "app": "x", "rack": "7"}
    of_reviews = Workload(uid="a", name="a", namespace="app", services={key("reviews"): PortMap()})
    of_none = Workload(uid="b", name="b", namespace="app")
    assert endpoint_labels(found.values(), [(labels, of_reviews), (labels, of_none), ({}, of_none)]) == {
        "a": EndpointLabels(uid="a", labels=(("rack", "7"), ("version", "v2"))),
        "b": EndpointLabels(uid="b", labels=(("rack", "7"),)),
    }


# --- anything at all


FIELDS = [
    "host",
    "exportTo",
    "subsets",
    "name",
    "labels",
    "trafficPolicy",
    "loadBalancer",
    "simple",
    "consistentHash",
    "httpCookie",
    "ttl",
    "maglev",
    "tableSize",
    "localityLbSetting",
    "distribute",
    "from",
    "to",
    "failover",
    "connectionPool",
    "tcp",
    "http",
    "maxConnections",
    "connectTimeout",
    "idleTimeout",
    "tcpKeepalive",
    "outlierDetection",
    "interval",
    "consecutiveErrors",
    "tls",
    "mode",
    "portLevelSettings",
    "port",
    "number",
    "workloadSelector",
    "retryBudget",
    "percent",
    "proxyProtocol",
    "version",
    "warmup",
]
VALUES = st.sampled_from(
    ["reviews", "*", "*.local", ".", "1s", "RANDOM", "MUTUAL", "", "é\0", 0, 1, -1, 2**40, 0.5, True, None]
)
JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), st.sampled_from(["reviews", "*", 5]))
def test_any_object_is_translated_or_reported(spec: dict[str, Any], host: Any) -> None:
    data = {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "DestinationRule",
        "metadata": {"name": "r", "namespace": "app"},
        "spec": {"host": host} | spec,
    }
    found, problems = translated(make_object(data))
    assert (found, problems) == translated(make_object(data))
    for name, made in found.items():
        assert destination_policy_name(made) == name
        assert decode_destination_policy(encode_destination_policy(made)).service == made.service
