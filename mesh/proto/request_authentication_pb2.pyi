from mesh.proto import http_policy_pb2 as _http_policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestAuthentication(_message.Message):
    __slots__ = ("name", "namespace", "rules", "services", "waypoints", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    WAYPOINTS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    rules: _containers.RepeatedCompositeFieldContainer[TokenRule]
    services: _containers.RepeatedCompositeFieldContainer[_http_policy_pb2.ServiceReference]
    waypoints: _containers.RepeatedScalarFieldContainer[str]
    problem: str
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[TokenRule, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[_http_policy_pb2.ServiceReference, _Mapping]]] = ..., waypoints: _Optional[_Iterable[str]] = ..., problem: _Optional[str] = ...) -> None: ...

class TokenRule(_message.Message):
    __slots__ = ("issuer", "audiences", "jwks", "jwks_uri", "headers", "params", "cookies", "forward", "payload_header", "claim_headers", "spaced_claims", "timeout_ms")
    class Header(_message.Message):
        __slots__ = ("name", "prefix")
        NAME_FIELD_NUMBER: _ClassVar[int]
        PREFIX_FIELD_NUMBER: _ClassVar[int]
        name: str
        prefix: str
        def __init__(self, name: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...
    class Claim(_message.Message):
        __slots__ = ("header", "claim")
        HEADER_FIELD_NUMBER: _ClassVar[int]
        CLAIM_FIELD_NUMBER: _ClassVar[int]
        header: str
        claim: str
        def __init__(self, header: _Optional[str] = ..., claim: _Optional[str] = ...) -> None: ...
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    AUDIENCES_FIELD_NUMBER: _ClassVar[int]
    JWKS_FIELD_NUMBER: _ClassVar[int]
    JWKS_URI_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    COOKIES_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HEADER_FIELD_NUMBER: _ClassVar[int]
    CLAIM_HEADERS_FIELD_NUMBER: _ClassVar[int]
    SPACED_CLAIMS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    issuer: str
    audiences: _containers.RepeatedScalarFieldContainer[str]
    jwks: str
    jwks_uri: str
    headers: _containers.RepeatedCompositeFieldContainer[TokenRule.Header]
    params: _containers.RepeatedScalarFieldContainer[str]
    cookies: _containers.RepeatedScalarFieldContainer[str]
    forward: bool
    payload_header: str
    claim_headers: _containers.RepeatedCompositeFieldContainer[TokenRule.Claim]
    spaced_claims: _containers.RepeatedScalarFieldContainer[str]
    timeout_ms: int
    def __init__(self, issuer: _Optional[str] = ..., audiences: _Optional[_Iterable[str]] = ..., jwks: _Optional[str] = ..., jwks_uri: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[TokenRule.Header, _Mapping]]] = ..., params: _Optional[_Iterable[str]] = ..., cookies: _Optional[_Iterable[str]] = ..., forward: _Optional[bool] = ..., payload_header: _Optional[str] = ..., claim_headers: _Optional[_Iterable[_Union[TokenRule.Claim, _Mapping]]] = ..., spaced_claims: _Optional[_Iterable[str]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...
