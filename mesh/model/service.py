# SPDX-License-Identifier: Apache-2.0
"""A service: a stable name with virtual addresses and ports that selects endpoints."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mesh.model.address import IPNetwork
from mesh.model.workload import GatewayAddress, NamespacedHostname, NetworkAddress


class AppProtocol(enum.Enum):
    """What a service port is declared to speak (`istio.workload.AppProtocol`)."""

    UNKNOWN = "unknown"
    HTTP11 = "http11"
    HTTP2 = "http2"
    GRPC = "grpc"
    TCP = "tcp"
    TLS = "tls"


class LoadBalancingScope(enum.Enum):
    """One step of a routing preference, nearest places compared first."""

    REGION = "region"
    ZONE = "zone"
    SUBZONE = "subzone"
    NODE = "node"
    CLUSTER = "cluster"
    NETWORK = "network"


class LoadBalancingMode(enum.Enum):
    """What a routing preference does to endpoints that do not match it."""

    UNSPECIFIED = "unspecified"
    STRICT = "strict"
    FAILOVER = "failover"
    PASSTHROUGH = "passthrough"


class HealthPolicy(enum.Enum):
    """Which endpoints may be chosen (`LoadBalancing.HealthPolicy`)."""

    ONLY_HEALTHY = "only_healthy"
    ALLOW_ALL = "allow_all"


class IpFamilies(enum.Enum):
    """Address families that the service offers."""

    AUTOMATIC = "automatic"
    IPV4_ONLY = "ipv4_only"
    IPV6_ONLY = "ipv6_only"
    DUAL = "dual"


class Visibility(enum.Enum):
    """Who may reach the service by VIP, name or DNS."""

    PUBLIC = "public"
    NAMESPACE = "namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of a service; both numbers host-order."""

    service_port: int
    target_port: int
    """0: named port, each endpoint says its own number."""
    app_protocol: AppProtocol = AppProtocol.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    """How an endpoint is chosen."""

    preference: tuple[LoadBalancingScope, ...] = ()
    mode: LoadBalancingMode = LoadBalancingMode.UNSPECIFIED
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY


@dataclass(frozen=True, slots=True, kw_only=True)
class CidrVip:
    """A virtual address range (ServiceEntry with CIDR addresses)."""

    network: str
    cidr: IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedWaypoint:
    """A waypoint that takes `weight` parts of the connections (canary)."""

    destination: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service as `istio.workload.Service` describes it; key `namespace/hostname`."""

    name: str
    namespace: str
    hostname: str
    addresses: tuple[NetworkAddress, ...] = ()
    """Virtual addresses; empty for a headless service."""
    cidr_addresses: tuple[CidrVip, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    subject_alt_names: tuple[str, ...] = ()
    """Identities that its endpoints may also present, beside their own."""
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancing: LoadBalancing = field(default_factory=LoadBalancing)
    ip_families: IpFamilies = IpFamilies.AUTOMATIC
    canonical: bool = False
    """Wins where several services claim one VIP or hostname."""
    ingress_use_waypoint: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> NamespacedHostname:
        """Its key in stores and on the wire."""
        return NamespacedHostname(namespace=self.namespace, hostname=self.hostname)

    def port(self, service_port: int) -> ServicePort | None:
        """Return the port with this number, if the service has it."""
        for port in self.ports:
            if port.service_port == service_port:
                return port
        return None
