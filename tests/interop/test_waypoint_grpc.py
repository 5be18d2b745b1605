# SPDX-License-Identifier: Apache-2.0
"""gRPC through the waypoint's two HTTP/2 sides: grpcio on both ends, in all four kinds of calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import pytest

from mesh.model.route import Retry
from mesh.runtime.tasks import create_task
from tests.support.http_proxy import SERVICE, Proxy, free_port, proxy
from waypoint.http.message import RequestHead
from waypoint.routing.plan import Answer, Forward, answer

Context = grpc.aio.ServicerContext
ROUNDS = 20


@dataclass
class Shop:
    """The server: each method of one kind; notes what it learned of its callers."""

    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "shop.Shop",
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
                "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
                "Both": grpc.stream_stream_rpc_method_handler(self.both),
                "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
                "Moody": grpc.unary_unary_rpc_method_handler(self.moody),
                "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            },
        )

    async def unary(self, request: bytes, context: Context) -> bytes:
        self.seen.append(("unary", dict(context.invocation_metadata())))
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bin", b"\x00\xff")))
        return request[::-1]

    async def server_stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for index in range(ROUNDS):
            yield request + bytes([index])

    async def client_stream(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b",".join([request async for request in requests])

    async def both(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request * 2

    async def fail(self, request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no stock: 0 % left, für heute")

    async def moody(self, request: bytes, context: Context) -> bytes:
        self.seen.append(("moody", {}))
        if len(self.seen) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return b"third time"

    async def wait(self, request: bytes, context: Context) -> bytes:
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""


@dataclass
class World:
    """A client's channel, the waypoint in small, the server."""

    channel: grpc.aio.Channel
    proxy: Proxy
    shop: Shop

    def unary(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        return self.channel.unary_unary(f"/shop.Shop/{method}")


@asynccontextmanager
async def world(
    plan: Callable[[RequestHead], Forward | Answer] | None = None, *, served: bool = True
) -> AsyncIterator[World]:
    shop = Shop()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((shop.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0") if served else free_port()
    if served:
        await server.start()
    try:
        async with proxy(port) as made:
            made.plan = plan
            async with grpc.aio.insecure_channel(
                f"127.0.0.1:{made.port}", options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                yield World(channel, made, shop)
    finally:
        if served:
            await server.stop(0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_unary_call_with_metadata_both_ways() -> None:
    async with world() as w:
        call = w.unary("Unary")(
            b"abc", metadata=(("x-user", "ada"), ("x-token-bin", b"\x01\xfe")), timeout=10
        )
        assert await call == b"cba"
        assert ("x-first", "1") in [tuple(item) for item in await call.initial_metadata()]
        trailing = dict(await call.trailing_metadata())
        assert (trailing["x-last"], trailing["x-bin"]) == ("2", b"\x00\xff")
        ((_, metadata),) = w.shop.seen
        assert (metadata["x-user"], metadata["x-token-bin"]) == ("ada", b"\x01\xfe")
        (record,) = w.proxy.records
        assert (record.status, dict(record.trailers)["grpc-status"]) == (200, "0")


async def test_every_kind_of_stream() -> None:
    async with world() as w:

        async def numbers() -> AsyncIterator[bytes]:
            for index in range(ROUNDS):
                yield b"%d" % index

        got = [m async for m in w.channel.unary_stream("/shop.Shop/ServerStream")(b"m", timeout=10)]
        assert got == [b"m" + bytes([index]) for index in range(ROUNDS)]
        joined = await w.channel.stream_unary("/shop.Shop/ClientStream")(numbers(), timeout=10)
        assert joined == b",".join(b"%d" % index for index in range(ROUNDS))
        both = w.channel.stream_stream("/shop.Shop/Both")(timeout=10)
        for index in range(ROUNDS):
            # In step: each answer is needed before the next question is asked.
            await both.write(b"%d" % index)
            assert await both.read() == b"%d" % index * 2
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        assert await both.code() is grpc.StatusCode.OK
        assert [record.status for record in w.proxy.records] == [200] * 3


async def test_messages_beyond_every_window_arrive_whole() -> None:
    async with world() as w:
        message = bytes(range(256)) * 12_000
        assert await w.unary("Unary")(message, timeout=30) == message[::-1]
        both = w.channel.stream_stream("/shop.Shop/Both")(timeout=30)
        for _ in range(3):
            await both.write(message[:1_500_000])
        for _ in range(3):
            assert await both.read() == message[:1_500_000] * 2
        await both.done_writing()
        assert await both.code() is grpc.StatusCode.OK


async def test_many_calls_share_one_connection() -> None:
    async with world() as w:
        replies = await asyncio.gather(*(w.unary("Unary")(b"%d" % i, timeout=20) for i in range(300)))
        assert replies == [b"%d" % i if i < 10 else str(i)[::-1].encode() for i in range(300)]
        assert w.proxy.pool.connections <= 3
        assert len(w.proxy.servers) == 1


async def test_the_servers_failure_reaches_the_client_word_for_word() -> None:
    async with world() as w:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await w.unary("Fail")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "no stock: 0 % left, für heute"


async def test_a_cancelled_call_is_cancelled_at_the_server() -> None:
    async with world() as w:
        call = w.unary("Wait")(b"")
        await asyncio.wait_for(w.shop.started.wait(), 10)
        call.cancel()
        await asyncio.wait_for(w.shop.cancelled.wait(), 10)
        await eventually(lambda: bool(w.proxy.records))
        assert w.proxy.records[0].flag == "DC"
        assert await w.unary("Unary")(b"on", timeout=10) == b"no"
        assert w.proxy.pool.connections == 1


async def test_the_clients_deadline_ends_the_call_on_both_sides() -> None:
    async with world() as w:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await w.unary("Wait")(b"", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(w.shop.cancelled.wait(), 10)
        await eventually(lambda: bool(w.proxy.records))


async def test_the_waypoints_timeout_is_a_deadline() -> None:
    def hurried(head: RequestHead) -> Forward:
        return Forward(
            head=head, service=SERVICE, port=80, source="HTTPRoute/shop/r#0", request_timeout_s=0.2
        )

    async with world(hurried) as w:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await w.unary("Wait")(b"")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.details() == "request timeout of 0.2 s (HTTPRoute/shop/r#0)"
        await asyncio.wait_for(w.shop.cancelled.wait(), 10)


async def test_no_endpoint_is_unavailable_and_names_it() -> None:
    async with world(served=False) as w:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await w.unary("Unary")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert f"127.0.0.1:{w.proxy.endpoints[0].port}" in caught.value.details()


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, grpc.StatusCode.PERMISSION_DENIED), (404, grpc.StatusCode.UNIMPLEMENTED)],
)
async def test_an_answer_of_the_waypoint_is_a_grpc_status(status: int, code: grpc.StatusCode) -> None:
    async with world(lambda _: answer(status, flag="-", detail="by shop/policy: 100 %")) as w:
        for method in (w.unary("Unary")(b"x" * 100_000, timeout=10), w.unary("Unary")(b"", timeout=10)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method
            assert caught.value.code() is code
            assert caught.value.details() == "by shop/policy: 100 %"


async def test_a_call_is_tried_again_where_the_policy_says_so() -> None:
    tries = 0

    def elsewhere(head: RequestHead) -> Forward:
        nonlocal tries
        tries += 1
        return Forward(
            head=head, service=SERVICE, port=80, source="", retry=Retry(attempts=2, on_connect_failure=True)
        )

    async with world(elsewhere) as w:
        w.proxy.endpoints.insert(0, replace(w.proxy.endpoints[0], port=free_port()))
        for _ in range(4):
            assert await w.unary("Unary")(b"again", timeout=10) == b"niaga"
        assert {record.tries for record in w.proxy.records} <= {1, 2}
        assert sum(record.tries for record in w.proxy.records) > 4


async def test_an_unavailable_server_is_asked_again_where_the_policy_says_so() -> None:
    def patient(head: RequestHead) -> Forward:
        retry = Retry(attempts=3, grpc_statuses=(grpc.StatusCode.UNAVAILABLE.value[0],))
        return Forward(head=head, service=SERVICE, port=80, source="", retry=retry)

    async with world(patient) as w:
        assert await w.unary("Moody")(b"please", timeout=10) == b"third time"
        assert [record.tries for record in w.proxy.records] == [3]


async def test_a_server_that_stops_orderly_loses_no_call() -> None:
    async with world() as w:
        second = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        second.add_generic_rpc_handlers((w.shop.handlers(),))
        port = second.add_insecure_port("127.0.0.1:0")
        await second.start()
        w.proxy.endpoints[:] = [replace(w.proxy.endpoints[0], port=port)]
        assert await w.unary("Unary")(b"a", timeout=10) == b"a"
        both = w.channel.stream_stream("/shop.Shop/Both")(timeout=10)
        await both.write(b"x")
        assert await both.read() == b"xx"
        stopping = create_task(second.stop(10), name="stop", owner=w.proxy.owner)
        # GOAWAY: the stream goes on to its end.
        await both.write(b"y")
        assert await both.read() == b"yy"
        await both.done_writing()
        assert await both.code() is grpc.StatusCode.OK
        await stopping
