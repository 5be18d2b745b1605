# SPDX-License-Identifier: Apache-2.0
"""Waiting for something that happens by itself: polled to a deadline, never slept for.

A condition that raises OSError is not met yet: what it asks does not answer. At the deadline the last value
or error is in the failure's text.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = float(os.environ.get("AMBIT_TEST_PATIENCE", "1"))
"""How much longer than usual this machine may take; more than 1 where it is emulated."""
TIMEOUT_S = 30.0
"""Long beside anything that is waited for: a busy machine must not fail a test."""
EVERY_S = 0.01


def eventually(condition: Callable[[], T], what: str = "", timeout_s: float = TIMEOUT_S) -> T:
    """Return the first true value of `condition`.

    Raises:
        AssertionError: there was none within `timeout_s`.
    """
    timeout_s *= PATIENCE
    end = time.monotonic() + timeout_s
    last = ""
    while True:
        try:
            value = condition()
            if value:
                return value
            last = repr(value)
        except OSError as error:
            last = repr(error)
        if time.monotonic() >= end:
            raise AssertionError(_text(condition, what, timeout_s, last))
        time.sleep(EVERY_S)


async def eventually_async(
    condition: Callable[[], T | Awaitable[T]], what: str = "", timeout_s: float = TIMEOUT_S
) -> T:
    """Return the first true value of `condition`, which may be a coroutine function, while the loop runs on.

    Raises:
        AssertionError: there was none within `timeout_s`.
    """
    timeout_s *= PATIENCE
    end = time.monotonic() + timeout_s
    last = ""
    while True:
        try:
            answer = condition()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            last = repr(value)
        except OSError as error:
            last = repr(error)
        if time.monotonic() >= end:
            raise AssertionError(_text(condition, what, timeout_s, last))
        await asyncio.sleep(EVERY_S)


def _text(condition: object, what: str, timeout_s: float, last: str) -> str:
    return f"not within {timeout_s:g} s: {what or condition}; last seen: {last}"
