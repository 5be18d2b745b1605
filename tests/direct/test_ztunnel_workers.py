# SPDX-License-Identifier: Apache-2.0
"""Worker processes under their keeper: one whose loop stands still is killed, named, counted and replaced."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import uvloop

from mesh.runtime.clock import SystemClock
from tests.support.eventually import eventually_async
from ztunnel import workers
from ztunnel.control import Message
from ztunnel.workers import Worker, Workers

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_S = 3.0


class Owner:
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def worker_started(self, worker: Worker) -> None:
        self.told.append(("started", worker.process.pid))

    def worker_said(self, worker: Worker, message: Message) -> None:
        self.told.append((message.kind, worker.process.pid))

    def worker_hung(self, worker: Worker) -> None:
        self.told.append(("hung", worker.process.pid))

    def worker_gone(self, worker: Worker) -> None:
        self.told.append(("gone", worker.process.pid))


def on_uvloop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test on the loop that ztunnel has: asyncio's own loses exit codes of children that are killed."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        uvloop.run(test(**fixtures))

    return run


def keeper(owner: Owner) -> Workers:
    environ = {"NODE_NAME": "n", "PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    return Workers(1, owner, environ=environ, clock=SystemClock(), deadline_s=DEADLINE_S)


@on_uvloop
async def test_a_worker_whose_loop_stands_still_is_killed_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = Owner()
    kept = keeper(owner)
    kept.start()
    try:
        await eventually_async(lambda: "hello" in [kind for kind, _ in owner.told], "a worker is up")
        (first,) = kept
        heard = first.heard
        # Alive without anything to do, for longer than the deadline: its loop speaks.
        await eventually_async(lambda: first.heard >= heard + DEADLINE_S + 1, "it tells that it lives")
        assert owner.told == [("started", first.process.pid), ("hello", first.process.pid)]
        with caplog.at_level(logging.ERROR):
            os.kill(first.process.pid, signal.SIGSTOP)
            await eventually_async(lambda: len(owner.told) == 6, "another worker is up")
        (second,) = kept
        kinds = ["started", "hello", "hung", "gone"]
        old, new = first.process.pid, second.process.pid
        assert owner.told == [(kind, old) for kind in kinds] + [(kind, new) for kind in kinds[:2]]
        assert f"worker-0 (pid {old}) hangs: nothing heard for 3 s" in caplog.text
        assert first.process.returncode == -signal.SIGKILL
    finally:
        await kept.close()


@on_uvloop
async def test_a_worker_that_is_still_starting_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first word has a deadline of its own, and missing that one is a hang too."""
    monkeypatch.setattr(workers, "START_DEADLINE_S", 5.0)
    owner = Owner()
    kept = keeper(owner)
    kept.start()
    try:
        await eventually_async(lambda: len(kept) == 1, "a worker is spawned")
        (first,) = kept
        os.kill(first.process.pid, signal.SIGSTOP)
        started = asyncio.get_running_loop().time()
        await eventually_async(lambda: ("hung", first.process.pid) in owner.told, "it is given up")
        assert asyncio.get_running_loop().time() - started > DEADLINE_S
    finally:
        await kept.close()


@on_uvloop
async def test_what_the_keeper_itself_slept_through_is_no_silence() -> None:
    owner = Owner()
    kept = keeper(owner)
    kept.start()
    try:
        await eventually_async(lambda: "hello" in [kind for kind, _ in owner.told], "a worker is up")
        (first,) = kept
        # Not a wait: this loop stands, as on a suspended machine, and what the worker says lies unread.
        time.sleep(DEADLINE_S + 1)
        heard = first.heard
        await eventually_async(lambda: first.heard > heard, "it goes on")
        assert ("hung", first.process.pid) not in owner.told
    finally:
        await kept.close()
