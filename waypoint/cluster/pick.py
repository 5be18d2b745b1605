# SPDX-License-Identifier: Apache-2.0
"""Balancers: which of some hosts takes the next request. O(1) a draw, O(log n) with unequal weights.

A picker is made anew whenever hosts or weights change.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from mesh.model.destination import Balancer
from mesh.state.balance import Random
from waypoint.cluster.host import Host

WeightOf = Callable[[Host], float]
"""The weight of a host now: more than 0."""
_SECOND_DRAWS = 3


class Picker(Protocol):
    """Chooses among hosts that it was made with; there is at least one."""

    def pick(self, random: Random, now_s: float) -> Host:
        """Return the host for one request."""
        ...


class _Draw:
    """Hosts drawn in proportion to their weights."""

    __slots__ = ("_bounds", "hosts", "size")

    def __init__(self, hosts: Sequence[Host], weight_of: WeightOf) -> None:
        self.hosts = tuple(hosts)
        self.size = len(self.hosts)
        weights = [weight_of(host) for host in self.hosts]
        self._bounds = None if len(set(weights)) == 1 else list(accumulate(weights))

    def one(self, random: Random) -> Host:
        return self.hosts[self._index(random)]

    def two(self, random: Random) -> tuple[Host, Host]:
        """Draw twice, not the same host if a few further draws can help it."""
        first = self._index(random)
        if self._bounds is None:
            second = int(random() * (self.size - 1))
            second += second >= first
        else:
            for _ in range(_SECOND_DRAWS):
                second = self._index(random)
                if second != first:
                    break
        return self.hosts[first], self.hosts[second]

    def _index(self, random: Random) -> int:
        bounds = self._bounds
        if bounds is None:
            return int(random() * self.size)
        return min(bisect_right(bounds, random() * bounds[-1]), self.size - 1)


class RandomPicker:
    """By weight alone."""

    def __init__(self, hosts: Sequence[Host], weight_of: WeightOf) -> None:
        self._draw = _Draw(hosts, weight_of)

    def pick(self, random: Random, now_s: float) -> Host:
        """Draw one."""
        return self._draw.one(random)


class LeastRequest:
    """Of two drawn by weight, the one with fewer requests under way."""

    def __init__(self, hosts: Sequence[Host], weight_of: WeightOf) -> None:
        self._draw = _Draw(hosts, weight_of)

    def pick(self, random: Random, now_s: float) -> Host:
        """Draw two."""
        draw = self._draw
        if draw.size == 1:
            return draw.hosts[0]
        first, second = draw.two(random)
        return first if first.active <= second.active else second


class PeakEwma:
    """Of two drawn by weight, the one that is expected to answer sooner.

    The expectation is the moving average of its latency, which peaks raise at once, times
    the requests that it would then have. Source: Finagle's and Linkerd's balancer.
    """

    def __init__(self, hosts: Sequence[Host], weight_of: WeightOf) -> None:
        self._draw = _Draw(hosts, weight_of)

    def pick(self, random: Random, now_s: float) -> Host:
        """Draw two."""
        draw = self._draw
        if draw.size == 1:
            return draw.hosts[0]
        first, second = draw.two(random)
        return first if first.cost(now_s) <= second.cost(now_s) else second


class RoundRobin:
    """In turn; a host of weight 2 has two turns, spread over the round (earliest deadline first)."""

    def __init__(self, hosts: Sequence[Host], weight_of: WeightOf) -> None:
        self._hosts = tuple(hosts)
        weights = [weight_of(host) for host in self._hosts]
        self._turn = -1
        self._heap: list[tuple[float, int, float]] | None = None
        """Deadline, index, time between two turns; None: all weights are equal."""
        if len(set(weights)) > 1:
            # First turns are staggered, so that light hosts do not come one right after the other.
            size = len(weights)
            self._heap = [
                ((index + 0.5) / size / weight, index, 1 / weight) for index, weight in enumerate(weights)
            ]
            heapq.heapify(self._heap)

    def pick(self, random: Random, now_s: float) -> Host:
        """Take the next turn; the first one is drawn, so that waypoints do not march in step."""
        size = len(self._hosts)
        if self._turn < 0:
            self._turn = int(random() * size)
            if self._heap is not None:
                for _ in range(self._turn):
                    self._next(self._heap)
        if self._heap is not None:
            return self._hosts[self._next(self._heap)]
        self._turn = (self._turn + 1) % size
        return self._hosts[self._turn]

    @staticmethod
    def _next(heap: list[tuple[float, int, float]]) -> int:
        deadline, index, period = heap[0]
        heapq.heapreplace(heap, (deadline + period, index, period))
        return index


_PICKERS: dict[Balancer, type[RandomPicker | LeastRequest | PeakEwma | RoundRobin]] = {
    Balancer.LEAST_REQUEST: LeastRequest,
    Balancer.PASSTHROUGH: LeastRequest,
    Balancer.PEAK_EWMA: PeakEwma,
    Balancer.RANDOM: RandomPicker,
    Balancer.ROUND_ROBIN: RoundRobin,
}


def make_picker(balancer: Balancer, hosts: Sequence[Host], weight_of: WeightOf) -> Picker:
    """Make the picker of a balancer; for PASSTHROUGH that of requests to no host's own address."""
    return _PICKERS[balancer](hosts, weight_of)
