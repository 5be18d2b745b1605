from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Authoriser(_message.Message):
    __slots__ = ("name", "namespace", "hostname", "port", "grpc", "timeout_ms", "fail_open", "status_on_error", "path_prefix", "request_headers", "additional_headers", "upstream_headers", "denied_headers", "allowed_headers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    FAIL_OPEN_FIELD_NUMBER: _ClassVar[int]
    STATUS_ON_ERROR_FIELD_NUMBER: _ClassVar[int]
    PATH_PREFIX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_HEADERS_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_HEADERS_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_HEADERS_FIELD_NUMBER: _ClassVar[int]
    DENIED_HEADERS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_HEADERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    hostname: str
    port: int
    grpc: bool
    timeout_ms: int
    fail_open: bool
    status_on_error: int
    path_prefix: str
    request_headers: _containers.RepeatedScalarFieldContainer[str]
    additional_headers: _containers.RepeatedCompositeFieldContainer[HeaderValue]
    upstream_headers: _containers.RepeatedScalarFieldContainer[str]
    denied_headers: _containers.RepeatedScalarFieldContainer[str]
    allowed_headers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., hostname: _Optional[str] = ..., port: _Optional[int] = ..., grpc: _Optional[bool] = ..., timeout_ms: _Optional[int] = ..., fail_open: _Optional[bool] = ..., status_on_error: _Optional[int] = ..., path_prefix: _Optional[str] = ..., request_headers: _Optional[_Iterable[str]] = ..., additional_headers: _Optional[_Iterable[_Union[HeaderValue, _Mapping]]] = ..., upstream_headers: _Optional[_Iterable[str]] = ..., denied_headers: _Optional[_Iterable[str]] = ..., allowed_headers: _Optional[_Iterable[str]] = ...) -> None: ...

class HeaderValue(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
