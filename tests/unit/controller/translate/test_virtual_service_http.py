# SPDX-License-Identifier: Apache-2.0
"""What VirtualServices do with requests: each field, its default and its trap.

Expectations: istio pilot/pkg/networking/core/route route_test.go, retry_test.go.
"""

from __future__ import annotations

import pytest

from mesh.model.route import Fault, HeaderOperations, Retry
from tests.support.dialects import (
    REVIEWS,
    ROUTE,
    answered,
    ask,
    forward,
    key,
    rule,
    table,
    taken,
    virtual,
)
from tests.support.dialects import (
    translated_virtual as translated,
)


def test_weights_are_relative_and_a_single_destination_needs_none() -> None:
    made = table(
        virtual(
            "http: [{route: [{destination: {host: reviews, subset: v1}, weight: 90},"
            " {destination: {host: reviews, subset: v2}, weight: 10}, {destination: {host: ratings}}]}]"
        )
    )
    assert [taken(ask(made, "/", draw=draw)) for draw in (0.0, 0.89, 0.91, 0.999)] == [
        "reviews/v1",
        "reviews/v1",
        "reviews/v2",
        "reviews/v2",
    ]
    only = rule("route: [{destination: {host: reviews}, weight: 0}]")
    assert [backend.weight for backend in only.backends] == [1]


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("host: nothing", "names no service"),
        ("host: ratings, port: {number: 99}", "has no port 99"),
    ],
)
def test_a_destination_that_is_not_there_is_answered_503(destination: str, reason: str) -> None:
    found, problems = translated(virtual(f"http: [{{route: [{{destination: {{{destination}}}}}]}}]"))
    assert taken(ask(found[REVIEWS], "/")) == 503
    assert problems[0].startswith("spec.http.0.route.0.destination: ")
    assert reason in problems[0]


def test_a_subset_that_nobody_defines_is_reported_and_left_to_the_waypoint() -> None:
    found, problems = translated(virtual("http: [{route: [{destination: {host: reviews, subset: v9}}]}]"))
    assert taken(ask(found[REVIEWS], "/")) == "reviews/v9"
    assert "no DestinationRule defines subset v9" in problems[0]


def test_a_destination_without_a_port_needs_the_port_that_was_asked_for() -> None:
    made = table(virtual("http: [{route: [{destination: {host: other}}]}]"))
    assert forward(ask(made, "/")).port == 9080
    found, _ = translated(virtual("hosts: [other]\nhttp: [{route: [{destination: {host: ratings}}]}]"))
    assert taken(ask(found[f"{key('other')}:9080"], "/")) == 503


@pytest.mark.parametrize(
    ("redirect", "location", "status"),
    [
        ("uri: /new", "http://reviews/new?q=1", 301),
        ("authority: new.example", "http://new.example/old?q=1", 301),
        ("authority: 'new.example:8443', scheme: https", "https://new.example:8443/old?q=1", 301),
        ("scheme: https, redirectCode: 308", "https://reviews/old?q=1", 308),
        ("authority: new.example, port: 8080", "http://new.example:8080/old?q=1", 301),
        (
            "authority: new.example, derivePort: FROM_REQUEST_PORT, scheme: https",
            "https://new.example:80/old?q=1",
            301,
        ),
        (
            "authority: new.example, derivePort: FROM_PROTOCOL_DEFAULT, scheme: https",
            "https://new.example/old?q=1",
            301,
        ),
    ],
)
def test_redirects(redirect: str, location: str, status: int) -> None:
    plan = answered(ask(table(virtual(f"http: [{{redirect: {{{redirect}}}}}]")), "/old?q=1"))
    assert (plan.status, dict(plan.headers)["location"]) == (status, location)


@pytest.mark.parametrize(
    ("match", "rewrite", "target", "expected"),
    [
        ("uri: {prefix: /ratings}", "uri: /v1/book", "/ratings/x?q=1", "/v1/book/x?q=1"),
        # A well-known trap: the prefix is text, so the slash stays.
        ("uri: {prefix: /ratings}", "uri: /", "/ratings/x", "//x"),
        ("uri: {exact: /ratings}", "uri: /all", "/ratings", "/all"),
        ("uri: {regex: '/r.*'}", "uri: /all", "/ratings/x", "/all"),
        ("port: 80", "uri: /pre", "/x", "/prex"),
        (
            "port: 80",
            r"uriRegexRewrite: {match: '^/(\w+)/(\w+)', rewrite: '/\2/\1'}",
            "/a/b/c?q=1",
            "/b/a/c?q=1",
        ),
    ],
)
def test_rewrites_of_the_path(match: str, rewrite: str, target: str, expected: str) -> None:
    made = table(virtual(f"http: [{{match: [{{{match}}}], rewrite: {{{rewrite}}}, {ROUTE}}}]"))
    assert forward(ask(made, target)).head.target == expected


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("rewrite: {authority: a.example}", "a.example"),
        ("headers: {request: {set: {Host: b.example}}}", "b.example"),
        ("headers: {request: {set: {':authority': b.example}, add: {host: c.example}}}", "b.example"),
        ("rewrite: {authority: a.example}, headers: {request: {set: {host: b.example}}}", "a.example"),
    ],
)
def test_the_host_of_the_route_comes_before_that_of_the_destination(route: str, expected: str) -> None:
    destination = "{destination: {host: reviews}, headers: {request: {set: {host: d.example}}}}"
    made = table(virtual(f"http: [{{{route}, route: [{destination}]}}]"))
    assert forward(ask(made, "/")).head.authority == expected
    alone = table(virtual(f"http: [{{route: [{destination}]}}]"))
    assert forward(ask(alone, "/")).head.authority == "d.example"


def test_header_operations_of_route_and_destination() -> None:
    made = table(
        virtual("""
http:
- headers:
    request: {set: {X-A: a}, add: {x-b: b}, remove: [x-c]}
    response: {set: {x-r: r}, remove: [x-s]}
  route:
  - destination: {host: reviews}
    headers: {request: {set: {x-a: own}}, response: {add: {x-t: t}}}
""")
    )
    plan = forward(ask(made, "/", ("x-b", "0"), ("x-c", "0")))
    assert plan.head.headers == [("x-b", "0,b"), ("x-a", "own")]
    assert plan.response_headers == (
        HeaderOperations(set=(("x-r", "r"),), add=(("x-t", "t"),), remove=("x-s",)),
    )


@pytest.mark.parametrize(
    ("destinations", "expected"),
    [
        # One with its only destination, all removals first, then all of `set`, then all of `add`.
        ("{destination: {host: reviews}, headers: HEADERS}", "own,route,own"),
        # Of several, the destination's first.
        (
            "{destination: {host: reviews}, headers: HEADERS, weight: 1}, {destination: {host: other}}",
            "route,route",
        ),
    ],
)
def test_the_order_of_changes_is_that_of_envoy(destinations: str, expected: str) -> None:
    # Seen with a real one: tests/interop/test_virtual_service_envoy.py.
    own = "{request: {set: {x: own}, add: {x: own}, remove: [x]}}"
    made = table(
        virtual(
            "http: [{headers: {request: {set: {x: route}, add: {x: route}}},"
            f" route: [{destinations.replace('HEADERS', own)}]}}]"
        )
    )
    assert forward(ask(made, "/", ("x", "0"))).head.headers == [("x", expected)]


def test_what_is_removed_and_added_is_replaced() -> None:
    only = rule("headers: {request: {set: {a: '1'}, add: {b: '2'}, remove: [a, b, c]}}, " + ROUTE)
    assert only.request_headers == HeaderOperations(set=(("a", "1"), ("b", "2")), remove=("c",))


def test_a_direct_response() -> None:
    plan = answered(ask(table(virtual("http: [{directResponse: {status: 418, body: {string: tea}}}]")), "/"))
    assert (plan.status, plan.body) == (418, b"tea")
    made = rule("directResponse: {status: 200, body: {bytes: dGVh}}")
    assert made.direct is not None
    assert made.direct.body == b"tea"


def test_timeouts_and_retries() -> None:
    made = rule(
        f"{ROUTE}, timeout: 2s, retries: {{attempts: 3, perTryTimeout: 500ms, backoff: 100ms,"
        " retryOn: '5xx,503,reset,unavailable', retryIgnorePreviousHosts: false}"
    )
    assert (made.request_timeout_s, made.try_timeout_s) == (2, 0.5)
    assert made.retry == Retry(
        attempts=3,
        status_codes=tuple(range(500, 600)),
        grpc_statuses=(14,),
        on_connect_failure=True,
        on_reset=True,
        on_refused=True,
        other_endpoint=False,
        backoff_s=0.1,
    )
    made = rule(f"{ROUTE}, timeout: 0s")
    assert (made.request_timeout_s, made.try_timeout_s, made.retry) == (None, None, None)
    made = rule(f"{ROUTE}, retries: {{attempts: 0}}")
    assert made.retry is not None
    assert made.retry.attempts == 0


@pytest.mark.parametrize(
    ("retries", "path", "reason"),
    [
        ("{retryOn: 5xx}", "attempts", "nothing is tried again"),
        ("{attempts: 1, timeout: 5s}", "timeout", "perTryTimeout"),
        ("{attempts: 1, retryOn: sometimes}", "retryOn", "no retry condition"),
        ("{attempts: 1, retryOn: retriable-headers}", "retryOn", "never holds"),
        ("{attempts: 1, retryRemoteLocalities: true}", "retryRemoteLocalities", "all endpoints"),
    ],
)
def test_retries_that_are_not_honoured_as_written_are_reported(retries: str, path: str, reason: str) -> None:
    found, problems = translated(virtual(f"http: [{{{ROUTE}, retries: {retries}}}]"))
    assert taken(ask(found[REVIEWS], "/")) == "reviews"
    assert len(problems) == 1
    assert problems[0].startswith(f"spec.http.0.retries.{path}: ")
    assert reason in problems[0]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            "delay: {fixedDelay: 7s, percentage: {value: 0.1}}",
            Fault(delay_s=7, delay_percent=0.1),
        ),
        ("delay: {fixedDelay: 7s, percent: 50}", Fault(delay_s=7, delay_percent=50)),
        (
            "abort: {httpStatus: 500, percentage: {value: 100}}",
            Fault(abort_status=500, abort_percent=100),
        ),
        (
            "abort: {grpcStatus: UNAVAILABLE, percentage: {value: 5}}",
            Fault(abort_grpc=14, abort_percent=5),
        ),
        (
            "abort: {grpcStatus: '2', percentage: {value: 5}},"
            " delay: {fixedDelay: 1ms, percentage: {value: 1}}",
            Fault(abort_grpc=2, abort_percent=5, delay_s=0.001, delay_percent=1),
        ),
    ],
)
def test_faults(fault: str, expected: Fault) -> None:
    assert rule(f"{ROUTE}, fault: {{{fault}}}").fault == expected


@pytest.mark.parametrize("fault", ["delay: {fixedDelay: 7s}", "abort: {httpStatus: 500}"])
def test_a_fault_without_a_percentage_injects_nothing_and_says_so(fault: str) -> None:
    found, problems = translated(virtual(f"http: [{{{ROUTE}, fault: {{{fault}}}}}]"))
    assert found[REVIEWS].rules[0].fault is None
    assert "is missing, which is 0" in problems[0]


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ("mirror: {host: ratings, port: {number: 81}}", [("ratings", 81, 100)]),
        ("mirror: {host: ratings}, mirrorPercentage: {value: 12.5}", [("ratings", 80, 12.5)]),
        ("mirror: {host: ratings}, mirrorPercent: 7", [("ratings", 80, 7)]),
        ("mirror: {host: ratings}, mirrorPercentage: {value: 0}", []),
        (
            "mirrors: [{destination: {host: ratings}}, {destination: {host: other}, percentage: {value: 1}}]",
            [("ratings", 80, 100), ("other", 9080, 1)],
        ),
    ],
)
def test_mirrors(mirror: str, expected: list[tuple[str, int, float]]) -> None:
    made = rule(f"{ROUTE}, {mirror}").mirrors
    assert [(m.service.hostname.partition(".")[0], m.port, m.percent) for m in made] == expected


def test_a_mirror_to_nowhere_is_dropped_and_the_request_is_served() -> None:
    found, problems = translated(virtual(f"http: [{{{ROUTE}, mirror: {{host: nothing}}}}]"))
    assert taken(ask(found[REVIEWS], "/")) == "reviews"
    assert problems == [
        "spec.http.0.mirror: host nothing.app.svc.cluster.local names no service of the mesh; "
        "requests are not mirrored there"
    ]


def test_cors() -> None:
    made = rule(
        f"{ROUTE}, corsPolicy: {{allowOrigins: [{{exact: https://a.example}}, {{regex: 'https://.*'}}],"
        " allowMethods: [GET], allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 24h,"
        " allowCredentials: true, unmatchedPreflights: IGNORE}"
    ).cors
    assert made is not None
    assert [origin.value for origin in made.origins] == ["https://a.example", "https://.*"]
    assert (made.methods, made.headers, made.expose) == (("GET",), ("x-a",), ("x-b",))
    assert (made.max_age_s, made.credentials, made.forward_unmatched) == (86400, True, False)
    old = rule(f"{ROUTE}, corsPolicy: {{allowOrigin: ['*']}}").cors
    assert old is not None
    assert (old.origins[0].value, old.forward_unmatched) == ("*", True)


@pytest.mark.parametrize(
    ("route", "path", "reason"),
    [
        ("timeout: soon, " + ROUTE, "timeout", "no duration"),
        ("name: a", "", "exactly one of route"),
        ("redirect: {uri: /a}, " + ROUTE, "", "exactly one of route"),
        ("redirect: {redirectCode: 200}", "redirect.redirectCode", "one of 301"),
        ("directResponse: {}", "directResponse.status", "missing"),
        ("directResponse: {status: 200, body: {bytes: '?'}}", "directResponse.body.bytes", "base64"),
        ("route: []", "route", "no destination has a weight"),
        (
            "route: [{destination: {host: reviews}}, {destination: {host: ratings}}]",
            "route",
            "no destination has a weight",
        ),
        ("route: [{destination: {}}]", "route.0.destination.host", "missing"),
        ("route: [{destination: {host: reviews}, weight: -1}]", "route.0.weight", "whole number"),
        ("rewrite: {uriRegexRewrite: {match: '('}}, " + ROUTE, "rewrite.uriRegexRewrite.match", "expression"),
        (
            r"rewrite: {uriRegexRewrite: {match: 'a', rewrite: '\1'}}, " + ROUTE,
            "rewrite.uriRegexRewrite.rewrite",
            "group 1 of 0",
        ),
        ('headers: {request: {set: {a: "b\\nc"}}}, ' + ROUTE, "headers.request.set", "no valid header"),
        ("fault: {delay: {exponentialDelay: 1s}}, " + ROUTE, "fault.delay.fixedDelay", "missing"),
        ("fault: {abort: {http2Error: x}}, " + ROUTE, "fault.abort", "either httpStatus or grpcStatus"),
        ("fault: {abort: {grpcStatus: BAD}}, " + ROUTE, "fault.abort.grpcStatus", "none of"),
        ("retries: {attempts: -1}, " + ROUTE, "retries.attempts", "whole number"),
        ("corsPolicy: {allowOrigins: 5}, " + ROUTE, "corsPolicy.allowOrigins", "list"),
    ],
)
def test_a_route_that_cannot_be_read_is_answered_500_and_the_others_stay(
    route: str, path: str, reason: str
) -> None:
    spec = f"http: [{{match: [{{uri: {{exact: /bad}}}}], {route}}}, {{{ROUTE}}}]"
    found, problems = translated(virtual(spec))
    assert [taken(ask(found[REVIEWS], target)) for target in ("/bad", "/good")] == [500, "reviews"]
    assert len(problems) == 1
    assert problems[0].startswith(f"spec.http.0.{path}: " if path else "spec.http.0: ")
    assert reason in problems[0]
