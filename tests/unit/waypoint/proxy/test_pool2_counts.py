# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 connections under random use: the counts match what is open, each try ends once."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model.destination import ConnectionPool
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from tests.support.http2 import request
from tests.unit.waypoint.proxy.test_client2 import Log
from tests.unit.waypoint.proxy.test_pool import Follow
from tests.unit.waypoint.proxy.test_pool2 import ONE, Address, Bench, answer, settle
from waypoint.cluster.circuit import Circuit
from waypoint.http.h2_limits import Http2Limits
from waypoint.proxy.client2 import Http2Try
from waypoint.proxy.pool import PoolLimits
from waypoint.proxy.streams import Failure

TWO = Address("two", "10.0.0.2:80")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask"] * 4 + ["answer"] * 3 + ["cancel", "close", "refuse", "retire"]),
        st.integers(0, 7),
    ),
    max_size=40,
)


class Run:
    """One pool and what became of its tries."""

    def __init__(self, bench: Bench, circuit: Circuit) -> None:
        self.bench = bench
        self.circuit = circuit
        self.tries: list[tuple[Http2Try, list[object]]] = []

    def ask(self, number: int) -> None:
        told: list[object] = []
        follow = Follow(self.circuit, told)
        attempt = self.bench.pool.open((ONE, TWO)[number % 2], "", Log(), follow)
        attempt.send_head(request())
        attempt.send_end([])
        self.tries.append((attempt, told))

    def answer(self, number: int) -> bool:
        """Answer one open request; False: there is none."""
        open_ = [
            (server, stream_id)
            for server in self.bench.servers
            if not server.ended
            for stream_id in server.side.codec.streams
            if stream_id in server.side.recorders
        ]
        if open_:
            answer(*open_[number % len(open_)])
        return bool(open_)

    def close(self, number: int) -> None:
        live = [server for server in self.bench.servers if not server.ended]
        if live:
            server = live[number % len(live)]
            server.ended = True
            assert server.peer is not None
            server.peer.abort(Reason.PEER_RESET)

    def step(self, step: str, number: int) -> None:
        if step == "ask":
            self.ask(number)
        elif step == "answer":
            self.answer(number)
        elif step == "close":
            self.close(number)
        elif step == "cancel" and self.tries:
            self.tries[number % len(self.tries)][0].cancel()
        elif step == "refuse":
            self.bench.refuse = not self.bench.refuse
        elif step == "retire":
            self.bench.pool.close_idle([(ONE, TWO)[number % 2].key])


@given(STEPS, st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_whatever_happens_the_counts_are_right_and_every_try_ends_once(
    steps: list[tuple[str, int]], connections: int, pending: int, requests: int, streams: int
) -> None:
    async def main() -> None:
        owner = TaskOwner("test pool")
        b = Bench(owner, PoolLimits(connections=4, pending=6), Http2Limits())
        policy = ConnectionPool(
            max_connections=connections,
            max_pending_requests=pending,
            max_requests_per_connection=requests,
            max_concurrent_streams=streams,
        )
        run = Run(b, Circuit("shop/web:80", policy, "DestinationRule/shop/web"))
        for step, number in steps:
            run.step(step, number)
            await settle()
            assert b.pool.connections == run.circuit.connections
            assert b.pool.pending == run.circuit.pending <= pending
        b.refuse = False
        while run.answer(0):
            await settle()
        b.pool.close_idle()
        await settle()
        for attempt, told in run.tries:
            ends = [each for each in told if each is None or isinstance(each, Failure)]
            assert len(ends) == 1, (attempt.endpoint, told)
        counts = (b.pool.connections, b.pool.pending, run.circuit.connections, run.circuit.pending)
        assert counts == (0, 0, 0, 0)
        assert not b.pool._groups
        await owner.close()

    asyncio.run(main())
