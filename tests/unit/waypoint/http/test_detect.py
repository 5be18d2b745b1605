# SPDX-License-Identifier: Apache-2.0
"""The version of HTTP told from first bytes, however they are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.hbone.frames import PREFACE
from waypoint.http.detect import DETECT_BYTES, HttpVersion, detect


def first_answer(stream: bytes) -> HttpVersion | None:
    """What a reader learns that gets one byte at a time."""
    for size in range(len(stream) + 1):
        answer = detect(stream[:size])
        if answer is not None:
            return answer
    return None


def test_the_preface_needs_its_last_byte() -> None:
    assert [detect(PREFACE[:size]) for size in range(DETECT_BYTES)] == [None] * DETECT_BYTES
    assert detect(PREFACE) is HttpVersion.HTTP2
    assert detect(PREFACE + bytes(9)) is HttpVersion.HTTP2


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n",
        b"P",
        b"PUT / HTTP/1.1\r\n",
        b"PRI * HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        b"\x16\x03\x01",
    ],
)
def test_anything_else_is_http1_as_soon_as_it_differs(stream: bytes) -> None:
    answer = first_answer(stream)
    assert answer is (None if PREFACE.startswith(stream) else HttpVersion.HTTP1)


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=20).map(lambda rest: PREFACE + rest)))
def test_an_answer_stands_however_the_stream_is_split(stream: bytes) -> None:
    assert first_answer(stream) is detect(stream)
