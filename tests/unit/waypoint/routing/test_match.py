# SPDX-License-Identifier: Apache-2.0
"""Rule choice: the matching tables of Gateway API's mesh suite and of VirtualService."""

from __future__ import annotations

import pytest

from mesh.model.route import (
    PathKind,
    PathMatch,
    RequestMatch,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.workload import NamespacedHostname
from waypoint.routing.match import Request, RouteMatcher


def request(
    path: str = "/", *, method: str = "GET", query: str = "", authority: str = "echo", **headers: str
) -> Request:
    return Request(method=method, authority=authority, path=path, query=query, fields=list(headers.items()))


def matcher(*rules: tuple[str, RequestMatch]) -> RouteMatcher:
    key = NamespacedHostname(namespace="ns", hostname="echo")
    return RouteMatcher(
        RouteTable(
            service=key,
            port=0,
            rules=tuple(RouteRule(source=name, matches=(match,)) for name, match in rules),
        )
    )


def chosen(table: RouteMatcher, probe: Request) -> str | None:
    result = table.choose(probe)
    return None if result is None else result.rule.source


def path(kind: PathKind, value: str, *, ignore_case: bool = False) -> RequestMatch:
    return RequestMatch(path=PathMatch(kind=kind, value=value, ignore_case=ignore_case))


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("/v2", "v2"),
        ("/v2/", "v2"),
        ("/v2/example", "v2"),
        ("/", "v1"),
        ("/example", "v1"),
        ("/v2example", "v1"),
        ("/foo/v2/example", "v1"),
    ],
)
def test_segment_prefix(probe: str, expected: str) -> None:
    for value in ("/v2", "/v2/"):
        table = matcher(
            ("v2", path(PathKind.SEGMENT_PREFIX, value)), ("v1", path(PathKind.SEGMENT_PREFIX, "/"))
        )
        assert chosen(table, request(probe)) == expected


def test_plain_prefix_crosses_segments() -> None:
    table = matcher(("vs", path(PathKind.PREFIX, "/v2")))
    assert chosen(table, request("/v2example")) == "vs"
    assert chosen(table, request("/V2example")) is None


def test_ignore_case_for_exact_and_prefix() -> None:
    for kind in (PathKind.EXACT, PathKind.PREFIX):
        table = matcher(("vs", path(kind, "/V2", ignore_case=True)))
        assert chosen(table, request("/v2")) == "vs"


def test_regex_matches_the_whole_path() -> None:
    table = matcher(("re", path(PathKind.REGEX, "/a[0-9]+")))
    assert chosen(table, request("/a12")) == "re"
    assert chosen(table, request("/a12/b")) is None


def test_invalid_regex_names_the_rule() -> None:
    with pytest.raises(ValueError, match="broken: invalid regular expression"):
        matcher(("broken", path(PathKind.REGEX, "(")))


@pytest.mark.parametrize(
    ("match", "headers", "expected"),
    [
        (ValueMatch(name="version", kind=ValueKind.EXACT, value="two"), {"version": "two"}, True),
        (ValueMatch(name="version", kind=ValueKind.EXACT, value="two"), {"version": "Two"}, False),
        (ValueMatch(name="version", kind=ValueKind.EXACT, value="two"), {}, False),
        (ValueMatch(name="v", kind=ValueKind.PREFIX, value="ab"), {"v": "abc"}, True),
        (ValueMatch(name="v", kind=ValueKind.PRESENT), {"v": ""}, True),
        (ValueMatch(name="v", kind=ValueKind.PRESENT), {}, False),
        (ValueMatch(name="v", kind=ValueKind.REGEX, value="a+"), {"v": "aa"}, True),
        (ValueMatch(name="v", kind=ValueKind.REGEX, value="a+"), {"v": "aab"}, False),
        (ValueMatch(name="v", kind=ValueKind.EXACT, value="x", invert=True), {"v": "y"}, True),
        (ValueMatch(name="v", kind=ValueKind.EXACT, value="x", invert=True), {}, True),
        (ValueMatch(name="v", kind=ValueKind.PRESENT, invert=True), {"v": "y"}, False),
    ],
)
def test_headers(match: ValueMatch, headers: dict[str, str], expected: bool) -> None:
    table = matcher(("h", RequestMatch(headers=(match,))))
    assert (chosen(table, request(**headers)) == "h") is expected


def test_query_parameters_are_anded_and_case_sensitive_and_first_wins() -> None:
    table = matcher(
        (
            "q",
            RequestMatch(
                query=(
                    ValueMatch(name="animal", kind=ValueKind.EXACT, value="whale"),
                    ValueMatch(name="color", kind=ValueKind.EXACT, value="blue"),
                )
            ),
        )
    )
    assert chosen(table, request(query="animal=whale&color=blue")) == "q"
    assert chosen(table, request(query="animal=whale")) is None
    assert chosen(table, request(query="Animal=whale&color=blue")) is None
    assert chosen(table, request(query="animal=dog&animal=whale&color=blue")) is None
    assert chosen(table, request(query="color=blue&animal=%77hale")) == "q"


def test_method_and_authority() -> None:
    table = matcher(
        (
            "m",
            RequestMatch(
                method=ValueMatch(name=":method", kind=ValueKind.EXACT, value="POST"),
                authority=ValueMatch(name=":authority", kind=ValueKind.EXACT, value="shop.test"),
            ),
        )
    )
    assert chosen(table, request(method="POST", authority="Shop.test")) == "m"
    assert chosen(table, request(method="GET", authority="shop.test")) is None


def test_first_rule_wins_and_no_rule_is_no_route() -> None:
    table = matcher(("a", path(PathKind.PREFIX, "/x")), ("b", path(PathKind.PREFIX, "/x/y")))
    assert chosen(table, request("/x/y")) == "a"
    assert chosen(table, request("/z")) is None


def test_several_comparisons_of_the_path_and_inverted_ones_must_all_hold() -> None:
    match = RequestMatch(
        path=PathMatch(kind=PathKind.REGEX, value="/a.*"),
        more_paths=(
            PathMatch(kind=PathKind.REGEX, value=".*z"),
            PathMatch(kind=PathKind.EXACT, value="/abz", invert=True),
        ),
    )
    table = matcher(("a", match), ("b", RequestMatch(more_paths=match.more_paths)))
    probes = ("/az", "/abz", "/a", "/z")
    assert [chosen(table, request(probe)) for probe in probes] == ["a", None, None, "b"]
