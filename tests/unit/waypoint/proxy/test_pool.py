# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 connections: reused, waited for, bounded by the process and by their service, let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model.destination import ConnectionPool
from mesh.net.relay import End, RelayOwner
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from tests.support.virtual import run_virtual
from waypoint.cluster.circuit import Bound, Circuit
from waypoint.http.message import Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.pool import Endpoint, Pool, PooledRequest, PoolLimits
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.streams import Failure

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Address:
    key: str
    label: str


ONE = Address("one", "10.0.0.1:80")
TWO = Address("two", "10.0.0.2:80")


class Server:
    """The far end of one connection; answers when it is told to."""

    def __init__(self) -> None:
        self.got = b""
        self.closed = False
        self.peer: End | None = None

    def start(self, peer: End, owner: RelayOwner) -> None:
        self.peer = peer

    def answer(self, data: bytes = OK) -> None:
        assert self.peer is not None
        self.peer.write(data)

    def write(self, data: bytes) -> None:
        self.got += data

    def write_eof(self) -> None:
        self.closed = True

    def abort(self, reason: Reason) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@dataclass(slots=True)
class Try:
    """Records one try: its events, and what its watch was told."""

    circuit: Circuit
    said: list[object] = field(default_factory=list)
    told: list[object] = field(default_factory=list)
    request: PooledRequest | None = None
    detail: str = ""

    def on_request_blocked(self, blocked: bool) -> None:
        pass

    def on_data(self, data: bytes) -> None:
        self.said.append(data)

    def on_failure(self, failure: Failure, detail: str) -> None:
        self.said.append(failure)
        self.detail = detail

    def on_response(self, head: ResponseHead) -> None:
        self.said.append(head.status)

    def on_end(self, trailers: Headers) -> None:
        self.said.append("end")


@dataclass(slots=True)
class Follow:
    """A watch."""

    circuit: Circuit
    told: list[object]

    def on_response(self, head: ResponseHead) -> None:
        self.told.append(head.status)

    def on_end(self, trailers: Headers) -> None:
        self.told.append("end")

    def on_over(self, failure: Failure | None) -> None:
        self.told.append(failure)


class Bench:
    """A pool whose dials are answered by hand."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self.servers: list[Server] = []
        self.refuse = False
        self.hang = False
        self.owner = TaskOwner("test pool")
        loop = asyncio.get_running_loop()
        self.pool = Pool(
            dial=self._dial,
            call_later=loop.call_later,
            owner=self.owner,
            limits=limits,
            now=loop.time,
        )

    async def _dial(self, endpoint: Endpoint) -> End:
        if self.hang:
            await asyncio.Event().wait()
        if self.refuse:
            raise DialError(Reason.CONNECT_REFUSED, f"{endpoint.label} refused")
        self.servers.append(Server())
        return self.servers[-1]

    async def ask(self, circuit: Circuit, endpoint: Endpoint = ONE) -> Try:
        made = Try(circuit)
        made.request = self.pool.open(endpoint, "", made, Follow(circuit, made.told))
        head = RequestHead(method="GET", target="/", authority="web", headers=[], framing=Framing.NONE)
        made.request.send_head(head)
        made.request.send_end([])
        await settle()
        return made


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def limits(**values: Any) -> Circuit:
    return Circuit("shop/web:80", ConnectionPool(**values), "DestinationRule/shop/web")


def bench(
    limits: PoolLimits | None = None,
) -> Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], Callable[[], None]]:
    def wrap(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        async def main() -> None:
            made = Bench(limits)
            try:
                await test(made)
            finally:
                await made.owner.close()

        def run() -> None:
            run_virtual(main)

        return run

    return wrap


@bench()
async def test_an_idle_connection_is_used_again(b: Bench) -> None:
    circuit = limits()
    for _ in range(3):
        one = await b.ask(circuit)
        b.servers[0].answer()
        assert one.said == [200, "end"]
        assert one.told == [200, "end", None]
    assert len(b.servers) == b.pool.connections == circuit.connections == 1
    assert (b.pool.pending, circuit.pending) == (0, 0)


@bench()
async def test_a_waiting_request_takes_the_next_free_connection(b: Bench) -> None:
    circuit = limits(max_connections=1)
    first, second = await b.ask(circuit), await b.ask(circuit)
    assert (len(b.servers), circuit.pending, circuit.overflows[Bound.CONNECTIONS]) == (1, 1, 1)
    b.servers[0].answer()
    b.servers[0].answer()
    assert first.said == second.said == [200, "end"]
    assert b.servers[0].got.count(b"GET /") == 2
    assert circuit.pending == b.pool.pending == 0


@bench()
async def test_beyond_the_bound_on_waiting_requests_the_answer_is_at_once(b: Bench) -> None:
    circuit = limits(max_connections=1, max_pending_requests=1)
    await b.ask(circuit)
    await b.ask(circuit)
    refused = await b.ask(circuit)
    assert refused.said == refused.told == [Failure.OVERFLOW]
    assert refused.detail == (
        "shop/web:80: 1 of 1 requests waiting for a connection "
        "(http1MaxPendingRequests of DestinationRule/shop/web)"
    )


@bench()
async def test_every_endpoint_may_have_one_connection(b: Bench) -> None:
    circuit = limits(max_connections=1)
    await b.ask(circuit)
    other = await b.ask(circuit, TWO)
    assert len(b.servers) == 2
    b.servers[1].answer()
    assert other.said == [200, "end"]


@bench(PoolLimits(connections=1, pending=1))
async def test_the_process_has_bounds_of_its_own(b: Bench) -> None:
    await b.ask(limits())
    assert (await b.ask(limits(), TWO)).detail == (
        "1 connections are open, the limit (AMBIT_MAX_UPSTREAM_CONNECTIONS)"
    )
    await b.ask(limits())
    assert "AMBIT_MAX_PENDING_REQUESTS" in (await b.ask(limits())).detail


@bench()
async def test_a_refused_dial_fails_one_request_and_the_next_one_is_dialled_for(b: Bench) -> None:
    circuit = limits()
    b.refuse = True
    first, second = await b.ask(circuit), await b.ask(circuit)
    assert first.said == second.said == [Failure.CONNECT]
    assert first.detail == "10.0.0.1:80 refused"
    assert (b.pool.connections, circuit.connections, circuit.pending) == (0, 0, 0)


@bench()
async def test_the_services_connect_timeout_holds(b: Bench) -> None:
    b.hang = True
    one = await b.ask(limits(connect_timeout_s=0.2))
    await asyncio.sleep(0.3)
    assert one.said == [Failure.CONNECT]
    assert one.detail == "10.0.0.1:80 did not accept within 0.2 s (DestinationRule/shop/web: connectTimeout)"


@bench()
async def test_a_connection_is_closed_after_its_number_of_requests(b: Bench) -> None:
    circuit = limits(max_requests_per_connection=2)
    for number in (0, 0, 1):
        await b.ask(circuit)
        b.servers[number].answer()
    assert [server.closed for server in b.servers] == [True, False]


@bench()
async def test_a_connection_is_closed_when_it_is_too_old(b: Bench) -> None:
    circuit = limits(max_connection_age_s=10.0)
    await b.ask(circuit)
    b.servers[0].answer()
    await asyncio.sleep(12)
    assert b.servers[0].closed


@pytest.mark.parametrize("idle_s", [5.0, None])
def test_a_connection_is_closed_when_it_was_idle_for_the_services_time(idle_s: float | None) -> None:
    @bench(PoolLimits(idle_s=60))
    async def run(b: Bench) -> None:
        circuit = limits(idle_timeout_s=idle_s)
        await b.ask(circuit)
        b.servers[0].answer()
        await asyncio.sleep(4)
        assert not b.servers[0].closed
        await asyncio.sleep(300)
        assert b.servers[0].closed is (idle_s is not None)

    run()


@bench(PoolLimits(idle_s=60))
async def test_without_a_policy_the_process_decides_how_long_one_is_kept(b: Bench) -> None:
    await b.ask(Circuit("shop/web:80"))
    b.servers[0].answer()
    await asyncio.sleep(58)
    assert not b.servers[0].closed
    await asyncio.sleep(5)
    assert b.servers[0].closed


@bench()
async def test_connections_to_endpoints_that_left_end_after_their_request(b: Bench) -> None:
    circuit = limits()
    running = await b.ask(circuit)
    await b.ask(circuit, TWO)
    b.servers[1].answer()
    b.pool.close_idle([ONE.key, TWO.key, "unknown"])
    assert [server.closed for server in b.servers] == [False, True]
    b.servers[0].answer()
    assert running.said == [200, "end"]
    assert b.servers[0].closed
    assert circuit.connections == 0


@bench()
async def test_a_request_that_waits_for_an_endpoint_that_left_is_served(b: Bench) -> None:
    circuit = limits(max_connections=1)
    await b.ask(circuit)
    waiting = await b.ask(circuit)
    b.pool.close_idle([ONE.key])
    b.servers[0].answer()
    await settle()
    b.servers[1].answer()
    assert waiting.said == [200, "end"]
    assert all(server.closed for server in b.servers)
    # The endpoint returns: its connections are kept again.
    for _ in range(2):
        await b.ask(circuit)
        b.servers[2].answer()
    assert (len(b.servers), circuit.connections) == (3, 1)


@bench()
async def test_a_request_given_up_while_it_waits_is_never_sent(b: Bench) -> None:
    circuit = limits(max_connections=1)
    await b.ask(circuit)
    second, third = await b.ask(circuit), await b.ask(circuit)
    assert second.request is not None
    second.request.cancel()
    assert circuit.pending == b.pool.pending == 1
    b.servers[0].answer()
    b.servers[0].answer()
    assert (second.said, second.told, third.said) == ([], [None], [200, "end"])


@bench()
async def test_a_given_up_request_makes_its_connection_useless(b: Bench) -> None:
    circuit = limits()
    one = await b.ask(circuit)
    assert one.request is not None
    one.request.cancel()
    assert b.servers[0].closed
    assert (circuit.connections, b.pool.connections) == (0, 0)


def test_http2_keeps_the_same_bounds() -> None:
    async def main() -> None:
        owner = TaskOwner("test pool")
        dials: list[asyncio.Future[End]] = []

        async def dial(endpoint: Endpoint) -> End:
            dials.append(asyncio.get_running_loop().create_future())
            return await dials[-1]

        loop = asyncio.get_running_loop()
        pool = Http2Pool(dial=dial, call_later=loop.call_later, owner=owner)
        circuit = limits(max_connections=1, max_pending_requests=2, connect_timeout_s=3.0)
        tries = [Try(circuit) for _ in range(3)]
        for each in tries:
            pool.open(ONE, "", each, Follow(circuit, each.told))
        await settle()
        assert (circuit.connections, circuit.pending, len(dials)) == (1, 2, 1)
        assert "2 of 2 requests waiting for a connection (http1MaxPendingRequests" in tries[2].detail
        await asyncio.sleep(4)
        assert tries[0].said == tries[0].told == [Failure.CONNECT]
        assert "within 3 s (DestinationRule/shop/web: connectTimeout)" in tries[1].detail
        assert (circuit.connections, circuit.pending, pool.connections, pool.pending) == (0, 0, 0, 0)
        await owner.close()

    run_virtual(main)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask", "cancel", "answer", "answer", "close", "refuse", "retire", "wait"]
        ),
        st.integers(0, 7),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_counts_are_right_and_every_try_ends_once(
    steps: list[tuple[str, int]], connections: int, pending: int, requests: int
) -> None:
    async def main() -> None:
        b = Bench(PoolLimits(connections=4, pending=6, idle_s=5))
        circuit = limits(
            max_connections=connections,
            max_pending_requests=pending,
            max_requests_per_connection=requests,
            idle_timeout_s=5.0,
        )
        tries: list[Try] = []
        retired = 0
        for step, number in steps:
            live = [server for server in b.servers if not server.closed]
            if step == "ask":
                tries.append(await b.ask(circuit, (ONE, TWO)[number % 2]))
            elif step == "cancel" and tries:
                request = tries[number % len(tries)].request
                assert request is not None
                request.cancel()
            elif step == "answer" and live:
                live[number % len(live)].answer()
            elif step == "close" and live:
                server = live[number % len(live)]
                assert server.peer is not None
                server.closed = True
                server.peer.abort(Reason.PEER_RESET)
            elif step == "refuse":
                b.refuse = not b.refuse
            elif step == "retire":
                retired += 1
                b.pool.close_idle([(ONE, TWO)[number % 2].key])
            elif step == "wait":
                await asyncio.sleep(number)
            await settle()
            open_ = [server for server in b.servers if not server.closed]
            assert b.pool.connections == circuit.connections == len(open_)
            assert b.pool.pending == circuit.pending <= pending
            # Every endpoint may have one in any case, and again when it returns.
            assert circuit.connections <= connections + 1 + retired
        b.refuse = False
        for _ in range(60):
            for server in b.servers:
                if not server.closed:
                    server.answer()
            await settle()
        await asyncio.sleep(30)
        for made in tries:
            ends = [told for told in made.told if told is None or isinstance(told, Failure)]
            assert len(ends) == 1, made
        assert (b.pool.connections, b.pool.pending, circuit.connections, circuit.pending) == (0, 0, 0, 0)
        assert not b.pool._groups
        await b.owner.close()

    run_virtual(main)
