# SPDX-License-Identifier: Apache-2.0
"""Waking everyone who waits for a change, without a lock and without losing who comes later."""

from __future__ import annotations

import asyncio


class Signal:
    """Wakes all who wait now; who waits later waits for the next one. Loop thread only."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        """Wake all who wait now."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Wait for the next `fire`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
