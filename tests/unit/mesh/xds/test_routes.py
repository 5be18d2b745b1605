# SPDX-License-Identifier: Apache-2.0
"""Route tables survive the wire, and what is no table is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.destination import RetryBudget
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
    Retry,
    Rewrite,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.workload import NamespacedHostname
from mesh.proto import routes_pb2
from mesh.xds.routes import decode_route_table, encode_route_table, route_table_name

TEXT = st.text("abc/-.", min_size=1, max_size=6)
SERVICES = st.builds(NamespacedHostname, namespace=TEXT, hostname=TEXT)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple)
OPERATIONS = st.builds(HeaderOperations, set=PAIRS, add=PAIRS, remove=st.lists(TEXT, max_size=2).map(tuple))
VALUES = st.builds(ValueMatch, name=TEXT, kind=st.sampled_from(ValueKind), value=TEXT, invert=st.booleans())
PATHS = st.builds(
    PathMatch,
    kind=st.sampled_from(PathKind),
    value=TEXT,
    ignore_case=st.booleans(),
    invert=st.booleans(),
)
PATH_REWRITES = st.one_of(
    st.builds(PathRewrite, full=TEXT),
    st.builds(PathRewrite, prefix=TEXT),
    st.builds(PathRewrite, regex=TEXT, substitution=TEXT),
)
MATCHES = st.builds(
    RequestMatch,
    path=st.none() | PATHS,
    method=st.none() | VALUES,
    authority=st.none() | VALUES,
    headers=st.lists(VALUES, max_size=2).map(tuple),
    query=st.lists(VALUES, max_size=2).map(tuple),
    more_paths=st.lists(PATHS, max_size=2).map(tuple),
)
BACKENDS = st.builds(
    Backend,
    service=st.none() | SERVICES,
    port=st.integers(0, 65535),
    subset=TEXT,
    weight=st.integers(0, 1000),
    request_headers=OPERATIONS,
    response_headers=OPERATIONS,
    problem=TEXT,
    problem_status=st.sampled_from([500, 503]),
)
PERCENT = st.integers(0, 1000).map(lambda tenths: tenths / 10)
SECONDS = st.none() | st.integers(1, 100_000).map(lambda ms: ms / 1000)
RULES = st.builds(
    RouteRule,
    source=TEXT,
    matches=st.lists(MATCHES, max_size=2).map(tuple),
    backends=st.lists(BACKENDS, max_size=2).map(tuple),
    redirect=st.none()
    | st.builds(
        Redirect,
        scheme=st.none() | TEXT,
        hostname=st.none() | TEXT,
        port=st.none() | st.integers(1, 65535),
        path=st.none() | PATH_REWRITES,
        status=st.sampled_from([301, 302]),
    ),
    rewrite=st.none() | st.builds(Rewrite, path=st.none() | PATH_REWRITES, hostname=st.none() | TEXT),
    request_headers=OPERATIONS,
    response_headers=OPERATIONS,
    request_timeout_s=SECONDS,
    try_timeout_s=SECONDS,
    retry=st.none()
    | st.builds(
        Retry,
        attempts=st.integers(0, 10),
        status_codes=st.lists(st.integers(400, 599), max_size=3).map(tuple),
        on_connect_failure=st.booleans(),
        grpc_statuses=st.lists(st.integers(0, 16), max_size=3).map(tuple),
        on_reset=st.booleans(),
        on_refused=st.booleans(),
        on_reset_before_request=st.booleans(),
        other_endpoint=st.booleans(),
        backoff_s=st.integers(0, 5000).map(lambda ms: ms / 1000),
    ),
    direct=st.none() | st.builds(DirectResponse, status=st.integers(200, 599), body=st.binary(max_size=4)),
    fault=st.none()
    | st.builds(
        Fault,
        delay_s=st.integers(0, 9000).map(lambda ms: ms / 1000),
        delay_percent=PERCENT,
        abort_status=st.integers(0, 599),
        abort_grpc=st.none() | st.integers(0, 16),
        abort_percent=PERCENT,
    ),
    mirrors=st.lists(
        st.builds(Mirror, service=SERVICES, port=st.integers(1, 65535), subset=TEXT, percent=PERCENT),
        max_size=2,
    ).map(tuple),
    cors=st.none()
    | st.builds(
        Cors,
        origins=st.lists(VALUES, max_size=2).map(tuple),
        methods=st.lists(TEXT, max_size=2).map(tuple),
        headers=st.lists(TEXT, max_size=2).map(tuple),
        expose=st.lists(TEXT, max_size=2).map(tuple),
        max_age_s=st.none() | st.integers(0, 86400),
        credentials=st.booleans(),
        forward_unmatched=st.booleans(),
    ),
)
TABLES = st.builds(
    RouteTable,
    service=SERVICES,
    port=st.integers(0, 65535),
    rules=st.lists(RULES, max_size=3).map(tuple),
    client_namespace=st.just("") | TEXT,
    retry_budget=st.none()
    | st.builds(
        RetryBudget,
        percent=PERCENT,
        interval_s=st.integers(0, 60),
        min_concurrent=st.integers(0, 9),
        min_per_second=PERCENT,
    ),
)


@given(TABLES)
def test_round_trip(table: RouteTable) -> None:
    assert decode_route_table(encode_route_table(table)) == table


def test_resource_name() -> None:
    table = RouteTable(service=NamespacedHostname(namespace="a", hostname="b.c"), port=80, rules=())
    assert route_table_name(table) == "a/b.c:80"
    assert route_table_name(replace(table, client_namespace="n")) == "a/b.c:80@n"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xff\xff", "not a route table"),
        (b"", "names its service"),
        (
            routes_pb2.RouteTable(
                namespace="a",
                hostname="b",
                rules=[
                    routes_pb2.RouteRule(
                        matches=[routes_pb2.RequestMatch(headers=[{"name": "x", "kind": 99}])]
                    )
                ],
            ).SerializeToString(),
            "99",
        ),
    ],
)
def test_refusals_name_the_reason(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_route_table(value)
