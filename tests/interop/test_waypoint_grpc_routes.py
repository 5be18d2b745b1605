# SPDX-License-Identifier: Apache-2.0
"""gRPC through a whole waypoint: calls of one connection balanced, routed, failed over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from mesh.model.route import Backend, Fault, PathKind, PathMatch, RequestMatch, Retry, RouteRule, RouteTable
from mesh.model.service import AppProtocol
from tests.support.waypoint import WEB, Waypoint, waypoint

Context = grpc.aio.ServicerContext


class Server:
    """A gRPC server that says who it is."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "Who": grpc.unary_unary_rpc_method_handler(self._who),
            "Count": grpc.stream_stream_rpc_method_handler(self._count),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def _who(self, request: bytes, context: Context) -> bytes:
        return self._name

    async def _count(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield self._name + request

    async def __aenter__(self) -> Server:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


@asynccontextmanager
async def shop(*names: bytes) -> AsyncIterator[tuple[Waypoint, grpc.aio.Channel, list[Server]]]:
    """Run a waypoint between one client connection and a server for each name."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server(name)) for name in names]
        made = await stack.enter_async_context(waypoint(AppProtocol.HTTP2))
        made.endpoints(*(server.port for server in servers))
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        target = f"127.0.0.1:{made.port2}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
        yield made, channel, servers


def rule(**changes: object) -> RouteRule:
    backends = (Backend(service=WEB, port=80),)
    return RouteRule(source="GRPCRoute/shop/r#0", backends=backends, **changes)  # type: ignore[arg-type]


def method(name: str) -> tuple[RequestMatch, ...]:
    return (RequestMatch(path=PathMatch(kind=PathKind.EXACT, value=f"/shop.Shop/{name}")),)


async def test_calls_of_one_connection_go_to_every_endpoint() -> None:
    async with shop(b"a", b"b", b"c") as (made, channel, _):
        who = channel.unary_unary("/shop.Shop/Who")
        seen = Counter([await who(b"", timeout=10) for _ in range(150)])
        assert set(seen) == {b"a", b"b", b"c"}
        assert min(seen.values()) > 20
        assert len(made.ends) == 1


async def test_a_stream_stays_where_it_is_while_endpoints_change() -> None:
    async with shop(b"a", b"b") as (made, channel, servers):
        stream = channel.stream_stream("/shop.Shop/Count")(timeout=20)
        await stream.write(b"1")
        name = (await stream.read())[:1]
        other = next(s for s in servers if s._name != name)
        made.endpoints(other.port)
        who = channel.unary_unary("/shop.Shop/Who")
        assert {await who(b"", timeout=10) for _ in range(20)} == {other._name}
        await stream.write(b"2")
        assert await stream.read() == name + b"2"
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_an_endpoint_that_dies_costs_no_call_that_it_had_not_begun() -> None:
    async with shop(b"a", b"b") as (_, channel, servers):
        who = channel.unary_unary("/shop.Shop/Who")
        assert {await who(b"", timeout=10) for _ in range(40)} == {b"a", b"b"}
        await servers[0].__aexit__()
        # One at a time: no call is under way while the server stops.
        assert {await who(b"", timeout=10) for _ in range(40)} == {b"b"}


async def test_methods_have_routes_of_their_own() -> None:
    async with shop(b"a") as (made, channel, _):
        broken = rule(matches=method("Count"), fault=Fault(abort_grpc=9, abort_percent=100.0))
        made.routes(RouteTable(service=WEB, port=80, rules=(broken, rule(matches=method("Who")))))
        assert await channel.unary_unary("/shop.Shop/Who")(b"", timeout=10) == b"a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/shop.Shop/Other")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "no rule" in caught.value.details()
        stream = channel.stream_stream("/shop.Shop/Count")(timeout=10)
        assert await stream.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_without_endpoints_calls_are_unavailable_by_name() -> None:
    async with shop() as (made, channel, _):
        made.routes(RouteTable(service=WEB, port=80, rules=(rule(retry=Retry(attempts=0)),)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/shop.Shop/Who")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert str(WEB.hostname) in caught.value.details()


async def test_many_calls_at_a_time_all_succeed_while_endpoints_come_and_go() -> None:
    async with shop(b"a", b"b", b"c") as (made, channel, servers):
        who = channel.unary_unary("/shop.Shop/Who")
        ports = [server.port for server in servers]
        for turn in range(9):
            calls = [who(b"", timeout=20) for _ in range(40)]
            made.endpoints(*(port for index, port in enumerate(ports) if index != turn % 3))
            assert set(await asyncio.gather(*calls)) <= {b"a", b"b", b"c"}
