# SPDX-License-Identifier: Apache-2.0
"""The pure part of the delta ADS client; the rest is met over gRPC in tests/interop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.xds.client import BACKOFF_FIRST_S, BACKOFF_MAX_S, backoff_s


def test_the_backoff_doubles_to_its_limit_with_jitter() -> None:
    assert backoff_s(0, 0.0) == pytest.approx(0.01)
    assert backoff_s(0, 0.999) == pytest.approx(0.02, rel=0.01)
    assert backoff_s(3, 0.0) == pytest.approx(0.08)
    assert backoff_s(50, 0.0) == BACKOFF_MAX_S / 2
    assert backoff_s(10_000, 1.0) == BACKOFF_MAX_S


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_backoff_stays_within_its_bounds(failures: int, draw: float) -> None:
    assert BACKOFF_FIRST_S / 2 <= backoff_s(failures, draw) <= BACKOFF_MAX_S
