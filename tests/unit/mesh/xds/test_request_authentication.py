# SPDX-License-Identifier: Apache-2.0
"""Token rules survive the wire, and what is none is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.token import RequestAuthentication, TokenHeader, TokenRule
from mesh.model.workload import NamespacedHostname
from mesh.xds.request_authentication import decode_request_authentication, encode_request_authentication

TEXT = st.text("abc/-.", min_size=1, max_size=6)
TEXTS = st.lists(TEXT, max_size=2).map(tuple)
RULES = st.builds(
    TokenRule,
    issuer=TEXT,
    audiences=TEXTS,
    jwks=TEXT,
    jwks_uri=TEXT,
    headers=st.lists(st.builds(TokenHeader, name=TEXT, prefix=TEXT), max_size=2).map(tuple),
    params=TEXTS,
    cookies=TEXTS,
    forward=st.booleans(),
    payload_header=TEXT,
    claim_headers=st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
    spaced_claims=TEXTS,
    timeout_s=st.integers(1, 100_000).map(lambda ms: ms / 1000),
)
AUTHENTICATIONS = st.builds(
    RequestAuthentication,
    name=TEXT,
    namespace=TEXT,
    rules=st.lists(RULES, max_size=2).map(tuple),
    services=st.lists(st.builds(NamespacedHostname, namespace=TEXT, hostname=TEXT), max_size=2).map(tuple),
    waypoints=TEXTS,
    problem=st.just("") | TEXT,
)


@given(AUTHENTICATIONS)
def test_it_survives_the_wire(authentication: RequestAuthentication) -> None:
    assert decode_request_authentication(encode_request_authentication(authentication)) == authentication
    assert authentication.key == f"{authentication.namespace}/{authentication.name}"


@pytest.mark.parametrize(
    ("value", "reason"), [(b"\xff\xff", "not a request authentication"), (b"", "a name and a namespace")]
)
def test_what_is_none_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_request_authentication(value)
