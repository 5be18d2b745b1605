# SPDX-License-Identifier: Apache-2.0
"""What a waypoint makes of what it is told: which policies, tokens and routes hold where; what is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.authz.http import Asked
from mesh.identity.spiffe import SpiffeId
from mesh.model.http_policy import HttpAction, HttpAuthorization, HttpRule
from mesh.model.route import Backend, RouteRule, RouteTable
from mesh.model.service import WeightedWaypoint
from mesh.model.token import RequestAuthentication, TokenRule
from mesh.model.workload import GatewayAddress, NamespacedHostname, NetworkAddress
from mesh.testing.builders import hostname, service, workload
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.http_policy import HTTP_AUTHORIZATION_TYPE, encode_http_authorization
from mesh.xds.request_authentication import REQUEST_AUTHENTICATION_TYPE, encode_request_authentication
from mesh.xds.resource import ADDRESS_TYPE, Resource, Update
from mesh.xds.routes import ROUTE_TABLE_TYPE, encode_route_table, route_table_name
from waypoint.tables import Tables

WEB, CART = hostname("web"), hostname("cart")


@pytest.fixture
def tables() -> Tables:
    return Tables(namespace="shop", gateway="wp", network="", root_namespace="istio-system")


def put(tables: Tables, type_url: str, **values: bytes) -> list[str]:
    """Apply resources; return the names of those that were refused."""
    named = tuple(Resource(name.replace("__", "/"), "1", value) for name, value in values.items())
    return [rejection.name for rejection in tables.apply(Update(type_url=type_url, upserted=named))]


def deny(
    name: str,
    *,
    namespace: str = "shop",
    services: tuple[NamespacedHostname, ...] = (),
    waypoints: tuple[str, ...] = (),
) -> bytes:
    return encode_http_authorization(
        HttpAuthorization(
            name=name,
            namespace=namespace,
            action=HttpAction.DENY,
            rules=(HttpRule(),),
            services=services,
            waypoints=waypoints,
        )
    )


def denied(tables: Tables, target: NamespacedHostname | None) -> bool:
    asked = Asked(
        identity=SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web"),
        source_ip=ip_address("10.0.0.1"),
        remote_ip=ip_address("10.0.0.1"),
        destination_ip=ip_address("10.0.0.2"),
        port=80,
        method="GET",
        host="web",
        path="/",
        headers={},
    )
    return not tables.guard(target).policies.judge(asked).allowed


@pytest.mark.parametrize(
    ("services", "waypoints", "web", "cart", "workload_only"),
    [
        ((WEB,), (), True, False, False),
        ((), ("shop/wp",), True, True, True),
        ((), ("*",), True, True, True),
        ((), ("shop/other",), False, False, False),
        ((WEB,), ("shop/wp",), True, True, True),
        ((WEB,), ("shop/other",), True, False, False),
    ],
)
def test_a_policy_holds_for_its_services_and_for_all_behind_its_waypoints(
    tables: Tables,
    services: tuple[NamespacedHostname, ...],
    waypoints: tuple[str, ...],
    web: bool,
    cart: bool,
    workload_only: bool,
) -> None:
    put(tables, HTTP_AUTHORIZATION_TYPE, shop__p=deny("p", services=services, waypoints=waypoints))
    assert [denied(tables, target) for target in (WEB, CART, None)] == [web, cart, workload_only]


def test_a_removed_policy_holds_no_more(tables: Tables) -> None:
    put(tables, HTTP_AUTHORIZATION_TYPE, shop__p=deny("p", services=(WEB,)))
    assert denied(tables, WEB)
    tables.apply(Update(type_url=HTTP_AUTHORIZATION_TYPE, removed=("shop/p",)))
    assert not denied(tables, WEB)


@pytest.mark.parametrize(
    ("name", "closed"), [("shop__bad", True), ("istio-system__bad", True), ("elsewhere__bad", False)]
)
def test_a_policy_that_cannot_be_read_closes_what_it_might_be_for(
    tables: Tables, name: str, closed: bool
) -> None:
    assert put(tables, HTTP_AUTHORIZATION_TYPE, **{name: b"\xff\xff"}) == [name.replace("__", "/")]
    assert bool(tables.guard(WEB).unusable) is closed
    if closed:
        assert name.replace("__", "/") in tables.guard(WEB).unusable
    tables.apply(Update(type_url=HTTP_AUTHORIZATION_TYPE, removed=(name.replace("__", "/"),)))
    assert not tables.guard(WEB).unusable


def test_a_policy_that_turns_unreadable_keeps_its_last_good_version(tables: Tables) -> None:
    put(tables, HTTP_AUTHORIZATION_TYPE, shop__p=deny("p", services=(WEB,)))
    put(tables, HTTP_AUTHORIZATION_TYPE, shop__p=b"\xff\xff")
    assert denied(tables, WEB)
    assert not tables.guard(CART).unusable


# --- tokens


def authentication(issuer: str, **changes: object) -> bytes:
    made = RequestAuthentication(
        name=issuer, namespace="shop", rules=(TokenRule(issuer=issuer, jwks="{}"),), services=(WEB,)
    )
    return encode_request_authentication(replace(made, **changes))  # type: ignore[arg-type]


def test_rules_of_several_authentications_of_one_target_all_count(tables: Tables) -> None:
    assert tables.authentication(WEB) is None
    put(
        tables,
        REQUEST_AUTHENTICATION_TYPE,
        shop__b=authentication("b"),
        shop__a=authentication("a", services=(), waypoints=("shop/wp",)),
    )
    web, cart = tables.authentication(WEB), tables.authentication(CART)
    assert web is not None
    assert cart is not None
    assert [rule.issuer for rule in web.rules] == ["a", "b"]
    assert [rule.issuer for rule in cart.rules] == ["a"]


@pytest.mark.parametrize(
    "broken", [b"\xff\xff", authentication("a", problem="it is unclear"), authentication("a", name="")]
)
def test_an_authentication_that_cannot_be_applied_says_so(tables: Tables, broken: bytes) -> None:
    put(tables, REQUEST_AUTHENTICATION_TYPE, shop__a=broken)
    found = tables.authentication(WEB)
    assert found is not None
    assert "shop/a" in found.problem
    tables.apply(Update(type_url=REQUEST_AUTHENTICATION_TYPE, removed=("shop/a",)))
    assert tables.authentication(WEB) is None


# --- routes


def route(tables: Tables, port: int, source: str, client_namespace: str = "") -> str:
    table = RouteTable(
        service=WEB,
        port=port,
        client_namespace=client_namespace,
        rules=(RouteRule(source=source, backends=(Backend(service=WEB, port=80),)),),
    )
    name = route_table_name(table)
    resource = Resource(name, "1", encode_route_table(table))
    assert tables.apply(Update(type_url=ROUTE_TABLE_TYPE, upserted=(resource,))) == ()
    return name


def chosen(tables: Tables, port: int, client_namespace: str = "elsewhere") -> str:
    matcher = tables.routes(WEB, port, client_namespace)
    return "" if matcher is None else matcher.table.rules[0].source


def test_the_nearest_table_of_a_service_holds(tables: Tables) -> None:
    assert chosen(tables, 80) == ""
    route(tables, 0, "every port")
    assert chosen(tables, 80) == "every port"
    name = route(tables, 80, "port 80")
    route(tables, 80, "consumers", "team")
    assert [chosen(tables, 80), chosen(tables, 81), chosen(tables, 80, "team")] == [
        "port 80",
        "every port",
        "consumers",
    ]
    tables.apply(Update(type_url=ROUTE_TABLE_TYPE, removed=(name,)))
    assert chosen(tables, 80) == "every port"


def test_a_table_that_cannot_be_read_leaves_the_last_good_one(tables: Tables) -> None:
    name = route(tables, 80, "good")
    rejected = tables.apply(Update(type_url=ROUTE_TABLE_TYPE, upserted=(Resource(name, "2", b"\xff\xff"),)))
    assert [rejection.name for rejection in rejected] == [name]
    assert chosen(tables, 80) == "good"


# --- whose waypoint it is

VIP = ip_address("10.96.0.9")
BY_NAME = GatewayAddress(destination=hostname("wp"), hbone_mtls_port=15008)
BY_VIP = GatewayAddress(destination=NetworkAddress(network="", address=VIP), hbone_mtls_port=15008)
OTHER = GatewayAddress(destination=hostname("other"), hbone_mtls_port=15008)
FOREIGN = GatewayAddress(destination=hostname("wp", "elsewhere"), hbone_mtls_port=15008)


@pytest.mark.parametrize(
    ("waypoint", "serves"), [(BY_NAME, True), (BY_VIP, True), (OTHER, False), (FOREIGN, False), (None, False)]
)
@pytest.mark.parametrize("make", [lambda: service("web", "10.96.0.1"), lambda: workload("web", "10.0.0.1")])
def test_only_what_names_this_waypoint_is_served(
    tables: Tables, waypoint: GatewayAddress | None, serves: bool, make: Callable[[], object]
) -> None:
    own = service("wp", str(VIP), ports={15008: 15008})
    tables.apply(
        Update(type_url=ADDRESS_TYPE, upserted=(Resource(resource_name(own), "1", encode_address(own)),))
    )
    assert tables.serves(replace(make(), waypoint=waypoint)) is serves  # type: ignore[type-var]


def test_a_canary_serves_its_share(tables: Tables) -> None:
    shared = replace(
        service("web", "10.96.0.1"),
        waypoint=OTHER,
        weighted_waypoints=(
            WeightedWaypoint(destination=OTHER, weight=90),
            WeightedWaypoint(destination=BY_NAME, weight=10),
        ),
    )
    assert tables.serves(shared)
