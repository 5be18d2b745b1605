# SPDX-License-Identifier: Apache-2.0
"""Path rewriting, redirects and header changes against Gateway API's own tables."""

from __future__ import annotations

import pytest

from mesh.model.route import HeaderOperations, PathKind, PathMatch, PathRewrite, Redirect, RequestMatch
from waypoint.routing.rewrite import change_headers, redirect_location, rewrite_path


def prefix(value: str, kind: PathKind = PathKind.SEGMENT_PREFIX) -> RequestMatch:
    return RequestMatch(path=PathMatch(kind=kind, value=value))


@pytest.mark.parametrize(
    ("request_path", "matched", "replacement", "expected"),
    [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/prefix/one/two", "/prefix/one", "/one", "/one/two"),
        ("/strip-prefix/three", "/strip-prefix", "/", "/three"),
    ],
)
def test_replace_prefix_match(request_path: str, matched: str, replacement: str, expected: str) -> None:
    assert rewrite_path(request_path, prefix(matched), PathRewrite(prefix=replacement)) == expected


def test_virtual_service_prefix_is_replaced_as_text() -> None:
    match = prefix("/v2", PathKind.PREFIX)
    assert rewrite_path("/v2example/a", match, PathRewrite(prefix="/v1")) == "/v1example/a"


def test_virtual_service_exact_match_replaces_all() -> None:
    match = RequestMatch(path=PathMatch(kind=PathKind.EXACT, value="/old"))
    assert rewrite_path("/old", match, PathRewrite(prefix="/new")) == "/new"


def test_full_path() -> None:
    assert rewrite_path("/full/path/original", prefix("/full"), PathRewrite(full="/one")) == "/one"


@pytest.mark.parametrize(
    ("path", "regex", "substitution", "expected"),
    [
        # The first two are the examples of Envoy's RouteAction.regex_rewrite.
        (
            "/service/foo/v1/api",
            "^/service/([^/]+)(/.*)$",
            r"/customprefix/\2/\1",
            "/customprefix//v1/api/foo",
        ),
        ("/xxx/one/yyy/one/zzz", "one", "two", "/xxx/two/yyy/two/zzz"),
        ("/a/b", "b", r"\0\0\\", "/a/bb\\"),
        ("/a/b", "(b)|(c)", r"[\1\2\9]", "/a/[b]"),
        ("/a/b", "x", "y", "/a/b"),
        ("/a", "^/", "", "/a"),
    ],
)
def test_a_regular_expression_is_replaced_wherever_it_occurs(
    path: str, regex: str, substitution: str, expected: str
) -> None:
    rewrite = PathRewrite(regex=regex, substitution=substitution)
    assert rewrite_path(path, RequestMatch(), rewrite) == expected


@pytest.mark.parametrize(
    ("redirect", "port", "expected"),
    [
        (Redirect(hostname="example.org"), 80, "http://example.org/p?q=1"),
        (Redirect(port=8083), 80, "http://a.test:8083/p?q=1"),
        (Redirect(scheme="https"), 8080, "https://a.test/p?q=1"),
        (Redirect(scheme="https", port=443), 80, "https://a.test/p?q=1"),
        (Redirect(scheme="https", port=8443), 80, "https://a.test:8443/p?q=1"),
        (Redirect(port=80), 8080, "http://a.test/p?q=1"),
        (Redirect(hostname="b.test"), 8080, "http://b.test:8080/p?q=1"),
        (Redirect(path=PathRewrite(full="/z")), 80, "http://a.test/z?q=1"),
        (Redirect(path=PathRewrite(prefix="/r")), 80, "http://a.test/r?q=1"),
    ],
)
def test_redirect_location(redirect: Redirect, port: int, expected: str) -> None:
    location = redirect_location(
        scheme="http", host="a.test", port=port, path="/p", query="q=1", match=prefix("/p"), redirect=redirect
    )
    assert location == expected


def test_set_overwrites_every_field_of_the_name() -> None:
    headers = [("a", "1"), ("x", "old"), ("x", "older")]
    assert change_headers(headers, HeaderOperations(set=(("x", "new"),))) == [("a", "1"), ("x", "new")]


def test_add_appends_to_an_existing_value() -> None:
    assert change_headers([("x", "1")], HeaderOperations(add=(("x", "2"), ("y", "3")))) == [
        ("x", "1,2"),
        ("y", "3"),
    ]


def test_remove_comes_last() -> None:
    operations = HeaderOperations(set=(("x", "1"),), add=(("y", "2"),), remove=("x", "y"))
    assert change_headers([("z", "0")], operations) == [("z", "0")]
