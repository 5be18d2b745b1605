# SPDX-License-Identifier: Apache-2.0
"""Spans on their way to collectors: a bounded queue for each, emptied in batches through the mesh.

Nothing here delays a request: what finds its queue full is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mesh.model.telemetry import Observed, Tracer, TracerProtocol
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.logging import FieldValue, fields
from mesh.telemetry.trace_export import (
    Emitter,
    Span,
    otlp_request,
    otlp_span,
    rejected_spans,
    zipkin_request,
    zipkin_span,
)
from waypoint.http.message import Framing, RequestHead
from waypoint.proxy.call import CallError, CallResult, Open, call
from waypoint.telemetry import find

_log = logging.getLogger("waypoint.traces")
GRPC_PATH = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MAX_ANSWER_BYTES = 65_536
AT_ONCE = 16
"""Spans that are encoded before requests have their turn again."""
_AGAIN_HTTP = frozenset({429, 502, 503, 504})
_AGAIN_GRPC = frozenset({"1", "4", "8", "10", "11", "14", "15"})
"""Worth another attempt. Source: OTLP specification, "Failures"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds of one queue."""

    spans: int = 4096
    batch: int = 512
    interval_s: float = 1.0
    """How long a span waits for others at most."""
    attempts: int = 4
    backoff_s: float = 1.0
    """Before the second attempt; doubled before each further one."""


Count = Callable[[str, str, int], None]
"""Counts spans: provider, `exported`, `dropped` or `failed`, how many."""
OpenTracer = Callable[[Tracer], Open]


class ExportError(Exception):
    """A batch was not taken; says why (the collector's or the network's fault)."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class TraceQueues:
    """The queues of all collectors that some policy names; loop thread only."""

    def __init__(
        self,
        emitter: Emitter,
        open_tracer: OpenTracer,
        count: Count,
        tasks: TaskOwner,
        limits: QueueLimits | None = None,
    ) -> None:
        """Build it; a queue begins with its first span.

        Args:
            emitter: who the spans are from.
            open_tracer: begins a request to an endpoint of a collector.
            count: counts spans by what became of them.
            tasks: owns the tasks that send.
            limits: bounds of each queue.
        """
        self._emitter = emitter
        self._open = open_tracer
        self._count = count
        self._tasks = tasks
        self._limits = limits or QueueLimits()
        self._queues: dict[Tracer, TraceQueue] = {}
        self._failing: set[str] = set()

    def offer(self, observed: Observed, span: Span) -> None:
        """Take a span for each collector in force."""
        for tracer in observed.tracers:
            queue = self._queues.get(tracer)
            if queue is None:
                if self._tasks.closed:
                    return
                queue = TraceQueue(
                    tracer, self._emitter, self._open, self._count, self._limits, self._failing
                )
                self._queues[tracer] = queue
                create_task(self._run(tracer, queue), name=f"traces to {tracer.name}", owner=self._tasks)
            queue.offer(span)

    async def _run(self, tracer: Tracer, queue: TraceQueue) -> None:
        """Empty a queue and forget it: its collector may be out of the configuration by then."""
        try:
            await queue.run()
        finally:
            del self._queues[tracer]

    async def drain(self, within_s: float) -> None:
        """Send what is there; what cannot be sent in time is dropped and counted."""
        queues = list(self._queues.values())
        for queue in queues:
            queue.end()
        try:
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(queue.ended.wait() for queue in queues))
        except TimeoutError:
            for queue in queues:
                queue.abandon()


class TraceQueue:
    """Spans for one collector."""

    def __init__(
        self,
        tracer: Tracer,
        emitter: Emitter,
        open_tracer: OpenTracer,
        count: Count,
        limits: QueueLimits,
        failing: set[str],
    ) -> None:
        self._tracer = tracer
        self._emitter = emitter
        self._open = open_tracer
        self._count = count
        self._limits = limits
        self._spans: deque[Span] = deque()
        self._full = asyncio.Event()
        self._ending = False
        self._failing = failing
        self.ended = asyncio.Event()

    def offer(self, span: Span) -> None:
        """Take a span; drop it when there is no room."""
        if len(self._spans) >= self._limits.spans:
            self._count(self._tracer.name, "dropped", 1)
            return
        self._spans.append(span)
        if len(self._spans) >= self._limits.batch:
            self._full.set()

    def end(self) -> None:
        """Let `run` return once the queue is empty."""
        self._ending = True
        self._full.set()

    def abandon(self) -> None:
        """Drop and count what is left."""
        if self._spans:
            self._count(self._tracer.name, "dropped", len(self._spans))
            self._spans.clear()

    async def run(self) -> None:
        """Send batches until the queue is empty."""
        try:
            while self._spans:
                if len(self._spans) < self._limits.batch and not self._ending:
                    await self._gather()
                size = min(len(self._spans), self._limits.batch)
                await self._send([self._spans.popleft() for _ in range(size)])
        finally:
            self.ended.set()

    async def _gather(self) -> None:
        self._full.clear()
        try:
            async with asyncio.timeout(self._limits.interval_s):
                await self._full.wait()
        except TimeoutError:
            return

    async def _send(self, batch: list[Span]) -> None:
        try:
            await self._try_to_send(batch)
        except asyncio.CancelledError:
            self._count(self._tracer.name, "dropped", len(batch))
            raise

    async def _try_to_send(self, batch: list[Span]) -> None:
        name, limits = self._tracer.name, self._limits
        head, body = self._request(await self._encode(batch))
        for attempt in range(1, limits.attempts + 1):
            try:
                refused = await self._export(head, body)
            except ExportError as error:
                if error.again and attempt < limits.attempts and not self._ending:
                    await asyncio.sleep(limits.backoff_s * 2 ** (attempt - 1))
                    continue
                self._count(name, "failed", len(batch))
                self._report(str(error), len(batch))
                return
            self._failing.discard(name)
            self._count(name, "exported", len(batch) - refused)
            if refused:
                self._count(name, "failed", refused)
            return

    def _report(self, reason: str, spans: int) -> None:
        """Log the first of a row of failures."""
        if self._tracer.name not in self._failing:
            values: dict[str, FieldValue] = {"provider": self._tracer.name, "spans": spans, "reason": reason}
            _log.warning(
                "spans are lost until their collector takes them: look at it, and at the provider's "
                "service and port in the mesh's configuration",
                extra=fields(values),
            )
        self._failing.add(self._tracer.name)

    async def _export(self, head: RequestHead, body: bytes) -> int:
        """Send one batch; return how many of its spans were refused.

        Raises:
            ExportError: it was not taken.
        """
        tracer = self._tracer
        try:
            answer = await call(
                self._open(tracer), head, body, timeout_s=tracer.timeout_s, max_answer_bytes=MAX_ANSWER_BYTES
            )
        except CallError as error:
            raise ExportError(str(error), again=True) from error
        try:
            return self._read(answer)
        except ValueError as error:
            raise ExportError(str(error), again=False) from error

    async def _encode(self, batch: list[Span]) -> list[bytes]:
        tracer, encoded = self._tracer, []
        for number, span in enumerate(batch, 1):
            if tracer.protocol is TracerProtocol.ZIPKIN:
                encoded.append(zipkin_span(span, self._emitter, tracer.max_tag_length))
            else:
                encoded.append(otlp_span(span, tracer.max_tag_length))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        return encoded

    def _request(self, spans: list[bytes]) -> tuple[RequestHead, bytes]:
        tracer = self._tracer
        if tracer.protocol is TracerProtocol.ZIPKIN:
            path, body = tracer.path, zipkin_request(spans)
            headers = [("content-type", "application/json")]
        else:
            path, body = tracer.path, otlp_request(spans, self._emitter, tracer.max_tag_length)
            headers = [("content-type", "application/x-protobuf")]
        if tracer.protocol is TracerProtocol.OTLP_GRPC:
            path, body = GRPC_PATH, struct.pack("!BI", 0, len(body)) + body
            headers = [
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("grpc-timeout", f"{min(int(tracer.timeout_s * 1000), 99_999_999)}m"),
            ]
        if tracer.protocol is not TracerProtocol.OTLP_GRPC:
            headers.append(("content-length", str(len(body))))
        head = RequestHead(
            method="POST",
            target=path,
            authority=f"{tracer.service.hostname}:{tracer.port}",
            headers=[*headers, *tracer.headers],
            framing=Framing.LENGTH,
            length=len(body),
        )
        return head, body

    def _read(self, answer: CallResult) -> int:
        protocol = self._tracer.protocol
        if protocol is TracerProtocol.OTLP_GRPC:
            status = find(answer.trailers, "grpc-status") or find(answer.headers, "grpc-status")
            if answer.status != 200 or status != "0":
                words = find(answer.trailers, "grpc-message") or find(answer.headers, "grpc-message")
                reason = f"HTTP {answer.status}, gRPC status {status or 'missing'} {words}".rstrip()
                again = status in _AGAIN_GRPC or (not status and answer.status in _AGAIN_HTTP)
                raise ExportError(reason, again=again)
            return self._refused(answer.body[5:])
        if not 200 <= answer.status < 300:
            raise ExportError(f"it answered {answer.status}", again=answer.status in _AGAIN_HTTP)
        return self._refused(answer.body) if protocol is TracerProtocol.OTLP_HTTP else 0

    def _refused(self, body: bytes) -> int:
        refused, why = rejected_spans(body)
        if refused:
            self._report(f"the collector refused them: {why}", refused)
        return refused
