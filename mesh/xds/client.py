# SPDX-License-Identifier: Apache-2.0
"""The delta ADS client: one stream for all types, kept up for ever.

It holds the connection and the subscriptions, hands each update to its owner and answers
with what the owner rejected. A lost stream costs nothing but age: what is in force stays,
and the next stream begins where this one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError as ProtobufError
from google.rpc import status_pb2

from mesh.identity.channel import headers, secure_channel
from mesh.runtime.clock import Clock
from mesh.xds.protocol import DeltaSubscription, ProtocolError, Request, Response
from mesh.xds.resource import Rejection, Resource, Update

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
MAX_MESSAGE_BYTES = 200 * 1024 * 1024
"""As Istio's ztunnel: a first response holds the whole mesh."""
BACKOFF_FIRST_S = 0.02
BACKOFF_MAX_S = 15.0
"""Source: Istio's ztunnel; doubled on each failure, then a random part of the upper half taken off."""
KEEPALIVE_INTERVAL_S = 30.0
KEEPALIVE_TIMEOUT_S = 10.0

_INVALID_ARGUMENT = 3
_log = logging.getLogger("ambit.xds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who asks: `envoy.config.core.v3.Node`."""

    id: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the server is and how to prove ourselves; files are read anew for each stream."""

    address: str
    """`host:port`; `https://` in front is allowed."""
    roots: Path
    """PEM bundle that verifies the server."""
    token: Path | None = None
    """File with the bearer token; None sends none."""
    cluster_id: str = "Kubernetes"
    server_name: str = ""
    """Name that the server's certificate must have; empty: the host of `address`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What readiness, metrics and admin pages say about the configuration."""

    connected: bool
    synced: bool
    """Every type was received once."""
    age_s: float | None
    """Seconds since we last knew to be current: 0 while connected and synced; None: never."""
    last_error: str
    """Why the last stream ended; empty while connected."""
    resources: Mapping[str, int]
    """Type URL -> number of resources in force."""
    rejected: Mapping[str, str]
    """Resource name -> why it was not taken."""


class XdsClient:
    """Keeps one stream to the control plane; loop thread only.

    `on_update` is called for each response, must not wait, and returns what it did not take;
    an exception from it rejects the whole response and is logged. `on_status` is called
    after each change of `status`. `run` belongs to a task of the caller's.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        node: Node,
        types: Sequence[str],
        on_update: Callable[[Update], Sequence[Rejection]],
        clock: Clock,
        on_status: Callable[[Status], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.messages: Counter[str] = Counter()
        """Responses by type URL."""
        self.message_bytes: Counter[str] = Counter()
        """Size of responses by type URL."""
        self.terminations: Counter[str] = Counter()
        """Ends of streams by reason, as Istio's metric names them."""
        self._settings = settings
        self._node = node
        self._subscriptions = {type_url: DeltaSubscription(type_url) for type_url in types}
        self._on_update = on_update
        self._on_status = on_status
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._connected = False
        self._last_error = ""
        self._current_until: float | None = None
        self._synced = asyncio.Event()
        self._failures = 0

    @property
    def status(self) -> Status:
        """The state of the configuration as of now."""
        age: float | None = None
        if self._current_until is not None:
            age = max(0.0, self._clock.monotonic() - self._current_until)
        return Status(
            connected=self._connected,
            synced=self._synced.is_set(),
            age_s=0.0 if self._connected and self._synced.is_set() else age,
            last_error=self._last_error,
            resources={url: len(subscription.versions) for url, subscription in self._subscriptions.items()},
            rejected={
                name: why
                for subscription in self._subscriptions.values()
                for name, why in subscription.rejected.items()
            },
        )

    async def wait_synced(self) -> None:
        """Wait until every type was received once."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep a stream up until cancelled; no failure of the server's ends it."""
        while True:
            reason = await self._attempt()
            self.terminations[reason] += 1
            if self._connected and self._synced.is_set():
                self._current_until = self._clock.monotonic()
            self._connected = False
            for subscription in self._subscriptions.values():
                subscription.close()
            delay_s = backoff_s(self._failures, self._draw())
            self._failures += 1
            _log.warning(
                "configuration stream to %s ended: %s; trying again in %.2f s, what is in force stays",
                self._settings.address,
                self._last_error,
                delay_s,
            )
            self._on_status(self.status)
            await self._sleep(delay_s)

    async def _attempt(self) -> str:
        """Run one stream to its end and return why it ended."""
        try:
            async with self._channel() as channel:
                await self._stream(channel)
        except grpc.aio.AioRpcError as error:
            self._last_error = f"{error.code().name}: {error.details()}"
            return "Error" if self._connected else "ConnectionError"
        except (OSError, ValueError) as error:
            self._last_error = f"cannot connect: {error}"
            return "ConnectionError"
        except ProtocolError as error:
            self._last_error = f"protocol error of the server: {error}"
            return "Error"
        self._last_error = "the server ended the stream"
        return "Complete"

    def _channel(self) -> grpc.aio.Channel:
        """Open a channel of its own: a new root file or address takes effect with the next stream."""
        return secure_channel(
            self._settings.address,
            self._settings.roots,
            server_name=self._settings.server_name,
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.keepalive_time_ms", int(KEEPALIVE_INTERVAL_S * 1000)),
                ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
                ("grpc.http2.max_pings_without_data", 0),
            ),
        )

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        # Bytes, not messages: what grpc cannot deserialise it logs and delivers as None.
        method = channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=bytes,
        )
        said = headers(self._settings.token, self._settings.cluster_id)
        # Without an iterator of requests, they are written one by one; the stubs do not know that.
        call = method(metadata=said)  # type: ignore[call-arg]
        try:
            for subscription in self._subscriptions.values():
                await _write(call, self._encode(subscription.open(), first=True))
            answers: AsyncIterator[bytes] = aiter(call)
            async for data in answers:
                await _write(call, self._encode(self._take(data), first=False))
        finally:
            call.cancel()

    def _take(self, data: bytes) -> Request:
        """Apply one response and return its answer; nothing waits in between, so both happen or neither."""
        response = _decode(data)
        subscription = self._subscriptions.get(response.type_url)
        if subscription is None:
            raise ProtocolError(f"response for {response.type_url}, which was not asked for")
        update = subscription.receive(response)
        self.messages[response.type_url] += 1
        self.message_bytes[response.type_url] += len(data)
        rejections = self._apply(update)
        answer = subscription.settle(rejections)
        if rejections:
            _log.warning("rejected %d resources of %s: %s", len(rejections), response.type_url, answer.error)
        self._connected, self._last_error, self._failures = True, "", 0
        if all(each.synced for each in self._subscriptions.values()):
            self._synced.set()
            self._current_until = self._clock.monotonic()
        self._on_status(self.status)
        return answer

    def _apply(self, update: Update) -> Sequence[Rejection]:
        try:
            return self._on_update(update)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not end the configuration's flow
            _log.exception("applying %s failed", update.type_url)
            names = [*(resource.name for resource in update.upserted), *update.removed]
            return [Rejection(name, f"internal error: {error}") for name in names]

    def _encode(self, request: Request, *, first: bool) -> discovery_pb2.DeltaDiscoveryRequest:
        message = discovery_pb2.DeltaDiscoveryRequest(
            type_url=request.type_url,
            response_nonce=request.nonce,
            initial_resource_versions=request.initial_versions,
        )
        if first:
            metadata = struct_pb2.Struct()
            metadata.update(self._node.metadata)
            message.node.CopyFrom(base_pb2.Node(id=self._node.id, metadata=metadata))
        if request.error:
            message.error_detail.CopyFrom(status_pb2.Status(code=_INVALID_ARGUMENT, message=request.error))
        return message


def backoff_s(failures: int, draw: float) -> float:
    """Return how long to wait after `failures` earlier ones in a row; `draw` is in [0, 1)."""
    ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 20))
    return ceiling * (0.5 + draw / 2)


async def _write(
    call: grpc.aio.StreamStreamCall[discovery_pb2.DeltaDiscoveryRequest, bytes],
    message: discovery_pb2.DeltaDiscoveryRequest,
) -> None:
    """Write one message; of a call that has ended already, the next read tells why."""
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(message)


def _decode(data: bytes) -> Response:
    message = discovery_pb2.DeltaDiscoveryResponse()
    try:
        message.ParseFromString(data)
    except ProtobufError as error:
        raise ProtocolError(f"no DeltaDiscoveryResponse: {error}") from error
    return Response(
        type_url=message.type_url,
        nonce=message.nonce,
        resources=tuple(
            Resource(resource.name, resource.version, resource.resource.value)
            for resource in message.resources
        ),
        removed=tuple(message.removed_resources),
    )
