# SPDX-License-Identifier: Apache-2.0
"""gRPC with Envoy on both sides of the waypoint's HTTP/2: its client before, its server behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.envoy import Envoy, envoy
from tests.support.http_proxy import Address, Proxy, proxy

Config = dict[str, Any]
Context = grpc.aio.ServicerContext
_TYPES = "type.googleapis.com/envoy.extensions"


def listener(name: str, cluster: str) -> Config:
    """Return a listener that speaks HTTP/2 without TLS and sends everything to `cluster`."""
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}}
        ],
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }


def cluster(name: str, port: int) -> Config:
    """Return a cluster of one endpoint on loopback that is spoken to in HTTP/2."""
    kind = "upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": f"{_TYPES}.{kind}", "explicit_http_config": {"http2_protocol_options": {}}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        "typed_extension_protocol_options": {f"envoy.extensions.{kind}": options},
    }


@contextmanager
def envoys(directory: Path, made: Proxy, server: int) -> Iterator[Envoy]:
    """Run Envoy before the waypoint (`front`) and behind it (`back`)."""
    listeners = [listener("front", "waypoint"), listener("back", "server")]
    clusters = [cluster("waypoint", made.port), cluster("server", server)]
    with envoy(directory, listeners=listeners, clusters=clusters) as running:
        made.endpoints[:] = [Address(running.port("back"))]
        yield running


async def unary(request: bytes, context: Context) -> bytes:
    context.set_trailing_metadata((("x-last", "2"),))
    if request == b"refuse":
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "nothing left")
    return request[::-1]


async def both(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request * 2


async def test_calls_with_envoy_on_either_side(tmp_path: Path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with proxy() as made:
            with envoys(tmp_path, made, port) as running:
                target = f"127.0.0.1:{running.port('front')}"
                async with grpc.aio.insecure_channel(target) as channel:
                    await _call(channel)
                front, back = "cluster.waypoint.http2", "http.back.downstream_cx_http2_total"
                assert running.stat(f"{front}.rx_messaging_error") == 0
                assert running.stat(back) == 1
            assert {record.status for record in made.records} == {200}
            assert len(made.records) == 203
            assert not made.refusals
    finally:
        await server.stop(0)


async def _call(channel: grpc.aio.Channel) -> None:
    ask = channel.unary_unary("/shop.Shop/Unary")
    message = bytes(range(256)) * 8000
    assert await ask(message, timeout=30) == message[::-1]
    replies = await asyncio.gather(*(ask(b"%d-" % i, timeout=30) for i in range(200)))
    assert replies == [(b"%d-" % i)[::-1] for i in range(200)]
    stream = channel.stream_stream("/shop.Shop/Both")(timeout=30)
    for size in (1, 1000, 300_000):
        await stream.write(b"x" * size)
        assert await stream.read() == b"x" * size * 2
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(b"refuse", timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "nothing left"
