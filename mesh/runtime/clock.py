# SPDX-License-Identifier: Apache-2.0
"""Time as a dependency: components take a `Clock`, tests pass one that they move by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time, both in float seconds."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start; never goes back. For deadlines and durations."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch; may jump. For certificates and log lines."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Return CLOCK_REALTIME in seconds."""
        return time.time()
