# SPDX-License-Identifier: Apache-2.0
"""One writer at a time, whatever happens to replicas and to the API server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from controller.kubernetes.lease import DURATION_S, EVERY_S, RENEW_S, Leadership, Seen, may_take
from tests.support.fake_kube import FakeKube
from tests.support.virtual import LoopClock, run_virtual

LEASES = "/apis/coordination.k8s.io/v1/leases"


def replica(api: FakeKube, name: str) -> tuple[Leadership, asyncio.Task[None]]:
    made = Leadership(api, "istio-system", name, LoopClock())
    return made, asyncio.ensure_future(made.run())  # noqa: TID251


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def spec(api: FakeKube) -> dict[str, Any]:
    found: dict[str, Any] = api.get(LEASES, "istio-system", "ambit-controller")["spec"]
    return found


def test_a_lease_may_be_taken_from_nobody_from_ourselves_and_from_who_is_late() -> None:
    seen = Seen("1", 100.0)
    held = {"holderIdentity": "a", "leaseDurationSeconds": 15}
    assert may_take({}, seen, "b", 100.0)
    assert may_take({"holderIdentity": ""}, seen, "b", 100.0)
    assert may_take(held, seen, "a", 100.0)
    assert not may_take(held, seen, "b", 115.0)
    assert may_take(held, seen, "b", 115.1)
    assert not may_take({"holderIdentity": "a", "leaseDurationSeconds": "x"}, seen, "b", 115.0)


def test_one_of_two_leads_and_the_other_follows_when_it_is_let_go() -> None:
    async def test() -> None:
        api = FakeKube(LEASES)
        a, a_task = replica(api, "a")
        await a.gained()
        b, b_task = replica(api, "b")
        await asyncio.sleep(100)
        assert (a.leading, b.leading) == (True, False)
        await end(a_task)
        assert spec(api)["holderIdentity"] == ""
        began_s = asyncio.get_running_loop().time()
        await b.gained()
        assert asyncio.get_running_loop().time() - began_s <= EVERY_S
        assert (spec(api)["holderIdentity"], spec(api)["leaseTransitions"]) == ("b", 1)
        await end(b_task)

    run_virtual(test)


def test_a_replica_that_was_killed_is_followed_after_the_leases_time() -> None:
    async def test() -> None:
        api = FakeKube(LEASES)
        a, a_task = replica(api, "a")
        await a.gained()
        b, b_task = replica(api, "b")
        await asyncio.sleep(10)
        api.down = True  # Nothing can be let go.
        await end(a_task)
        api.down = False
        began_s = asyncio.get_running_loop().time()
        await b.gained()
        waited_s = asyncio.get_running_loop().time() - began_s
        assert DURATION_S - 2 * EVERY_S <= waited_s <= DURATION_S + 3 * EVERY_S
        await end(b_task)

    run_virtual(test)


def test_a_leader_that_cannot_renew_stops_before_another_may_begin() -> None:
    async def test() -> None:
        api = FakeKube(LEASES)
        a, a_task = replica(api, "a")
        await a.gained()
        loop = asyncio.get_running_loop()
        api.down = True
        began_s = loop.time()
        while a.leading:
            await asyncio.sleep(0.1)
        assert loop.time() - began_s <= RENEW_S < DURATION_S
        api.down = False
        await a.gained()
        await end(a_task)

    run_virtual(test)


def test_two_never_lead_at_once_while_the_server_comes_and_goes() -> None:
    async def test() -> None:
        api = FakeKube(LEASES)
        replicas = [replica(api, name) for name in "abc"]
        led = set()
        for step in range(3000):
            api.down = step % 400 > 250
            await asyncio.sleep(0.1)
            leading = [name for name, (found, _) in zip("abc", replicas, strict=True) if found.leading]
            assert len(leading) <= 1
            led.update(leading)
        assert led
        for _, task in replicas:
            await end(task)

    run_virtual(test)


def test_a_lease_taken_by_force_is_given_up() -> None:
    async def test() -> None:
        api = FakeKube(LEASES)
        a, a_task = replica(api, "a")
        await a.gained()
        api.put(
            LEASES,
            "istio-system",
            "ambit-controller",
            spec={"holderIdentity": "z", "leaseDurationSeconds": 15, "leaseTransitions": 7},
        )
        await asyncio.sleep(2 * EVERY_S)
        assert not a.leading
        await a.gained()
        assert spec(api)["leaseTransitions"] == 8
        await end(a_task)

    run_virtual(test)
