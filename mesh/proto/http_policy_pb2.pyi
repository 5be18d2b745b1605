from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HttpAuthorization(_message.Message):
    __slots__ = ("name", "namespace", "action", "rules", "services", "waypoints", "provider", "dry_run")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ALLOW: _ClassVar[HttpAuthorization.Action]
        DENY: _ClassVar[HttpAuthorization.Action]
        AUDIT: _ClassVar[HttpAuthorization.Action]
        CUSTOM: _ClassVar[HttpAuthorization.Action]
    ALLOW: HttpAuthorization.Action
    DENY: HttpAuthorization.Action
    AUDIT: HttpAuthorization.Action
    CUSTOM: HttpAuthorization.Action
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    WAYPOINTS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    action: HttpAuthorization.Action
    rules: _containers.RepeatedCompositeFieldContainer[HttpRule]
    services: _containers.RepeatedCompositeFieldContainer[ServiceReference]
    waypoints: _containers.RepeatedScalarFieldContainer[str]
    provider: str
    dry_run: bool
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., action: _Optional[_Union[HttpAuthorization.Action, str]] = ..., rules: _Optional[_Iterable[_Union[HttpRule, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServiceReference, _Mapping]]] = ..., waypoints: _Optional[_Iterable[str]] = ..., provider: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class ServiceReference(_message.Message):
    __slots__ = ("namespace", "hostname")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hostname: str
    def __init__(self, namespace: _Optional[str] = ..., hostname: _Optional[str] = ...) -> None: ...

class HttpRule(_message.Message):
    __slots__ = ("sources", "operations", "conditions")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[HttpSource]
    operations: _containers.RepeatedCompositeFieldContainer[HttpOperation]
    conditions: _containers.RepeatedCompositeFieldContainer[HttpCondition]
    def __init__(self, sources: _Optional[_Iterable[_Union[HttpSource, _Mapping]]] = ..., operations: _Optional[_Iterable[_Union[HttpOperation, _Mapping]]] = ..., conditions: _Optional[_Iterable[_Union[HttpCondition, _Mapping]]] = ...) -> None: ...

class TextMatch(_message.Message):
    __slots__ = ("kind", "value")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXACT: _ClassVar[TextMatch.Kind]
        PREFIX: _ClassVar[TextMatch.Kind]
        SUFFIX: _ClassVar[TextMatch.Kind]
        PRESENT: _ClassVar[TextMatch.Kind]
        TEMPLATE: _ClassVar[TextMatch.Kind]
    EXACT: TextMatch.Kind
    PREFIX: TextMatch.Kind
    SUFFIX: TextMatch.Kind
    PRESENT: TextMatch.Kind
    TEMPLATE: TextMatch.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    kind: TextMatch.Kind
    value: str
    def __init__(self, kind: _Optional[_Union[TextMatch.Kind, str]] = ..., value: _Optional[str] = ...) -> None: ...

class HttpSource(_message.Message):
    __slots__ = ("principals", "not_principals", "request_principals", "not_request_principals", "namespaces", "not_namespaces", "service_accounts", "not_service_accounts", "ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks")
    PRINCIPALS_FIELD_NUMBER: _ClassVar[int]
    NOT_PRINCIPALS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PRINCIPALS_FIELD_NUMBER: _ClassVar[int]
    NOT_REQUEST_PRINCIPALS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    NOT_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    NOT_SERVICE_ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    IP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NOT_IP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_IP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NOT_REMOTE_IP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    principals: _containers.RepeatedCompositeFieldContainer[TextMatch]
    not_principals: _containers.RepeatedCompositeFieldContainer[TextMatch]
    request_principals: _containers.RepeatedCompositeFieldContainer[TextMatch]
    not_request_principals: _containers.RepeatedCompositeFieldContainer[TextMatch]
    namespaces: _containers.RepeatedCompositeFieldContainer[TextMatch]
    not_namespaces: _containers.RepeatedCompositeFieldContainer[TextMatch]
    service_accounts: _containers.RepeatedScalarFieldContainer[str]
    not_service_accounts: _containers.RepeatedScalarFieldContainer[str]
    ip_blocks: _containers.RepeatedScalarFieldContainer[str]
    not_ip_blocks: _containers.RepeatedScalarFieldContainer[str]
    remote_ip_blocks: _containers.RepeatedScalarFieldContainer[str]
    not_remote_ip_blocks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, principals: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., not_principals: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., request_principals: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., not_request_principals: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., namespaces: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., not_namespaces: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., service_accounts: _Optional[_Iterable[str]] = ..., not_service_accounts: _Optional[_Iterable[str]] = ..., ip_blocks: _Optional[_Iterable[str]] = ..., not_ip_blocks: _Optional[_Iterable[str]] = ..., remote_ip_blocks: _Optional[_Iterable[str]] = ..., not_remote_ip_blocks: _Optional[_Iterable[str]] = ...) -> None: ...

class HttpOperation(_message.Message):
    __slots__ = ("hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths", "ports", "not_ports")
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    NOT_HOSTS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    NOT_METHODS_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    NOT_PATHS_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    NOT_PORTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[TextMatch]
    not_hosts: _containers.RepeatedCompositeFieldContainer[TextMatch]
    methods: _containers.RepeatedCompositeFieldContainer[TextMatch]
    not_methods: _containers.RepeatedCompositeFieldContainer[TextMatch]
    paths: _containers.RepeatedCompositeFieldContainer[TextMatch]
    not_paths: _containers.RepeatedCompositeFieldContainer[TextMatch]
    ports: _containers.RepeatedScalarFieldContainer[int]
    not_ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hosts: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., not_hosts: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., methods: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., not_methods: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., paths: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., not_paths: _Optional[_Iterable[_Union[TextMatch, _Mapping]]] = ..., ports: _Optional[_Iterable[int]] = ..., not_ports: _Optional[_Iterable[int]] = ...) -> None: ...

class HttpCondition(_message.Message):
    __slots__ = ("key", "values", "not_values")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NOT_VALUES_FIELD_NUMBER: _ClassVar[int]
    key: str
    values: _containers.RepeatedScalarFieldContainer[str]
    not_values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ..., not_values: _Optional[_Iterable[str]] = ...) -> None: ...
