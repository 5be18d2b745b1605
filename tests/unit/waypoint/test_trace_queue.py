# SPDX-License-Identifier: Apache-2.0
"""The queue of spans at its limits: room, attempts, refusals, the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from mesh.model.telemetry import Observed, Tracer, TracerProtocol
from mesh.model.workload import NamespacedHostname
from mesh.proto import otlp_pb2
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.trace_export import Emitter, Span, SpanKind
from waypoint.http.message import Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.call import Open
from waypoint.proxy.streams import Failure, UpstreamEvents
from waypoint.trace_queue import QueueLimits, TraceQueues
from waypoint.tries import Refused

TRACER = Tracer(
    name="otel",
    service=NamespacedHostname(namespace="watch", hostname="collector.watch.svc.cluster.local"),
    port=4318,
    protocol=TracerProtocol.OTLP_HTTP,
    path="/v1/traces",
)
SPAN = Span(trace_id="a" * 32, span_id="b" * 16, name="GET", kind=SpanKind.SERVER, start_ns=1, end_ns=2)
LIMITS = QueueLimits(spans=8, batch=4, interval_s=0.001, attempts=3, backoff_s=0.001)
PARTIAL = otlp_pb2.ExportTraceServiceResponse(
    partial_success=otlp_pb2.ExportTracePartialSuccess(rejected_spans=1, error_message="old")
).SerializeToString()


class Answered(Refused):
    """A try that is answered with a status, or fails (0)."""

    def __init__(self, events: UpstreamEvents, status: int, body: bytes, headers: Headers) -> None:
        super().__init__()
        asyncio.get_running_loop().call_soon(self._answer, events, status, body, headers)

    def _answer(self, events: UpstreamEvents, status: int, body: bytes, headers: Headers) -> None:
        if self.over:
            return
        if not status:
            events.on_failure(Failure.CONNECT, "nobody is there")
            return
        events.on_response(ResponseHead(status=status, reason="", headers=headers, framing=Framing.CLOSE))
        events.on_data(body)
        events.on_end([])


class Collector:
    """Answers in turn, the last answer ever after; counts what the queue reports."""

    def __init__(self, *statuses: int, body: bytes = b"", headers: Headers | None = None) -> None:
        self.statuses = list(statuses)
        self.body = body
        self.headers = headers or []
        self.asked = 0
        self.counted: Counter[str] = Counter()

    def open(self, tracer: Tracer) -> Open:
        def begin(events: UpstreamEvents) -> Answered:
            self.asked += 1
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            return Answered(events, status, self.body, self.headers)

        return begin

    def count(self, provider: str, result: str, spans: int) -> None:
        assert provider == "otel"
        self.counted[result] += spans

    async def send(self, spans: int, tracer: Tracer = TRACER, limits: QueueLimits = LIMITS) -> None:
        owner = TaskOwner("test")
        queues = TraceQueues(Emitter(service="wp", version="1"), self.open, self.count, owner, limits)
        for _ in range(spans):
            queues.offer(Observed(tracers=(tracer,)), SPAN)
        await asyncio.gather(*owner._tasks)
        assert not queues._queues, "a queue that is empty is forgotten"


async def test_spans_leave_in_batches() -> None:
    collector = Collector(200)
    await collector.send(6)
    assert (collector.asked, collector.counted) == (2, {"exported": 6})


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    collector = Collector(200)
    await collector.send(LIMITS.spans + 3)
    assert collector.counted == {"exported": LIMITS.spans, "dropped": 3}


@pytest.mark.parametrize("first", [0, 429, 502, 503, 504])
async def test_what_may_pass_is_tried_again(first: int) -> None:
    collector = Collector(first, first, 200)
    await collector.send(1)
    assert (collector.asked, collector.counted) == (3, {"exported": 1})


async def test_attempts_come_to_an_end() -> None:
    collector = Collector(503)
    await collector.send(2)
    assert (collector.asked, collector.counted) == (LIMITS.attempts, {"failed": 2})


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_refusal_is_not_tried_again(status: int) -> None:
    collector = Collector(status)
    await collector.send(2)
    assert (collector.asked, collector.counted) == (1, {"failed": 2})


async def test_a_part_may_be_refused() -> None:
    collector = Collector(200, body=PARTIAL)
    await collector.send(4)
    assert collector.counted == {"exported": 3, "failed": 1}


@pytest.mark.parametrize(("status", "asked"), [("14", 3), ("8", 3), ("3", 1), ("12", 1), ("", 1)])
async def test_grpc_statuses(status: str, asked: int) -> None:
    collector = Collector(200, headers=[("grpc-status", status)] if status else [])
    await collector.send(1, replace(TRACER, protocol=TracerProtocol.OTLP_GRPC))
    assert (collector.asked, collector.counted) == (asked, {"failed": 1})


async def test_an_answer_that_cannot_be_read_is_a_failure() -> None:
    collector = Collector(200, body=b"\xff")
    await collector.send(1)
    assert collector.counted == {"failed": 1}


async def test_the_end_does_not_wait_for_ever() -> None:
    collector = Collector(503)
    owner = TaskOwner("test")
    limits = replace(LIMITS, backoff_s=3600, batch=2)
    queues = TraceQueues(Emitter(service="wp", version="1"), collector.open, collector.count, owner, limits)
    for _ in range(4):
        queues.offer(Observed(tracers=(TRACER,)), SPAN)
    while not collector.asked:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await queues.drain(0.01)
    await owner.close()
    assert collector.counted == {"dropped": 4}
    queues.offer(Observed(tracers=(TRACER,)), SPAN)  # An owner that is closed takes no task: no error.


async def test_a_head_names_the_collector() -> None:
    heads: list[RequestHead] = []

    class Spy(Collector):
        def open(self, tracer: Tracer) -> Open:
            inner = super().open(tracer)

            def begin(events: UpstreamEvents) -> Answered:
                made = inner(events)
                made.send_head = heads.append  # type: ignore[method-assign]
                assert isinstance(made, Answered)
                return made

            return begin

    collector = Spy(202)
    await collector.send(1, replace(TRACER, headers=(("x-key", "k"),)))
    (head,) = heads
    assert (head.method, head.target) == ("POST", "/v1/traces")
    assert head.authority == "collector.watch.svc.cluster.local:4318"
    assert ("x-key", "k") in head.headers
    assert ("content-length", str(head.length)) in head.headers
