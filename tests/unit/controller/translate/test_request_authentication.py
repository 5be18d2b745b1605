# SPDX-License-Identifier: Apache-2.0
"""RequestAuthentications: each field and its default, targets, and closing what is unclear.

Expectations: istio pilot/pkg/security/authn and pkg/config/validation, Envoy's JWT filter.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.request_authentication import translate_request_authentication
from controller.translate.types import Options
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.token import RequestAuthentication, TokenHeader, TokenRule
from mesh.xds.request_authentication import decode_request_authentication, encode_request_authentication
from tests.support.dialects import SERVICES, key

GATEWAY = make_object(
    {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "app"},
        "spec": {"gatewayClassName": "istio-waypoint"},
    }
)
TARGETS = "targetRefs: [{kind: Service, name: reviews}]\n"
JWKS = '{"keys": [{"kty": "RSA", "n": "1", "e": "AQAB"}]}'
PLAIN = "issuer: https://issuer.example"


def authentication(spec: str, namespace: str = "app") -> RawObject:
    return make_object(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "RequestAuthentication",
            "metadata": {"name": "ra", "namespace": namespace},
            "spec": yaml.safe_load(spec),
        }
    )


def translated(*objects: RawObject) -> tuple[dict[str, RequestAuthentication], list[str]]:
    world = World({obj.key: obj for obj in (*objects, GATEWAY)}, Options())
    found = translate_request_authentication(world, SERVICES)
    return found, [f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in world.problems]


def rule(text: str) -> TokenRule:
    """Translate one rule, and require that nothing is wrong."""
    found, problems = translated(authentication(f"{TARGETS}jwtRules: [{{{text}}}]"))
    assert problems == []
    (only,) = found["app/ra"].rules
    return only


def test_a_rule_has_its_defaults() -> None:
    assert rule(PLAIN) == TokenRule(
        issuer="https://issuer.example",
        headers=(TokenHeader(name="authorization", prefix="Bearer "),),
        params=("access_token",),
        timeout_s=5,
    )


def test_every_field_of_a_rule() -> None:
    made = rule(
        "issuer: me, audiences: [a, b], jwksUri: 'https://keys.example/jwks', timeout: 2s,"
        " fromHeaders: [{name: X-Token, prefix: 'Token '}], fromParams: [t], fromCookies: [c],"
        " forwardOriginalToken: true, outputPayloadToHeader: X-Claims,"
        " outputClaimToHeaders: [{header: X-Sub, claim: sub}, {header: x-team, claim: org.team}],"
        " spaceDelimitedClaims: [roles]"
    )
    assert made == TokenRule(
        issuer="me",
        audiences=("a", "b"),
        jwks_uri="https://keys.example/jwks",
        headers=(TokenHeader(name="x-token", prefix="Token "),),
        params=("t",),
        cookies=("c",),
        forward=True,
        payload_header="x-claims",
        claim_headers=(("x-sub", "sub"), ("x-team", "org.team")),
        spaced_claims=("roles",),
        timeout_s=2,
    )


def test_keys_may_stand_in_the_object_and_the_uri_has_two_spellings() -> None:
    assert rule(f"issuer: me, jwks: '{JWKS}'").jwks == JWKS
    assert rule("issuer: me, jwks_uri: 'http://keys.example'").jwks_uri == "http://keys.example"


@pytest.mark.parametrize("place", ["fromParams: [t]", "fromCookies: [t]", "fromHeaders: [{name: t}]"])
def test_a_place_that_is_named_replaces_the_usual_ones(place: str) -> None:
    made = rule(f"{PLAIN}, {place}")
    assert len(made.headers) + len(made.params) + len(made.cookies) == 1


@pytest.mark.parametrize(
    ("reference", "services", "waypoints"),
    [
        ("{kind: Service, name: reviews}", [key("reviews")], []),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}", [], ["app/waypoint"]),
    ],
)
def test_targets(reference: str, services: list[Any], waypoints: list[str]) -> None:
    for spec in (f"targetRefs: [{reference}]", f"targetRef: {reference}"):
        found, problems = translated(authentication(f"{spec}\njwtRules: [{{{PLAIN}}}]"))
        assert problems == []
        assert [*found["app/ra"].services] == services
        assert [*found["app/ra"].waypoints] == waypoints


def test_a_class_stands_for_every_waypoint() -> None:
    reference = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}"
    found, problems = translated(authentication(f"targetRefs: [{reference}]", "istio-system"))
    assert problems == []
    assert found["istio-system/ra"].waypoints == ("*",)


@pytest.mark.parametrize(
    ("spec", "path"),
    [("selector: {matchLabels: {app: a}}", "spec.selector"), ("jwtRules: [{issuer: a}]", "spec")],
)
def test_without_targets_it_has_no_effect_and_says_so(spec: str, path: str) -> None:
    found, problems = translated(authentication(spec))
    assert found == {}
    assert problems[0].startswith(f"{path}: without targetRefs")


@pytest.mark.parametrize(
    ("rule", "path", "reason"),
    [
        ("{}", "issuer", "missing"),
        ("{issuer: me}", "issuer", "no URL"),
        (f"{{issuer: me, jwks: '{JWKS}', jwksUri: 'https://a'}}", "jwksUri", "beside jwks"),
        ("{issuer: me, jwksUri: 'file:///etc/passwd'}", "jwksUri", "no http"),
        ("{issuer: me, jwksUri: 'https://[a'}", "jwksUri", "no http"),
        ("{issuer: me, jwks: '{'}", "jwks", "no JSON"),
        ("{issuer: me, jwks: '[]'}", "jwks", "no set of keys"),
        ("{issuer: me, jwks: '{\"keys\": [{}]}'}", "jwks", "no set of keys"),
        ('{issuer: me, jwks: \'{"keys": [{"kty": "RSA", "d": "1"}]}\'}', "jwks", "private key"),
        (f"{{{PLAIN}, timeout: 0s}}", "timeout", "more than 0"),
        (f"{{{PLAIN}, fromHeaders: [{{}}]}}", "fromHeaders.0.name", "missing"),
        (f"{{{PLAIN}, fromHeaders: [{{name: 'a b'}}]}}", "fromHeaders.0.name", "no name"),
        (f"{{{PLAIN}, fromParams: ['']}}", "fromParams", "empty name"),
        (f"{{{PLAIN}, outputPayloadToHeader: 'a:b'}}", "outputPayloadToHeader", "no name"),
        (f"{{{PLAIN}, outputClaimToHeaders: [{{header: a}}]}}", "outputClaimToHeaders.0", "needs a header"),
        (f"{{{PLAIN}, forwardOriginalToken: 1}}", "forwardOriginalToken", "true or false"),
        (f"{{{PLAIN}, colour: red}}", "colour", "not known"),
    ],
)
def test_a_rule_that_is_unclear_closes_the_targets(rule: str, path: str, reason: str) -> None:
    found, problems = translated(authentication(f"{TARGETS}jwtRules: [{{{PLAIN}}}, {rule}]"))
    made = found["app/ra"]
    assert (made.rules, made.services) == ((), (key("reviews"),))
    assert reason in made.problem
    assert len(problems) == 1
    assert problems[0].startswith(f"spec.jwtRules.1.{path}: ")
    assert problems[0].endswith("answer every request 401")


@pytest.mark.parametrize(
    "spec",
    ["targetRefs: [{kind: Pod, name: a}]", TARGETS + "selector: {matchLabels: {a: b}}", "targetRefs: 5"],
)
def test_targets_that_are_unclear_close_the_waypoints_of_the_namespace(spec: str) -> None:
    found, problems = translated(authentication(spec))
    assert found["app/ra"].waypoints == ("app/waypoint",)
    assert found["app/ra"].problem
    assert "401" in problems[0]
    assert translated(authentication(spec, "elsewhere"))[0] == {}


FIELDS = [
    "targetRefs",
    "targetRef",
    "selector",
    "jwtRules",
    "kind",
    "group",
    "name",
    "issuer",
    "audiences",
    "jwks",
    "jwksUri",
    "fromHeaders",
    "prefix",
    "fromParams",
    "timeout",
    "outputClaimToHeaders",
    "header",
    "claim",
]
JSON = st.recursive(
    st.sampled_from(["reviews", "Service", "https://a", "1s", JWKS, "", "é\0", 0, 1, 0.5, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_object_is_translated_or_reported(spec: dict[str, Any], target: bool) -> None:
    targets = {"targetRefs": [{"kind": "Service", "name": "reviews"}]} if target else {}
    obj = make_object({**authentication("{}").data, "spec": spec | targets})
    found, problems = translated(obj)
    assert (found, problems) == translated(obj)
    for made in found.values():
        assert decode_request_authentication(encode_request_authentication(made)) == made
