from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DestinationPolicy(_message.Message):
    __slots__ = ("namespace", "hostname", "sources", "policy", "ports", "subsets", "client_namespace")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    SUBSETS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hostname: str
    sources: _containers.RepeatedScalarFieldContainer[str]
    policy: TrafficPolicy
    ports: _containers.RepeatedCompositeFieldContainer[PortPolicy]
    subsets: _containers.RepeatedCompositeFieldContainer[DestinationSubset]
    client_namespace: str
    def __init__(self, namespace: _Optional[str] = ..., hostname: _Optional[str] = ..., sources: _Optional[_Iterable[str]] = ..., policy: _Optional[_Union[TrafficPolicy, _Mapping]] = ..., ports: _Optional[_Iterable[_Union[PortPolicy, _Mapping]]] = ..., subsets: _Optional[_Iterable[_Union[DestinationSubset, _Mapping]]] = ..., client_namespace: _Optional[str] = ...) -> None: ...

class PortPolicy(_message.Message):
    __slots__ = ("port", "policy")
    PORT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    port: int
    policy: TrafficPolicy
    def __init__(self, port: _Optional[int] = ..., policy: _Optional[_Union[TrafficPolicy, _Mapping]] = ...) -> None: ...

class LabelValue(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class DestinationSubset(_message.Message):
    __slots__ = ("name", "labels", "policy", "ports")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.RepeatedCompositeFieldContainer[LabelValue]
    policy: TrafficPolicy
    ports: _containers.RepeatedCompositeFieldContainer[PortPolicy]
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Iterable[_Union[LabelValue, _Mapping]]] = ..., policy: _Optional[_Union[TrafficPolicy, _Mapping]] = ..., ports: _Optional[_Iterable[_Union[PortPolicy, _Mapping]]] = ...) -> None: ...

class TrafficPolicy(_message.Message):
    __slots__ = ("balancing", "pool", "outliers", "tls", "proxy_protocol", "retry_budget")
    BALANCING_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    OUTLIERS_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    PROXY_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RETRY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    balancing: Balancing
    pool: ConnectionPool
    outliers: OutlierDetection
    tls: ClientTls
    proxy_protocol: int
    retry_budget: RetryBudget
    def __init__(self, balancing: _Optional[_Union[Balancing, _Mapping]] = ..., pool: _Optional[_Union[ConnectionPool, _Mapping]] = ..., outliers: _Optional[_Union[OutlierDetection, _Mapping]] = ..., tls: _Optional[_Union[ClientTls, _Mapping]] = ..., proxy_protocol: _Optional[int] = ..., retry_budget: _Optional[_Union[RetryBudget, _Mapping]] = ...) -> None: ...

class Balancing(_message.Message):
    __slots__ = ("balancer", "hash", "locality", "warmup")
    class Balancer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEAST_REQUEST: _ClassVar[Balancing.Balancer]
        RANDOM: _ClassVar[Balancing.Balancer]
        ROUND_ROBIN: _ClassVar[Balancing.Balancer]
        PASSTHROUGH: _ClassVar[Balancing.Balancer]
        PEAK_EWMA: _ClassVar[Balancing.Balancer]
    LEAST_REQUEST: Balancing.Balancer
    RANDOM: Balancing.Balancer
    ROUND_ROBIN: Balancing.Balancer
    PASSTHROUGH: Balancing.Balancer
    PEAK_EWMA: Balancing.Balancer
    BALANCER_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    balancer: Balancing.Balancer
    hash: ConsistentHash
    locality: LocalityPreference
    warmup: Warmup
    def __init__(self, balancer: _Optional[_Union[Balancing.Balancer, str]] = ..., hash: _Optional[_Union[ConsistentHash, _Mapping]] = ..., locality: _Optional[_Union[LocalityPreference, _Mapping]] = ..., warmup: _Optional[_Union[Warmup, _Mapping]] = ...) -> None: ...

class ConsistentHash(_message.Message):
    __slots__ = ("kind", "name", "cookie_path", "cookie_ttl_ms", "cookie_attributes", "algorithm", "size")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HEADER: _ClassVar[ConsistentHash.Kind]
        COOKIE: _ClassVar[ConsistentHash.Kind]
        SOURCE_IP: _ClassVar[ConsistentHash.Kind]
        QUERY: _ClassVar[ConsistentHash.Kind]
    HEADER: ConsistentHash.Kind
    COOKIE: ConsistentHash.Kind
    SOURCE_IP: ConsistentHash.Kind
    QUERY: ConsistentHash.Kind
    class Algorithm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RING: _ClassVar[ConsistentHash.Algorithm]
        MAGLEV: _ClassVar[ConsistentHash.Algorithm]
    RING: ConsistentHash.Algorithm
    MAGLEV: ConsistentHash.Algorithm
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COOKIE_PATH_FIELD_NUMBER: _ClassVar[int]
    COOKIE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    COOKIE_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    kind: ConsistentHash.Kind
    name: str
    cookie_path: str
    cookie_ttl_ms: int
    cookie_attributes: _containers.RepeatedCompositeFieldContainer[LabelValue]
    algorithm: ConsistentHash.Algorithm
    size: int
    def __init__(self, kind: _Optional[_Union[ConsistentHash.Kind, str]] = ..., name: _Optional[str] = ..., cookie_path: _Optional[str] = ..., cookie_ttl_ms: _Optional[int] = ..., cookie_attributes: _Optional[_Iterable[_Union[LabelValue, _Mapping]]] = ..., algorithm: _Optional[_Union[ConsistentHash.Algorithm, str]] = ..., size: _Optional[int] = ...) -> None: ...

class LocalityPreference(_message.Message):
    __slots__ = ("enabled", "distribute", "failover", "failover_priority")
    class Share(_message.Message):
        __slots__ = ("place", "percent")
        PLACE_FIELD_NUMBER: _ClassVar[int]
        PERCENT_FIELD_NUMBER: _ClassVar[int]
        place: str
        percent: int
        def __init__(self, place: _Optional[str] = ..., percent: _Optional[int] = ...) -> None: ...
    class Distribution(_message.Message):
        __slots__ = ("source", "shares")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        SHARES_FIELD_NUMBER: _ClassVar[int]
        source: str
        shares: _containers.RepeatedCompositeFieldContainer[LocalityPreference.Share]
        def __init__(self, source: _Optional[str] = ..., shares: _Optional[_Iterable[_Union[LocalityPreference.Share, _Mapping]]] = ...) -> None: ...
    class Failover(_message.Message):
        __slots__ = ("source", "target")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        TARGET_FIELD_NUMBER: _ClassVar[int]
        source: str
        target: str
        def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    FAILOVER_FIELD_NUMBER: _ClassVar[int]
    FAILOVER_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    distribute: _containers.RepeatedCompositeFieldContainer[LocalityPreference.Distribution]
    failover: _containers.RepeatedCompositeFieldContainer[LocalityPreference.Failover]
    failover_priority: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, enabled: _Optional[bool] = ..., distribute: _Optional[_Iterable[_Union[LocalityPreference.Distribution, _Mapping]]] = ..., failover: _Optional[_Iterable[_Union[LocalityPreference.Failover, _Mapping]]] = ..., failover_priority: _Optional[_Iterable[str]] = ...) -> None: ...

class Warmup(_message.Message):
    __slots__ = ("duration_ms", "minimum_percent", "aggression")
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_PERCENT_FIELD_NUMBER: _ClassVar[int]
    AGGRESSION_FIELD_NUMBER: _ClassVar[int]
    duration_ms: int
    minimum_percent: float
    aggression: float
    def __init__(self, duration_ms: _Optional[int] = ..., minimum_percent: _Optional[float] = ..., aggression: _Optional[float] = ...) -> None: ...

class Keepalive(_message.Message):
    __slots__ = ("probes", "time_ms", "interval_ms")
    PROBES_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    probes: int
    time_ms: int
    interval_ms: int
    def __init__(self, probes: _Optional[int] = ..., time_ms: _Optional[int] = ..., interval_ms: _Optional[int] = ...) -> None: ...

class ConnectionPool(_message.Message):
    __slots__ = ("max_connections", "connect_timeout_ms", "keepalive", "tcp_idle_timeout_ms", "max_connection_age_ms", "max_pending_requests", "max_requests", "max_requests_per_connection", "max_retries", "idle_timeout_ms", "http_upgrade", "use_client_protocol", "max_concurrent_streams", "ping_interval_ms", "ping_timeout_ms")
    class HttpUpgrade(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DEFAULT: _ClassVar[ConnectionPool.HttpUpgrade]
        NEVER: _ClassVar[ConnectionPool.HttpUpgrade]
        ALWAYS: _ClassVar[ConnectionPool.HttpUpgrade]
    DEFAULT: ConnectionPool.HttpUpgrade
    NEVER: ConnectionPool.HttpUpgrade
    ALWAYS: ConnectionPool.HttpUpgrade
    MAX_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    TCP_IDLE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONNECTION_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_PER_CONNECTION_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    HTTP_UPGRADE_FIELD_NUMBER: _ClassVar[int]
    USE_CLIENT_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_STREAMS_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    PING_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    max_connections: int
    connect_timeout_ms: int
    keepalive: Keepalive
    tcp_idle_timeout_ms: int
    max_connection_age_ms: int
    max_pending_requests: int
    max_requests: int
    max_requests_per_connection: int
    max_retries: int
    idle_timeout_ms: int
    http_upgrade: ConnectionPool.HttpUpgrade
    use_client_protocol: bool
    max_concurrent_streams: int
    ping_interval_ms: int
    ping_timeout_ms: int
    def __init__(self, max_connections: _Optional[int] = ..., connect_timeout_ms: _Optional[int] = ..., keepalive: _Optional[_Union[Keepalive, _Mapping]] = ..., tcp_idle_timeout_ms: _Optional[int] = ..., max_connection_age_ms: _Optional[int] = ..., max_pending_requests: _Optional[int] = ..., max_requests: _Optional[int] = ..., max_requests_per_connection: _Optional[int] = ..., max_retries: _Optional[int] = ..., idle_timeout_ms: _Optional[int] = ..., http_upgrade: _Optional[_Union[ConnectionPool.HttpUpgrade, str]] = ..., use_client_protocol: _Optional[bool] = ..., max_concurrent_streams: _Optional[int] = ..., ping_interval_ms: _Optional[int] = ..., ping_timeout_ms: _Optional[int] = ...) -> None: ...

class OutlierDetection(_message.Message):
    __slots__ = ("consecutive_5xx", "consecutive_gateway_errors", "split_local_errors", "consecutive_local_failures", "interval_ms", "base_ejection_ms", "max_ejection_percent", "min_health_percent", "max_ejection_ms")
    CONSECUTIVE_5XX_FIELD_NUMBER: _ClassVar[int]
    CONSECUTIVE_GATEWAY_ERRORS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_LOCAL_ERRORS_FIELD_NUMBER: _ClassVar[int]
    CONSECUTIVE_LOCAL_FAILURES_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    BASE_EJECTION_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_EJECTION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MIN_HEALTH_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MAX_EJECTION_MS_FIELD_NUMBER: _ClassVar[int]
    consecutive_5xx: int
    consecutive_gateway_errors: int
    split_local_errors: bool
    consecutive_local_failures: int
    interval_ms: int
    base_ejection_ms: int
    max_ejection_percent: int
    min_health_percent: int
    max_ejection_ms: int
    def __init__(self, consecutive_5xx: _Optional[int] = ..., consecutive_gateway_errors: _Optional[int] = ..., split_local_errors: _Optional[bool] = ..., consecutive_local_failures: _Optional[int] = ..., interval_ms: _Optional[int] = ..., base_ejection_ms: _Optional[int] = ..., max_ejection_percent: _Optional[int] = ..., min_health_percent: _Optional[int] = ..., max_ejection_ms: _Optional[int] = ...) -> None: ...

class ClientTls(_message.Message):
    __slots__ = ("mode", "sni", "subject_alt_names", "credential", "ca_file", "certificate_file", "key_file", "insecure", "problem")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DISABLE: _ClassVar[ClientTls.Mode]
        SIMPLE: _ClassVar[ClientTls.Mode]
        MUTUAL: _ClassVar[ClientTls.Mode]
        ISTIO_MUTUAL: _ClassVar[ClientTls.Mode]
        INVALID: _ClassVar[ClientTls.Mode]
    DISABLE: ClientTls.Mode
    SIMPLE: ClientTls.Mode
    MUTUAL: ClientTls.Mode
    ISTIO_MUTUAL: ClientTls.Mode
    INVALID: ClientTls.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    SNI_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_ALT_NAMES_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    CA_FILE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FILE_FIELD_NUMBER: _ClassVar[int]
    KEY_FILE_FIELD_NUMBER: _ClassVar[int]
    INSECURE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    mode: ClientTls.Mode
    sni: str
    subject_alt_names: _containers.RepeatedScalarFieldContainer[str]
    credential: str
    ca_file: str
    certificate_file: str
    key_file: str
    insecure: bool
    problem: str
    def __init__(self, mode: _Optional[_Union[ClientTls.Mode, str]] = ..., sni: _Optional[str] = ..., subject_alt_names: _Optional[_Iterable[str]] = ..., credential: _Optional[str] = ..., ca_file: _Optional[str] = ..., certificate_file: _Optional[str] = ..., key_file: _Optional[str] = ..., insecure: _Optional[bool] = ..., problem: _Optional[str] = ...) -> None: ...

class RetryBudget(_message.Message):
    __slots__ = ("percent", "interval_ms", "min_concurrent", "min_per_second")
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    MIN_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    percent: float
    interval_ms: int
    min_concurrent: int
    min_per_second: float
    def __init__(self, percent: _Optional[float] = ..., interval_ms: _Optional[int] = ..., min_concurrent: _Optional[int] = ..., min_per_second: _Optional[float] = ...) -> None: ...

class EndpointLabels(_message.Message):
    __slots__ = ("uid", "labels")
    UID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    uid: str
    labels: _containers.RepeatedCompositeFieldContainer[LabelValue]
    def __init__(self, uid: _Optional[str] = ..., labels: _Optional[_Iterable[_Union[LabelValue, _Mapping]]] = ...) -> None: ...
