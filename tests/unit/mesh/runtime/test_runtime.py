# SPDX-License-Identifier: Apache-2.0
"""Tasks with owners, readiness by name, signals, clocks."""

from __future__ import annotations

import asyncio

import pytest

from mesh.runtime.clock import SystemClock
from mesh.runtime.notify import Signal
from mesh.runtime.readiness import Readiness
from mesh.runtime.tasks import TaskOwner, create_task


def test_an_owner_ends_its_tasks_and_takes_no_more() -> None:
    async def scenario() -> None:
        owner = TaskOwner("part")
        ended: list[str] = []

        async def work() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0)
                ended.append("cleaned up")

        task = create_task(work(), name="work", owner=owner)
        await asyncio.sleep(0)
        assert (len(owner), task.get_name()) == (1, "work")
        await owner.close()
        assert (len(owner), owner.closed, ended, task.cancelled()) == (0, True, ["cleaned up"], True)
        with pytest.raises(RuntimeError, match="part is closed; task late not started"):
            create_task(work(), name="late", owner=owner)

    asyncio.run(scenario())


def test_a_failed_task_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        owner = TaskOwner("part")

        async def fail() -> None:
            raise ValueError("broken")

        create_task(fail(), name="doomed", owner=owner)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await owner.close()

    asyncio.run(scenario())
    assert "task doomed of part failed: ValueError('broken')" in caplog.text


def test_a_task_may_close_its_own_owner() -> None:
    async def scenario() -> None:
        owner = TaskOwner("part")

        async def end() -> str:
            await owner.close()
            return "done"

        assert await create_task(end(), name="end", owner=owner) == "done"

    asyncio.run(scenario())


def test_readiness_names_what_is_waited_for_in_order() -> None:
    readiness = Readiness(("agent", "controller"))
    readiness.block("worker")
    readiness.block("agent")
    assert (readiness.ready, readiness.pending) == (False, ("agent", "controller", "worker"))
    for name in ("controller", "worker", "never blocked"):
        readiness.done(name)
    readiness.set("agent", ready=True)
    assert (readiness.ready, readiness.pending) == (True, ())
    readiness.set("agent", ready=False)
    assert not readiness.ready


def test_a_signal_wakes_those_who_wait_now_and_not_those_who_come_later() -> None:
    async def scenario() -> None:
        signal = Signal()
        signal.fire()
        loop = asyncio.get_running_loop()
        first, second = loop.create_task(signal.wait()), loop.create_task(signal.wait())
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        signal.fire()
        await asyncio.sleep(0)
        late = loop.create_task(signal.wait())
        await asyncio.sleep(0)
        assert (first.done(), second.cancelled(), late.done()) == (True, True, False)
        signal.fire()
        await late

    asyncio.run(scenario())


def test_the_systems_clocks_are_seconds() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.wall() > 1_700_000_000
