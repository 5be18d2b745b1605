# SPDX-License-Identifier: Apache-2.0
"""What all tests share: coroutine tests, no skipped root test, nothing left on the machine."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator

import pytest

import mesh  # noqa: F401  # before any test imports grpc: it settles how grpc forks
from tests.support.eventually import PATIENCE
from tests.support.leaks import Census

LACKING = "this kernel has no", "this host has no"
"""Reasons that may skip a root test as root: what is missing is not ours to install."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test on a loop of its own; other tests are run by pytest itself."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test the time that this machine needs."""
    if PATIENCE == 1:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = marker.args[0] if marker is not None else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * PATIENCE), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a root test that is skipped although we are root into a failure."""
    report: pytest.TestReport = yield  # type: ignore[assignment,misc]
    if report.skipped and os.geteuid() == 0 and item.get_closest_marker("root") is not None:
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        if not any(lacking in reason for lacking in LACKING):
            report.outcome = "failed"
            report.longrepr = f"a root test was skipped as root: {reason}"
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session", autouse=True)
def clean_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a run with root tests when it leaves namespaces, cgroups, pins, links or processes behind."""
    before = Census.take()
    yield
    if all(item.get_closest_marker("root") is None for item in request.session.items):
        return  # What appeared meanwhile is another program's.
    left = Census.take().beyond(before)
    assert not left, "the tests left behind: " + "; ".join(left)
