from mesh.proto import http_policy_pb2 as _http_policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TelemetryPolicy(_message.Message):
    __slots__ = ("name", "namespace", "services", "waypoints", "tracing", "log", "log_above", "metrics")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    WAYPOINTS_FIELD_NUMBER: _ClassVar[int]
    TRACING_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_ABOVE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    services: _containers.RepeatedCompositeFieldContainer[_http_policy_pb2.ServiceReference]
    waypoints: _containers.RepeatedScalarFieldContainer[str]
    tracing: Tracing
    log: bool
    log_above: int
    metrics: _containers.RepeatedCompositeFieldContainer[MetricOverride]
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., services: _Optional[_Iterable[_Union[_http_policy_pb2.ServiceReference, _Mapping]]] = ..., waypoints: _Optional[_Iterable[str]] = ..., tracing: _Optional[_Union[Tracing, _Mapping]] = ..., log: _Optional[bool] = ..., log_above: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[MetricOverride, _Mapping]]] = ...) -> None: ...

class Tracing(_message.Message):
    __slots__ = ("tracers", "has_tracers", "sampling_percent", "disabled", "tags", "has_tags")
    TRACERS_FIELD_NUMBER: _ClassVar[int]
    HAS_TRACERS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PERCENT_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    HAS_TAGS_FIELD_NUMBER: _ClassVar[int]
    tracers: _containers.RepeatedCompositeFieldContainer[Tracer]
    has_tracers: bool
    sampling_percent: float
    disabled: bool
    tags: _containers.RepeatedCompositeFieldContainer[CustomTag]
    has_tags: bool
    def __init__(self, tracers: _Optional[_Iterable[_Union[Tracer, _Mapping]]] = ..., has_tracers: _Optional[bool] = ..., sampling_percent: _Optional[float] = ..., disabled: _Optional[bool] = ..., tags: _Optional[_Iterable[_Union[CustomTag, _Mapping]]] = ..., has_tags: _Optional[bool] = ...) -> None: ...

class Tracer(_message.Message):
    __slots__ = ("name", "service", "port", "protocol", "path", "headers", "timeout_ms", "max_tag_length")
    class Protocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OTLP_GRPC: _ClassVar[Tracer.Protocol]
        OTLP_HTTP: _ClassVar[Tracer.Protocol]
        ZIPKIN: _ClassVar[Tracer.Protocol]
    OTLP_GRPC: Tracer.Protocol
    OTLP_HTTP: Tracer.Protocol
    ZIPKIN: Tracer.Protocol
    class Header(_message.Message):
        __slots__ = ("name", "value")
        NAME_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        name: str
        value: str
        def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_TAG_LENGTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    service: _http_policy_pb2.ServiceReference
    port: int
    protocol: Tracer.Protocol
    path: str
    headers: _containers.RepeatedCompositeFieldContainer[Tracer.Header]
    timeout_ms: int
    max_tag_length: int
    def __init__(self, name: _Optional[str] = ..., service: _Optional[_Union[_http_policy_pb2.ServiceReference, _Mapping]] = ..., port: _Optional[int] = ..., protocol: _Optional[_Union[Tracer.Protocol, str]] = ..., path: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Tracer.Header, _Mapping]]] = ..., timeout_ms: _Optional[int] = ..., max_tag_length: _Optional[int] = ...) -> None: ...

class CustomTag(_message.Message):
    __slots__ = ("name", "value", "header")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    header: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., header: _Optional[str] = ...) -> None: ...

class MetricOverride(_message.Message):
    __slots__ = ("metric", "disabled", "removed")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    metric: str
    disabled: bool
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, metric: _Optional[str] = ..., disabled: _Optional[bool] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...
