# SPDX-License-Identifier: Apache-2.0
"""Failures as gRPC clients read them."""

from __future__ import annotations

from urllib.parse import unquote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypoint.http.grpc import encode_message, failure_headers, grpc_status, is_grpc


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("Application/gRPC; charset=utf-8", True),
        ("application/grpc-web", False),
        ("application/grpcx", False),
        ("application/json", False),
    ],
)
def test_a_call_is_known_by_its_media_type(value: str, expected: bool) -> None:
    assert is_grpc([("te", "trailers"), ("content-type", value)]) is expected


def test_without_a_media_type_it_is_no_call() -> None:
    assert not is_grpc([])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, grpc.StatusCode.UNAVAILABLE),
        (502, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.DEADLINE_EXCEEDED),
        (403, grpc.StatusCode.PERMISSION_DENIED),
        (404, grpc.StatusCode.UNIMPLEMENTED),
        (401, grpc.StatusCode.UNAUTHENTICATED),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (400, grpc.StatusCode.INTERNAL),
        (500, grpc.StatusCode.INTERNAL),
        (418, grpc.StatusCode.UNKNOWN),
    ],
)
def test_each_status_has_its_code(status: int, code: grpc.StatusCode) -> None:
    assert grpc_status(status) == code.value[0]


def test_a_failure_says_why() -> None:
    assert failure_headers(403, "denied by shop/only-web: 100%") == [
        ("content-type", "application/grpc"),
        ("grpc-status", "7"),
        ("grpc-message", "denied by shop/only-web: 100%25"),
    ]


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_message_survives_and_holds_no_control_character(text: str) -> None:
    encoded = encode_message(text)
    assert all(0x20 <= ord(character) <= 0x7E for character in encoded)
    assert unquote(encoded) == text
