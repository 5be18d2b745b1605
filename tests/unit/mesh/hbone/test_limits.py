# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mesh.hbone.limits import Limits


def test_defaults_bound_the_memory_of_a_connection() -> None:
    limits = Limits()
    stuck = limits.max_tunnels * limits.initial_window_bytes + limits.growth_budget_bytes
    assert stuck <= 96 * 1024 * 1024


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_window_bytes": 65534},
        {"initial_window_bytes": 2**31, "max_window_bytes": 2**31},
        {"initial_window_bytes": 2_000_000, "max_window_bytes": 1_000_000},
        {"connection_window_bytes": 2**31},
        {"connection_window_bytes": 1},
        {"max_frame_bytes": 16383},
        {"max_frame_bytes": 2**24},
        {"send_frame_bytes": 1},
        {"max_tunnels": 0},
        {"keepalive_timeout_s": -1.0},
    ],
)
def test_bounds_that_cannot_be_kept_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
