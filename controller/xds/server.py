# SPDX-License-Identifier: Apache-2.0
"""Delta ADS over gRPC: one task per proxy, woken by changes, told only what it lacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mesh.identity.token import TokenClaims, TokenError
from mesh.runtime.clock import Clock
from mesh.runtime.tasks import TaskOwner, create_task

# After mesh.identity, which silences gRPC's own log.
import grpc  # isort: skip
from envoy.service.discovery.v3 import discovery_pb2  # isort: skip
from google.protobuf.any_pb2 import Any as AnyMessage  # isort: skip

from controller.authenticate import UncheckedError
from controller.metrics import Metrics
from controller.xds.snapshot import Resources
from controller.xds.stream import ProxyStream, Push

Request: TypeAlias = discovery_pb2.DeltaDiscoveryRequest
Response: TypeAlias = discovery_pb2.DeltaDiscoveryResponse
Context: TypeAlias = "grpc.aio.ServicerContext[Request, Response]"
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
MAX_STREAMS = 10_000
"""Proxies at a time; one more is refused by name."""
_log = logging.getLogger("controller.xds")


@dataclass(slots=True, eq=False)
class Proxy:
    """One connected proxy."""

    claims: TokenClaims
    id: str
    stream: ProxyStream
    since_s: float
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def describe(self) -> dict[str, Any]:
        """Return its row of the admin page."""
        return {
            "id": self.id,
            "subject": self.claims.subject,
            "node": self.claims.node,
            "types": list(self.stream.types),
            "unacknowledged": self.stream.unacknowledged,
            "refused": self.stream.refused,
            "since": self.since_s,
        }


class AdsServer:
    """Serves `Resources`; `publish` is called after each of their updates."""

    def __init__(
        self,
        *,
        resources: Resources,
        authenticate: Callable[[Any], Awaitable[TokenClaims]],
        allow: Callable[[TokenClaims], str],
        metrics: Metrics,
        clock: Clock,
        synced: asyncio.Event,
    ) -> None:
        self._resources = resources
        self._authenticate = authenticate
        self._allow = allow
        self._metrics = metrics
        self._clock = clock
        self._synced = synced
        self._ending = False
        self.proxies: set[Proxy] = set()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what is added to a gRPC server."""
        method = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=Request.FromString,
            response_serializer=Response.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": method})

    def publish(self, changes: list[Any]) -> None:
        """Tell every proxy that lacks something."""
        for proxy in self.proxies:
            if proxy.stream.changed(changes):
                proxy.wake.set()

    def end_streams(self) -> None:
        """End every stream; proxies go on with what they have and come back."""
        self._ending = True
        for proxy in self.proxies:
            proxy.wake.set()

    async def _serve(self, requests: AsyncIterator[Request], context: Context) -> AsyncIterator[Response]:
        claims = await self._admit(context)
        proxy = Proxy(claims, "", ProxyStream(self._resources), self._clock.wall())
        self.proxies.add(proxy)
        self._metrics.streams.labels("").set(len(self.proxies))
        owner = TaskOwner(f"ads {claims.subject}@{claims.node}")
        reader = create_task(self._read(requests, proxy), name="read", owner=owner)
        reader.add_done_callback(lambda _: proxy.wake.set())
        _log.info("proxy connected: %s on %s", claims.subject, claims.node)
        try:
            while not self._ending:
                proxy.wake.clear()
                while (push := proxy.stream.next_push()) is not None:
                    self._metrics.pushes.labels(_short(push.type_url)).inc()
                    yield _response(push)
                if reader.done():
                    return
                await proxy.wake.wait()
        finally:
            self.proxies.discard(proxy)
            self._metrics.streams.labels("").set(len(self.proxies))
            await owner.close()
            _log.info("proxy gone: %s on %s", claims.subject, claims.node)

    async def _admit(self, context: Context) -> TokenClaims:
        try:
            claims = await self._authenticate(context.invocation_metadata())
        except TokenError as error:
            _log.warning("stream of %s refused: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except UncheckedError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        # Which pods are waypoints is known from the first snapshot on.
        await self._synced.wait()
        refusal = self._allow(claims)
        if not refusal and len(self.proxies) >= MAX_STREAMS:
            refusal = f"{MAX_STREAMS} proxies are connected, the limit"
        if refusal:
            _log.warning("stream of %s refused: %s", context.peer(), refusal)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
        return claims

    async def _read(self, requests: AsyncIterator[Request], proxy: Proxy) -> None:
        async for request in requests:
            if request.node.id:
                proxy.id = request.node.id
            error = request.error_detail.message if request.HasField("error_detail") else ""
            if error:
                self._metrics.refusals.labels(_short(request.type_url)).inc()
                _log.warning("%s refused %s: %s", proxy.id or proxy.claims.subject, request.type_url, error)
            proxy.stream.request(
                request.type_url,
                initial=dict(request.initial_resource_versions),
                nonce=request.response_nonce,
                error=error,
            )
            proxy.wake.set()


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]


def _response(push: Push) -> Response:
    return Response(
        type_url=push.type_url,
        nonce=push.nonce,
        resources=[
            discovery_pb2.Resource(
                name=name,
                version=encoded.version,
                resource=AnyMessage(type_url=push.type_url, value=encoded.value),
            )
            for name, encoded in push.resources
        ],
        removed_resources=push.removed,
    )
