# SPDX-License-Identifier: Apache-2.0
"""Workloads, services and policies from the wire into the model, or refused by name.

Each resource is decoded alone and whole: an enum value, an address or a kind of match
that we do not know refuses its resource, because half a policy is another policy. Who
gets a `DecodeError` keeps what it had and says so to the sender (NACK).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TypeVar

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.model.address import IPAddress, IPNetwork, decode_ip
from mesh.model.locality import Locality
from mesh.model.policy import (
    Action,
    Authorization,
    Clause,
    Match,
    Rule,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from mesh.model.service import (
    AppProtocol,
    CidrVip,
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    LoadBalancingMode,
    LoadBalancingScope,
    Service,
    ServicePort,
    Visibility,
    WeightedWaypoint,
)
from mesh.model.workload import (
    ApplicationProtocol,
    ApplicationTunnel,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    PortMap,
    TunnelProtocol,
    Workload,
    WorkloadType,
)
from mesh.proto import authorization_pb2 as security
from mesh.proto import workload_pb2 as pb

MAX_PORT = 65_535
T = TypeVar("T")

# Wire numbers of istio.workload and istio.security; numbers that are not here are refused.
_TUNNEL = {0: TunnelProtocol.NONE, 1: TunnelProtocol.HBONE}
_WORKLOAD_TYPE = {
    0: WorkloadType.DEPLOYMENT,
    1: WorkloadType.CRONJOB,
    2: WorkloadType.POD,
    3: WorkloadType.JOB,
}
_NETWORK_MODE = {0: NetworkMode.STANDARD, 1: NetworkMode.HOST_NETWORK}
_HEALTHY = {0: True, 1: False}
_APPLICATION = {0: ApplicationProtocol.NONE, 1: ApplicationProtocol.PROXY}
_APP_PROTOCOL = {
    1: AppProtocol.HTTP11,
    2: AppProtocol.HTTP2,
    3: AppProtocol.GRPC,
    4: AppProtocol.TCP,
    5: AppProtocol.TLS,
}
_FAMILIES = {
    0: IpFamilies.AUTOMATIC,
    1: IpFamilies.IPV4_ONLY,
    2: IpFamilies.IPV6_ONLY,
    3: IpFamilies.DUAL,
}
_VISIBILITY = {0: Visibility.PUBLIC, 1: Visibility.NAMESPACE}
_LB_SCOPE = {
    1: LoadBalancingScope.REGION,
    2: LoadBalancingScope.ZONE,
    3: LoadBalancingScope.SUBZONE,
    4: LoadBalancingScope.NODE,
    5: LoadBalancingScope.CLUSTER,
    6: LoadBalancingScope.NETWORK,
}
_LB_MODE = {
    0: LoadBalancingMode.UNSPECIFIED,
    1: LoadBalancingMode.STRICT,
    2: LoadBalancingMode.FAILOVER,
    3: LoadBalancingMode.PASSTHROUGH,
}
_HEALTH_POLICY = {0: HealthPolicy.ONLY_HEALTHY, 1: HealthPolicy.ALLOW_ALL}
_SCOPE = {0: Scope.GLOBAL, 1: Scope.NAMESPACE, 2: Scope.WORKLOAD_SELECTOR}
_ACTION = {0: Action.ALLOW, 1: Action.DENY}


class DecodeError(Exception):
    """A resource cannot be taken: `name` says which (empty: it does not tell), `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name or 'unnamed resource'}: {reason}")
        self.name = name
        self.reason = reason


def decode_address(value: bytes, name: str = "") -> Workload | Service:
    """Decode an `istio.workload.Address`; with `name`, it must be the resource of that name.

    Raises:
        DecodeError: the sender's fault; the value in force stays.
    """
    address = pb.Address()
    try:
        address.ParseFromString(value)
    except ProtobufError as error:
        raise DecodeError(name, f"no istio.workload.Address: {error}") from error
    kind = address.WhichOneof("type")
    decoded: Workload | Service
    if kind == "workload":
        known = name or address.workload.uid
        try:
            decoded = _workload(address.workload)
        except (ValueError, IdentityError) as error:
            raise DecodeError(known, str(error)) from error
        key = decoded.uid
    elif kind == "service":
        known = name or f"{address.service.namespace}/{address.service.hostname}"
        try:
            decoded = _service(address.service)
        except ValueError as error:
            raise DecodeError(known, str(error)) from error
        key = str(decoded.key)
    else:
        raise DecodeError(name, "neither a workload nor a service")
    if name and key != name:
        raise DecodeError(name, f"holds {key}, which is another resource")
    return decoded


def decode_authorization(value: bytes, name: str = "") -> Authorization:
    """Decode an `istio.security.Authorization`; with `name`, it must be the policy of that name.

    Unknown fields refuse it too: one that we cannot read might be the one that narrows a rule.

    Raises:
        DecodeError: the sender's fault; the policy must then count as unusable, not as absent.
    """
    message = security.Authorization()
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise DecodeError(name, f"no istio.security.Authorization: {error}") from error
    known = name or f"{message.namespace}/{message.name}"
    try:
        policy = _authorization(message)
    except ValueError as error:
        raise DecodeError(known, str(error)) from error
    if name and policy.key != name:
        raise DecodeError(name, f"holds {policy.key}, which is another policy")
    return policy


def _workload(message: pb.Workload) -> Workload:
    if not message.uid:
        raise ValueError("a workload has a uid")
    workload = Workload(
        uid=message.uid,
        name=message.name,
        namespace=message.namespace,
        addresses=tuple(decode_ip(address) for address in message.addresses),
        network=message.network,
        hostname=message.hostname,
        tunnel_protocol=_enum("tunnel_protocol", _TUNNEL, message.tunnel_protocol),
        trust_domain=message.trust_domain or "cluster.local",
        service_account=message.service_account or "default",
        node=message.node,
        cluster_id=message.cluster_id or "Kubernetes",
        canonical_name=message.canonical_name,
        canonical_revision=message.canonical_revision,
        workload_type=_enum("workload_type", _WORKLOAD_TYPE, message.workload_type),
        workload_name=message.workload_name,
        network_mode=_enum("network_mode", _NETWORK_MODE, message.network_mode),
        healthy=_enum("status", _HEALTHY, message.status),
        capacity=message.capacity.value if message.HasField("capacity") else 1,
        locality=Locality(
            region=message.locality.region, zone=message.locality.zone, subzone=message.locality.subzone
        ),
        services={_service_key(key): _port_map(ports) for key, ports in sorted(message.services.items())},
        authorization_policies=tuple(message.authorization_policies),
        waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
        network_gateway=_gateway(message.network_gateway) if message.HasField("network_gateway") else None,
        application_tunnel=_application_tunnel(message.application_tunnel)
        if message.HasField("application_tunnel")
        else None,
    )
    # Joined into its identity, a part with a slash in it would name somebody else.
    SpiffeId(workload.trust_domain, workload.namespace, workload.service_account)
    return workload


def _application_tunnel(message: pb.ApplicationTunnel) -> ApplicationTunnel:
    return ApplicationTunnel(
        protocol=_enum("application_tunnel.protocol", _APPLICATION, message.protocol),
        port=_port(message.port),
    )


def _service(message: pb.Service) -> Service:
    if not message.namespace or not message.hostname or "/" in message.namespace + message.hostname:
        raise ValueError(f"{message.namespace!r}/{message.hostname!r} is no namespace and hostname")
    addresses: list[NetworkAddress] = []
    ranges: list[CidrVip] = []
    for wire in message.addresses:
        address = decode_ip(wire.address)
        length = wire.length.value if wire.HasField("length") else None
        if length is None or length == len(wire.address) * 8:
            addresses.append(NetworkAddress(network=wire.network, address=address))
        else:
            ranges.append(CidrVip(network=wire.network, cidr=_network(wire.address, length)))
    balancing = message.load_balancing
    return Service(
        name=message.name,
        namespace=message.namespace,
        hostname=message.hostname,
        addresses=tuple(addresses),
        cidr_addresses=tuple(ranges),
        ports=tuple(
            ServicePort(
                service_port=_port(port.service_port),
                target_port=_port(port.target_port),
                # A hint for L7 only; one that we do not know is no reason to lose the service.
                app_protocol=_APP_PROTOCOL.get(port.app_protocol, AppProtocol.UNKNOWN),
            )
            for port in message.ports
        ),
        subject_alt_names=tuple(message.subject_alt_names),
        waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
        weighted_waypoints=tuple(
            WeightedWaypoint(destination=_gateway(waypoint.destination), weight=waypoint.weight)
            for waypoint in message.weighted_waypoints
        ),
        load_balancing=LoadBalancing(
            preference=tuple(
                _enum("routing_preference", _LB_SCOPE, scope) for scope in balancing.routing_preference
            ),
            mode=_enum("load_balancing.mode", _LB_MODE, balancing.mode),
            health_policy=_enum("health_policy", _HEALTH_POLICY, balancing.health_policy),
        ),
        ip_families=_enum("ip_families", _FAMILIES, message.ip_families),
        canonical=message.canonical,
        ingress_use_waypoint=message.ingress_use_waypoint,
        visibility=_enum("visibility", _VISIBILITY, message.visibility),
    )


def _authorization(message: security.Authorization) -> Authorization:
    _refuse_unknown(message)
    if not message.name or not message.namespace or "/" in message.name + message.namespace:
        raise ValueError(f"{message.namespace!r}/{message.name!r} is no namespace and name")
    _refuse_extensions(message.extensions)
    return Authorization(
        name=message.name,
        namespace=message.namespace,
        scope=_enum("scope", _SCOPE, message.scope),
        action=_enum("action", _ACTION, message.action),
        rules=tuple(_rule(rule) for rule in message.rules),
        dry_run=message.dry_run,
    )


def _rule(message: security.Rule) -> Rule:
    _refuse_unknown(message)
    return tuple(_clause(clause) for clause in message.clauses)


def _clause(message: security.Clause) -> Clause:
    _refuse_unknown(message)
    return tuple(_match(match) for match in message.matches)


def _match(message: security.Match) -> Match:
    _refuse_unknown(message)
    _refuse_extensions(message.extensions)
    return Match(
        namespaces=_strings(message.namespaces),
        not_namespaces=_strings(message.not_namespaces),
        principals=_strings(message.principals),
        not_principals=_strings(message.not_principals),
        service_accounts=_accounts(message.service_accounts),
        not_service_accounts=_accounts(message.not_service_accounts),
        source_ips=_networks(message.source_ips),
        not_source_ips=_networks(message.not_source_ips),
        destination_ips=_networks(message.destination_ips),
        not_destination_ips=_networks(message.not_destination_ips),
        destination_ports=tuple(_port(port) for port in message.destination_ports),
        not_destination_ports=tuple(_port(port) for port in message.not_destination_ports),
    )


def _strings(messages: Iterable[security.StringMatch]) -> tuple[StringMatch, ...]:
    return tuple(_string(message) for message in messages)


def _string(message: security.StringMatch) -> StringMatch:
    _refuse_unknown(message)
    kind = message.WhichOneof("match_type")
    if kind == "exact":
        return StringMatch(kind=StringMatchKind.EXACT, value=message.exact)
    if kind == "prefix":
        return StringMatch(kind=StringMatchKind.PREFIX, value=message.prefix)
    if kind == "suffix":
        return StringMatch(kind=StringMatchKind.SUFFIX, value=message.suffix)
    if kind == "presence":
        return StringMatch(kind=StringMatchKind.PRESENCE)
    raise ValueError("a string match says how to compare")


def _accounts(messages: Iterable[security.ServiceAccountMatch]) -> tuple[ServiceAccountMatch, ...]:
    return tuple(_account(message) for message in messages)


def _account(message: security.ServiceAccountMatch) -> ServiceAccountMatch:
    _refuse_unknown(message)
    if not message.namespace or not message.serviceAccount:
        raise ValueError("a service account match names namespace and account")
    return ServiceAccountMatch(namespace=message.namespace, service_account=message.serviceAccount)


def _networks(messages: Iterable[security.Address]) -> tuple[IPNetwork, ...]:
    networks: list[IPNetwork] = []
    for message in messages:
        _refuse_unknown(message)
        networks.append(_network(message.address, message.length))
    return tuple(networks)


def _network(address: bytes, length: int) -> IPNetwork:
    """Make the network of `length` leading bits; one inside the v4-mapped range becomes IPv4's."""
    if len(address) not in (4, 16):
        raise ValueError(f"an IP address has 4 or 16 bytes, not {len(address)}")
    if length > len(address) * 8:
        raise ValueError(f"/{length} is no prefix of an address of {len(address)} bytes")
    ip: IPAddress = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None and length >= 96:
        ip, length = ip.ipv4_mapped, length - 96
    return ip_network((ip, length), strict=False)


def _service_key(text: str) -> NamespacedHostname:
    namespace, _, hostname = text.partition("/")
    if not namespace or not hostname or "/" in hostname:
        raise ValueError(f"{text!r} is no namespace/hostname")
    return NamespacedHostname(namespace=namespace, hostname=hostname)


def _port_map(message: pb.PortList) -> PortMap:
    return PortMap(ports={_port(port.service_port): _port(port.target_port) for port in message.ports})


def _gateway(message: pb.GatewayAddress) -> GatewayAddress:
    kind = message.WhichOneof("destination")
    port = _port(message.hbone_mtls_port)
    if kind == "hostname":
        key = _service_key(f"{message.hostname.namespace}/{message.hostname.hostname}")
        return GatewayAddress(destination=key, hbone_mtls_port=port)
    if kind == "address":
        address = decode_ip(message.address.address)
        destination = NetworkAddress(network=message.address.network, address=address)
        return GatewayAddress(destination=destination, hbone_mtls_port=port)
    raise ValueError("a gateway address has a destination")


def _port(number: int) -> int:
    if number > MAX_PORT:
        raise ValueError(f"{number} is no port")
    return number


def _enum(field: str, known: Mapping[int, T], number: int) -> T:
    try:
        return known[number]
    except KeyError:
        raise ValueError(f"{field} {number} is not known") from None


def _refuse_unknown(message: Message) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        numbers = ", ".join(str(unknown[index].field_number) for index in range(len(unknown)))
        raise ValueError(f"{message.DESCRIPTOR.name} has unknown fields: {numbers}")


def _refuse_extensions(extensions: Iterable[security.Extension]) -> None:
    names = [extension.name for extension in extensions]
    if names:
        raise ValueError(f"extensions are not supported: {', '.join(names)}")
