# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mesh.hbone.frames import ErrorCode, StreamFailedError
from mesh.hbone.headers import check_request, check_response, check_trailers
from mesh.hbone.hpack import Header

M, A = (b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")


def test_a_connect_request() -> None:
    request = check_request([M, A, (b"baggage", b"a=b"), (b"te", b"trailers")])
    assert request.connect
    assert request.authority == b"10.0.0.1:80"
    assert request.headers == [(b"baggage", b"a=b"), (b"te", b"trailers")]


def test_another_method_is_well_formed_but_no_tunnel() -> None:
    request = check_request([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), A])
    assert not request.connect


@pytest.mark.parametrize(
    "headers",
    [
        [A],
        [M],
        [M, (b":authority", b"")],
        [M, (b":authority", b"a" * 513)],
        [M, A, (b":scheme", b"https")],
        [M, A, (b":path", b"/")],
        [M, A, (b":protocol", b"websocket")],
        [M, A, A],
        [M, M, A],
        [M, A, (b":status", b"200")],
        [M, (b"x", b"y"), A],
        [M, A, (b"Upper", b"x")],
        [M, A, (b"", b"x")],
        [M, A, (b"a b", b"x")],
        [M, A, (b"x\x00", b"x")],
        [M, A, (b"x", b"a\r\nb")],
        [M, A, (b"x", b"a\x00")],
        [M, A, (b"x", b" a")],
        [M, A, (b"x", b"a\t")],
        [M, A, (b"connection", b"close")],
        [M, A, (b"transfer-encoding", b"chunked")],
        [M, A, (b"upgrade", b"h2c")],
        [M, A, (b"te", b"gzip")],
        [(b":method", b"GET"), A],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b""), A],
    ],
)
def test_malformed_requests_end_their_stream(headers: list[Header]) -> None:
    with pytest.raises(StreamFailedError) as caught:
        check_request(headers)
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR


def test_responses() -> None:
    assert check_response([(b":status", b"503"), (b"a", b"b")]) == (503, [(b"a", b"b")])
    for wrong in (
        [],
        [(b":status", b"20")],
        [(b":status", b"abc")],
        [(b":status", b"200"), (b":path", b"/")],
    ):
        with pytest.raises(StreamFailedError):
            check_response(wrong)


def test_trailers_have_no_pseudo_headers() -> None:
    check_trailers([(b"a", b"b")])
    with pytest.raises(StreamFailedError):
        check_trailers([(b":status", b"200")])
