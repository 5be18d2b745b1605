# SPDX-License-Identifier: Apache-2.0
"""A workload: one addressable instance (usually a pod) and what the mesh knows of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.model.address import IPAddress
from mesh.model.locality import Locality


class TunnelProtocol(enum.Enum):
    """How a workload is reached (`istio.workload.TunnelProtocol`)."""

    NONE = "none"
    HBONE = "hbone"


class WorkloadType(enum.Enum):
    """Kind of the controller that owns the workload, for telemetry."""

    DEPLOYMENT = "deployment"
    CRONJOB = "cronjob"
    POD = "pod"
    JOB = "job"


class NetworkMode(enum.Enum):
    """Whether the workload has addresses of its own (`istio.workload.NetworkMode`)."""

    STANDARD = "standard"
    HOST_NETWORK = "host_network"


class ApplicationProtocol(enum.Enum):
    """What a waypoint or gateway speaks behind its tunnel (`ApplicationTunnel.Protocol`)."""

    NONE = "none"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationTunnel:
    """The workload takes connections for others on one port of its own."""

    protocol: ApplicationProtocol
    port: int
    """Host-order port; 0 keeps the port of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacedHostname:
    """Key of a service: `namespace/hostname`."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAddress:
    """An address within a network; equal addresses of different networks differ."""

    network: str
    address: IPAddress

    def __str__(self) -> str:
        return f"{self.network}/{self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """Where a waypoint or network gateway is found: a service by name, or an address."""

    destination: NamespacedHostname | NetworkAddress
    hbone_mtls_port: int
    """Host-order port of its HBONE listener."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMap:
    """Service port -> target port of one endpoint; both host-order ints."""

    ports: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One addressable instance, as `istio.workload.Workload` describes it.

    `uid` is its key on the wire (`cluster/group/kind/namespace/name`), `name` and
    `namespace` those of the pod. Strings that the source left out are empty,
    except for the documented defaults, which the decoder fills in.
    """

    uid: str
    name: str
    namespace: str
    addresses: tuple[IPAddress, ...] = ()
    network: str = ""
    hostname: str = ""
    """A name to resolve when there are no addresses (ServiceEntry of resolution DNS)."""
    tunnel_protocol: TunnelProtocol = TunnelProtocol.NONE
    trust_domain: str = "cluster.local"
    service_account: str = "default"
    node: str = ""
    cluster_id: str = "Kubernetes"
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: WorkloadType = WorkloadType.POD
    workload_name: str = ""
    network_mode: NetworkMode = NetworkMode.STANDARD
    healthy: bool = True
    capacity: int = 1
    """Weight in load balancing; 0 takes no traffic."""
    locality: Locality = field(default_factory=Locality)
    services: Mapping[NamespacedHostname, PortMap] = field(default_factory=dict)
    authorization_policies: tuple[str, ...] = ()
    """Names (`namespace/name`) of the selector-scoped policies that apply to it."""
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    application_tunnel: ApplicationTunnel | None = None

    @property
    def identity(self) -> str:
        """The SPIFFE id of its service account, as text."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"
