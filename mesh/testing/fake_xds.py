# SPDX-License-Identifier: Apache-2.0
"""A delta ADS server in this process, over real gRPC and TLS, that a test fills by hand.

It behaves as the client may expect of any server: it answers the first request of each
type (also with nothing), skips versions that the client says it has, and lists vanished
names as removed. What it was asked is kept for the test to look at.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.testing.fake_ca import FakeCa

Request: TypeAlias = discovery_pb2.DeltaDiscoveryRequest
Response: TypeAlias = discovery_pb2.DeltaDiscoveryResponse
_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


@dataclass(slots=True, eq=False)
class _Stream:
    """What one client was told on one stream: type URL -> resource name -> version."""

    told: dict[str, dict[str, str]] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False


class FakeXds:
    """The server; `start` opens it on a free loopback port."""

    def __init__(self, ca: FakeCa | None = None) -> None:
        self.ca = ca or FakeCa("fake xds root")
        self.port = 0
        self.requests: list[Request] = []
        self.metadata: list[Mapping[str, str]] = []
        """Headers of each stream."""
        self._resources: dict[str, dict[str, tuple[str, bytes]]] = {}
        self._streams: set[_Stream] = set()
        self._server: grpc.aio.Server | None = None
        self._nonces = 0

    @property
    def address(self) -> str:
        """`localhost:port`, the name that its certificate has."""
        return f"localhost:{self.port}"

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def acks(self, type_url: str) -> list[Request]:
        """Return the answers for one type: ACKs, and NACKs with their `error_detail`."""
        return [
            request for request in self.requests if request.type_url == type_url and request.response_nonce
        ]

    def put(
        self, type_url: str, values: Mapping[str, bytes], versions: Mapping[str, str] | None = None
    ) -> None:
        """Set resources; a version is the hash of its value unless given."""
        for name, value in values.items():
            version = (versions or {}).get(name) or hashlib.sha256(value).hexdigest()[:12]
            self._resources.setdefault(type_url, {})[name] = (version, value)
        self._changed()

    def remove(self, type_url: str, *names: str) -> None:
        """Take resources away."""
        for name in names:
            self._resources.get(type_url, {}).pop(name, None)
        self._changed()

    def drop_streams(self) -> None:
        """End every stream, as a restarting server does; clients may come back."""
        for stream in self._streams:
            stream.ended = True
        self._changed()

    async def start(self, port: int = 0) -> None:
        """Listen on `port`, or a free one."""
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=Request.FromString,
            response_serializer=Response.SerializeToString,
        )
        methods = {"DeltaAggregatedResources": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
        credentials = grpc.ssl_server_credentials([self.ca.server_pair("localhost")])
        self.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close the port and every stream at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _changed(self) -> None:
        for stream in self._streams:
            stream.wake.set()

    async def _serve(
        self, requests: AsyncIterator[Request], context: grpc.aio.ServicerContext[Request, Response]
    ) -> AsyncIterator[Response]:
        headers = context.invocation_metadata() or ()
        self.metadata.append({str(key): str(value) for key, value in headers})
        stream = _Stream()
        self._streams.add(stream)
        owner = TaskOwner("fake xds stream")
        reader = create_task(self._read(requests, stream), name="read", owner=owner)
        reader.add_done_callback(lambda _: stream.wake.set())
        try:
            while not stream.ended and not reader.done():
                for type_url in list(stream.told):
                    if (response := self._difference(stream, type_url)) is not None:
                        yield response
                await stream.wake.wait()
                stream.wake.clear()
        finally:
            self._streams.discard(stream)
            await owner.close()

    async def _read(self, requests: AsyncIterator[Request], stream: _Stream) -> None:
        async for request in requests:
            self.requests.append(request)
            if request.type_url not in stream.told:
                stream.told[request.type_url] = dict(request.initial_resource_versions)
                stream.owed.add(request.type_url)
            stream.wake.set()

    def _difference(self, stream: _Stream, type_url: str) -> Response | None:
        """Return what the client lacks; None if nothing and no first answer is owed."""
        told, now = stream.told[type_url], self._resources.get(type_url, {})
        changed = [name for name, (version, _) in now.items() if told.get(name) != version]
        gone = [name for name in told if name not in now]
        if not changed and not gone and type_url not in stream.owed:
            return None
        stream.owed.discard(type_url)
        stream.told[type_url] = {name: version for name, (version, _) in now.items()}
        self._nonces += 1
        return Response(
            type_url=type_url,
            nonce=f"nonce-{self._nonces}",
            resources=[
                discovery_pb2.Resource(
                    name=name,
                    version=now[name][0],
                    resource=AnyMessage(type_url=type_url, value=now[name][1]),
                )
                for name in changed
            ],
            removed_resources=gone,
        )
