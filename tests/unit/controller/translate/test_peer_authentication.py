# SPDX-License-Identifier: Apache-2.0
"""PeerAuthentication: which mode holds for a workload, and the policy it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.mesh import Mesh, Options, translate
from mesh.authz.evaluate import Connection, evaluate
from mesh.config.objects import make_object
from mesh.identity.spiffe import SpiffeId
from mesh.model.address import parse_ip
from mesh.model.policy import Action, Match, StringMatch, StringMatchKind

STATIC = "istio-system/istio_converted_static_strict"
CONVERTED = "shop/converted_peer_authentication_w"
NO_IDENTITY = (Match(not_principals=(StringMatch(kind=StringMatchKind.PRESENCE),)),)
MINE = {"matchLabels": {"app": "a"}}


def peer(namespace: str, name: str, spec: Any, created: str = "") -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": spec,
    }


def strict(mode: str = "STRICT", **more: Any) -> dict[str, Any]:
    return {"mtls": {"mode": mode}, **more}


def mesh_of(*peers: dict[str, Any]) -> Mesh:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop", "labels": {"app": "a"}},
        "status": {"podIP": "10.0.0.1"},
    }
    objects = [make_object(data) for data in (pod, *peers)]
    return translate({obj.key: obj for obj in objects}, Options())


def listed(mesh: Mesh) -> tuple[str, ...]:
    (workload,) = mesh.workloads.values()
    assert set(workload.authorization_policies) == set(mesh.policies)
    return workload.authorization_policies


ROOT = "istio-system"


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ([], ()),
        ([peer(ROOT, "m", strict())], (STATIC,)),
        ([peer("shop", "n", strict())], (STATIC,)),
        ([peer("other", "n", strict())], ()),
        ([peer(ROOT, "m", strict()), peer("shop", "n", strict("PERMISSIVE"))], ()),
        ([peer(ROOT, "m", strict()), peer("shop", "n", strict("DISABLE"))], ()),
        ([peer(ROOT, "m", strict()), peer("shop", "n", strict("UNSET"))], (STATIC,)),
        ([peer(ROOT, "m", strict()), peer("shop", "n", {})], (STATIC,)),
        ([peer("shop", "n", strict()), peer("shop", "w", strict("PERMISSIVE", selector=MINE))], ()),
        ([peer("shop", "w", strict(selector=MINE))], (STATIC,)),
        ([peer("shop", "w", strict(selector={"matchLabels": {"app": "b"}}))], ()),
        ([peer(ROOT, "m", strict(selector=MINE))], ()),
        ([peer("shop", "n", strict("PERMISSIVE"), "2025"), peer("shop", "m", strict(), "2026")], ()),
        ([peer("shop", "n", strict("PERMISSIVE"), "2026"), peer("shop", "m", strict(), "2025")], (STATIC,)),
    ],
)
def test_effective_mode(peers: list[dict[str, Any]], expected: tuple[str, ...]) -> None:
    assert listed(mesh_of(*peers)) == expected


def test_strict_denies_peers_without_identity() -> None:
    policy = mesh_of(peer(ROOT, "m", strict())).policies[STATIC]
    assert (policy.action, policy.rules) == (Action.DENY, ((NO_IDENTITY,),))


@pytest.mark.parametrize(
    ("parent", "spec", "match"),
    [
        (
            "STRICT",
            {"portLevelMtls": {"80": {"mode": "PERMISSIVE"}, "81": {"mode": "UNSET"}}},
            Match(not_destination_ports=(80,)),
        ),
        ("STRICT", {"portLevelMtls": {80: {"mode": "DISABLE"}}}, Match(not_destination_ports=(80,))),
        (
            "PERMISSIVE",
            {"portLevelMtls": {"80": {"mode": "STRICT"}, "9": {"mode": "STRICT"}}},
            Match(destination_ports=(9, 80)),
        ),
        (
            "STRICT",
            {"mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": {"80": {"mode": "STRICT"}}},
            Match(destination_ports=(80,)),
        ),
    ],
)
def test_port_level(parent: str, spec: dict[str, Any], match: Match) -> None:
    found = mesh_of(peer("shop", "n", strict(parent)), peer("shop", "w", {"selector": MINE, **spec}))
    assert listed(found) == (CONVERTED,)
    assert found.policies[CONVERTED].rules == ((NO_IDENTITY, (match,)),)


def test_ports_that_agree_need_no_policy_of_their_own() -> None:
    spec = strict(selector=MINE, portLevelMtls={"80": {"mode": "STRICT"}})
    assert listed(mesh_of(peer("shop", "w", spec))) == (STATIC,)


@pytest.mark.parametrize(
    ("namespace", "spec", "path"),
    [
        ("shop", strict("DISABLE"), ("spec", "mtls", "mode")),
        (ROOT, strict(selector=MINE), ("spec", "selector")),
        ("shop", {"portLevelMtls": {"80": {"mode": "STRICT"}}}, ("spec", "portLevelMtls")),
        ("shop", {"mtls": {"mod": "STRICT"}}, ("spec", "mtls", "mod")),
    ],
)
def test_warning(namespace: str, spec: Any, path: Any) -> None:
    found = mesh_of(peer(namespace, "w", spec))
    assert [(p.path, p.severity) for p in found.problems] == [(path, "warning")]
    assert not found.policies


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"mtls": {"mode": "strict"}}, ("spec", "mtls", "mode")),
        ({"mtls": []}, ("spec", "mtls")),
        ({"portLevelMtls": {"65536": {}}}, ("spec", "portLevelMtls", "65536")),
        ({"selector": {"matchLabels": {"app": 1}}}, ("spec", "selector", "matchLabels", "app")),
    ],
)
def test_ill_typed_leaves_wider_modes(spec: Any, path: Any) -> None:
    found = mesh_of(peer(ROOT, "m", strict()), peer("shop", "w", spec))
    assert listed(found) == (STATIC,)
    assert [(p.path, p.severity) for p in found.problems] == [(path, "error")]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("parent", "exception"), [("STRICT", "PERMISSIVE"), ("PERMISSIVE", "STRICT")])
@pytest.mark.parametrize("port", [80, 81])
def test_evaluation_of_port_level_modes(known: bool, parent: str, exception: str, port: int) -> None:
    found = mesh_of(
        peer("shop", "w", strict(parent, selector=MINE, portLevelMtls={"80": {"mode": exception}}))
    )
    connection = Connection(
        source_identity=SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/b") if known else None,
        source_ip=parse_ip("10.0.0.2"),
        destination_ip=parse_ip("10.0.0.1"),
        destination_port=port,
    )
    mode = exception if port == 80 else parent
    verdict = evaluate([found.policies[name] for name in listed(found)], connection)
    assert verdict.allowed is (known or mode == "PERMISSIVE")


@pytest.mark.parametrize(
    ("spec", "applies"),
    [
        ({"mtls": {"mode": "strict"}}, True),
        ({"mtls": 5}, True),
        (
            {"mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": {"http": {"mode": "STRICT"}}, "selector": MINE},
            True,
        ),
        ({"mtls": {"mode": "nothing"}, "selector": {"matchLabels": {"app": "other"}}}, False),
        ({"mtls": {"mode": "nothing"}, "selector": 5}, True),
    ],
)
def test_what_cannot_be_read_is_strict_for_whom_it_selects(spec: dict[str, Any], applies: bool) -> None:
    older = peer("shop", "older", strict("PERMISSIVE"), "2020-01-01T00:00:00Z")
    mesh = mesh_of(older, peer("shop", "w", spec, "2026-01-01T00:00:00Z"))
    assert listed(mesh) == ((STATIC,) if applies else ())
    assert any(problem.severity == "error" for problem in mesh.problems)
