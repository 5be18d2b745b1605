# SPDX-License-Identifier: Apache-2.0
"""Virtual time passes only when told to, and wakes sleepers in order."""

from __future__ import annotations

import asyncio

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.testing.fake_clock import FakeClock


def test_time_stands_still_until_it_is_moved() -> None:
    async def main() -> None:
        clock = FakeClock(wall_s=100.0)
        start = clock.monotonic()
        assert clock.wall() == 100.0
        await clock.advance(2.5)
        assert (clock.monotonic() - start, clock.wall()) == (2.5, 102.5)
        clock.jump_wall(-50)
        assert (clock.monotonic() - start, clock.wall()) == (2.5, 52.5)

    asyncio.run(main())


def test_sleepers_wake_in_order_each_at_its_own_time() -> None:
    async def main() -> None:
        clock, owner = FakeClock(), TaskOwner("test")
        start, woke = clock.monotonic(), list[tuple[str, float]]()

        async def sleeper(name: str, *naps: float) -> None:
            for nap in naps:
                await clock.sleep(nap)
                woke.append((name, clock.monotonic() - start))

        create_task(sleeper("a", 3, 3), name="a", owner=owner)
        create_task(sleeper("b", 1, 1, 1), name="b", owner=owner)
        await clock.advance(0)
        assert clock.sleeping == (1, 3)
        await clock.advance(4)
        assert woke == [("b", 1), ("b", 2), ("a", 3), ("b", 3)]
        assert clock.sleeping == (2,)
        await owner.close()
        assert clock.sleeping == ()
        await clock.advance(10)
        assert len(woke) == 4

    asyncio.run(main())


def test_a_sleep_of_nothing_waits_for_the_next_step() -> None:
    async def main() -> None:
        clock, owner = FakeClock(), TaskOwner("test")
        task = create_task(clock.sleep(-1), name="nap", owner=owner)
        await asyncio.sleep(0)
        assert not task.done()
        await clock.advance(0)
        assert task.done()

    asyncio.run(main())
