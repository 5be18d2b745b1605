# SPDX-License-Identifier: Apache-2.0
"""What of a request is hashed, and generated cookies."""

from __future__ import annotations

import pytest

from mesh.model.destination import ConsistentHash, HashKind
from tests.support.cluster_builders import seeded
from waypoint.cluster.keys import request_key


def key(by: ConsistentHash, *headers: tuple[str, str], target: str = "/", source: str = "10.0.0.9") -> object:
    return request_key(by, headers, target, source, seeded(1))


def test_equal_headers_have_equal_keys() -> None:
    by = ConsistentHash(kind=HashKind.HEADER, name="x-user")
    assert key(by, ("x-user", "a")) == key(by, ("other", "b"), ("x-user", "a"))
    assert key(by, ("x-user", "a")) != key(by, ("x-user", "b"))
    assert key(by, ("x-user", "a"), ("x-user", "b")) != key(by, ("x-user", "a"))


@pytest.mark.parametrize("kind", [HashKind.HEADER, HashKind.QUERY, HashKind.COOKIE])
def test_a_request_without_the_field_has_no_key(kind: HashKind) -> None:
    assert key(ConsistentHash(kind=kind, name="user"), target="/?users=1&user") == (None, "")


def test_the_source_address_and_the_query_are_keys() -> None:
    by = ConsistentHash(kind=HashKind.SOURCE_IP)
    assert key(by) == key(by, ("x", "y")) != key(by, source="10.0.0.8")
    by = ConsistentHash(kind=HashKind.QUERY, name="user")
    assert key(by, target="/a?user=1") == key(by, target="/b?x=2&user=1&user=3")


def test_a_cookie_is_found_among_others() -> None:
    by = ConsistentHash(kind=HashKind.COOKIE, name="user")
    assert key(by, ("cookie", "a=1; user=x")) == key(by, ("cookie", "b=2"), ("cookie", 'user="x";c=3'))


def test_a_client_without_the_cookie_gets_one_that_finds_the_same_host() -> None:
    by = ConsistentHash(
        kind=HashKind.COOKIE,
        name="user",
        cookie_ttl_s=90.0,
        cookie_path="/shop",
        cookie_attributes=(("SameSite", "Strict"), ("Secure", "")),
    )
    first, cookie = request_key(by, [], "/", "", seeded(4))
    value, _, rest = cookie.partition("; ")
    assert rest == "Max-Age=90; Path=/shop; SameSite=Strict; Secure; HttpOnly"
    assert request_key(by, [("cookie", value)], "/", "", seeded(5)) == (first, "")


def test_a_lifetime_of_zero_makes_a_session_cookie() -> None:
    by = ConsistentHash(kind=HashKind.COOKIE, name="user", cookie_ttl_s=0.0)
    _, cookie = request_key(by, [], "/", "", seeded(4))
    assert cookie.startswith('user="')
    assert "Max-Age" not in cookie
