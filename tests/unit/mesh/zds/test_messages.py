# SPDX-License-Identifier: Apache-2.0
"""ZDS messages have Istio's bytes, and what is none is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.zds.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    AddWorkload,
    DelWorkload,
    Hello,
    KeepWorkload,
    SnapshotSent,
    ZdsProtocolError,
    ZdsRequest,
    decode_ack,
    decode_hello,
    decode_request,
    encode_ack,
    encode_hello,
    encode_request,
)

TEXT = st.text("abc-", min_size=1, max_size=20)
REQUESTS = st.one_of(
    st.builds(AddWorkload, uid=TEXT, name=TEXT, namespace=TEXT, service_account=TEXT),
    st.builds(KeepWorkload, uid=TEXT),
    st.builds(DelWorkload, uid=TEXT),
    st.just(SnapshotSent()),
)


# Bytes written by hand from Istio's field numbers: uid of DelWorkload is 2, of the others 1.
@pytest.mark.parametrize(
    ("request_", "data"),
    [
        (DelWorkload(uid="u"), b"\x12\x03\x12\x01u"),
        (KeepWorkload(uid="u"), b"\x2a\x03\x0a\x01u"),
        (SnapshotSent(), b"\x1a\x00"),
        (
            AddWorkload(uid="u", name="n", namespace="s", service_account="a"),
            b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01s\x1a\x01a",
        ),
    ],
)
def test_requests_have_istios_bytes(request_: ZdsRequest, data: bytes) -> None:
    assert encode_request(request_) == data
    assert decode_request(data) == request_


def test_greeting_and_answer_have_istios_bytes() -> None:
    assert encode_hello(Hello()) == b"\x08\x01"
    assert decode_hello(b"\x08\x01") == Hello(version=1)
    assert encode_ack(Ack()) == b"\x0a\x00"
    assert encode_ack(Ack(error="no")) == b"\x0a\x04\x0a\x02no"


@given(REQUESTS)
def test_a_request_survives(request_: ZdsRequest) -> None:
    assert decode_request(encode_request(request_)) == request_


@given(st.text(max_size=2000))
def test_an_answer_fits_and_keeps_the_beginning_of_its_error(error: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        error.encode()
        data = encode_ack(Ack(error=error))
        assert len(data) <= MAX_MESSAGE_BYTES
        kept = decode_ack(data).error
        assert error.startswith(kept)
        assert len(kept) >= min(len(error), 200)


def test_the_longest_error_is_whole_and_a_longer_one_cut() -> None:
    overhead = len(encode_ack(Ack(error="e" * 900))) - 900
    longest = "e" * (MAX_MESSAGE_BYTES - overhead)
    assert decode_ack(encode_ack(Ack(error=longest))).error == longest
    assert len(decode_ack(encode_ack(Ack(error=longest + "e"))).error) < len(longest)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "a kind that we do not know"),
        (b"\xff", "no WorkloadRequest"),
        (b"\x22\x00", "a kind that we do not know"),
        (b"\x12\x00", "DelWorkload names no pod"),
        (b"\x12\x03\x0a\x01u", "DelWorkload names no pod"),
        (b"\x2a\x00", "KeepWorkload names no pod"),
        (b"\x0a\x03\x0a\x01u", "'u' does not say whose namespace"),
        (b"\x0a\x0b\x12\x09\x0a\x01n\x12\x01s\x1a\x01a", "'' does not say whose namespace"),
        (b"\x0a\x0b\x0a\x01u\x12\x06\x0a\x01n\x12\x01s", "does not say whose namespace"),
        (bytes(MAX_MESSAGE_BYTES + 1), "1025 bytes, more than 1024"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ZdsProtocolError, match=why):
        decode_request(data)


@pytest.mark.parametrize("data", [b"", b"\x08\x00", b"\x08\x02", b"\xff", bytes(2000)])
def test_what_is_no_greeting_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(ZdsProtocolError):
        decode_hello(data)


@pytest.mark.parametrize("data", [b"", b"\x12\x00", b"\xff"])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ZdsProtocolError):
        decode_ack(data)


def test_the_longest_request_fits_and_a_longer_one_is_refused() -> None:
    overhead = len(encode_request(KeepWorkload(uid="u" * 1000))) - 1000
    longest = KeepWorkload(uid="u" * (MAX_MESSAGE_BYTES - overhead))
    assert len(encode_request(longest)) == MAX_MESSAGE_BYTES
    assert decode_request(encode_request(longest)) == longest
    with pytest.raises(ValueError, match="KeepWorkload has 1025 bytes"):
        encode_request(KeepWorkload(uid=longest.uid + "u"))


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for decode in (decode_hello, decode_request, decode_ack):
        with contextlib.suppress(ZdsProtocolError):
            decode(data)
