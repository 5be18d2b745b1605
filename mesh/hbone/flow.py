# SPDX-License-Identifier: Apache-2.0
"""Bounds over time and bytes: the receive window of a tunnel, and a bucket against floods. Pure."""

from __future__ import annotations

from collections.abc import Callable


class GrowthBudget:
    """Bytes by which the receive windows of one connection may still grow, all together."""

    __slots__ = ("left",)

    def __init__(self, total_bytes: int) -> None:
        self.left = total_bytes


class ReceiveWindow:
    """What one peer may still send on one tunnel, and what it is owed.

    Invariant: `left` + owed + bytes that the consumer holds back = `size`. Credit is returned
    in halves of the window, so that a WINDOW_UPDATE is rare; a tunnel whose consumer keeps
    up gets a larger window each time, from the connection's budget.
    """

    __slots__ = ("_budget", "_initial", "_maximum", "_owed", "_paused", "left", "size")

    def __init__(self, initial: int, maximum: int, budget: GrowthBudget) -> None:
        self.left = initial
        self.size = initial
        self._initial = initial
        self._maximum = maximum
        self._budget = budget
        self._owed = 0
        self._paused = True

    def take(self, count: int) -> int:
        """Account for received bytes that the consumer has now.

        Returns:
            The credit to return at once; 0 for none yet.
        """
        self._owed += count
        if self._paused or self._owed * 2 < self.size:
            return 0
        return self._credit()

    def pause(self) -> None:
        """Return no credit until `resume`: the consumer is full, or absent."""
        self._paused = True

    def resume(self) -> int:
        """Return the credit that is due now that the consumer has room."""
        self._paused = False
        return self._credit() if self._owed * 2 >= self.size else 0

    def release(self) -> None:
        """Give growth back to the connection; the tunnel is over."""
        self._budget.left += self.size - self._initial
        self._initial = self.size

    def _credit(self) -> int:
        growth = min(self.size, self._maximum - self.size, self._budget.left)
        self._budget.left -= growth
        self.size += growth
        credit = self._owed + growth
        self._owed = 0
        self.left += credit
        return credit


class Bucket:
    """A token bucket; reads the clock only when its tokens are spent."""

    __slots__ = ("_burst", "_filled_s", "_now", "_per_s", "_tokens")

    def __init__(self, burst: int, per_s: float, now: Callable[[], float]) -> None:
        self._burst = burst
        self._per_s = per_s
        self._now = now
        self._tokens = float(burst)
        self._filled_s = now()

    def spend(self, cost: float = 1.0) -> bool:
        """Take `cost` tokens; False when there are not as many."""
        if self._tokens < cost:
            now = self._now()
            self._tokens = min(self._tokens + (now - self._filled_s) * self._per_s, self._burst)
            self._filled_s = now
            if self._tokens < cost:
                return False
        self._tokens -= cost
        return True
