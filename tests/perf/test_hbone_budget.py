# SPDX-License-Identifier: Apache-2.0
"""Budgets of the byte path: socket to tunnel to tunnel to socket, without kernel and TLS.

CPU time of the best of some runs; a budget is about four times what a 2026 laptop core takes, so
that it fails when the path gains work, not when the machine is busy.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh.hbone.driver import HboneConnection, Limits, Role, ServerTunnel
from mesh.net.relay import TcpEnd, join
from mesh.telemetry.reasons import Reason
from tests.support.transports import FakeTransport, pump
from tests.support.virtual import LoopClock

SMALL_US = 20.0
"""A message of 100 bytes, both ends together."""
BULK_NS_PER_KIB = 600.0
"""Bulk in pieces of 64 KiB, both ends together: 1.7 GB/s."""


async def byte_path(size: int, count: int) -> float:
    """Return the CPU seconds for each of `count` messages of `size` bytes in one direction."""
    requests: list[ServerTunnel] = []

    def connection(role: Role) -> HboneConnection:
        return HboneConnection(
            role=role,
            limits=Limits(),
            on_request=requests.append if role is Role.SERVER else None,
            on_close=lambda *_: None,
            clock=LoopClock(),
        )

    client, server = connection(Role.CLIENT), connection(Role.SERVER)
    a, b = FakeTransport(client), FakeTransport(server)
    await pump(a, b)
    tunnel = client.open_tunnel("10.0.0.1:80")
    await pump(a, b)
    requests[0].accept()
    await pump(a, b)
    near, far = TcpEnd(), TcpEnd()
    FakeTransport(near)
    sink = FakeTransport(far)
    join(near, tunnel, lambda _: None)
    join(requests[0], far, lambda _: None)
    payload = bytes(size)
    begin = time.process_time()
    for _ in range(count):
        near.data_received(payload)
        client._flush()
        server.data_received(a.take())
        server._flush()
        if b.written:
            client.data_received(b.take())
        sink.written.clear()
    used = time.process_time() - begin
    assert tunnel.delivered == 0
    assert requests[0].delivered == size * count
    client.close(Reason.FORCED_CLOSE)
    server.close(Reason.FORCED_CLOSE)
    await pump(a, b)
    return used / count


@pytest.mark.parametrize(("size", "count"), [(100, 5000), (65536, 500)])
def test_the_byte_path_stays_within_its_budget(size: int, count: int) -> None:
    best = min(asyncio.run(byte_path(size, count)) for _ in range(5))
    budget = SMALL_US * 1e-6 if size == 100 else BULK_NS_PER_KIB * 1e-9 * size / 1024
    assert best < budget, f"{best * 1e6:.1f} us a message of {size} bytes, budget {budget * 1e6:.1f} us"
