# SPDX-License-Identifier: Apache-2.0
"""`why`: what words mean, which cause comes first, where a policy was written, what is printed."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from cli import why
from cli.checks_pods import ROOT_NAMESPACE
from cli.codes import CliError, Code
from cli.facts import Facts
from cli.policy_source import origin
from cli.target_lab import listener
from cli.why_path import Walker
from cli.why_report import Report
from cli.why_target import find_destination, split_port
from tests.support.fake_target import FakeTarget

YAML = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-web, labels: {app: web}}
spec: {nodeName: node1, serviceAccountName: web, containers: [{name: c}]}
status:
  {phase: Running, conditions: [{type: Ready, status: "True"}], podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u-cart, labels: {app: cart}}
spec:
  nodeName: node1
  containers: [{name: c, ports: [{containerPort: 8080}]}]
status: {phase: Running, conditions: [{type: Ready, status: "True"}], podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/other]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/more]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec:
  mtls:
    mode: STRICT
"""
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


def workload(name: str, *addresses: str, **more: Any) -> dict[str, Any]:
    row = {
        "uid": f"K//Pod/shop/{name}",
        "namespace": "shop",
        "name": name,
        "addresses": list(addresses),
        "trust_domain": "cluster.local",
        "service_account": name,
        "services": {},
        "healthy": True,
    }
    return row | more


def service(name: str, *addresses: str, ports: tuple[int, ...] = (80,)) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "shop",
        "hostname": f"{name}.shop.svc.cluster.local",
        "addresses": [{"network": "", "address": a} for a in addresses],
        "ports": [{"service_port": p, "target_port": 8080} for p in ports],
    }


CART = {
    "uid": "K//Pod/shop/cart",
    "namespace": "shop",
    "name": "cart",
    "node": "node1",
    "identity": "spiffe://cluster.local/ns/shop/sa/cart",
}
TUNNEL = {
    "share": 1.0,
    "kind": "hbone",
    "address": "10.0.0.3",
    "port": 15008,
    "authority": "10.0.0.3:8080",
    "identities": [CART["identity"]],
    "workload": CART,
}


def mesh(*, outcomes: list[Any] | None = None, inbound: dict[str, Any] | None = None) -> FakeTarget:
    """A mesh of one node: web calls service cart; the proxies answer as given."""
    outbound = urlencode({"source": "K//Pod/shop/web", "address": "10.96.0.1", "port": 80})
    question = {
        "destination": "K//Pod/shop/cart",
        "address": "10.0.0.3",
        "port": 8080,
        "source_ip": "10.0.0.2",
        "authority": "10.0.0.3:8080",
        "identity": IDENTITY,
    }
    answer = {
        "allowed": True,
        "reason": "complete",
        "detail": "no ALLOW policy applies",
        "policy": "",
        "policies": [],
        "dryRun": [],
    }
    pod = {"state": "enrolled", "captured": True, "reason": "enrolled", "since": 0}
    return FakeTarget(
        yaml=YAML,
        open_ports={"shop/cart": frozenset({("*", 8080)})},
        answers={
            ("controller", "/debug/registry"): {
                "workloads": [
                    workload("web", "10.0.0.2", "fd00::2"),
                    workload(
                        "cart",
                        "10.0.0.3",
                        services={"shop/cart.shop.svc.cluster.local": {"ports": {"80": 8080}}},
                    ),
                ],
                "services": [service("cart", "10.96.0.1"), service("many", "10.96.0.2", ports=(80, 81))],
                "policies": [],
            },
            ("agent/node1", "/pods"): [pod | {"uid": "u-web"}, pod | {"uid": "u-cart"}],
            ("ztunnel/node1", "/config_dump"): {"workloadState": {"u-web": {}, "u-cart": {}}},
            ("ztunnel/node1", f"/explain/outbound?{outbound}"): {
                "outcomes": [TUNNEL] if outcomes is None else outcomes,
                "endpoints": [{"namespace": "shop", "name": "cart", "whyNot": ""}],
            },
            ("ztunnel/node1", f"/explain/inbound?{urlencode(question)}"): answer | (inbound or {}),
        },
    )


def report(target: FakeTarget, destination: str = "cart:80", source: str = "shop/web") -> Report:
    facts = Facts(target)
    pod = facts.pod(source, None)
    walk = Walker(facts, pod).walk(find_destination(facts, destination, pod.namespace))
    return Report.of(walk, target)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cart", ("cart", None)),
        ("shop/cart:80", ("shop/cart", 80)),
        ("10.0.0.1:443", ("10.0.0.1", 443)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("fd00::1", ("fd00::1", None)),
    ],
)
def test_names_and_ports(text: str, expected: tuple[str, int | None]) -> None:
    assert split_port(text) == expected


@pytest.mark.parametrize("text", ["cart:http", "cart:0", "cart:70000"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(CliError):
        split_port(text)


@pytest.mark.parametrize(
    ("text", "kind", "name", "port"),
    [
        ("cart", "service", "shop/cart", 80),
        ("cart.shop", "service", "shop/cart", 80),
        ("cart.shop.svc:80", "service", "shop/cart", 80),
        ("cart.shop.svc.cluster.local", "service", "shop/cart", 80),
        ("svc/cart", "service", "shop/cart", 80),
        ("10.96.0.1", "service", "shop/cart", 80),
        ("pod/cart", "pod", "shop/cart", 8080),
        ("10.0.0.3:9", "pod", "shop/cart", 9),
        ("192.0.2.1:443", "address", "192.0.2.1", 443),
    ],
)
def test_destinations(text: str, kind: str, name: str, port: int) -> None:
    found = find_destination(Facts(mesh()), text, "shop")
    assert (found.kind, found.name, found.port) == (kind, name, port)


@pytest.mark.parametrize(
    ("text", "code"), [("many", Code.USAGE), ("192.0.2.1", Code.USAGE), ("crt", Code.NOT_FOUND)]
)
def test_destinations_that_are_not_clear(text: str, code: Code) -> None:
    with pytest.raises(CliError) as error:
        find_destination(Facts(mesh()), text, "shop")
    assert error.value.code is code


def test_a_name_nearly_right_is_suggested() -> None:
    with pytest.raises(CliError, match="did you mean web"):
        Facts(mesh()).pod("shop/wbe", None)


def test_it_works() -> None:
    found = report(mesh())
    assert (found.works, found.first_cause) == (True, None)


@pytest.mark.parametrize(
    ("inbound", "code", "said"),
    [
        (
            {
                "allowed": False,
                "reason": "policy_denied",
                "policy": "shop/cart",
                "detail": "denied x to y: no ALLOW policy matches x",
            },
            Code.NOT_ALLOWED,
            f"matches {IDENTITY} on port 8080",
        ),
        (
            {
                "allowed": False,
                "reason": "policy_denied",
                "policy": "shop/cart",
                "detail": "denied x to y: DENY policy shop/cart matches (rule 1)",
            },
            Code.DENIED,
            "AuthorizationPolicy shop/cart denies it",
        ),
        (
            {"allowed": False, "reason": "policy_unknown", "detail": "shop/new is not known"},
            Code.UNJUDGED,
            "shop/new",
        ),
        ({"allowed": False, "reason": "bad_authority", "detail": "no"}, Code.REFUSED, "no"),
    ],
)
def test_denials(inbound: dict[str, Any], code: Code, said: str) -> None:
    cause = report(mesh(inbound=inbound)).first_cause
    assert cause is not None
    assert cause.code is code
    assert said in cause.text


def test_an_allow_that_is_missing_comes_with_the_yaml_to_add() -> None:
    denial = {
        "allowed": False,
        "reason": "policy_denied",
        "policy": "shop/cart",
        "detail": "denied: no ALLOW policy matches",
    }
    cause = report(mesh(inbound=denial)).first_cause
    assert cause is not None
    assert cause.yaml == "- from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]"
    assert cause.place == "objects.yaml:21"


@pytest.mark.parametrize(
    ("rejected", "destination", "code"),
    [
        ({"reason": "no_healthy_upstream", "detail": "it has no endpoints"}, "cart:80", Code.NO_ENDPOINT),
        ({"reason": "waypoint_unavailable", "detail": "wp"}, "cart:80", Code.WAYPOINT_AWAY),
        ({"reason": "illegal_port", "detail": "15008"}, "cart:80", Code.RESERVED_PORT),
    ],
)
def test_rejections(rejected: dict[str, str], destination: str, code: Code) -> None:
    outcome = {"share": 1.0, "kind": "reject", "workload": None, **rejected}
    cause = report(mesh(outcomes=[outcome]), destination).first_cause
    assert cause is not None
    assert cause.code is code


@pytest.mark.parametrize(
    ("listeners", "works"),
    [
        ({("*", 8080)}, True),
        ({("0.0.0.0", 8080)}, True),
        ({("10.0.0.3", 8080)}, True),
        ({("::", 8080)}, False),
        ({("127.0.0.1", 8080)}, False),
        ({("*", 9090)}, False),
        (None, True),
    ],
)
def test_the_application(listeners: set[tuple[str, int]] | None, works: bool) -> None:
    target = mesh()
    target.open_ports = {} if listeners is None else {"shop/cart": frozenset(listeners)}
    found = report(target)
    assert found.works is works
    assert works or (found.first_cause is not None and found.first_cause.code is Code.NOBODY_LISTENS)


def test_listeners_as_ss_writes_them() -> None:
    assert [listener(t) for t in ("*:80", "[::]:80", "0.0.0.0:80", "127.0.0.1%lo:53")] == [
        ("*", 80),
        ("::", 80),
        ("0.0.0.0", 80),
        ("127.0.0.1", 53),
    ]


def test_part_of_the_connections_is_no_success() -> None:
    rejected = {"share": 0.5, "kind": "reject", "workload": None, "reason": "limit_exceeded", "detail": "x"}
    found = report(mesh(outcomes=[TUNNEL | {"share": 0.5}, rejected]))
    assert (found.works, found.shares) == (False, [0.5])


def test_a_caller_whose_ztunnel_is_away_is_refused() -> None:
    target = mesh()
    del target.answers["ztunnel/node1", "/config_dump"]
    cause = report(target).first_cause
    assert cause is not None
    assert cause.code is Code.SOURCE_STOPPED
    assert "Connection refused" in cause.text


def test_where_policies_were_written() -> None:
    facts = Facts(mesh())
    labels = {"app": "cart"}

    def place(key: str, detail: str = "") -> str:
        return origin(facts, key, namespace="shop", labels=labels, detail=detail).place

    assert place("shop/cart") == "objects.yaml:21"
    assert place("shop/cart", "ALLOW policy shop/cart matches (rule 1)") == "objects.yaml:28"
    assert place(f"{ROOT_NAMESPACE}/istio_converted_static_strict") == "objects.yaml:35"
    assert place("shop/gone") == ""


def options(**more: Any) -> argparse.Namespace:
    base = {
        "source": "shop/web",
        "destination": "cart",
        "namespace": None,
        "flows": 2,
        "output": "table",
        "color": "never",
        "no_headers": False,
        "method": "GET",
        "path": "/",
        "host": "",
        "header": [],
    }
    return argparse.Namespace(**base | more)


def test_what_a_person_reads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target = mesh()
    monkeypatch.setattr(why, "open_target", lambda _: target)
    assert why.run(options()) == 0
    out = capsys.readouterr().out
    for part in (
        "shop/web",
        "service shop/cart:80",
        IDENTITY,
        "within node1",
        "listens on 10.0.0.3:8080",
        "it works",
    ):
        assert part in out
    assert "\x1b" not in out


def test_what_is_not_known_is_not_claimed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = mesh()
    target.open_ports = {}
    monkeypatch.setattr(why, "open_target", lambda _: target)
    assert why.run(options()) == 0
    assert "nothing in the mesh stands in its way" in capsys.readouterr().out


def test_the_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target = mesh()
    target.open_ports = {"shop/cart": frozenset()}
    monkeypatch.setattr(why, "open_target", lambda _: target)
    assert why.run(options(output="json")) == 2
    value = json.loads(capsys.readouterr().out)
    assert value["works"] is False
    assert value["cause"]["code"] == "AMB3208"
    (branch,) = value["attempts"][0]["branches"]
    assert (branch["path"], branch["listening"], branch["workload"]) == ("hbone", False, "shop/cart")
