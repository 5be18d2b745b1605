# SPDX-License-Identifier: Apache-2.0
"""Spans as bytes: attributes by type, errors, texts that are cut, answers of collectors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from mesh.proto import otlp_pb2
from mesh.telemetry.trace_export import (
    Emitter,
    Span,
    SpanKind,
    otlp_request,
    otlp_span,
    rejected_spans,
    zipkin_request,
    zipkin_span,
)

EMITTER = Emitter(service="wp.shop", version="1.2", attributes=(("k8s.pod.name", "wp-1"),))
SPAN = Span(
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    span_id="00f067aa0ba902b7",
    parent_id="b7ad6b7169203331",
    state="a=1",
    name="GET",
    kind=SpanKind.CLIENT,
    start_ns=1_700_000_000_000_000_123,
    end_ns=1_700_000_000_002_000_123,
    attributes={"text": "x" * 20, "number": 7, "flag": True, "latin": "\xe9\ud800"},
    error="it broke",
)


def otlp(span: Span, length: int = 10) -> Any:
    message = trace_service_pb2.ExportTraceServiceRequest.FromString(
        otlp_request([otlp_span(span, length)], EMITTER, length)
    )
    (group,) = message.resource_spans
    (scope,) = group.instrumentation_library_spans  # `scope_spans` by its older name.
    assert {a.key: a.value.string_value for a in group.resource.attributes} == {
        "service.name": "wp.shop",
        "k8s.pod.name": "wp-1",
    }
    return scope.spans[0]


def test_a_span_in_otlp_as_others_read_it() -> None:
    span = otlp(SPAN)
    assert span.trace_id.hex() == SPAN.trace_id
    assert (span.span_id.hex(), span.parent_span_id.hex()) == (SPAN.span_id, SPAN.parent_id)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (SPAN.start_ns, SPAN.end_ns)
    assert (span.name, span.kind, span.trace_state) == ("GET", 3, "a=1")
    assert (span.status.code, span.status.message) == (2, "it broke")
    values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    assert values == {"text": "x" * 10, "number": 7, "flag": True, "latin": "\xe9?"}


def test_a_root_without_an_error_in_otlp() -> None:
    span = otlp(
        Span(trace_id="a" * 32, span_id="b" * 16, name="GET", kind=SpanKind.SERVER, start_ns=1, end_ns=2)
    )
    assert (span.parent_span_id, span.status.code, span.kind) == (b"", 0, 2)


def test_a_span_in_zipkin() -> None:
    (span,) = json.loads(zipkin_request([zipkin_span(SPAN, EMITTER, 10)]))
    assert span == {
        "traceId": SPAN.trace_id,
        "id": SPAN.span_id,
        "parentId": SPAN.parent_id,
        "name": "GET",
        "kind": "CLIENT",
        "timestamp": 1_700_000_000_000_000,
        "duration": 2000,
        "localEndpoint": {"serviceName": "wp.shop"},
        "tags": {
            "k8s.pod.name": "wp-1",
            "text": "x" * 10,
            "number": "7",
            "flag": "true",
            "latin": "\xe9?",
            "error": "it broke",
        },
    }


def test_a_collector_may_refuse_a_part() -> None:
    assert rejected_spans(b"") == (0, "")
    partial = otlp_pb2.ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    answer = otlp_pb2.ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    assert rejected_spans(answer) == (3, "too old")
    with pytest.raises(ValueError, match="not an ExportTraceServiceResponse"):
        rejected_spans(b"\xff")


def test_true_is_not_one() -> None:
    for value, kind in ((1, "int_value"), (True, "bool_value"), (1, "int_value")):
        span = otlp(replace(SPAN, attributes={"a": value}, error=None))
        assert span.attributes[0].value.WhichOneof("value") == kind


@pytest.mark.parametrize("number", [0, 1, 2, 300])
def test_requests_of_every_size_can_be_read(number: int) -> None:
    body = otlp_request([otlp_span(SPAN, 256)] * number, EMITTER, 256)
    (group,) = trace_service_pb2.ExportTraceServiceRequest.FromString(body).resource_spans
    assert len(group.instrumentation_library_spans[0].spans) == number
    assert otlp_pb2.ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].scope.name
