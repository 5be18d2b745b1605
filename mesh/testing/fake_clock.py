# SPDX-License-Identifier: Apache-2.0
"""Virtual time: a clock that a test moves by hand, and a sleep that follows it."""

from __future__ import annotations

import asyncio
import heapq

SETTLE_ROUNDS = 20
"""Turns of the loop given to tasks after each step of time."""


class FakeClock:
    """A `Clock` that stands still until `advance`; `sleep` wakes when its time has come."""

    def __init__(self, wall_s: float = 1_772_366_400.0) -> None:
        self._monotonic = 1000.0
        self._wall = wall_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return self._monotonic

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return self._wall

    def jump_wall(self, seconds: float) -> None:
        """Step the wall clock alone, as NTP or an operator may."""
        self._wall += seconds

    @property
    def sleeping(self) -> tuple[float, ...]:
        """Remaining seconds of everyone who sleeps, soonest first."""
        return tuple(at - self._monotonic for at, _, sleeper in sorted(self._sleepers) if not sleeper.done())

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was moved by `seconds`."""
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._monotonic + max(0.0, seconds), self._count, sleeper))
        await sleeper

    async def advance(self, seconds: float) -> None:
        """Move both clocks, waking each sleeper at its own time and letting it run."""
        end = self._monotonic + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, sleeper = heapq.heappop(self._sleepers)
            self._move_to(max(at, self._monotonic))
            if not sleeper.done():
                sleeper.set_result(None)
            await settle()
        self._move_to(end)
        await settle()

    def _move_to(self, monotonic: float) -> None:
        self._wall += monotonic - self._monotonic
        self._monotonic = monotonic


async def settle() -> None:
    """Let every task that can run do so; for tasks that wait for nothing but each other."""
    for _ in range(SETTLE_ROUNDS):
        await asyncio.sleep(0)
