from mesh.proto import routes_pb2 as _routes_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListenerProtocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LISTENER_PROTOCOL_UNSPECIFIED: _ClassVar[ListenerProtocol]
    LISTENER_PROTOCOL_HTTP: _ClassVar[ListenerProtocol]
    LISTENER_PROTOCOL_HTTPS: _ClassVar[ListenerProtocol]
LISTENER_PROTOCOL_UNSPECIFIED: ListenerProtocol
LISTENER_PROTOCOL_HTTP: ListenerProtocol
LISTENER_PROTOCOL_HTTPS: ListenerProtocol

class IngressGateway(_message.Message):
    __slots__ = ("namespace", "name", "listeners", "through_waypoint")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_WAYPOINT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    listeners: _containers.RepeatedCompositeFieldContainer[GatewayListener]
    through_waypoint: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., listeners: _Optional[_Iterable[_Union[GatewayListener, _Mapping]]] = ..., through_waypoint: _Optional[_Iterable[str]] = ...) -> None: ...

class GatewayListener(_message.Message):
    __slots__ = ("name", "port", "protocol", "hostname", "certificates", "hosts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    port: int
    protocol: ListenerProtocol
    hostname: str
    certificates: _containers.RepeatedScalarFieldContainer[str]
    hosts: _containers.RepeatedCompositeFieldContainer[HostRules]
    def __init__(self, name: _Optional[str] = ..., port: _Optional[int] = ..., protocol: _Optional[_Union[ListenerProtocol, str]] = ..., hostname: _Optional[str] = ..., certificates: _Optional[_Iterable[str]] = ..., hosts: _Optional[_Iterable[_Union[HostRules, _Mapping]]] = ...) -> None: ...

class HostRules(_message.Message):
    __slots__ = ("hostname", "rules")
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    rules: _containers.RepeatedCompositeFieldContainer[_routes_pb2.RouteRule]
    def __init__(self, hostname: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[_routes_pb2.RouteRule, _Mapping]]] = ...) -> None: ...
