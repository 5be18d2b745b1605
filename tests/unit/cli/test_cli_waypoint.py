# SPDX-License-Identifier: Apache-2.0
"""`ambit waypoint`: what it writes, shows, waits for and refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from cli import waypoint
from cli.__main__ import parse
from cli.codes import EXIT_ERROR, EXIT_NO_DATA, EXIT_OK, CliError, Code
from controller.translate.mesh import Options, translate
from mesh.config.objects import make_object
from tests.support.fake_target import FakeTarget

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {%s}}
---
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s, namespace: shop, labels: {%s}}
spec: {gatewayClassName: %s, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {conditions: [{type: Programmed, status: '%s', reason: r, message: why}]}
---
"""


def gateway(
    name: str = "wp", labels: str = "", kind: str = "istio-waypoint", programmed: str = "True"
) -> str:
    return GATEWAY % (name, labels, kind, programmed)


def play(target: FakeTarget, words: str) -> int:
    return waypoint.run_on(target, parse(["waypoint", *words.split()]))


def generated(words: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert waypoint.run(parse(["waypoint", "generate", *words.split()])) == EXIT_OK
    return yaml.safe_load(capsys.readouterr().out)


def test_generated_gateway_is_one_that_the_controller_runs(capsys: pytest.CaptureFixture[str]) -> None:
    data = generated("-n shop --name wp --for all", capsys)
    made = make_object(data)
    found = translate({made.key: made}, Options())
    assert found.problems == ()
    assert {d["kind"] for d in found.derived} == {"ServiceAccount", "Service", "Deployment"}
    assert data["metadata"] == {
        "name": "wp",
        "namespace": "shop",
        "labels": {"istio.io/waypoint-for": "all"},
    }


def test_defaults_are_istioctls(capsys: pytest.CaptureFixture[str]) -> None:
    data = generated("", capsys)
    assert data["metadata"] == {"name": "waypoint", "namespace": "default"}
    assert data["spec"]["gatewayClassName"] == "istio-waypoint"
    assert data["spec"]["listeners"] == [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]


def test_apply_writes_the_gateway_and_labels_nothing_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    target = FakeTarget(NAMESPACE % "")
    assert play(target, "apply -n shop") == EXIT_OK
    assert [data["metadata"]["name"] for data in target.applied] == ["waypoint"]
    assert target.labelled == []
    assert "--enroll-namespace" in capsys.readouterr().err


def test_apply_enrols_the_namespace_after_the_gateway_is_there() -> None:
    target = FakeTarget(NAMESPACE % "")
    assert play(target, "apply -n shop --name wp --enroll-namespace") == EXIT_OK
    assert target.labelled == [("Namespace", "", "shop", ("istio.io/use-waypoint=wp",))]


def test_apply_waits_until_it_serves() -> None:
    ready = FakeTarget(NAMESPACE % "" + gateway())
    assert play(ready, "apply -n shop --name wp --wait") == EXIT_OK
    waiting = FakeTarget(NAMESPACE % "" + gateway(programmed="False"))
    with pytest.raises(CliError) as refused:
        play(waiting, "apply -n shop --name wp --enroll-namespace --wait --waypoint-timeout 0s")
    assert refused.value.code is Code.TIMEOUT
    assert "shop/wp: why" in refused.value.what
    assert waiting.labelled == [], "nothing may be sent to a waypoint that does not serve"


def test_apply_keeps_what_the_gateway_says_beside() -> None:
    target = FakeTarget(NAMESPACE % "" + gateway(labels="team: a"))
    play(target, "apply -n shop --name wp --for all")
    (data,) = target.applied
    assert data["metadata"]["labels"] == {"team": "a", "istio.io/waypoint-for": "all"}
    assert "status" not in data


@pytest.mark.parametrize(
    ("objects", "words", "code"),
    [
        (gateway(kind="nginx"), "apply -n shop --name wp", Code.USAGE),
        (NAMESPACE % "istio.io/use-waypoint: other", "apply -n shop --enroll-namespace", Code.USAGE),
        ("", "apply -n shop --enroll-namespace", Code.NOT_FOUND),
        ("", "delete -n shop", Code.USAGE),
        (gateway(), "delete -n shop wp --all", Code.USAGE),
        (gateway(), "delete -n shop other", Code.NOT_FOUND),
        (gateway(kind="nginx"), "delete -n shop wp", Code.NOT_FOUND),
        (gateway(), "status -n shop other", Code.NOT_FOUND),
    ],
)
def test_refusals_change_nothing(objects: str, words: str, code: Code) -> None:
    target = FakeTarget(objects)
    with pytest.raises(CliError) as refused:
        play(target, words)
    assert refused.value.code is code
    assert (target.applied, target.labelled, target.deleted) == ([], [], [])


def test_overwrite_replaces_the_namespaces_waypoint() -> None:
    target = FakeTarget(NAMESPACE % "istio.io/use-waypoint: other")
    assert play(target, "apply -n shop --enroll-namespace --overwrite") == EXIT_OK
    assert target.labelled[0][3] == ("istio.io/use-waypoint=waypoint",)


def test_list_shows_waypoints_only(capsys: pytest.CaptureFixture[str]) -> None:
    target = FakeTarget(
        gateway() + gateway("b", "istio.io/waypoint-for: all", programmed="False") + gateway("c", kind="x")
    )
    assert play(target, "list -n shop") == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "REVISION", "TRAFFIC", "TYPE", "PROGRAMMED"],
        ["b", "default", "all", "False"],
        ["wp", "default", "service", "True"],
    ]
    assert play(target, "list -A") == EXIT_OK
    assert capsys.readouterr().out.startswith("NAMESPACE")


def test_nothing_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert play(FakeTarget(gateway()), "list -n other") == EXIT_NO_DATA
    assert capsys.readouterr().err == "No waypoints found.\n"
    assert play(FakeTarget(""), "list -o json") == EXIT_NO_DATA
    assert json.loads(capsys.readouterr().out)["items"] == []


@pytest.mark.parametrize(("programmed", "code"), [("True", EXIT_OK), ("False", EXIT_ERROR)])
def test_status_tells_and_ends_accordingly(
    programmed: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(FakeTarget(gateway(programmed=programmed)), "status -n shop -o json") == code
    (item,) = json.loads(capsys.readouterr().out)["items"]
    assert (item["programmed"], item["reason"], item["message"]) == (programmed, "r", "why")


def test_a_gateway_that_nobody_has_seen_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    bare = gateway(labels="istio.io/rev: foo").replace("status:", "ignored:")
    assert play(FakeTarget(bare), "status -n shop") == EXIT_ERROR
    assert "revision foo has not seen it" in capsys.readouterr().out


def test_delete_names_who_still_uses_it(capsys: pytest.CaptureFixture[str]) -> None:
    service = """
apiVersion: v1
kind: Service
metadata:
  {name: web, namespace: other, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}}
---
"""
    target = FakeTarget(NAMESPACE % "istio.io/use-waypoint: wp" + gateway() + service)
    assert play(target, "delete -n shop wp") == EXIT_OK
    assert target.deleted == [("Gateway", "shop", "wp")]
    told = capsys.readouterr().err
    assert "namespace shop still names it" in told
    assert "service other/web still names it" in told


def test_delete_all_leaves_other_gateways() -> None:
    target = FakeTarget(gateway() + gateway("b") + gateway("c", kind="nginx"))
    assert play(target, "delete -n shop --all") == EXIT_OK
    assert sorted(name for _, _, name in target.deleted) == ["b", "wp"]
