# SPDX-License-Identifier: Apache-2.0
"""Finished spans as bytes: OTLP in protobuf, Zipkin v2 in JSON. Sending them is not done here.

Sources: opentelemetry-proto v1, OpenTelemetry's "Zipkin exporter" specification, zipkin-api v2.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from google.protobuf.message import DecodeError

from mesh.proto import otlp_pb2 as pb

Value = str | int | bool
SCOPE = "ambit.waypoint"
MAX_ATTRIBUTES = 8192
"""Encoded attributes that are kept."""


class SpanKind(enum.Enum):
    """Which side of a request a span is."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"


@dataclass(slots=True, kw_only=True)
class Span:
    """One finished span; ids in hexadecimal, times in nanoseconds of Unix time."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    state: str = ""
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None
    """None: no error; else what went wrong, which may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitter:
    """Who reports spans: OpenTelemetry's resource."""

    service: str
    version: str
    attributes: tuple[tuple[str, str], ...] = ()


def otlp_span(span: Span, max_characters: int) -> bytes:
    """Encode one span for `otlp_request`; longer texts of attributes are cut.

    The parts of a protobuf message may follow each other: attributes, most of which come
    again and again, are encoded once.
    """
    made = pb.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        trace_state=span.state,
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=pb.Span.SPAN_KIND_SERVER if span.kind is SpanKind.SERVER else pb.Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        flags=1,
    )
    if span.error is not None:
        made.status.code = pb.Status.STATUS_CODE_ERROR
        made.status.message = _text(span.error, max_characters)
    attributes = [_attribute(name, value, max_characters) for name, value in span.attributes.items()]
    return b"".join((made.SerializeToString(), *attributes))


def otlp_request(spans: Sequence[bytes], emitter: Emitter, max_characters: int) -> bytes:
    """Put encoded spans into an ExportTraceServiceRequest."""
    resource = {"service.name": emitter.service, **dict(emitter.attributes)}
    scope = pb.ScopeSpans(scope=pb.InstrumentationScope(name=SCOPE, version=emitter.version))
    group = pb.ResourceSpans(
        resource=pb.Resource(attributes=[_key_value(k, v, max_characters) for k, v in resource.items()])
    )
    scope_spans = b"".join((scope.SerializeToString(), *(_part(2, span) for span in spans)))
    return _part(1, group.SerializeToString() + _part(2, scope_spans))


def _part(field_number: int, message: bytes) -> bytes:
    """Encode a message as a field of another; field numbers below 16. Source: protobuf, "Encoding"."""
    head, size = bytearray((field_number << 3 | 2,)), len(message)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + message


def rejected_spans(answer: bytes) -> tuple[int, str]:
    """Return how many spans an ExportTraceServiceResponse says were refused, and why.

    Raises:
        ValueError: the bytes are no such answer (the collector's fault).
    """
    try:
        partial = pb.ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError as error:
        raise ValueError(f"not an ExportTraceServiceResponse: {error}") from error
    return partial.rejected_spans, partial.error_message


@lru_cache(maxsize=MAX_ATTRIBUTES, typed=True)
def _attribute(name: str, value: Value, max_characters: int) -> bytes:
    return pb.Span(attributes=[_key_value(name, value, max_characters)]).SerializeToString()


def _key_value(name: str, value: Value, max_characters: int) -> pb.KeyValue:
    if isinstance(value, bool):
        made = pb.AnyValue(bool_value=value)
    elif isinstance(value, int):
        made = pb.AnyValue(int_value=value)
    else:
        made = pb.AnyValue(string_value=_text(value, max_characters))
    return pb.KeyValue(key=name, value=made)


def _text(value: str, max_characters: int) -> str:
    # Header fields are latin-1 by their nature, so nothing in them lacks a UTF-8 form.
    return value[:max_characters].encode("utf-8", "replace").decode()


def zipkin_span(span: Span, emitter: Emitter, max_characters: int) -> bytes:
    """Encode one span for `zipkin_request`."""
    values = dict(emitter.attributes) | dict(span.attributes)
    tags = {name: _tag(value, max_characters) for name, value in values.items()}
    if span.error is not None:
        tags["error"] = _tag(span.error or "true", max_characters)
    entry: dict[str, object] = {
        "traceId": span.trace_id,
        "id": span.span_id,
        "name": span.name,
        "kind": span.kind.value,
        "timestamp": span.start_ns // 1000,
        "duration": max(1, (span.end_ns - span.start_ns) // 1000),
        "localEndpoint": {"serviceName": emitter.service},
        "tags": tags,
    }
    if span.parent_id:
        entry["parentId"] = span.parent_id
    return json.dumps(entry, separators=(",", ":")).encode()


def zipkin_request(spans: Sequence[bytes]) -> bytes:
    """Put encoded spans into the body for Zipkin's `/api/v2/spans`."""
    return b"[" + b",".join(spans) + b"]"


def _tag(value: Value, max_characters: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(str(value), max_characters)
