# SPDX-License-Identifier: Apache-2.0
"""Finished spans as bytes: OTLP in protobuf, Zipkin v2 in JSON. Sending them is not done here.

Sources: opentelemetry-proto v1, OpenTelemetry's "Zipkin exporter" specification, zipkin-api v2.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from mesh.proto import otlp_pb2 as pb

Value = str | int | bool
SCOPE = "ambit.waypoint"


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


def encode_otlp(spans: Sequence[Span], emitter: Emitter, max_characters: int) -> bytes:
    """Encode an ExportTraceServiceRequest; longer texts of attributes are cut."""
    resource = {"service.name": emitter.service, **dict(emitter.attributes)}
    message = pb.ExportTraceServiceRequest(
        resource_spans=[
            pb.ResourceSpans(
                resource=pb.Resource(
                    attributes=[_attribute(k, v, max_characters) for k, v in resource.items()]
                ),
                scope_spans=[
                    pb.ScopeSpans(
                        scope=pb.InstrumentationScope(name=SCOPE, version=emitter.version),
                        spans=[_otlp_span(span, max_characters) for span in spans],
                    )
                ],
            )
        ]
    )
    return message.SerializeToString()


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


def _otlp_span(span: Span, max_characters: int) -> pb.Span:
    made = pb.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        trace_state=span.state,
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=pb.Span.SPAN_KIND_SERVER if span.kind is SpanKind.SERVER else pb.Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=[_attribute(name, value, max_characters) for name, value in span.attributes.items()],
        flags=1,
    )
    if span.error is not None:
        made.status.code = pb.Status.STATUS_CODE_ERROR
        made.status.message = span.error
    return made


def _attribute(name: str, value: Value, max_characters: int) -> pb.KeyValue:
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


def encode_zipkin(spans: Sequence[Span], emitter: Emitter, max_characters: int) -> bytes:
    """Encode a list of spans for Zipkin's `/api/v2/spans`."""
    local = {"serviceName": emitter.service}
    resource = dict(emitter.attributes)
    made = []
    for span in spans:
        values = resource | dict(span.attributes)
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
            "localEndpoint": local,
            "tags": tags,
        }
        if span.parent_id:
            entry["parentId"] = span.parent_id
        made.append(entry)
    return json.dumps(made, separators=(",", ":")).encode()


def _tag(value: Value, max_characters: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(str(value), max_characters)
