# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 connections are shared while they have room, dialled when they have none, bounded in number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from mesh.net.relay import End, RelayOwner
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from tests.support.http2 import Side, request
from tests.unit.waypoint.proxy.test_client2 import Log
from waypoint.http.h2_limits import Http2Limits
from waypoint.proxy.pool import Endpoint, PoolLimits
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.streams import Failure


@dataclass(frozen=True, slots=True)
class Address:
    key: str
    label: str


ONE = Address("one", "10.0.0.1:80")


class Server:
    """The far end of a connection: an end whose bytes go to a codec."""

    def __init__(self, limits: Http2Limits) -> None:
        self.side = Side(Role.SERVER, limits)
        self.ended = False
        self.peer: End | None = None

    def start(self, peer: End, owner: RelayOwner) -> None:
        self.peer = peer

    def write(self, data: bytes) -> None:
        self.side.codec.receive(data)
        self.flush()

    def flush(self) -> None:
        if self.peer is not None and (data := self.side.codec.take()):
            asyncio.get_running_loop().call_soon(self.peer.write, data)

    def write_eof(self) -> None:
        self.ended = True

    def abort(self, reason: Reason) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Bench:
    """A pool whose dials are answered by hand."""

    def __init__(self, owner: TaskOwner, limits: PoolLimits, server: Http2Limits) -> None:
        self.servers: list[Server] = []
        self.dials = 0
        self.let = asyncio.Event()
        self.let.set()
        self.refuse = False
        self._server_limits = server
        loop = asyncio.get_running_loop()
        self.pool = Http2Pool(
            dial=self._dial,
            call_later=loop.call_later,  # type: ignore[arg-type]
            owner=owner,
            limits=limits,
        )

    async def _dial(self, endpoint: Endpoint) -> End:
        self.dials += 1
        await self.let.wait()
        if self.refuse:
            raise DialError(Reason.CONNECT_REFUSED, "refused")
        self.servers.append(Server(self._server_limits))
        return self.servers[-1]

    def ask(self, endpoint: Endpoint | None = ONE) -> Log:
        log = Log()
        attempt = self.pool.open(endpoint, "no endpoint", log)
        attempt.send_head(request())
        attempt.send_end([])
        return log


@asynccontextmanager
async def bench(limits: PoolLimits | None = None, server: Http2Limits | None = None) -> AsyncIterator[Bench]:
    owner = TaskOwner("test pool")
    made = Bench(owner, limits or PoolLimits(), server or Http2Limits())
    try:
        yield made
    finally:
        made.let.set()
        await owner.close()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def answer(server: Server, stream_id: int) -> None:
    server.side.respond(stream_id)
    server.side.codec.send_end(server.side.stream(stream_id))
    server.flush()


async def test_tries_share_a_connection() -> None:
    async with bench() as b:
        logs = [b.ask() for _ in range(10)]
        assert (b.pool.pending, b.pool.load("one")) == (10, 10)
        await settle()
        assert (b.dials, b.pool.pending, b.pool.connections) == (1, 0, 1)
        for stream_id in range(1, 21, 2):
            answer(b.servers[0], stream_id)
        await settle()
        assert [log.said for log in logs] == [[200, ("end", [])]] * 10
        assert b.pool.load("one") == 0
        b.ask()
        await settle()
        assert b.dials == 1


async def test_a_full_connection_gets_a_second_one_beside_it() -> None:
    async with bench(server=Http2Limits(max_streams=2)) as b:
        b.ask()
        await settle()
        for _ in range(3):
            b.ask()
        await settle()
        assert [len(server.side.requests) for server in b.servers] == [2, 2]


async def test_at_the_limit_of_connections_tries_wait_for_room() -> None:
    async with bench(PoolLimits(connections=1), Http2Limits(max_streams=1)) as b:
        b.ask()
        await settle()
        waiting = b.ask()
        await settle()
        assert (b.dials, b.pool.pending, waiting.said) == (1, 1, [])
        answer(b.servers[0], 1)
        await settle()
        assert b.pool.pending == 0
        answer(b.servers[0], 3)
        await settle()
        assert waiting.said == [200, ("end", [])]


async def test_without_a_connection_the_limit_is_an_answer() -> None:
    async with bench(PoolLimits(connections=1)) as b:
        b.ask()
        other = b.ask(Address("two", "10.0.0.2:80"))
        await settle()
        assert other.said == [Failure.OVERFLOW]
        assert "1 connections are open, the limit" in other.details[0]
        assert b.pool.load("two") == 0


async def test_the_number_of_waiting_tries_is_bounded() -> None:
    async with bench(PoolLimits(pending=2)) as b:
        b.let.clear()
        logs = [b.ask() for _ in range(3)]
        await settle()
        assert [log.said for log in logs] == [[], [], [Failure.OVERFLOW]]
        b.let.set()
        await settle()
        assert len(b.servers[0].side.requests) == 2


async def test_a_dial_that_fails_fails_all_that_wait_for_it() -> None:
    async with bench() as b:
        b.refuse = True
        logs = [b.ask(), b.ask()]
        assert logs[0].said == []
        await settle()
        assert [log.said for log in logs] == [[Failure.CONNECT]] * 2
        assert logs[0].details == ["10.0.0.1:80: refused"]
        assert (b.pool.connections, b.pool.pending, b.pool.load("one")) == (0, 0, 0)


async def test_many_tries_at_once_get_several_connections_at_once() -> None:
    async with bench() as b:
        b.let.clear()
        logs = [b.ask() for _ in range(250)]
        await settle()
        assert b.dials == 3
        b.let.set()
        await settle()
        assert (b.dials, b.pool.pending) == (3, 0)
        assert sum(len(server.side.requests) for server in b.servers) == 250
        assert not any(log.said for log in logs)


async def test_of_several_dials_the_last_one_to_fail_fails_what_waits() -> None:
    async with bench() as b:
        b.let.clear()
        logs = [b.ask() for _ in range(900)]
        await settle()
        assert b.dials == 8
        b.refuse = True
        b.let.set()
        await settle()
        assert b.dials == 8
        assert all(log.said == [Failure.CONNECT] for log in logs)
        assert (b.pool.connections, b.pool.pending) == (0, 0)


async def test_a_dial_that_takes_too_long() -> None:
    async with bench(PoolLimits(connect_s=0.001)) as b:
        b.let.clear()
        log = b.ask()
        async with asyncio.timeout(10):
            while not log.said:
                await asyncio.sleep(0)
        assert log.said == [Failure.CONNECT]
        assert "did not accept within 0.001 s" in log.details[0]


async def test_no_endpoint() -> None:
    async with bench() as b:
        log = b.ask(None)
        assert log.said == []
        await settle()
        assert (log.said, log.details) == ([Failure.NO_HOST], ["no endpoint"])


async def test_a_try_given_up_while_it_waits_is_not_sent() -> None:
    async with bench() as b:
        b.let.clear()
        attempt = b.pool.open(ONE, "", Log())
        attempt.send_head(request())
        await settle()
        attempt.cancel()
        b.let.set()
        await settle()
        assert not b.servers[0].side.requests
        assert (b.pool.load("one"), b.pool.pending) == (0, 0)


async def test_goaway_moves_tries_to_a_new_connection() -> None:
    async with bench() as b:
        log = b.ask()
        await settle()
        first = b.servers[0]
        assert first.peer is not None
        first.peer.write(frames.goaway(0, ErrorCode.NO_ERROR))
        await settle()
        assert (b.dials, first.ended, b.pool.connections) == (2, True, 1)
        answer(b.servers[1], 1)
        await settle()
        assert log.said == [200, ("end", [])]


async def test_idle_connections_are_closed_on_demand_and_forgotten() -> None:
    async with bench() as b:
        b.ask()
        await settle()
        b.pool.close_idle()
        assert b.pool.connections == 1
        answer(b.servers[0], 1)
        await settle()
        b.pool.close_idle()
        assert (b.pool.connections, b.servers[0].ended) == (0, True)
        assert not b.pool._groups


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    async with bench(replace(PoolLimits(), idle_s=0.05)) as b:
        b.ask()
        await settle()
        answer(b.servers[0], 1)
        async with asyncio.timeout(10):
            while not b.servers[0].ended:
                await asyncio.sleep(0.01)
        assert b.pool.connections == 0
