# SPDX-License-Identifier: Apache-2.0
"""What any delta ADS server must do, asked by a client written on grpcio alone.

The double and the controller's server answer the same script.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import status_pb2

from controller.ca.issue import new_authority, server_pair
from controller.metrics import Metrics
from controller.xds.server import AdsServer
from controller.xds.snapshot import Resources
from mesh.identity.token import TokenClaims
from mesh.runtime.clock import SystemClock
from mesh.testing.fake_xds import FakeXds
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE


class Server(Protocol):
    """What the suite needs of an implementation."""

    address: str
    roots_pem: bytes

    def put(self, type_url: str, values: Mapping[str, bytes]) -> None: ...
    def remove(self, type_url: str, *names: str) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Double(FakeXds):
    @property
    def roots_pem(self) -> bytes:
        return self.ca.roots_pem


class Controller:
    """The controller's own server over resources that the script fills by hand."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, bytes]] = {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}
        self._resources = Resources(dict.fromkeys(self._values, bytes))
        self._authority = new_authority("cluster.local", time.time())
        self.roots_pem = self._authority.bundle_pem
        self.address = ""
        synced = asyncio.Event()
        synced.set()
        node = TokenClaims(
            namespace="istio-system", service_account="ztunnel", pod_name="z", pod_uid="z", node="n"
        )
        self._ads = AdsServer(
            resources=self._resources,
            authenticate=self._authenticate,
            allow=lambda _: "",
            metrics=Metrics(),
            clock=SystemClock(),
            synced=synced,
        )
        self._server: Any = None
        self._node = node

    async def _authenticate(self, _: Any) -> TokenClaims:
        return self._node

    def put(self, type_url: str, values: Mapping[str, bytes]) -> None:
        self._values[type_url].update(values)
        self._ads.publish(self._resources.update(self._values))

    def remove(self, type_url: str, *names: str) -> None:
        for name in names:
            self._values[type_url].pop(name, None)
        self._ads.publish(self._resources.update(self._values))

    async def start(self) -> None:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self._ads.handler(),))
        pair = server_pair(self._authority, ["localhost"], ttl_s=3600, now_s=time.time())
        port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self.address = f"localhost:{port}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)


SERVERS: dict[str, Callable[[], Any]] = {"FakeXds": Double, "controller": Controller}


class Stream:
    """One stream of a client that knows nothing of ours."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def ask(self, type_url: str, **fields: Any) -> None:
        await self._call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields))

    async def answer(self, deadline_s: float = 10.0) -> Any:
        response = await asyncio.wait_for(self._call.read(), deadline_s)
        assert response is not grpc.aio.EOF
        return response

    async def acknowledge(self, response: Any, error: str = "") -> None:
        detail = status_pb2.Status(code=3, message=error) if error else None
        await self.ask(response.type_url, response_nonce=response.nonce, error_detail=detail)

    async def silent(self) -> bool:
        """Whether nothing comes; asked by a type that must be answered next."""
        await self.ask(AUTHORIZATION_TYPE)
        response = await self.answer()
        return bool(response.type_url == AUTHORIZATION_TYPE)


@asynccontextmanager
async def stream_to(server: Server) -> AsyncIterator[Stream]:
    credentials = grpc.ssl_channel_credentials(server.roots_pem)
    async with grpc.aio.secure_channel(server.address, credentials) as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
        yield Stream(call)
        call.cancel()


def play(kind: str, script: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        server = SERVERS[kind]()
        await server.start()
        try:
            await script(server)
        finally:
            await server.stop()

    asyncio.run(main())


def named(response: Any) -> dict[str, bytes]:
    return {resource.name: resource.resource.value for resource in response.resources}


@pytest.fixture(params=sorted(SERVERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_first_request_is_answered_with_everything(kind: str) -> None:
    async def script(server: Server) -> None:
        server.put(ADDRESS_TYPE, {"a": b"1", "b": b"2"})
        async with stream_to(server) as stream:
            await stream.ask(ADDRESS_TYPE)
            response = await stream.answer()
            assert response.type_url == ADDRESS_TYPE
            assert named(response) == {"a": b"1", "b": b"2"}
            assert response.nonce
            for resource in response.resources:
                assert resource.version
                assert resource.resource.type_url == ADDRESS_TYPE

    play(kind, script)


def test_a_type_without_resources_is_answered_too(kind: str) -> None:
    async def script(server: Server) -> None:
        async with stream_to(server) as stream:
            for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
                await stream.ask(type_url)
                response = await stream.answer()
                assert (response.type_url, named(response)) == (type_url, {})

    play(kind, script)


def test_a_change_brings_what_changed_and_nothing_else(kind: str) -> None:
    async def script(server: Server) -> None:
        server.put(ADDRESS_TYPE, {"a": b"1", "b": b"2"})
        async with stream_to(server) as stream:
            await stream.ask(ADDRESS_TYPE)
            await stream.acknowledge(await stream.answer())
            server.put(ADDRESS_TYPE, {"a": b"3"})
            response = await stream.answer()
            assert named(response) == {"a": b"3"}
            assert list(response.removed_resources) == []
            await stream.acknowledge(response)
            server.remove(ADDRESS_TYPE, "b")
            response = await stream.answer()
            assert named(response) == {}
            assert list(response.removed_resources) == ["b"]

    play(kind, script)


def test_an_answer_of_either_kind_is_not_answered(kind: str) -> None:
    async def script(server: Server) -> None:
        server.put(ADDRESS_TYPE, {"a": b"1"})
        for error in ("", "a: refused"):
            async with stream_to(server) as stream:
                await stream.ask(ADDRESS_TYPE)
                await stream.acknowledge(await stream.answer(), error)
                assert await stream.silent()

    play(kind, script)


def test_nonces_differ(kind: str) -> None:
    async def script(server: Server) -> None:
        async with stream_to(server) as stream:
            await stream.ask(ADDRESS_TYPE)
            nonces = [(await stream.answer()).nonce]
            for value in (b"1", b"2", b"3"):
                server.put(ADDRESS_TYPE, {"a": value})
                nonces.append((await stream.answer()).nonce)
            assert len(set(nonces)) == 4

    play(kind, script)


def test_a_second_stream_brings_only_what_the_client_lacks(kind: str) -> None:
    async def script(server: Server) -> None:
        server.put(ADDRESS_TYPE, {"keep": b"1", "change": b"1", "vanish": b"1"})
        async with stream_to(server) as stream:
            await stream.ask(ADDRESS_TYPE)
            first = await stream.answer()
            versions = {resource.name: resource.version for resource in first.resources}
        server.put(ADDRESS_TYPE, {"change": b"2", "new": b"1"})
        server.remove(ADDRESS_TYPE, "vanish")
        async with stream_to(server) as stream:
            await stream.ask(ADDRESS_TYPE, initial_resource_versions={**versions, "rejected": ""})
            response = await stream.answer()
            assert named(response) == {"change": b"2", "new": b"1"}
            assert sorted(response.removed_resources) == ["rejected", "vanish"]

    play(kind, script)


def test_equal_values_have_equal_versions_also_after_a_restart(kind: str) -> None:
    async def script(server: Server) -> None:
        versions: list[dict[str, str]] = []
        for each in (server, SERVERS[kind]()):
            if each is not server:
                await each.start()
            each.put(ADDRESS_TYPE, {"a": b"1", "b": b"1"})
            async with stream_to(each) as stream:
                await stream.ask(ADDRESS_TYPE)
                response = await stream.answer()
                versions.append({resource.name: resource.version for resource in response.resources})
            if each is not server:
                await each.stop()
        assert versions[0] == versions[1]

    play(kind, script)


def test_streams_do_not_disturb_each_other(kind: str) -> None:
    async def script(server: Server) -> None:
        async with stream_to(server) as one, stream_to(server) as two:
            await one.ask(ADDRESS_TYPE)
            await two.ask(AUTHORIZATION_TYPE)
            await one.answer()
            await two.answer()
            server.put(ADDRESS_TYPE, {"a": b"1"})
            server.put(AUTHORIZATION_TYPE, {"p": b"1"})
            assert named(await one.answer()) == {"a": b"1"}
            assert named(await two.answer()) == {"p": b"1"}

    play(kind, script)
