# SPDX-License-Identifier: Apache-2.0
"""The certificate manager in virtual time: refresh, failure, expiry, sharing, forgetting."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity.ca_client import CaError
from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.manager import (
    BACKOFF_MAX_S,
    CertificateManager,
    CertificateUnavailableError,
    State,
    backoff_s,
    refresh_at_s,
)
from mesh.identity.spiffe import SpiffeId
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.testing.fake_clock import FakeClock, settle

WEB = SpiffeId("cluster.local", "shop", "web")
CART = SpiffeId("cluster.local", "shop", "cart")


class Tracked(WorkloadCertificate):
    """A certificate that tells when it is gone: without slots of its own, it can be referred to weakly."""


class Authority:
    """Issues stand-ins for certificates; can be made to fail, or to wait until it is told."""

    def __init__(self, clock: FakeClock, ttl_s: float = 86_400.0) -> None:
        self.clock, self.ttl_s = clock, ttl_s
        self.asked: list[SpiffeId] = []
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.busy = self.busiest = 0

    async def fetch(self, identity: SpiffeId) -> WorkloadCertificate:
        self.asked.append(identity)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.busy -= 1
        if self.failure is not None:
            raise self.failure
        now = self.clock.wall()
        return Tracked(
            identity=identity,
            chain_pem=(b"leaf",),
            key_pem=b"key",
            roots_pem=b"roots",
            not_before_s=now - 120,
            not_after_s=now + self.ttl_s,
            serial=str(len(self.asked)),
        )


class Scene:
    def __init__(self, ttl_s: float = 86_400.0, max_concurrent: int = 8) -> None:
        self.clock = FakeClock()
        self.authority = Authority(self.clock, ttl_s)
        self.updates: list[WorkloadCertificate] = []
        self.owner = TaskOwner("test")
        self.manager = CertificateManager(
            self.authority.fetch,
            self.clock,
            max_concurrent=max_concurrent,
            sleep=self.clock.sleep,
            draw=lambda: 0.5,
        )
        self.manager.on_update(self.updates.append)

    def ask(self, identity: SpiffeId = WEB) -> asyncio.Task[WorkloadCertificate]:
        return create_task(self.manager.get(identity), name=f"get {identity}", owner=self.owner)


def play(script: Callable[[Scene], Awaitable[None]], **options: float) -> None:
    async def main() -> None:
        scene = Scene(**options)  # type: ignore[arg-type]
        try:
            await script(scene)
        finally:
            await scene.manager.close()
            await scene.owner.close()
        assert scene.clock.sleeping == ()

    asyncio.run(main())


def test_concurrent_callers_share_one_fetch() -> None:
    async def script(scene: Scene) -> None:
        scene.authority.gate = asyncio.Event()
        tasks = [scene.ask() for _ in range(5)]
        await settle()
        scene.authority.gate.set()
        results = await asyncio.gather(*tasks)
        assert len({id(result) for result in results}) == 1
        assert scene.authority.asked == [WEB]
        assert await scene.manager.get(WEB) is results[0]
        assert scene.updates == [results[0]]

    play(script)


def test_a_caller_that_gives_up_does_not_take_it_from_the_others() -> None:
    async def script(scene: Scene) -> None:
        scene.authority.gate = asyncio.Event()
        first, second = scene.ask(), scene.ask()
        await settle()
        first.cancel()
        await settle()
        scene.authority.gate.set()
        assert (await second).identity == WEB
        assert scene.authority.asked == [WEB]

    play(script)


def test_prefetch_has_it_ready() -> None:
    async def script(scene: Scene) -> None:
        scene.manager.prefetch(WEB)
        scene.manager.prefetch(WEB)
        await settle()
        (status,) = scene.manager.statuses()
        assert (status.identity, status.state, status.failures) == (WEB, State.RESTING, 0)
        assert status.certificate is await scene.manager.get(WEB)
        assert scene.authority.asked == [WEB]

    play(script)


def test_it_is_fetched_anew_at_half_of_its_life() -> None:
    async def script(scene: Scene) -> None:
        first = await scene.manager.get(WEB)
        await scene.clock.advance(43_199)
        assert len(scene.authority.asked) == 1
        await scene.clock.advance(2)
        assert len(scene.authority.asked) == 2
        second = await scene.manager.get(WEB)
        assert second.serial != first.serial
        assert scene.updates == [first, second]
        await scene.clock.advance(43_201)
        assert len(scene.authority.asked) == 3

    play(script)


def test_short_lives_do_not_make_a_busy_loop() -> None:
    async def script(scene: Scene) -> None:
        await scene.manager.get(WEB)
        await scene.clock.advance(10)
        assert len(scene.authority.asked) <= 1 + 10 / 0.5

    play(script, ttl_s=0.2)


def test_a_failure_keeps_what_is_in_hand_until_it_expires_and_no_longer() -> None:
    async def script(scene: Scene) -> None:
        first = await scene.manager.get(WEB)
        scene.authority.failure = CaError("authority down")
        await scene.clock.advance(999)
        assert await scene.manager.get(WEB) is first
        assert scene.manager.statuses()[0].error == "authority down"
        await scene.clock.advance(1)
        with pytest.raises(CertificateUnavailableError, match="authority down \\(next try in"):
            await scene.manager.get(WEB)
        scene.authority.failure = None
        await scene.clock.advance(BACKOFF_MAX_S * 1.2)
        assert (await scene.manager.get(WEB)).serial != first.serial
        assert scene.manager.statuses()[0].error == ""

    play(script, ttl_s=1000)


def test_a_failed_first_fetch_is_told_to_all_and_backed_off_from() -> None:
    async def script(scene: Scene) -> None:
        scene.authority.failure = CaError("denied")
        scene.authority.gate = asyncio.Event()
        tasks = [scene.ask() for _ in range(3)]
        await settle()
        scene.authority.gate.set()
        for task in tasks:
            with pytest.raises(CertificateUnavailableError, match="denied"):
                await task
        for _ in range(5):
            with pytest.raises(CertificateUnavailableError, match="next try in 1 s"):
                await scene.manager.get(WEB)
        assert len(scene.authority.asked) == 1
        gaps = []
        for _ in range(10):
            (left,) = scene.clock.sleeping
            gaps.append(left)
            await scene.clock.advance(left)
        assert gaps == [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]
        assert scene.manager.statuses()[0].failures == 11
        scene.authority.failure = None
        await scene.clock.advance(150)
        assert (await scene.manager.get(WEB)).identity == WEB
        assert scene.manager.statuses()[0].failures == 0

    play(script)


def test_an_unexpected_failure_is_one_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    async def script(scene: Scene) -> None:
        scene.authority.failure = ZeroDivisionError("bug")
        with pytest.raises(CertificateUnavailableError, match=r"internal error: ZeroDivisionError"):
            await scene.manager.get(WEB)
        scene.authority.failure = None
        await scene.clock.advance(2)
        assert (await scene.manager.get(WEB)).identity == WEB

    with caplog.at_level(logging.ERROR):
        play(script)
    assert any(record.exc_info for record in caplog.records)


def test_a_listener_that_fails_does_not_end_the_refreshing(caplog: pytest.LogCaptureFixture) -> None:
    async def script(scene: Scene) -> None:
        def broken(_: WorkloadCertificate) -> None:
            raise KeyError("bug")

        scene.manager.on_update(broken)
        await scene.manager.get(WEB)
        await scene.clock.advance(43_201)
        assert len(scene.authority.asked) == 2

    with caplog.at_level(logging.ERROR):
        play(script)
    assert len(caplog.records) == 2


def test_after_a_jump_of_the_wall_clock_nothing_expired_is_served() -> None:
    async def script(scene: Scene) -> None:
        first = await scene.manager.get(WEB)
        scene.clock.jump_wall(100_000)
        second = await scene.manager.get(WEB)
        assert second.serial != first.serial
        assert not second.expired(scene.clock.wall())

    play(script)


def test_a_machine_that_slept_fetches_within_a_minute() -> None:
    async def script(scene: Scene) -> None:
        await scene.manager.get(WEB)
        scene.clock.jump_wall(100_000)
        await scene.clock.advance(60)
        assert len(scene.authority.asked) == 2

    play(script)


def test_a_forgotten_identity_is_gone_with_its_key() -> None:
    async def script(scene: Scene) -> None:
        gone = weakref.ref(await scene.manager.get(WEB))
        scene.updates.clear()
        gc.collect()
        assert gone() is not None
        scene.manager.forget(WEB)
        scene.manager.forget(WEB)
        await settle()
        gc.collect()
        assert gone() is None
        assert scene.manager.statuses() == ()
        await scene.clock.advance(100_000)
        assert scene.authority.asked == [WEB]

    play(script)


def test_a_replaced_certificate_is_gone_with_its_key() -> None:
    async def script(scene: Scene) -> None:
        gone = weakref.ref(await scene.manager.get(WEB))
        await scene.clock.advance(43_201)
        scene.updates.clear()
        gc.collect()
        assert gone() is None

    play(script)


def test_forgetting_during_a_fetch_tells_who_waits_and_drops_the_answer() -> None:
    async def script(scene: Scene) -> None:
        scene.authority.gate = asyncio.Event()
        task = scene.ask()
        await settle()
        scene.manager.forget(WEB)
        scene.authority.gate.set()
        with pytest.raises(CertificateUnavailableError, match="was forgotten"):
            await task
        await settle()
        assert scene.updates == []
        assert scene.manager.statuses() == ()
        assert (await scene.manager.get(WEB)).identity == WEB

    play(script)


def test_fetches_are_bounded_and_who_is_waited_for_goes_first() -> None:
    async def script(scene: Scene) -> None:
        scene.authority.gate = asyncio.Event()
        others = [SpiffeId("cluster.local", "shop", f"a{index}") for index in range(6)]
        for identity in others:
            scene.manager.prefetch(identity)
        scene.manager.prefetch(CART)
        await settle()
        assert scene.authority.asked == others[:2]
        task = scene.ask(CART)
        await settle()
        scene.manager.forget(others[3])
        await settle()
        assert scene.authority.asked == others[:2], "who left the queue had no slot to give"
        scene.authority.gate.set()
        await settle()
        assert scene.authority.asked[2] == CART
        assert (await task).identity == CART
        assert others[3] not in scene.authority.asked
        assert sorted(map(str, scene.authority.asked)) == sorted(map(str, {*others, CART} - {others[3]}))
        assert scene.authority.busiest == 2

    play(script, max_concurrent=2)


def test_a_slot_handed_to_who_is_just_being_forgotten_is_not_lost() -> None:
    async def script(scene: Scene) -> None:
        scene.authority.gate = asyncio.Event()
        scene.manager.prefetch(WEB)
        scene.manager.prefetch(CART)
        await settle()
        # The slot passes to CART within release(); before CART runs, it is cancelled.
        scene.manager._slots.release()
        scene.manager.forget(CART)
        await settle()
        assert scene.manager._slots._free == 1

    play(script, max_concurrent=1)


@given(st.floats(0, 1, exclude_max=True), st.floats(1, 1e6))
def test_a_refresh_is_about_half_way(draw: float, ttl_s: float) -> None:
    at = refresh_at_s(1000.0, 1000.0 + ttl_s, draw) - 1000.0
    assert 0.45 * ttl_s - 1e-6 <= at <= max(0.55 * ttl_s, 0.5) + 1e-6


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_backoff_is_bounded(failures: int, draw: float) -> None:
    assert 0.8 <= backoff_s(failures, draw) <= BACKOFF_MAX_S * 1.2
