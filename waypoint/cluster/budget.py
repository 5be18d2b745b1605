# SPDX-License-Identifier: Apache-2.0
"""Retry budgets: retries are a bounded part of the requests, so that they cannot multiply an outage."""

from __future__ import annotations

from mesh.model.destination import RetryBudget

DEFAULT_BUDGET = RetryBudget(percent=20.0, interval_s=10.0, min_per_second=10.0)
"""Where no object sets one: 1.2 tries a request at most, but 10 retries a second are free (Linkerd)."""
_SLOTS = 10


class Budget:
    """Counts the requests and retries of one service, of the moment or of a sliding interval."""

    __slots__ = ("_requests", "_retries", "_slot", "_sums", "active", "policy", "retrying")

    def __init__(self, policy: RetryBudget | None) -> None:
        self.policy = policy
        """None: retries are not bounded here."""
        self.active = 0
        """Requests under way."""
        self.retrying = 0
        """Retries under way."""
        self._requests = [0] * _SLOTS
        self._retries = [0] * _SLOTS
        self._sums = [0, 0]
        self._slot = 0

    def configure(self, policy: RetryBudget | None) -> None:
        """Take another policy; what is under way stays counted."""
        before, self.policy = self.policy, policy
        if policy is not None and (before is None or before.interval_s != policy.interval_s):
            self._requests, self._retries = [0] * _SLOTS, [0] * _SLOTS
            self._sums = [0, 0]
            self._slot = 0

    def begin(self, now_s: float) -> None:
        """Count a request in."""
        self.active += 1
        if self.policy is not None and self.policy.interval_s:
            self._count(now_s, self.policy.interval_s, self._requests, 0)

    def end(self) -> None:
        """Count a request out."""
        self.active -= 1

    def allows(self, now_s: float) -> bool:
        """Whether one more retry is within the budget."""
        policy = self.policy
        if policy is None:
            return True
        if not policy.interval_s:
            return self.retrying < max(self.active * policy.percent / 100, policy.min_concurrent)
        self._turn(now_s, policy.interval_s)
        requests, retries = self._sums
        allowed = max(requests * policy.percent / 100, policy.min_per_second * policy.interval_s)
        return retries < allowed or self.retrying < policy.min_concurrent

    def begin_retry(self, now_s: float) -> None:
        """Count a retry in."""
        self.retrying += 1
        if self.policy is not None and self.policy.interval_s:
            self._count(now_s, self.policy.interval_s, self._retries, 1)

    def end_retry(self) -> None:
        """Count a retry out."""
        self.retrying -= 1

    def _count(self, now_s: float, interval_s: float, slots: list[int], which: int) -> None:
        self._turn(now_s, interval_s)
        slots[self._slot % _SLOTS] += 1
        self._sums[which] += 1

    def _turn(self, now_s: float, interval_s: float) -> None:
        """Forget what is older than the interval."""
        slot = int(now_s * _SLOTS / interval_s)
        if slot == self._slot:
            return
        for each in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            index = each % _SLOTS
            self._sums[0] -= self._requests[index]
            self._sums[1] -= self._retries[index]
            self._requests[index] = self._retries[index] = 0
        self._slot = slot
