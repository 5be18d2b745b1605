# SPDX-License-Identifier: Apache-2.0
"""What objects come to, in words: the same for the same meaning, complete enough to be told apart."""

from __future__ import annotations

import pytest
import yaml

from controller.translate.destination_rule import translate_destination_rules
from controller.translate.routes import translate_routes
from controller.translate.types import Options
from controller.translate.wording import describe
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from tests.support.dialects import SERVICES, SUBSETS, key, virtual


def said(*objects: RawObject) -> list[str]:
    world = World({obj.key: obj for obj in objects}, Options())
    destinations = translate_destination_rules(world, SERVICES)
    routes = translate_routes(world, SERVICES, destinations)
    sources = {f"{obj.kind}/{obj.namespace}/{obj.name}" for obj in objects}
    return describe(routes.tables, routes.streams, destinations, sources)


ALL = """
http:
- match:
  - {uri: {prefix: /a}, method: {exact: GET}, headers: {x: {}}, queryParams: {q: {exact: '1'}}}
  - {uri: {exact: /b}, ignoreUriCase: true, withoutHeaders: {y: {}}}
  rewrite: {uri: /c, authority: h.example}
  headers: {request: {set: {s: v}, remove: [r]}}
  timeout: 2s
  retries: {attempts: 3, perTryTimeout: 500ms, retryOn: "5xx,unavailable"}
  fault: {delay: {fixedDelay: 1s, percentage: {value: 50}}, abort: {httpStatus: 500, percentage: {value: 10}}}
  mirror: {host: ratings, port: {number: 80}}
  corsPolicy: {allowOrigins: [{exact: "https://a.example"}]}
  route:
  - {destination: {host: reviews, subset: v1}, weight: 90}
  - {destination: {host: other}, weight: 10, headers: {response: {add: {t: u}}}}
- match: [{uri: {regex: '/r.*'}}]
  redirect: {uri: /new, authority: n.example}
- match: [{uri: {exact: /teapot}}]
  directResponse: {status: 418}
- route: [{destination: {host: nothing}}]
tcp:
- route: [{destination: {host: ratings, port: {number: 81}}}]
"""


def test_every_part_of_a_virtual_service_is_said() -> None:
    reviews, ratings, other = (str(key(name)) for name in ("reviews", "ratings", "other"))
    assert said(virtual(ALL), SUBSETS) == [
        f"requests to {reviews}, port 80:",
        "  1. if path begins with /a and method is 'GET' and header x is there and parameter q is '1' "
        "or path is /b in any case and header y is absent: "
        f"90% to {reviews}:80 subset v1, 10% to {other}:9080",
        "       rewritten to path with the prefix /c, host h.example",
        "       request: set s, remove r",
        f"       response of {other}:9080: add t",
        "       at most 2 s",
        "       at most 0.5 s a try",
        "       tried again up to 3 times on 500-599, gRPC 14, no connection, reset",
        "       50% delayed by 1 s",
        "       10% answered 500",
        f"       100% copied to {ratings}:80",
        "       cross-origin: https://a.example",
        "       from VirtualService/app/v#0",
        "  2. if path matches /r.*: redirect (301) to host n.example, port 80, path /new",
        "       from VirtualService/app/v#1",
        "  3. if path is /teapot: answer 418",
        "       from VirtualService/app/v#2",
        f"  4. any: to nowhere (host {key('nothing').hostname} names no service of the mesh)",
        "       from VirtualService/app/v#3",
        f"connections to {reviews}, port 80:",
        f"  to {ratings}:81",
        "       from VirtualService/app/v#tcp0",
        f"endpoints of {reviews}: least_request",
        "  subset v1 (version=v1): least_request",
        "  subset v2 (version=v2): least_request",
        "       from DestinationRule/app/subsets",
    ]


def test_only_what_the_objects_have_a_part_in_is_said() -> None:
    world = World({SUBSETS.key: SUBSETS}, Options())
    destinations = translate_destination_rules(world, SERVICES)
    assert describe({}, {}, destinations, {"DestinationRule/app/other"}) == []
    assert describe({}, {}, destinations, {"DestinationRule/app/subsets"})


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("loadBalancer: {consistentHash: {httpHeaderName: X}}", "by header x"),
        ("loadBalancer: {consistentHash: {useSourceIp: true}}", "by source_ip"),
        (
            "connectionPool: {tcp: {maxConnections: 5}, http: {maxRetries: 1}}",
            "at most 5 connections, at most 1 retries",
        ),
        ("outlierDetection: {}", "ejected for 30 s after 5 failures"),
        ("tls: {mode: SIMPLE}", "tls simple"),
    ],
)
def test_destination_policies(policy: str, expected: str) -> None:
    spec = yaml.safe_load(f"host: reviews\ntrafficPolicy: {{{policy}}}")
    data = {**SUBSETS.data, "spec": spec}
    assert expected in said(make_object(data))[0]
