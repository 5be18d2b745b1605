# SPDX-License-Identifier: Apache-2.0
"""Plans: which rule, backend, rewrite and header list a request gets, and the answers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from mesh.model.route import (
    Backend,
    Cors,
    DirectResponse,
    Fault,
    HeaderOperations,
    Mirror,
    PathKind,
    PathMatch,
    PathRewrite,
    Redirect,
    RequestMatch,
    Rewrite,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.workload import NamespacedHostname
from waypoint.http.message import BadMessageError, Framing, RequestHead
from waypoint.routing.match import RouteMatcher
from waypoint.routing.plan import Answer, Forward, plan_request

PRODUCT = NamespacedHostname(namespace="shop", hostname="product.shop.svc.cluster.local")
V1 = NamespacedHostname(namespace="shop", hostname="product-v1.shop.svc.cluster.local")
V2 = NamespacedHostname(namespace="shop", hostname="product-v2.shop.svc.cluster.local")


def request(target: str = "/", *headers: tuple[str, str]) -> RequestHead:
    return RequestHead(
        method="GET",
        target=target,
        authority="product",
        headers=list(headers),
        framing=Framing.NONE,
    )


def rule(**changes: object) -> RouteRule:
    fields: dict[str, object] = {
        "source": "HTTPRoute/shop/r#0",
        "backends": (Backend(service=V1, port=8080),),
        **changes,
    }
    return RouteRule(**fields)  # type: ignore[arg-type]


def decide(head: RequestHead, *rules: RouteRule, draw: float = 0.0) -> Forward | Answer:
    matcher = RouteMatcher(RouteTable(service=PRODUCT, port=80, rules=rules)) if rules else None
    return plan_request(head, service=PRODUCT, port=80, matcher=matcher, random=lambda: draw)


def forward(plan: Forward | Answer) -> Forward:
    assert isinstance(plan, Forward)
    return plan


def refused(plan: Forward | Answer) -> Answer:
    assert isinstance(plan, Answer)
    return plan


def test_without_rules_the_service_itself_gets_the_request() -> None:
    plan = forward(decide(request("/a/./b?x=1")))
    assert (plan.service, plan.port, plan.head.target) == (PRODUCT, 80, "/a/b?x=1")
    assert plan.head.headers == []


def test_no_rule_is_404_and_says_whose() -> None:
    match = RequestMatch(path=PathMatch(kind=PathKind.EXACT, value="/only"))
    plan = refused(decide(request("/other"), rule(matches=(match,))))
    assert (plan.status, plan.flag) == (404, "NR")
    assert b"product.shop" in plan.body


@pytest.mark.parametrize(
    "backends",
    [
        (),
        (Backend(service=None, problem="service shop/none does not exist"),),
        (Backend(service=V1, weight=0),),
    ],
)
def test_a_rule_without_a_usable_backend_is_500(backends: tuple[Backend, ...]) -> None:
    plan = refused(decide(request(), rule(backends=backends)))
    assert (plan.status, plan.source) == (500, "HTTPRoute/shop/r#0")


def test_an_invalid_backend_says_what_it_is_answered_with() -> None:
    broken = Backend(service=None, problem="no such subset", problem_status=503)
    answer = refused(decide(request(), rule(backends=(broken,))))
    assert (answer.status, answer.flag) == (503, "NC")


def test_the_subset_of_the_backend_is_part_of_the_plan() -> None:
    plan = forward(decide(request(), rule(backends=(Backend(service=V1, port=8080, subset="v1"),))))
    assert plan.subset == "v1"


def test_weights_share_requests_in_proportion() -> None:
    backends = (
        Backend(service=V1, port=80, weight=70),
        Backend(service=V2, port=80, weight=30),
        Backend(service=PRODUCT, port=80, weight=0),
    )
    draws = random.Random(7)
    counts = Counter(
        forward(decide(request(), rule(backends=backends), draw=draws.random())).service for _ in range(5000)
    )
    assert set(counts) == {V1, V2}
    assert abs(counts[V1] / 5000 - 0.7) < 0.02


def test_rewrites_and_header_operations_reach_the_upstream_only() -> None:
    head = request("/shop/cart?id=3", ("x-old", "1"))
    backend = Backend(service=V2, port=9090, request_headers=HeaderOperations(add=(("x-old", "2"),)))
    plan = forward(
        decide(
            head,
            rule(
                matches=(RequestMatch(path=PathMatch(kind=PathKind.SEGMENT_PREFIX, value="/shop")),),
                rewrite=Rewrite(path=PathRewrite(prefix="/"), hostname="v2.example"),
                backends=(backend,),
                request_headers=HeaderOperations(set=(("x-new", "n"),)),
            ),
        )
    )
    assert (plan.head.target, plan.head.authority, plan.port) == ("/cart?id=3", "v2.example", 9090)
    assert plan.head.headers == [("x-old", "1,2"), ("x-new", "n")]
    assert head.headers == [("x-old", "1")]


def test_setting_host_changes_the_authority() -> None:
    plan = forward(
        decide(request(), rule(request_headers=HeaderOperations(set=(("host", "other.example"),))))
    )
    assert plan.head.authority == "other.example"
    assert "host" not in dict(plan.head.headers)


def test_a_redirect_is_answered_with_its_location() -> None:
    plan = refused(
        decide(
            request("/a?q"),
            rule(redirect=Redirect(scheme="https", hostname="shop.example", status=301), backends=()),
        )
    )
    assert plan.status == 301
    assert dict(plan.headers)["location"] == "https://shop.example/a?q"
    assert plan.flag == "-"


@pytest.mark.parametrize(
    ("authority", "port", "location"),
    [
        ("product", 443, "https://other/a"),
        ("product", 8443, "https://other:8443/a"),
        ("product:30443", 443, "https://other:30443/a"),
    ],
)
def test_a_redirect_keeps_the_clients_scheme_and_port(authority: str, port: int, location: str) -> None:
    table = RouteTable(
        service=PRODUCT, port=port, rules=(rule(redirect=Redirect(hostname="other"), backends=()),)
    )
    plan = refused(
        plan_request(
            replace(request("/a"), authority=authority),
            service=PRODUCT,
            port=port,
            matcher=RouteMatcher(table),
            random=lambda: 0.0,
            scheme="https",
        )
    )
    assert dict(plan.headers)["location"] == location


def test_a_path_without_a_canonical_form_is_refused() -> None:
    with pytest.raises(BadMessageError):
        decide(request("/a\\..\\b"))


def test_a_direct_response_needs_no_backend() -> None:
    plan = refused(decide(request(), rule(backends=(), direct=DirectResponse(status=418, body=b"teapot"))))
    assert (plan.status, plan.body, plan.flag) == (418, b"teapot", "-")


@pytest.mark.parametrize(
    ("draw", "status", "delay"), [(0.049, 503, 2.0), (0.05, None, 2.0), (0.1, None, 0.0)]
)
def test_faults_are_drawn_by_their_percentages(draw: float, status: int | None, delay: float) -> None:
    fault = Fault(delay_s=2.0, delay_percent=10.0, abort_status=503, abort_percent=5.0)
    plan = decide(request(), rule(fault=fault), draw=draw)
    assert plan.delay_s == delay
    assert (plan.status if isinstance(plan, Answer) else None) == status


def test_a_grpc_abort_is_a_trailers_only_response() -> None:
    fault = Fault(abort_grpc=14, abort_percent=100.0)
    plan = refused(decide(request(), rule(fault=fault)))
    assert plan.status == 200
    assert dict(plan.headers)["grpc-status"] == "14"
    assert plan.body == b""


def test_mirrors_are_drawn_by_their_percentages() -> None:
    mirrors = (Mirror(service=V2, port=80, percent=30.0), Mirror(service=V1, port=80))
    assert forward(decide(request(), rule(mirrors=mirrors), draw=0.29)).mirrors == mirrors
    assert forward(decide(request(), rule(mirrors=mirrors), draw=0.30)).mirrors == mirrors[1:]


CORS = Cors(
    origins=(ValueMatch(name="", kind=ValueKind.EXACT, value="https://a.example"),),
    methods=("GET", "POST"),
    headers=("x-token",),
    expose=("x-id",),
    max_age_s=60,
    credentials=True,
)
PREFLIGHT = (("access-control-request-method", "POST"),)


def preflight(origin: str) -> RequestHead:
    head = request("/", ("origin", origin), *PREFLIGHT)
    head.method = "OPTIONS"
    return head


def test_a_preflight_is_answered_with_the_permission() -> None:
    plan = refused(decide(preflight("https://a.example"), rule(cors=CORS)))
    assert (plan.status, dict(plan.headers)) == (
        200,
        {
            "access-control-allow-origin": "https://a.example",
            "access-control-allow-methods": "GET,POST",
            "access-control-allow-headers": "x-token",
            "access-control-max-age": "60",
            "access-control-allow-credentials": "true",
            "vary": "origin",
        },
    )


def test_a_preflight_of_another_origin_gets_no_permission_or_goes_on() -> None:
    plan = refused(decide(preflight("https://b.example"), rule(cors=CORS)))
    assert (plan.status, plan.headers) == (200, [])
    forward(decide(preflight("https://b.example"), rule(cors=replace(CORS, forward_unmatched=True))))


def test_any_origin_is_echoed_never_starred() -> None:
    cors = replace(CORS, origins=(ValueMatch(name="", kind=ValueKind.EXACT, value="*"),), methods=("*",))
    plan = refused(decide(preflight("https://b.example"), rule(cors=cors)))
    assert dict(plan.headers)["access-control-allow-origin"] == "https://b.example"
    assert dict(plan.headers)["access-control-allow-methods"] == "POST"


def test_responses_to_an_allowed_origin_are_marked() -> None:
    plan = forward(decide(request("/", ("origin", "https://a.example")), rule(cors=CORS)))
    (operations,) = plan.response_headers
    assert dict(operations.set)["access-control-expose-headers"] == "x-id"
    assert (
        forward(decide(request("/", ("origin", "https://b.example")), rule(cors=CORS))).response_headers == ()
    )
