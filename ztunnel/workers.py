# SPDX-License-Identifier: Apache-2.0
"""The worker processes: started, replaced when they die or hang, asked, drained, ended.

Knows nothing of what workers do: what a new one must be told, and what their messages
mean, is the supervisor's business (`WorkerOwner`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mesh.runtime.clock import Clock
from mesh.runtime.notify import Signal
from mesh.runtime.tasks import TaskOwner, create_task
from ztunnel.control import Channel, Message

_log = logging.getLogger("ztunnel.workers")

DUMP_ANSWER_S = 2.0
RESTART_FIRST_S = 0.1
RESTART_MAX_S = 5.0
STABLE_S = 10.0
"""A worker that lived this long begins again with the first restart delay."""
WATCH_S = 0.5
"""How often silence is looked for."""
START_DEADLINE_S = 60.0
"""Until the first word of a worker: on a busy node an interpreter takes many seconds to start."""
DRAIN_MARGIN_S = 5.0
"""Beyond the drain deadline: what a worker may take to cut its connections and end."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process as the supervisor sees it."""

    index: int
    process: asyncio.subprocess.Process
    channel: Channel
    answers: dict[str, asyncio.Future[str]] = field(default_factory=dict)
    """Pod uid -> the answer awaited, an error or ''."""
    dumps: dict[int, asyncio.Future[object]] = field(default_factory=dict)
    heard: int = 0
    """Messages that came from it; its loop sends one a second at least."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Drained or gone: nothing more is expected of it."""

    @property
    def name(self) -> str:
        """Its name in metrics, logs and readiness."""
        return f"worker-{self.index}"


class WorkerOwner(Protocol):
    """Learns what happens to workers."""

    def worker_started(self, worker: Worker) -> None:
        """Tell a new worker all that is in force."""
        ...

    def worker_said(self, worker: Worker, message: Message) -> None:
        """Take a message that is not about the process itself."""
        ...

    def worker_hung(self, worker: Worker) -> None:
        """A worker's loop stands still; it is killed and replaced."""
        ...

    def worker_gone(self, worker: Worker) -> None:
        """A worker died or was ended."""
        ...


class Workers:
    """Keeps `count` workers running until `drain` or `close`; loop thread only."""

    def __init__(
        self,
        count: int,
        owner: WorkerOwner,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        deadline_s: float,
    ) -> None:
        """Keep them with `environ`; one that is silent for `deadline_s` is killed and replaced."""
        self.count = count
        self.spawned = Signal()
        """Fires after each start."""
        self._owner = owner
        self._environ = dict(environ)
        self._clock = clock
        self._deadline_s = deadline_s
        self._tasks = TaskOwner("workers")
        self._running: dict[int, Worker] = {}
        self._dump_numbers = 0
        self._ending = False

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._running.values()))

    def __len__(self) -> int:
        return len(self._running)

    def start(self) -> None:
        """Start all of them; they come up by themselves."""
        for index in range(self.count):
            create_task(self._keep(index), name=f"worker-{index}", owner=self._tasks)

    async def _keep(self, index: int) -> None:
        """Run one worker, and the next one when it dies."""
        delay_s = RESTART_FIRST_S
        while not self._ending:
            started = self._clock.monotonic()
            worker = await self._spawn(index)
            watch = create_task(self._watch(worker), name=f"watch-{worker.name}", owner=self._tasks)
            code = await worker.process.wait()
            watch.cancel()
            self._gone(worker)
            if self._ending:
                return
            if self._clock.monotonic() - started >= STABLE_S:
                delay_s = RESTART_FIRST_S
            _log.error(
                "%s (pid %d) ended with code %d, its connections are cut; a new one starts in %.1f s",
                worker.name,
                worker.process.pid,
                code,
                delay_s,
            )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_MAX_S)

    async def _watch(self, worker: Worker) -> None:
        """Kill a worker that is silent for the deadline.

        Silence is counted in turns of this loop: what this process itself slept through, with the
        worker's messages unread, is no silence.
        """
        silent_s, heard = 0.0, 0
        while not worker.ended.is_set():
            await asyncio.sleep(WATCH_S)
            silent_s = silent_s + WATCH_S if worker.heard == heard else 0.0
            heard = worker.heard
            allowed_s = self._deadline_s if heard else max(self._deadline_s, START_DEADLINE_S)
            if silent_s >= allowed_s and not worker.ended.is_set():
                _log.error(
                    "%s (pid %d) hangs: nothing heard for %g s (AMBIT_WORKER_DEADLINE_S); it is replaced",
                    worker.name,
                    worker.process.pid,
                    silent_s,
                )
                self._owner.worker_hung(worker)
                self._kill(worker)
                return

    async def _spawn(self, index: int) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ztunnel.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
            )
        worker: Worker
        channel = Channel(
            ours, lambda message, fds: self._received(worker, message, fds), lambda: self._cut_off(worker)
        )
        worker = self._running[index] = Worker(index, process, channel)
        self._owner.worker_started(worker)
        self.spawned.fire()
        return worker

    def _gone(self, worker: Worker) -> None:
        worker.ended.set()
        worker.channel.close()
        if self._running.get(worker.index) is worker:
            del self._running[worker.index]
        for answer in worker.answers.values():
            if not answer.done():
                answer.set_result("a worker ended while it opened the pod's listeners; try again")
        for dump in worker.dumps.values():
            dump.cancel()
        self._owner.worker_gone(worker)

    def _cut_off(self, worker: Worker) -> None:
        # A process that hangs without its channel is of no use.
        if not worker.ended.is_set():
            self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        if worker.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    def _received(self, worker: Worker, message: Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        worker.heard += 1
        if message.kind == "alive":
            return
        if message.kind == "drained":
            worker.ended.set()
        elif message.kind == "dumped":
            dump = worker.dumps.pop(int(str(message.body["id"])), None)
            if dump is not None and not dump.done():
                dump.set_result(message.body["value"])
        elif message.kind == "pod_done":
            answer = worker.answers.pop(str(message.body["uid"]), None)
            if answer is not None and not answer.done():
                answer.set_result(str(message.body["error"]))
        else:
            self._owner.worker_said(worker, message)

    def broadcast(self, message: Message) -> None:
        """Send a message to every worker."""
        for worker in self:
            worker.channel.send(message)

    async def dump(self) -> list[object]:
        """Ask every worker what it is doing; one that is too busy to say is left out."""
        self._dump_numbers += 1
        number = self._dump_numbers
        waiting: list[asyncio.Future[object]] = []
        for worker in self:
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            worker.dumps[number] = future
            waiting.append(future)
            worker.channel.send(Message("dump", {"id": number}))
        if waiting:
            await asyncio.wait(waiting, timeout=DUMP_ANSWER_S)
        return [f.result() for f in waiting if f.done() and not f.cancelled()]

    async def drain(self, deadline_s: float) -> None:
        """Let them finish their connections, to the deadline; then they are gone."""
        self._ending = True
        self.broadcast(Message("drain", {"deadline_s": deadline_s}))
        waiting = [create_task(worker.ended.wait(), name="drain", owner=self._tasks) for worker in self]
        if waiting:
            await asyncio.wait(waiting, timeout=deadline_s + DRAIN_MARGIN_S)
        await self.close()

    async def close(self) -> None:
        """End them now."""
        self._ending = True
        for worker in self:
            worker.ended.set()
            worker.channel.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await worker.process.wait()
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()
        await self._tasks.close()
