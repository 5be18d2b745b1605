from mesh.proto import destinations_pb2 as _destinations_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteTable(_message.Message):
    __slots__ = ("namespace", "hostname", "port", "rules", "client_namespace", "retry_budget")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    RETRY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hostname: str
    port: int
    rules: _containers.RepeatedCompositeFieldContainer[RouteRule]
    client_namespace: str
    retry_budget: _destinations_pb2.RetryBudget
    def __init__(self, namespace: _Optional[str] = ..., hostname: _Optional[str] = ..., port: _Optional[int] = ..., rules: _Optional[_Iterable[_Union[RouteRule, _Mapping]]] = ..., client_namespace: _Optional[str] = ..., retry_budget: _Optional[_Union[_destinations_pb2.RetryBudget, _Mapping]] = ...) -> None: ...

class StreamTable(_message.Message):
    __slots__ = ("namespace", "hostname", "port", "source", "backends", "client_namespace")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hostname: str
    port: int
    source: str
    backends: _containers.RepeatedCompositeFieldContainer[Backend]
    client_namespace: str
    def __init__(self, namespace: _Optional[str] = ..., hostname: _Optional[str] = ..., port: _Optional[int] = ..., source: _Optional[str] = ..., backends: _Optional[_Iterable[_Union[Backend, _Mapping]]] = ..., client_namespace: _Optional[str] = ...) -> None: ...

class RouteRule(_message.Message):
    __slots__ = ("source", "matches", "backends", "redirect", "rewrite", "request_headers", "response_headers", "request_timeout_ms", "try_timeout_ms", "retry", "direct", "fault", "mirrors", "cors")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    REWRITE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_HEADERS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TRY_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    MIRRORS_FIELD_NUMBER: _ClassVar[int]
    CORS_FIELD_NUMBER: _ClassVar[int]
    source: str
    matches: _containers.RepeatedCompositeFieldContainer[RequestMatch]
    backends: _containers.RepeatedCompositeFieldContainer[Backend]
    redirect: Redirect
    rewrite: Rewrite
    request_headers: HeaderOperations
    response_headers: HeaderOperations
    request_timeout_ms: int
    try_timeout_ms: int
    retry: Retry
    direct: DirectResponse
    fault: Fault
    mirrors: _containers.RepeatedCompositeFieldContainer[Mirror]
    cors: Cors
    def __init__(self, source: _Optional[str] = ..., matches: _Optional[_Iterable[_Union[RequestMatch, _Mapping]]] = ..., backends: _Optional[_Iterable[_Union[Backend, _Mapping]]] = ..., redirect: _Optional[_Union[Redirect, _Mapping]] = ..., rewrite: _Optional[_Union[Rewrite, _Mapping]] = ..., request_headers: _Optional[_Union[HeaderOperations, _Mapping]] = ..., response_headers: _Optional[_Union[HeaderOperations, _Mapping]] = ..., request_timeout_ms: _Optional[int] = ..., try_timeout_ms: _Optional[int] = ..., retry: _Optional[_Union[Retry, _Mapping]] = ..., direct: _Optional[_Union[DirectResponse, _Mapping]] = ..., fault: _Optional[_Union[Fault, _Mapping]] = ..., mirrors: _Optional[_Iterable[_Union[Mirror, _Mapping]]] = ..., cors: _Optional[_Union[Cors, _Mapping]] = ...) -> None: ...

class DirectResponse(_message.Message):
    __slots__ = ("status", "body")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status: int
    body: bytes
    def __init__(self, status: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("delay_ms", "delay_percent", "abort_status", "abort_grpc", "abort_percent")
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    DELAY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ABORT_STATUS_FIELD_NUMBER: _ClassVar[int]
    ABORT_GRPC_FIELD_NUMBER: _ClassVar[int]
    ABORT_PERCENT_FIELD_NUMBER: _ClassVar[int]
    delay_ms: int
    delay_percent: float
    abort_status: int
    abort_grpc: int
    abort_percent: float
    def __init__(self, delay_ms: _Optional[int] = ..., delay_percent: _Optional[float] = ..., abort_status: _Optional[int] = ..., abort_grpc: _Optional[int] = ..., abort_percent: _Optional[float] = ...) -> None: ...

class Mirror(_message.Message):
    __slots__ = ("namespace", "hostname", "port", "percent", "subset")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    SUBSET_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hostname: str
    port: int
    percent: float
    subset: str
    def __init__(self, namespace: _Optional[str] = ..., hostname: _Optional[str] = ..., port: _Optional[int] = ..., percent: _Optional[float] = ..., subset: _Optional[str] = ...) -> None: ...

class Cors(_message.Message):
    __slots__ = ("origins", "methods", "headers", "expose", "max_age_s", "credentials", "forward_unmatched")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    EXPOSE_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_UNMATCHED_FIELD_NUMBER: _ClassVar[int]
    origins: _containers.RepeatedCompositeFieldContainer[ValueMatch]
    methods: _containers.RepeatedScalarFieldContainer[str]
    headers: _containers.RepeatedScalarFieldContainer[str]
    expose: _containers.RepeatedScalarFieldContainer[str]
    max_age_s: int
    credentials: bool
    forward_unmatched: bool
    def __init__(self, origins: _Optional[_Iterable[_Union[ValueMatch, _Mapping]]] = ..., methods: _Optional[_Iterable[str]] = ..., headers: _Optional[_Iterable[str]] = ..., expose: _Optional[_Iterable[str]] = ..., max_age_s: _Optional[int] = ..., credentials: _Optional[bool] = ..., forward_unmatched: _Optional[bool] = ...) -> None: ...

class RequestMatch(_message.Message):
    __slots__ = ("path", "method", "authority", "headers", "query", "more_paths")
    PATH_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    MORE_PATHS_FIELD_NUMBER: _ClassVar[int]
    path: PathMatch
    method: ValueMatch
    authority: ValueMatch
    headers: _containers.RepeatedCompositeFieldContainer[ValueMatch]
    query: _containers.RepeatedCompositeFieldContainer[ValueMatch]
    more_paths: _containers.RepeatedCompositeFieldContainer[PathMatch]
    def __init__(self, path: _Optional[_Union[PathMatch, _Mapping]] = ..., method: _Optional[_Union[ValueMatch, _Mapping]] = ..., authority: _Optional[_Union[ValueMatch, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[ValueMatch, _Mapping]]] = ..., query: _Optional[_Iterable[_Union[ValueMatch, _Mapping]]] = ..., more_paths: _Optional[_Iterable[_Union[PathMatch, _Mapping]]] = ...) -> None: ...

class PathMatch(_message.Message):
    __slots__ = ("kind", "value", "ignore_case", "invert")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXACT: _ClassVar[PathMatch.Kind]
        PREFIX: _ClassVar[PathMatch.Kind]
        SEGMENT_PREFIX: _ClassVar[PathMatch.Kind]
        REGEX: _ClassVar[PathMatch.Kind]
    EXACT: PathMatch.Kind
    PREFIX: PathMatch.Kind
    SEGMENT_PREFIX: PathMatch.Kind
    REGEX: PathMatch.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    IGNORE_CASE_FIELD_NUMBER: _ClassVar[int]
    INVERT_FIELD_NUMBER: _ClassVar[int]
    kind: PathMatch.Kind
    value: str
    ignore_case: bool
    invert: bool
    def __init__(self, kind: _Optional[_Union[PathMatch.Kind, str]] = ..., value: _Optional[str] = ..., ignore_case: _Optional[bool] = ..., invert: _Optional[bool] = ...) -> None: ...

class ValueMatch(_message.Message):
    __slots__ = ("name", "kind", "value", "invert")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXACT: _ClassVar[ValueMatch.Kind]
        PREFIX: _ClassVar[ValueMatch.Kind]
        REGEX: _ClassVar[ValueMatch.Kind]
        PRESENT: _ClassVar[ValueMatch.Kind]
    EXACT: ValueMatch.Kind
    PREFIX: ValueMatch.Kind
    REGEX: ValueMatch.Kind
    PRESENT: ValueMatch.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    INVERT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ValueMatch.Kind
    value: str
    invert: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ValueMatch.Kind, str]] = ..., value: _Optional[str] = ..., invert: _Optional[bool] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class HeaderOperations(_message.Message):
    __slots__ = ("set", "add", "remove")
    SET_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    set: _containers.RepeatedCompositeFieldContainer[Header]
    add: _containers.RepeatedCompositeFieldContainer[Header]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, set: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., add: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class PathRewrite(_message.Message):
    __slots__ = ("full", "prefix", "regex", "substitution")
    FULL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    SUBSTITUTION_FIELD_NUMBER: _ClassVar[int]
    full: str
    prefix: str
    regex: str
    substitution: str
    def __init__(self, full: _Optional[str] = ..., prefix: _Optional[str] = ..., regex: _Optional[str] = ..., substitution: _Optional[str] = ...) -> None: ...

class Redirect(_message.Message):
    __slots__ = ("scheme", "hostname", "port", "path", "status")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    scheme: str
    hostname: str
    port: int
    path: PathRewrite
    status: int
    def __init__(self, scheme: _Optional[str] = ..., hostname: _Optional[str] = ..., port: _Optional[int] = ..., path: _Optional[_Union[PathRewrite, _Mapping]] = ..., status: _Optional[int] = ...) -> None: ...

class Rewrite(_message.Message):
    __slots__ = ("path", "hostname")
    PATH_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    path: PathRewrite
    hostname: str
    def __init__(self, path: _Optional[_Union[PathRewrite, _Mapping]] = ..., hostname: _Optional[str] = ...) -> None: ...

class Backend(_message.Message):
    __slots__ = ("namespace", "hostname", "port", "weight", "request_headers", "response_headers", "problem", "subset", "problem_status")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_HEADERS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SUBSET_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_STATUS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hostname: str
    port: int
    weight: int
    request_headers: HeaderOperations
    response_headers: HeaderOperations
    problem: str
    subset: str
    problem_status: int
    def __init__(self, namespace: _Optional[str] = ..., hostname: _Optional[str] = ..., port: _Optional[int] = ..., weight: _Optional[int] = ..., request_headers: _Optional[_Union[HeaderOperations, _Mapping]] = ..., response_headers: _Optional[_Union[HeaderOperations, _Mapping]] = ..., problem: _Optional[str] = ..., subset: _Optional[str] = ..., problem_status: _Optional[int] = ...) -> None: ...

class Retry(_message.Message):
    __slots__ = ("attempts", "status_codes", "on_connect_failure", "on_reset", "backoff_ms", "grpc_statuses", "on_refused", "on_reset_before_request", "other_endpoint")
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODES_FIELD_NUMBER: _ClassVar[int]
    ON_CONNECT_FAILURE_FIELD_NUMBER: _ClassVar[int]
    ON_RESET_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_MS_FIELD_NUMBER: _ClassVar[int]
    GRPC_STATUSES_FIELD_NUMBER: _ClassVar[int]
    ON_REFUSED_FIELD_NUMBER: _ClassVar[int]
    ON_RESET_BEFORE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    OTHER_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    attempts: int
    status_codes: _containers.RepeatedScalarFieldContainer[int]
    on_connect_failure: bool
    on_reset: bool
    backoff_ms: int
    grpc_statuses: _containers.RepeatedScalarFieldContainer[int]
    on_refused: bool
    on_reset_before_request: bool
    other_endpoint: bool
    def __init__(self, attempts: _Optional[int] = ..., status_codes: _Optional[_Iterable[int]] = ..., on_connect_failure: _Optional[bool] = ..., on_reset: _Optional[bool] = ..., backoff_ms: _Optional[int] = ..., grpc_statuses: _Optional[_Iterable[int]] = ..., on_refused: _Optional[bool] = ..., on_reset_before_request: _Optional[bool] = ..., other_endpoint: _Optional[bool] = ...) -> None: ...
