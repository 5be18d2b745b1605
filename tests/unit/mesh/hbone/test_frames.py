# SPDX-License-Identifier: Apache-2.0
"""Encoded frames against the `hyperframe` package, which we did not write."""

from __future__ import annotations

import pytest
from hyperframe import frame as reference

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.telemetry.reasons import Reason


def parse(encoded: bytes) -> list[reference.Frame]:
    found = []
    while encoded:
        parsed, size = reference.Frame.parse_frame_header(memoryview(encoded[:9]))
        parsed.parse_body(memoryview(encoded[9 : 9 + size]))
        found.append(parsed)
        encoded = encoded[9 + size :]
    return found


def test_the_reference_reads_each_frame() -> None:
    settings, window, reset, goaway, ping = parse(
        frames.settings({3: 200, 4: 1 << 20})
        + frames.window_update(7, 12345)
        + frames.rst_stream(9, ErrorCode.CANCEL)
        + frames.goaway(11, ErrorCode.ENHANCE_YOUR_CALM, b"calm")
        + frames.frame(frames.PING, frames.ACK, 0, b"12345678")
    )
    assert settings.settings == {3: 200, 4: 1 << 20}
    assert (window.stream_id, window.window_increment) == (7, 12345)
    assert (reset.stream_id, reset.error_code) == (9, 8)
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (11, 11, b"calm")
    assert (ping.opaque_data, set(ping.flags)) == (b"12345678", {"ACK"})


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 40000])
def test_long_header_blocks_continue(size: int) -> None:
    block = bytes(i % 251 for i in range(size))
    parsed = parse(frames.headers(5, block, end_stream=True, max_frame_bytes=16384))
    assert isinstance(parsed[0], reference.HeadersFrame)
    assert "END_STREAM" in parsed[0].flags
    assert b"".join(f.data for f in parsed) == block
    assert ["END_HEADERS" in f.flags for f in parsed] == [False] * (len(parsed) - 1) + [True]
    assert all(f.body_len <= 16384 for f in parsed)


def test_unknown_error_codes_are_internal_errors() -> None:
    assert ErrorCode.of(0x1234) is ErrorCode.INTERNAL_ERROR
    assert ErrorCode.of(8) is ErrorCode.CANCEL


def test_errors_say_what_and_why() -> None:
    error = frames.ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
    assert error.reason is Reason.H2_PROTOCOL_ERROR
    assert "PUSH_PROMISE" in str(error)
    assert "PROTOCOL_ERROR" in str(error)
