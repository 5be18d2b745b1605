# SPDX-License-Identifier: Apache-2.0
"""Our delta ADS client against a gRPC server: TLS, tokens, answers, reconnects, resynchronisation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from envoy.service.discovery.v3 import discovery_pb2

from mesh.runtime.clock import SystemClock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.testing.fake_ca import FakeCa
from mesh.testing.fake_xds import FakeXds
from mesh.xds.client import Node, Settings, Status, XdsClient
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Rejection, Update
from tests.support.eventually import eventually_async

TYPES = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
NODE = Node(
    id="ztunnel~10.0.0.1~zt.istio-system~istio-system.svc.cluster.local", metadata={"NODE_NAME": "n1"}
)
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


class App:
    """An owner of configuration that takes everything except values of b'bad'."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.updates: list[Update] = []
        self.statuses: list[Status] = []
        self.fails = False

    def apply(self, update: Update) -> Sequence[Rejection]:
        self.updates.append(update)
        if self.fails:
            raise KeyError("boom")
        for name in update.removed:
            self.values.pop(name, None)
        for resource in update.upserted:
            if resource.value != b"bad":
                self.values[resource.name] = resource.value
        return [Rejection(each.name, "is bad") for each in update.upserted if each.value == b"bad"]


class Setup:
    def __init__(self, server: FakeXds, client: XdsClient, app: App) -> None:
        self.server, self.client, self.app = server, client, app


@asynccontextmanager
async def setup(tmp_path: Path, **changes: Any) -> AsyncIterator[Setup]:
    server = FakeXds()
    await server.start()
    (tmp_path / "root.pem").write_bytes(server.ca.roots_pem)
    (tmp_path / "token").write_text("secret-1\n")
    settings = Settings(
        address=f"https://{server.address}",
        roots=tmp_path / "root.pem",
        token=tmp_path / "token",
        cluster_id="c1",
    )
    app = App()
    client = XdsClient(
        settings=replace(settings, **changes),
        node=NODE,
        types=TYPES,
        on_update=app.apply,
        on_status=app.statuses.append,
        clock=SystemClock(),
    )
    owner = TaskOwner("test")
    create_task(client.run(), name="xds", owner=owner)
    try:
        yield Setup(server, client, app)
    finally:
        await owner.close()
        await server.stop()


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_configuration_arrives_and_changes(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            server, client, app = mesh.server, mesh.client, mesh.app
            server.put(ADDRESS_TYPE, {"a": b"1", "b": b"1"})
            await asyncio.wait_for(client.wait_synced(), 10)
            await eventually_async(lambda: app.values == {"a": b"1", "b": b"1"}, "both resources")
            server.put(ADDRESS_TYPE, {"a": b"2"})
            server.remove(ADDRESS_TYPE, "b")
            await eventually_async(lambda: app.values == {"a": b"2"}, "the change and the removal")
            status = client.status
            assert (status.connected, status.synced, status.age_s, status.last_error) == (True, True, 0.0, "")
            assert status.resources == {ADDRESS_TYPE: 1, AUTHORIZATION_TYPE: 0}
            assert client.messages[AUTHORIZATION_TYPE] == 1
            assert client.message_bytes[ADDRESS_TYPE] > 0

    LOOPS[loop](main())


def test_the_first_requests_say_who_asks_and_carry_the_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            await asyncio.wait_for(mesh.client.wait_synced(), 10)
            first = {
                request.type_url: request for request in mesh.server.requests if not request.response_nonce
            }
            assert set(first) == set(TYPES)
            for request in first.values():
                assert request.node.id == NODE.id
                assert dict(request.node.metadata) == {"NODE_NAME": "n1"}
                assert list(request.resource_names_subscribe) == []
            headers = mesh.server.metadata[0]
            assert headers["authorization"] == "Bearer secret-1"
            assert headers["clusterid"] == "c1"

    asyncio.run(main())


def test_a_rejection_is_a_nack_and_the_rest_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            mesh.server.put(ADDRESS_TYPE, {"a": b"1", "b": b"bad"})
            await eventually_async(lambda: mesh.app.values == {"a": b"1"}, "the good one")
            await eventually_async(lambda: mesh.client.status.rejected == {"b": "is bad"}, "the rejection")
            answers = mesh.server.acks
            await eventually_async(
                lambda: [a.error_detail.message for a in answers(ADDRESS_TYPE)] == ["b: is bad"], "the NACK"
            )
            assert answers(ADDRESS_TYPE)[0].error_detail.code == 3
            mesh.server.put(ADDRESS_TYPE, {"b": b"good"})
            await eventually_async(lambda: mesh.app.values == {"a": b"1", "b": b"good"}, "the mended one")
            assert mesh.client.status.rejected == {}

    asyncio.run(main())


def test_an_owner_that_fails_rejects_the_response_and_the_stream_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            await asyncio.wait_for(mesh.client.wait_synced(), 10)
            mesh.app.fails = True
            mesh.server.put(ADDRESS_TYPE, {"a": b"1"})
            await eventually_async(lambda: "a" in mesh.client.status.rejected, "the rejection")
            assert "boom" in mesh.client.status.rejected["a"]
            mesh.app.fails = False
            mesh.server.put(ADDRESS_TYPE, {"b": b"1"})
            await eventually_async(lambda: mesh.app.values == {"b": b"1"}, "the next update")
            assert mesh.server.streams == 1

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert any("applying" in record.message for record in caplog.records)


def test_after_a_lost_stream_only_differences_come(tmp_path: Path) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            server, app = mesh.server, mesh.app
            server.put(ADDRESS_TYPE, {"keep": b"1", "change": b"1", "vanish": b"1"})
            await eventually_async(lambda: len(app.values) == 3, "three resources")
            await asyncio.wait_for(mesh.client.wait_synced(), 10)
            seen = len(app.updates)
            (tmp_path / "token").write_text("secret-2\n")
            server.drop_streams()
            server.put(ADDRESS_TYPE, {"change": b"2"})
            server.remove(ADDRESS_TYPE, "vanish")
            await eventually_async(lambda: app.values == {"keep": b"1", "change": b"2"}, "the difference")
            await eventually_async(lambda: mesh.client.status.connected, "the second stream")
            assert len(server.metadata) >= 2
            assert server.metadata[-1]["authorization"] == "Bearer secret-2"
            again = {each.name for update in app.updates[seen:] for each in update.upserted}
            assert "keep" not in again
            assert mesh.client.terminations.total() >= 1

    asyncio.run(main())


def test_a_restarted_server_is_found_again_and_what_vanished_is_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            server, app, client = mesh.server, mesh.app, mesh.client
            server.put(ADDRESS_TYPE, {"keep": b"1", "vanish": b"1"})
            await asyncio.wait_for(client.wait_synced(), 10)
            await eventually_async(lambda: len(app.values) == 2, "two resources")
            port = server.port
            await server.stop()
            await eventually_async(lambda: not client.status.connected, "the loss")
            assert app.values == {"keep": b"1", "vanish": b"1"}, "what is in force stays"
            assert client.status.synced
            assert client.status.last_error
            before = client.status.age_s or 0.0
            await eventually_async(lambda: (client.status.age_s or 0.0) > before, "the configuration to age")
            server.remove(ADDRESS_TYPE, "vanish")
            await server.start(port)
            await eventually_async(lambda: app.values == {"keep": b"1"}, "the resynchronisation", 20)
            await eventually_async(lambda: client.status.age_s == 0.0, "age zero")

    asyncio.run(main())


def test_a_server_that_our_root_does_not_verify_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        other = tmp_path / "other.pem"
        other.write_bytes(FakeCa("other").roots_pem)
        async with setup(tmp_path, roots=other) as mesh:
            await eventually_async(lambda: mesh.client.terminations["ConnectionError"] >= 2, "two refusals")
            assert not mesh.client.status.synced
            assert mesh.client.status.age_s is None
            assert mesh.server.requests == []
            assert "UNAVAILABLE" in mesh.client.status.last_error
            # As soon as the right root is there, the next stream uses it.
            other.write_bytes(mesh.server.ca.roots_pem)
            await asyncio.wait_for(mesh.client.wait_synced(), 15)

    asyncio.run(main())


@pytest.mark.parametrize("missing", ["roots", "token"])
def test_a_missing_file_is_waited_for_and_named(tmp_path: Path, missing: str) -> None:
    async def main() -> None:
        path = tmp_path / "late"
        async with setup(tmp_path, **{missing: path}) as mesh:
            await eventually_async(lambda: str(path) in mesh.client.status.last_error, "the error")
            path.write_bytes(mesh.server.ca.roots_pem if missing == "roots" else b"late")
            await asyncio.wait_for(mesh.client.wait_synced(), 10)

    asyncio.run(main())


@asynccontextmanager
async def scripted(tmp_path: Path, *answers: bytes) -> AsyncIterator[tuple[XdsClient, App]]:
    """Run the client against a server that answers each stream's first request with these bytes."""
    ca = FakeCa("scripted")
    (tmp_path / "root.pem").write_bytes(ca.roots_pem)

    async def serve(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        async for _request in requests:
            for answer in answers:
                yield answer

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(serve)
    service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler}),)
    )
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([ca.server_pair()]))
    await server.start()
    app = App()
    settings = Settings(address=f"localhost:{port}", roots=tmp_path / "root.pem")
    client = XdsClient(settings=settings, node=NODE, types=TYPES, on_update=app.apply, clock=SystemClock())
    owner = TaskOwner("test")
    create_task(client.run(), name="xds", owner=owner)
    try:
        yield client, app
    finally:
        await owner.close()
        await server.stop(None)


def answer(type_url: str = ADDRESS_TYPE, nonce: str = "n", names: Sequence[str] = ()) -> bytes:
    resources = [discovery_pb2.Resource(name=name) for name in names]
    message = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, resources=resources)
    data: bytes = message.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "no DeltaDiscoveryResponse"),
        (answer(type_url="type.googleapis.com/other"), "which was not asked for"),
        (answer(nonce=""), "has no nonce"),
        (answer(names=["a", "a"]), "twice"),
        (answer(names=[""]), "not at all"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_left_and_tried_again(
    tmp_path: Path, data: bytes, why: str
) -> None:
    async def main() -> None:
        async with scripted(tmp_path, data) as (client, app):
            await eventually_async(lambda: client.terminations["Error"] >= 2, "two tries")
            assert why in client.status.last_error
            assert "protocol error" in client.status.last_error
            assert app.updates == []
            assert not client.status.synced

    asyncio.run(main())


def test_a_first_synchronisation_of_many_resources(tmp_path: Path) -> None:
    async def main() -> None:
        async with setup(tmp_path) as mesh:
            values = {f"Kubernetes//v1/Pod/shop/{index}": b"x" * 300 for index in range(20_000)}
            mesh.server.put(ADDRESS_TYPE, values)
            await eventually_async(lambda: len(mesh.app.values) == 20_000, "20,000 resources", 30)
            assert mesh.client.message_bytes[ADDRESS_TYPE] > 4 * 1024 * 1024, "more than gRPC's default limit"
            mesh.server.drop_streams()
            await eventually_async(lambda: len(mesh.server.metadata) == 2, "the second stream")
            mesh.server.put(ADDRESS_TYPE, {"last": b"1"})
            await eventually_async(lambda: "last" in mesh.app.values, "the next change", 30)
            last = [update for update in mesh.app.updates if update.type_url == ADDRESS_TYPE][-1]
            assert [resource.name for resource in last.upserted] == ["last"]

    asyncio.run(main())
