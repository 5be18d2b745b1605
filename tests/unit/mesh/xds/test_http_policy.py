# SPDX-License-Identifier: Apache-2.0
"""L7 policies survive the wire, and what is none is refused by name."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.http_policy import (
    Condition,
    HttpAction,
    HttpAuthorization,
    HttpRule,
    Operation,
    Source,
    TextKind,
    TextMatch,
)
from mesh.model.workload import NamespacedHostname
from mesh.proto import http_policy_pb2
from mesh.xds.http_policy import decode_http_authorization, encode_http_authorization

TEXT = st.text("abc/-.*", min_size=1, max_size=6)
STRINGS = st.lists(TEXT, max_size=2).map(tuple)
TEXTS = st.lists(st.builds(TextMatch, kind=st.sampled_from(TextKind), value=TEXT), max_size=2).map(tuple)
BLOCKS = st.lists(st.ip_addresses().map(ipaddress.ip_network), max_size=2).map(tuple)
PORTS = st.lists(st.integers(1, 65535), max_size=2).map(tuple)
SOURCES = st.builds(
    Source,
    **dict.fromkeys(
        (
            "principals",
            "not_principals",
            "request_principals",
            "not_request_principals",
            "namespaces",
            "not_namespaces",
        ),
        TEXTS,
    ),
    service_accounts=STRINGS,
    not_service_accounts=STRINGS,
    ip_blocks=BLOCKS,
    not_ip_blocks=BLOCKS,
    remote_ip_blocks=BLOCKS,
    not_remote_ip_blocks=BLOCKS,
)
OPERATIONS = st.builds(
    Operation,
    **dict.fromkeys(("hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths"), TEXTS),
    ports=PORTS,
    not_ports=PORTS,
)
CONDITIONS = st.builds(Condition, key=TEXT, values=STRINGS, not_values=STRINGS)
RULES = st.builds(
    HttpRule,
    sources=st.lists(SOURCES, max_size=2).map(tuple),
    operations=st.lists(OPERATIONS, max_size=2).map(tuple),
    conditions=st.lists(CONDITIONS, max_size=2).map(tuple),
)
POLICIES = st.builds(
    HttpAuthorization,
    name=TEXT,
    namespace=TEXT,
    action=st.sampled_from(HttpAction),
    rules=st.lists(RULES, max_size=2).map(tuple),
    services=st.lists(st.builds(NamespacedHostname, namespace=TEXT, hostname=TEXT), max_size=2).map(tuple),
    waypoints=STRINGS,
    provider=TEXT,
    dry_run=st.booleans(),
)


@given(POLICIES)
def test_round_trip(policy: HttpAuthorization) -> None:
    assert decode_http_authorization(encode_http_authorization(policy)) == policy


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xff\xff", "not an L7 policy"),
        (b"", "name and a namespace"),
        (
            http_policy_pb2.HttpAuthorization(name="a", namespace="b", action=99).SerializeToString(),  # type: ignore[arg-type]
            "99",
        ),
        (
            http_policy_pb2.HttpAuthorization(
                name="a", namespace="b", rules=[{"sources": [{"ip_blocks": ["x"]}]}]
            ).SerializeToString(),
            "x",
        ),
    ],
)
def test_refusals_name_the_reason(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_http_authorization(value)
