# SPDX-License-Identifier: Apache-2.0
"""The one place where asyncio tasks are made: each has a name, an owner and an end.

An owner is a component's set of running tasks. A task that ends by an exception
that nobody awaits is logged with its name at once, so that no loop dies unseen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger("ambit.tasks")


class TaskOwner:
    """Holds the tasks of one component; `close` cancels them and waits for their ends.

    Loop thread only. A closed owner accepts no further task.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _add(self, task: asyncio.Task[object]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s of %s failed: %r", task.get_name(), self.name, error, exc_info=error)

    async def close(self) -> None:
        """Cancel every task and wait until each has ended; errors were logged already."""
        self._closed = True
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def create_task(coro: Coroutine[object, object, T], *, name: str, owner: TaskOwner) -> asyncio.Task[T]:
    """Start `coro` as a task that `owner` holds until it ends.

    Raises:
        RuntimeError: the owner is closed; the coroutine was not started (local fault).
    """
    if owner.closed:
        coro.close()
        raise RuntimeError(f"{owner.name} is closed; task {name} not started")
    task = asyncio.get_running_loop().create_task(coro, name=name)
    owner._add(task)
    return task
