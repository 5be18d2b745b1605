# SPDX-License-Identifier: Apache-2.0
"""AuthorizationPolicies with targets: what waypoints are told, judged by the waypoints' own evaluator."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
import yaml

from controller.translate.mesh import Mesh, Options, translate
from mesh.authz.http import Asked, HttpPolicies
from mesh.config.objects import make_object
from mesh.identity.spiffe import SpiffeId
from mesh.model.http_policy import HttpAction, HttpAuthorization, TextKind
from mesh.model.workload import NamespacedHostname
from mesh.xds.http_policy import decode_http_authorization, encode_http_authorization

WORLD = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec: {hosts: [a.example, b.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
"""
WEB = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")
TO_WEB = {"kind": "Service", "name": "web"}
API = "gateway.networking.k8s.io"


def mesh_of(
    spec: Any, namespace: str = "shop", trust_domain: str = "cluster.local", **annotations: str
) -> Mesh:
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": namespace, "annotations": annotations},
        "spec": spec,
    }
    objects = [make_object(data) for data in (*yaml.safe_load_all(WORLD), policy)]
    return translate({obj.key: obj for obj in objects}, Options(trust_domain=trust_domain))


def policy_of(spec: Any, **more: str) -> HttpAuthorization:
    found = mesh_of({"targetRefs": [TO_WEB]} | spec, **more)
    (policy,) = found.http_policies.values()
    assert decode_http_authorization(encode_http_authorization(policy)) == policy
    return policy


def asked(**more: Any) -> Asked:
    given: dict[str, Any] = {
        "identity": SpiffeId("cluster.local", "shop", "client"),
        "source_ip": ip_address("10.244.0.5"),
        "remote_ip": ip_address("192.0.2.1"),
        "destination_ip": ip_address("10.96.0.20"),
        "port": 80,
        "method": "GET",
        "host": "web",
        "path": "/info",
        "headers": {},
    }
    return Asked(**given | more)


def allows(spec: Any, **request: Any) -> bool:
    return HttpPolicies([policy_of(spec)]).judge(asked(**request)).allowed


@pytest.mark.parametrize(
    ("target", "services", "waypoints"),
    [
        (TO_WEB, (WEB,), ()),
        (TO_WEB | {"group": "core"}, (WEB,), ()),
        ({"group": API, "kind": "Gateway", "name": "wp"}, (), ("shop/wp",)),
        (
            {"group": "networking.istio.io", "kind": "ServiceEntry", "name": "outside"},
            tuple(NamespacedHostname(namespace="shop", hostname=f"{name}.example") for name in "ab"),
            (),
        ),
    ],
)
def test_target(target: Any, services: Any, waypoints: Any) -> None:
    found = mesh_of({"targetRefs": [target]})
    assert found.problems == ()
    (policy,) = found.http_policies.values()
    assert (policy.services, policy.waypoints) == (services, waypoints)
    assert not found.policies, "ztunnel must not enforce it too"


def test_a_single_targetref_is_one_more() -> None:
    found = mesh_of({"targetRefs": [TO_WEB], "targetRef": {"group": API, "kind": "Gateway", "name": "wp"}})
    (policy,) = found.http_policies.values()
    assert (policy.services, policy.waypoints) == ((WEB,), ("shop/wp",))


@pytest.mark.parametrize(("namespace", "waypoints"), [("istio-system", ("*",)), ("shop", None)])
def test_a_class_is_a_target_of_the_root_namespace_only(namespace: str, waypoints: Any) -> None:
    found = mesh_of(
        {"targetRefs": [{"group": API, "kind": "GatewayClass", "name": "istio-waypoint"}]}, namespace
    )
    assert [p.waypoints for p in found.http_policies.values()] == ([waypoints] if waypoints else [])
    assert len(found.problems) == (0 if waypoints else 1)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"kind": "Service", "name": "gone"}, "TargetNotFound"),
        ({"group": API, "kind": "Gateway", "name": "gone"}, "TargetNotFound"),
        ({"group": "networking.istio.io", "kind": "ServiceEntry", "name": "gone"}, "TargetNotFound"),
        ({"group": API, "kind": "GatewayClass", "name": "nginx"}, "Invalid"),
        ({"group": "apps", "kind": "Deployment", "name": "web"}, "no kind of target"),
        (TO_WEB | {"sectionName": "http"}, "whole object"),
        (TO_WEB | {"namespace": "other"}, "own namespace"),
    ],
)
def test_a_target_that_cannot_be_is_reported(target: Any, words: str) -> None:
    found = mesh_of({"targetRefs": [target]}, "istio-system" if "Class" in target["kind"] else "shop")
    assert [words in p.reason for p in found.problems] == [True]
    assert found.problems[0].severity == "error"


def test_a_service_without_waypoint_is_reported() -> None:
    found = mesh_of({"targetRefs": [TO_WEB]})
    assert found.problems == ()
    bare = WORLD.replace("istio.io/use-waypoint: wp", "istio.io/use-waypoint: none")
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [TO_WEB]},
    }
    objects = [make_object(data) for data in (*yaml.safe_load_all(bare), policy)]
    found = translate({obj.key: obj for obj in objects}, Options())
    assert ["AncestorNotBound" in p.reason for p in found.problems] == [True]


def test_unclear_targets_close_the_waypoints_of_the_namespace() -> None:
    found = mesh_of({"action": "DENY", "targetRefs": "web"})
    (policy,) = found.http_policies.values()
    assert (policy.waypoints, policy.action, policy.rules) == (("shop/wp",), HttpAction.ALLOW, ())


@pytest.mark.parametrize(
    "spec",
    [
        {"action": "ALOW"},
        {"rules": [{"to": [{"operation": {"method": ["GET"]}}]}]},
        {"rules": [{"to": []}]},
        {"rules": [{"from": [{"source": {}}]}]},
        {"rules": [{"when": [{"key": "request.headers[x]"}]}]},
        {"rules": [{"when": [{"key": "what", "values": ["x"]}]}]},
        {"rules": [{"from": [{"source": {"principals": ["spiffe://a/ns/b/sa/c"]}}]}]},
        {"rules": [{"to": [{"operation": {"ports": ["0"]}}]}]},
        {"rules": [{"to": [{"operation": {"paths": ["/a/{*}/b*"]}}]}]},
        {"rule": []},
        {"action": "CUSTOM"},
    ],
)
def test_an_unclear_policy_allows_nothing_at_its_targets(spec: Any) -> None:
    found = mesh_of({"targetRefs": [TO_WEB]} | spec)
    (policy,) = found.http_policies.values()
    assert (policy.services, policy.action, policy.rules) == ((WEB,), HttpAction.ALLOW, ())
    assert "nothing is allowed at its targets" in found.problems[0].reason


def test_selector_and_targets_together_close_by_ztunnel() -> None:
    found = mesh_of({"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [TO_WEB]})
    assert found.http_policies == {}
    assert [(policy.action.name, policy.rules) for policy in found.policies.values()] == [("ALLOW", ())]


@pytest.mark.parametrize(
    ("rule", "request_", "expected"),
    [
        ({"to": [{"operation": {"methods": ["GET"]}}]}, {}, True),
        ({"to": [{"operation": {"methods": ["POST"]}}]}, {}, False),
        ({"to": [{"operation": {"paths": ["/info*"]}}]}, {"path": "/info/x"}, True),
        ({"to": [{"operation": {"paths": ["/a/{*}/c"]}}]}, {"path": "/a/b/c"}, True),
        ({"to": [{"operation": {"paths": ["/a/{*}/c"]}}]}, {"path": "/a/b/b/c"}, False),
        ({"to": [{"operation": {"notPaths": ["/info"]}}]}, {}, False),
        ({"to": [{"operation": {"hosts": ["WEB"]}}]}, {}, True),
        ({"to": [{"operation": {"ports": ["81"]}}]}, {}, False),
        ({"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}, {}, True),
        (
            {"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]},
            {"identity": None},
            False,
        ),
        ({"from": [{"source": {"notPrincipals": ["*"]}}]}, {"identity": None}, True),
        ({"from": [{"source": {"namespaces": ["shop"]}}]}, {}, True),
        ({"from": [{"source": {"serviceAccounts": ["client"]}}]}, {}, True),
        ({"from": [{"source": {"serviceAccounts": ["other/client"]}}]}, {}, False),
        ({"from": [{"source": {"ipBlocks": ["10.244.0.0/16"]}}]}, {}, True),
        ({"from": [{"source": {"remoteIpBlocks": ["10.244.0.0/16"]}}]}, {}, False),
        (
            {"from": [{"source": {"requestPrincipals": ["i/*"]}}]},
            {"claims": {"iss": "i", "sub": "s"}},
            True,
        ),
        ({"when": [{"key": "request.headers[x]", "values": ["a*"]}]}, {"headers": {"x": "ab"}}, True),
        ({"when": [{"key": "request.headers[x]", "notValues": ["a"]}]}, {"headers": {"x": "a"}}, False),
        ({"when": [{"key": "source.serviceAccount", "values": ["client"]}]}, {}, True),
        ({"when": [{"key": "destination.port", "values": ["80"]}]}, {}, True),
        ({"when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}]}, {}, True),
        ({}, {}, True),
    ],
)
def test_allow_rule_means_what_istio_says(rule: Any, request_: Any, expected: bool) -> None:
    assert allows({"rules": [rule]}, **request_) is expected


def test_deny_all_and_deny_nothing() -> None:
    assert not allows({})
    assert allows({"action": "DENY"})
    assert not allows({"action": "DENY", "rules": [{}]})


def test_cluster_local_stands_for_the_trust_domain() -> None:
    rule = {"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}]}
    policy = policy_of({"rules": [rule]}, trust_domain="corp")
    values = [match.value for match in policy.rules[0].sources[0].principals]
    assert values == ["cluster.local/ns/a/sa/b", "corp/ns/a/sa/b"]


def test_action_provider_and_dry_run() -> None:
    policy = policy_of({"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]})
    assert (policy.action, policy.provider, policy.dry_run) == (HttpAction.CUSTOM, "opa", False)
    assert policy_of({}, **{"istio.io/dry-run": "true"}).dry_run


def test_templates_are_told_apart_from_text() -> None:
    policy = policy_of({"rules": [{"to": [{"operation": {"paths": ["/a/{**}", "/{a}"]}}]}]})
    kinds = [match.kind for match in policy.rules[0].operations[0].paths]
    assert kinds == [TextKind.TEMPLATE, TextKind.EXACT]


def test_seventeen_targets_are_too_many() -> None:
    found = mesh_of({"targetRefs": [TO_WEB] * 16})
    assert [p.services for p in found.http_policies.values()] == [(WEB,)]
    found = mesh_of({"targetRefs": [TO_WEB] * 17})
    assert "more than 16" in found.problems[0].reason


def test_experimental_keys_deny_and_are_reported() -> None:
    key = "experimental.envoy.filters.network.mysql_proxy[db.t]"
    found = mesh_of({"targetRefs": [TO_WEB], "rules": [{"when": [{"key": key, "values": ["x"]}]}]})
    (policy,) = found.http_policies.values()
    assert not HttpPolicies([policy]).judge(asked()).allowed
    assert [p.severity for p in found.problems] == ["error"]
