# SPDX-License-Identifier: Apache-2.0
"""What each check finds, on meshes of given objects and answers."""

from __future__ import annotations

from typing import Any

import pytest

from cli.check import exit_code, lines_of
from cli.check_engine import Result, State, run_checks
from cli.checks import all_checks, differences
from cli.checks_pods import admits_tunnel, selects
from cli.facts import Facts
from cli.output import Screen
from cli.target import Answer, Program
from mesh.config.objects import parse_documents
from tests.support.fake_target import FakeTarget

POD = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c}]}
status: {phase: Running, conditions: [{type: Ready, status: "True"}], podIPs: [{ip: 10.0.0.2}]}
---
"""
ENROLLED = {"namespace": "shop", "name": "web", "uid": "u1", "state": "enrolled", "reason": "enrolled"}


def healthy(yaml: str = POD) -> FakeTarget:
    """A mesh of one node in which all is well."""
    status = {"controller": {"connected": True, "synced": True, "address": "a", "last_error": ""}}
    return FakeTarget(
        yaml=yaml,
        running=[Program(name="controller", running=True, restarts=0, why="")],
        bpf_report={"features": {"x": "ok"}, "programs": [{}], "missing": [], "neighbours": []},
        answers={
            ("controller", "/ready"): {},
            ("controller", "/debug/registry"): {"workloads": [], "services": [], "policies": []},
            ("controller", "/debug/problems"): {"rejected": [], "problems": []},
            ("controller", "/debug/proxies"): [{"node": "node1", "refused": {}}],
            ("agent/node1", "/healthz/ready"): {},
            ("agent/node1", "/pods"): [ENROLLED],
            ("agent/node1", "/maps"): {"counters": {}, "maps": {"pods": {"entries": 1, "capacity": 9}}},
            ("agent/node1", "/ztunnel"): [{"ready": True, "pods": 1}],
            ("ztunnel-ready/node1", "/healthz/ready"): {},
            ("ztunnel/node1", "/status"): status,
            ("ztunnel/node1", "/certs"): {"certificates": []},
            ("ztunnel/node1", "/config_dump"): {
                "workloads": [],
                "services": [],
                "policies": [],
                "brokenPolicies": {},
            },
        },
    )


def results(target: FakeTarget) -> dict[str, Result]:
    return {r.check.key: r for r in run_checks(all_checks(Facts(target)))}


def outcome(target: FakeTarget, key: str) -> tuple[str, str]:
    found = results(target)[key].outcome
    return found.state.value, str(found.code or "")


def test_a_healthy_mesh_has_nothing_but_its_missing_root() -> None:
    bad = {key for key, r in results(healthy()).items() if r.outcome.state is not State.OK}
    assert bad == {"root"}


def test_everything_down_names_the_programs_and_skips_the_rest() -> None:
    target = FakeTarget(
        yaml=POD, running=[Program(name="controller", running=False, restarts=3, why="exit 1")]
    )
    found = results(target)
    assert found["programs"].outcome.details == ("controller is down: exit 1",)
    assert found["controller"].outcome.state is State.SKIPPED
    assert found["node1/ztunnel"].outcome.code is not None
    assert found["enrolled"].outcome.state is State.SKIPPED
    assert exit_code(list(found.values()), "error") == 2


def test_a_place_without_the_mesh_says_how_to_put_it_there() -> None:
    found = results(FakeTarget(yaml=POD))["programs"].outcome
    assert found.details == ("the mesh is not here: none of its processes runs in lab fake",)
    assert found.advice == "`ambit install` puts it there"


@pytest.mark.parametrize(
    ("part", "path", "answer", "key", "expected"),
    [
        (
            "controller",
            "/ready",
            Answer(status=503, body=b"not yet"),
            "controller-ready",
            ("error", "AMB3112"),
        ),
        (
            "agent/node1",
            "/healthz/ready",
            Answer(status=503, body=b"bpf"),
            "node1/agent",
            ("error", "AMB3122"),
        ),
        ("agent/node1", "/ztunnel", [], "node1/handoff", ("error", "AMB3129")),
        (
            "agent/node1",
            "/maps",
            {"counters": {"record_quota": 3}, "maps": {}},
            "node1/refused",
            ("warning", "AMB3126"),
        ),
        (
            "agent/node1",
            "/maps",
            {"counters": {}, "maps": {"pods": {"entries": 9, "capacity": 10}}},
            "node1/room",
            ("warning", "AMB3125"),
        ),
        (
            "ztunnel/node1",
            "/certs",
            {"certificates": [{"identity": "x", "state": "unavailable"}]},
            "node1/certificates",
            ("error", "AMB3134"),
        ),
        (
            "ztunnel/node1",
            "/certs",
            {"certificates": [{"identity": "x", "state": "available", "validFrom": 0, "expirationTime": 1}]},
            "node1/certificates",
            ("error", "AMB3134"),
        ),
        (
            "controller",
            "/debug/proxies",
            [{"node": "node1", "refused": {"a": "bad"}}],
            "node1/refusals",
            ("error", "AMB3132"),
        ),
        (
            "agent/node1",
            "/pods",
            [ENROLLED | {"state": "enrolling", "reason": "waits for ztunnel"}],
            "enrolled",
            ("error", "AMB3141"),
        ),
        (
            "agent/node1",
            "/pods",
            [ENROLLED | {"state": "ignored", "code": "AMB2004", "reason": "sidecar"}],
            "left-out",
            ("warning", "AMB3142"),
        ),
        (
            "agent/node1",
            "/pods",
            [ENROLLED | {"older_connections": ["a -> b"]}],
            "older",
            ("warning", "AMB3144"),
        ),
    ],
)
def test_findings(part: str, path: str, answer: Any, key: str, expected: tuple[str, str]) -> None:
    target = healthy()
    target.answers[part, path] = answer
    assert outcome(target, key) == expected


SELECTING = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {selector: {matchLabels: {app: APP}}}
---
"""
NETWORK_POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: PORT}]}]}
---
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {LABEL}}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
"""


@pytest.mark.parametrize(
    ("more", "key", "expected"),
    [
        (SELECTING.replace("APP", "web"), "idle-policies", ("ok", "")),
        (SELECTING.replace("APP", "wbe"), "idle-policies", ("warning", "AMB3147")),
        (NETWORK_POLICY.replace("PORT", "80"), "network-policies", ("warning", "AMB3148")),
        (NETWORK_POLICY.replace("PORT", "15008"), "network-policies", ("ok", "")),
        (SERVICE.replace("LABEL", ""), "endpoints", ("warning", "AMB3146")),
        (SERVICE.replace("LABEL", "istio.io/use-waypoint: none"), "waypoints", ("ok", "")),
        (SERVICE.replace("LABEL", "istio.io/use-waypoint: wp"), "waypoints", ("error", "AMB3149")),
    ],
)
def test_findings_in_objects(more: str, key: str, expected: tuple[str, str]) -> None:
    assert outcome(healthy(POD + more), key) == expected


def test_a_pod_that_can_undo_capture_is_named() -> None:
    yaml = POD.replace("[{name: c}]", "[{name: c, securityContext: {capabilities: {add: [SYS_ADMIN]}}}]")
    (detail,) = results(healthy(yaml))["powerful"].outcome.details
    assert detail == "shop/web: container c has SYS_ADMIN"


def test_differences_between_node_and_controller() -> None:
    registry = {
        "workloads": [{"uid": "a", "service_account": "x", "services": {"shop/web": {"ports": {"80": 1}}}}],
        "services": [],
        "policies": [],
    }
    same = {"uid": "a", "serviceAccount": "x", "services": {"shop/web": {"ports": {"80": 1}}}}
    dump = {"workloads": [same], "services": [], "policies": []}
    assert differences(registry, dump) == []
    changed = {**dump, "workloads": [same | {"serviceAccount": "y"}, {"uid": "b"}]}
    assert differences(registry, changed) == ["workloads: a has changed", "workloads: b is no more"]


def test_selectors_as_kubernetes_has_them() -> None:
    labels = {"app": "web", "tier": "x"}
    assert selects(None, labels)
    assert selects({"matchLabels": {"app": "web"}}, labels)
    assert not selects({"matchLabels": {"app": "no"}}, labels)
    for operator, values, holds in (
        ("In", ["x"], True),
        ("NotIn", ["x"], False),
        ("Exists", None, True),
        ("DoesNotExist", None, False),
    ):
        rule = {"key": "tier", "operator": operator, "values": values}
        assert selects({"matchExpressions": [rule]}, labels) is holds


@pytest.mark.parametrize(
    ("ingress", "admits"),
    [
        ("[]", False),
        ("[{}]", True),
        ("[{ports: [{port: 15000, endPort: 15010}]}]", True),
        ("[{ports: [{port: 15008, protocol: UDP}]}]", False),
        ("[{ports: [{protocol: TCP}]}]", True),
    ],
)
def test_what_a_network_policy_admits(ingress: str, admits: bool) -> None:
    text = NETWORK_POLICY.replace("[{ports: [{port: PORT}]}]", ingress)
    (policy,), _ = parse_documents(text, "x.yaml")
    assert admits_tunnel(policy) is admits


def test_a_finding_says_what_why_and_what_to_do() -> None:
    target = healthy()
    target.answers["agent/node1", "/ztunnel"] = []
    lines = lines_of(results(target)["node1/handoff"], Screen(colour=False, unicode=True, width=200))
    assert lines[0].strip() == "✗ ztunnel takes pods from the agent"
    assert lines[1].strip() == "no ztunnel has taken over the node's pods"
    assert lines[2].strip().startswith("what to do: look at the logs of both")
    assert lines[2].endswith("(AMB3129)")
