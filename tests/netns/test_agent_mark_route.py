# SPDX-License-Identifier: Apache-2.0
"""The mark route in a namespace: set and taken away any number of times, whatever else went before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset import mark_route, netns

pytestmark = pytest.mark.root


@pytest.fixture
def space() -> Iterator[netns.Netns]:
    name = f"agent-mark-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.open_netns(f"/run/netns/{name}") as found:
            yield found
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_what_is_set_twice_is_taken_away_whole(space: netns.Netns) -> None:
    netns.run_in(space.fd, mark_route.install)
    netns.run_in(space.fd, mark_route.install)
    assert netns.run_in(space.fd, mark_route.installed)
    netns.run_in(space.fd, mark_route.remove)
    assert not netns.run_in(space.fd, mark_route.installed)


def switches() -> set[str]:
    names = ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect")
    return {name for name in names if Path(f"/proc/sys/net/{name}").read_text().strip() == "1"}


def test_the_mark_is_kept_by_what_is_accepted_and_what_is_refused(space: netns.Netns) -> None:
    netns.run_in(space.fd, mark_route.install)
    assert len(netns.run_in(space.fd, switches)) == 3
    netns.run_in(space.fd, mark_route.remove)
    assert not netns.run_in(space.fd, switches)


def test_what_is_absent_is_no_error(space: netns.Netns) -> None:
    netns.run_in(space.fd, mark_route.install)
    netns.run_in(space.fd, mark_route.remove)
    netns.run_in(space.fd, mark_route.remove)


def test_a_runtime_that_took_the_interfaces_down_is_no_error(space: netns.Netns) -> None:
    netns.run_in(space.fd, mark_route.install)
    subprocess.run(["nsenter", f"--net={space.path}", "ip", "link", "set", "lo", "down"], check=True)
    netns.run_in(space.fd, mark_route.remove)
    assert not netns.run_in(space.fd, mark_route.installed)
