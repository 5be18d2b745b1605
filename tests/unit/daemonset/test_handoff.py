# SPDX-License-Identifier: Apache-2.0
"""ZDS sessions: the snapshot, who gets adds and removals, lost and refusing ztunnels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from daemonset.codes import Code
from daemonset.handoff import Handoff, LinkLostError, Offer
from daemonset.worker import StepError


class Ztunnel:
    """The other end: notes what it got, answers as told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.inodes: dict[str, int] = {}
        self.answer = ""
        self.lost = False
        self.closed = False
        self.hold: asyncio.Event | None = None

    async def _take(self, kind: str, uid: str) -> str:
        if self.lost:
            raise LinkLostError("gone")
        if self.hold is not None:
            await self.hold.wait()
        self.got.append((kind, uid))
        return self.answer

    async def add(self, offer: Offer, netns_fd: int) -> str:
        self.inodes[offer.uid] = os.fstat(netns_fd).st_ino
        return await self._take("add", offer.uid)

    async def keep(self, uid: str) -> str:
        return await self._take("keep", uid)

    async def delete(self, uid: str) -> str:
        return await self._take("del", uid)

    async def snapshot_sent(self) -> str:
        return await self._take("sent", "")

    def close(self) -> None:
        self.closed = True


class Setting:
    def __init__(self) -> None:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        self.pods: dict[str, Offer] = {}
        self.sessions: list[int] = []
        self.handoff = Handoff(offers=lambda: self.pods, on_session=self.sessions.append, ack_timeout_s=0.05)

    def offer(self, uid: str, *, cookie: int = 1, fd: int | None = -1) -> Offer:
        return Offer(
            uid=uid,
            namespace="shop",
            name=uid,
            service_account="web",
            netns_fd=self.fd if fd == -1 else fd,
            cookie=cookie,
        )


def run(scenario: Callable[[Setting], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        setting = Setting()
        try:
            await scenario(setting)
        finally:
            os.close(setting.fd)

    asyncio.run(body())


def test_a_snapshot_holds_every_pod_and_then_its_end() -> None:
    async def scenario(s: Setting) -> None:
        s.pods = {"u1": s.offer("u1"), "u2": s.offer("u2", fd=None)}
        ztunnel = Ztunnel()
        await s.handoff.opened(ztunnel, "pid 1")
        assert ztunnel.got == [("add", "u1"), ("keep", "u2"), ("sent", "")]
        assert ztunnel.inodes["u1"] == os.fstat(s.fd).st_ino
        assert s.sessions == [1]
        # What the snapshot brought is not sent again.
        await s.handoff.offer(s.offer("u1"))
        assert len(ztunnel.got) == 3
        # A new namespace of the pod is.
        await s.handoff.offer(s.offer("u1", cookie=2))
        assert ztunnel.got[-1] == ("add", "u1")

    run(scenario)


def test_no_session_is_announced_before_its_snapshot_is_complete() -> None:
    async def scenario(s: Setting) -> None:
        s.pods = {"u1": s.offer("u1")}
        ztunnel = Ztunnel()
        ztunnel.lost = True
        await s.handoff.opened(ztunnel, "pid 1")
        assert s.sessions == []
        assert ztunnel.closed
        with pytest.raises(StepError, match="no ztunnel") as refusal:
            await s.handoff.offer(s.offer("u1"))
        assert refusal.value.code is Code.ZTUNNEL_ABSENT

    run(scenario)


def test_a_pod_refused_in_the_snapshot_is_offered_again_and_its_refusal_reported() -> None:
    async def scenario(s: Setting) -> None:
        s.pods = {"u1": s.offer("u1")}
        ztunnel = Ztunnel()
        ztunnel.answer = "no listeners"
        await s.handoff.opened(ztunnel, "pid 1")
        assert s.sessions == []  # It refused the end of the snapshot too.
        ztunnel = Ztunnel()
        await s.handoff.opened(ztunnel, "pid 2")
        ztunnel.answer = "no listeners"
        with pytest.raises(StepError, match="no listeners") as refusal:
            await s.handoff.offer(s.offer("u2"))
        assert refusal.value.code is Code.ZTUNNEL_REFUSED

    run(scenario)


def test_during_an_upgrade_adds_go_to_the_newest_and_removals_to_all() -> None:
    async def scenario(s: Setting) -> None:
        old, new = Ztunnel(), Ztunnel()
        await s.handoff.opened(old, "pid 1")
        await s.handoff.opened(new, "pid 2")
        await s.handoff.offer(s.offer("u1"))
        assert ("add", "u1") not in old.got
        await s.handoff.retract("u1")
        assert old.got[-1] == ("del", "u1")
        assert new.got[-1] == ("del", "u1")
        s.handoff.lost(old)
        assert s.sessions == [1, 2]
        s.handoff.lost(new)
        assert s.sessions == [1, 2, 0]

    run(scenario)


def test_when_the_newest_is_lost_the_older_serves_again() -> None:
    async def scenario(s: Setting) -> None:
        old, new = Ztunnel(), Ztunnel()
        await s.handoff.opened(old, "pid 1")
        await s.handoff.opened(new, "pid 2")
        s.handoff.lost(new)
        assert s.handoff.current == 1
        await s.handoff.offer(s.offer("u1"))
        assert old.got[-1] == ("add", "u1")

    run(scenario)


def test_a_ztunnel_that_does_not_answer_is_named_by_the_deadline() -> None:
    async def scenario(s: Setting) -> None:
        ztunnel = Ztunnel()
        await s.handoff.opened(ztunnel, "pid 1")
        ztunnel.hold = asyncio.Event()
        with pytest.raises(StepError, match=r"0\.05 s"):
            await s.handoff.offer(s.offer("u1"))
        assert ztunnel.closed

    run(scenario)


def test_a_removal_succeeds_where_nobody_is_left_to_hear_it() -> None:
    async def scenario(s: Setting) -> None:
        await s.handoff.retract("u1")
        ztunnel = Ztunnel()
        await s.handoff.opened(ztunnel, "pid 1")
        ztunnel.lost = True
        await s.handoff.retract("u1")

    run(scenario)


def test_a_removal_that_ztunnel_refuses_is_an_error_only_if_it_had_the_pod() -> None:
    async def scenario(s: Setting) -> None:
        ztunnel = Ztunnel()
        await s.handoff.opened(ztunnel, "pid 1")
        await s.handoff.offer(s.offer("u1"))
        ztunnel.answer = "unknown workload"
        await s.handoff.retract("u2")
        with pytest.raises(StepError, match="unknown workload"):
            await s.handoff.retract("u1")

    run(scenario)


def test_a_pod_that_leaves_while_a_snapshot_is_sent_is_not_in_it() -> None:
    async def scenario(s: Setting) -> None:
        s.pods = {"u1": s.offer("u1"), "u2": s.offer("u2")}
        ztunnel = Ztunnel()
        ztunnel.hold = asyncio.Event()
        opening = asyncio.get_running_loop().create_task(s.handoff.opened(ztunnel, "pid 1"))
        await asyncio.sleep(0)
        del s.pods["u2"]
        ztunnel.hold.set()
        await opening
        assert ztunnel.got == [("add", "u1"), ("sent", "")]

    run(scenario)
