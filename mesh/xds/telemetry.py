# SPDX-License-Identifier: Apache-2.0
"""Telemetry policies between model and wire; resource name `namespace/name`. Ours alone."""

from __future__ import annotations

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.telemetry import (
    DEFAULT_TAG_LENGTH,
    CustomTag,
    MetricOverride,
    TelemetryPolicy,
    Tracer,
    TracerProtocol,
    Tracing,
)
from mesh.model.workload import NamespacedHostname
from mesh.proto import http_policy_pb2
from mesh.proto import telemetry_pb2 as pb

TELEMETRY_TYPE = "type.googleapis.com/ambit.mesh.v1.TelemetryPolicy"
_PROTOCOLS = {
    TracerProtocol.OTLP_GRPC: pb.Tracer.OTLP_GRPC,
    TracerProtocol.OTLP_HTTP: pb.Tracer.OTLP_HTTP,
    TracerProtocol.ZIPKIN: pb.Tracer.ZIPKIN,
}
_BY_NUMBER = {number: protocol for protocol, number in _PROTOCOLS.items()}


def encode_telemetry(policy: TelemetryPolicy) -> bytes:
    """Encode deterministically, so that equal policies have equal bytes and versions."""
    tracing = policy.tracing
    message = pb.TelemetryPolicy(
        name=policy.name,
        namespace=policy.namespace,
        services=[_reference(service) for service in policy.services],
        waypoints=policy.waypoints,
        tracing=pb.Tracing(
            tracers=[_encode_tracer(tracer) for tracer in tracing.tracers or ()],
            has_tracers=tracing.tracers is not None,
            sampling_percent=tracing.sampling_percent,
            disabled=tracing.disabled,
            tags=[pb.CustomTag(name=t.name, value=t.value, header=t.header) for t in tracing.tags or ()],
            has_tags=tracing.tags is not None,
        ),
        log=policy.log,
        log_above=policy.log_above,
        metrics=[
            pb.MetricOverride(metric=each.metric, disabled=each.disabled, removed=each.removed)
            for each in policy.metrics
        ],
    )
    return message.SerializeToString(deterministic=True)


def _reference(service: NamespacedHostname) -> http_policy_pb2.ServiceReference:
    return http_policy_pb2.ServiceReference(namespace=service.namespace, hostname=service.hostname)


def _encode_tracer(tracer: Tracer) -> pb.Tracer:
    return pb.Tracer(
        name=tracer.name,
        service=_reference(tracer.service),
        port=tracer.port,
        protocol=_PROTOCOLS[tracer.protocol],
        path=tracer.path,
        headers=[pb.Tracer.Header(name=name, value=value) for name, value in tracer.headers],
        timeout_ms=round(tracer.timeout_s * 1000),
        max_tag_length=tracer.max_tag_length,
    )


def decode_telemetry(value: bytes) -> TelemetryPolicy:
    """Decode one policy.

    Raises:
        ValueError: the bytes are no policy, or one whose collector has no address (the controller's fault).
    """
    try:
        message = pb.TelemetryPolicy.FromString(value)
    except ProtobufError as error:
        raise ValueError(f"not a telemetry policy: {error}") from error
    told = message.tracing
    tags = tuple(CustomTag(name=t.name, value=t.value, header=t.header) for t in told.tags)
    return TelemetryPolicy(
        name=message.name,
        namespace=message.namespace,
        services=tuple(
            NamespacedHostname(namespace=s.namespace, hostname=s.hostname) for s in message.services
        ),
        waypoints=tuple(message.waypoints),
        tracing=Tracing(
            tracers=tuple(map(_decode_tracer, told.tracers)) if told.has_tracers else None,
            sampling_percent=told.sampling_percent if told.HasField("sampling_percent") else None,
            disabled=told.disabled if told.HasField("disabled") else None,
            tags=tags if told.has_tags else None,
        ),
        log=message.log if message.HasField("log") else None,
        log_above=message.log_above,
        metrics=tuple(
            MetricOverride(
                metric=each.metric,
                disabled=each.disabled if each.HasField("disabled") else None,
                removed=tuple(each.removed),
            )
            for each in message.metrics
        ),
    )


def _decode_tracer(message: pb.Tracer) -> Tracer:
    service = message.service
    protocol = _BY_NUMBER.get(message.protocol)
    if protocol is None:
        raise ValueError(f"tracer {message.name!r}: protocol {message.protocol} is not known")
    if not service.hostname or not 0 < message.port < 65536:
        raise ValueError(f"tracer {message.name!r} names no service and port")
    return Tracer(
        name=message.name,
        service=NamespacedHostname(namespace=service.namespace, hostname=service.hostname),
        port=message.port,
        protocol=protocol,
        path=message.path,
        headers=tuple((header.name, header.value) for header in message.headers),
        timeout_s=message.timeout_ms / 1000 or 10.0,
        max_tag_length=message.max_tag_length or DEFAULT_TAG_LENGTH,
    )
