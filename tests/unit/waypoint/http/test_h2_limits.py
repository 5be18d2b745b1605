# SPDX-License-Identifier: Apache-2.0
"""Bounds are checked when they are made, by name."""

from __future__ import annotations

import pytest

from waypoint.http.h2_limits import Http2Limits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_streams", 0),
        ("idle_timeout_s", -1.0),
        ("initial_window_bytes", 65534),
        ("initial_window_bytes", 5 * 1024 * 1024),
        ("max_window_bytes", 2**31),
        ("connection_window_bytes", 65534),
        ("connection_window_bytes", 2**31),
        ("max_frame_bytes", 16383),
        ("send_frame_bytes", 2**24),
    ],
)
def test_a_bound_that_http2_cannot_keep_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Http2Limits(**{name: value})  # type: ignore[arg-type]
