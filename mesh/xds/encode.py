# SPDX-License-Identifier: Apache-2.0
"""Workloads, services and policies from the model onto the wire, as `decode` reads them.

Bytes are deterministic, so that equal values have equal versions. Istio's ztunnel
reads the same messages.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.wrappers_pb2 import UInt32Value

from mesh.model.address import IPNetwork
from mesh.model.locality import Locality
from mesh.model.policy import (
    Action,
    Authorization,
    Match,
    Rule,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from mesh.model.service import CidrVip, Service
from mesh.model.workload import (
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    PortMap,
    Workload,
)
from mesh.proto import authorization_pb2 as security
from mesh.proto import workload_pb2 as pb


def resource_name(value: Workload | Service | Authorization) -> str:
    """Return the resource's name: uid, `namespace/hostname` or `namespace/name`."""
    return value.uid if isinstance(value, Workload) else str(value.key)


def encode_address(value: Workload | Service) -> bytes:
    """Encode as `istio.workload.Address`."""
    if isinstance(value, Workload):
        address = pb.Address(workload=_workload(value))
    else:
        address = pb.Address(service=_service(value))
    return address.SerializeToString(deterministic=True)


def encode_authorization(policy: Authorization) -> bytes:
    """Encode as `istio.security.Authorization`."""
    message = security.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=_SCOPE[policy.scope],
        action=_ACTION[policy.action],
        rules=[_rule(rule) for rule in policy.rules],
        dry_run=policy.dry_run,
    )
    return message.SerializeToString(deterministic=True)


_SCOPE = {
    Scope.GLOBAL: security.Scope.GLOBAL,
    Scope.NAMESPACE: security.Scope.NAMESPACE,
    Scope.WORKLOAD_SELECTOR: security.Scope.WORKLOAD_SELECTOR,
}
_ACTION = {Action.ALLOW: security.Action.ALLOW, Action.DENY: security.Action.DENY}


def _workload(workload: Workload) -> pb.Workload:
    tunnel = workload.application_tunnel
    return pb.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[address.packed for address in workload.addresses],
        hostname=workload.hostname,
        network=workload.network,
        tunnel_protocol=workload.tunnel_protocol.name,
        trust_domain=workload.trust_domain,
        service_account=workload.service_account,
        waypoint=_gateway(workload.waypoint),
        network_gateway=_gateway(workload.network_gateway),
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=workload.workload_type.name,
        workload_name=workload.workload_name,
        application_tunnel=None
        if tunnel is None
        else pb.ApplicationTunnel(protocol=tunnel.protocol.name, port=tunnel.port),
        services={str(key): _port_list(ports) for key, ports in workload.services.items()},
        authorization_policies=workload.authorization_policies,
        status=pb.WorkloadStatus.HEALTHY if workload.healthy else pb.WorkloadStatus.UNHEALTHY,
        cluster_id=workload.cluster_id,
        locality=_locality(workload.locality),
        network_mode=workload.network_mode.name,
        capacity=UInt32Value(value=workload.capacity),
    )


def _locality(locality: Locality) -> pb.Locality | None:
    if locality == Locality():
        return None
    return pb.Locality(region=locality.region, zone=locality.zone, subzone=locality.subzone)


def _port_list(ports: PortMap) -> pb.PortList:
    return pb.PortList(
        ports=[pb.Port(service_port=port, target_port=target) for port, target in sorted(ports.ports.items())]
    )


def _service(service: Service) -> pb.Service:
    balancing = service.load_balancing
    return pb.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        addresses=[_network_address(address) for address in service.addresses]
        + [_range(cidr) for cidr in service.cidr_addresses],
        ports=[
            pb.Port(
                service_port=port.service_port,
                target_port=port.target_port,
                app_protocol=port.app_protocol.name,
            )
            for port in service.ports
        ],
        subject_alt_names=service.subject_alt_names,
        waypoint=_gateway(service.waypoint),
        weighted_waypoints=[
            pb.WeightedWaypoint(destination=_gateway(waypoint.destination), weight=waypoint.weight)
            for waypoint in service.weighted_waypoints
        ],
        load_balancing=pb.LoadBalancing(
            routing_preference=[scope.name for scope in balancing.preference],
            mode="UNSPECIFIED_MODE" if balancing.mode.name == "UNSPECIFIED" else balancing.mode.name,
            health_policy=balancing.health_policy.name,
        ),
        ip_families=service.ip_families.name,
        canonical=service.canonical,
        ingress_use_waypoint=service.ingress_use_waypoint,
        visibility=service.visibility.name,
    )


def _network_address(address: NetworkAddress) -> pb.NetworkAddress:
    return pb.NetworkAddress(network=address.network, address=address.address.packed)


def _range(vip: CidrVip) -> pb.NetworkAddress:
    return pb.NetworkAddress(
        network=vip.network,
        address=vip.cidr.network_address.packed,
        length=UInt32Value(value=vip.cidr.prefixlen),
    )


def _gateway(gateway: GatewayAddress | None) -> pb.GatewayAddress | None:
    if gateway is None:
        return None
    destination = gateway.destination
    if isinstance(destination, NamespacedHostname):
        name = pb.NamespacedHostname(namespace=destination.namespace, hostname=destination.hostname)
        return pb.GatewayAddress(hostname=name, hbone_mtls_port=gateway.hbone_mtls_port)
    return pb.GatewayAddress(address=_network_address(destination), hbone_mtls_port=gateway.hbone_mtls_port)


def _rule(rule: Rule) -> security.Rule:
    return security.Rule(
        clauses=[security.Clause(matches=[_match(match) for match in clause]) for clause in rule]
    )


def _match(match: Match) -> security.Match:
    return security.Match(
        namespaces=_strings(match.namespaces),
        not_namespaces=_strings(match.not_namespaces),
        principals=_strings(match.principals),
        not_principals=_strings(match.not_principals),
        service_accounts=_accounts(match.service_accounts),
        not_service_accounts=_accounts(match.not_service_accounts),
        source_ips=_networks(match.source_ips),
        not_source_ips=_networks(match.not_source_ips),
        destination_ips=_networks(match.destination_ips),
        not_destination_ips=_networks(match.not_destination_ips),
        destination_ports=match.destination_ports,
        not_destination_ports=match.not_destination_ports,
    )


def _strings(matches: Iterable[StringMatch]) -> list[security.StringMatch]:
    return [_string(match) for match in matches]


def _string(match: StringMatch) -> security.StringMatch:
    if match.kind is StringMatchKind.EXACT:
        return security.StringMatch(exact=match.value)
    if match.kind is StringMatchKind.PREFIX:
        return security.StringMatch(prefix=match.value)
    if match.kind is StringMatchKind.SUFFIX:
        return security.StringMatch(suffix=match.value)
    return security.StringMatch(presence=security.Empty())


def _accounts(matches: Iterable[ServiceAccountMatch]) -> list[security.ServiceAccountMatch]:
    return [
        security.ServiceAccountMatch(namespace=match.namespace, serviceAccount=match.service_account)
        for match in matches
    ]


def _networks(networks: Iterable[IPNetwork]) -> list[security.Address]:
    return [
        security.Address(address=network.network_address.packed, length=network.prefixlen)
        for network in networks
    ]
