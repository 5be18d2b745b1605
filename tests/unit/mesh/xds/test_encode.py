# SPDX-License-Identifier: Apache-2.0
"""The model survives the wire unchanged and always as the same bytes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from mesh.model.locality import Locality
from mesh.model.policy import (
    Action,
    Authorization,
    Match,
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
from mesh.xds.decode import decode_address, decode_authorization
from mesh.xds.encode import encode_address, encode_authorization, resource_name

LABEL = st.text("abc-.", min_size=1, max_size=5).filter(lambda text: text not in (".", ".."))
MAYBE = st.text("abc", max_size=3)
PORT = st.integers(0, 65_535)
V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address).filter(lambda ip: ip.ipv4_mapped is None)
IP = V4 | V6
NETWORK = st.tuples(V4, st.integers(0, 32)).map(lambda pair: ip_network(pair, strict=False)) | st.tuples(
    V6, st.integers(0, 128)
).map(lambda pair: ip_network(pair, strict=False))
KEY = st.builds(NamespacedHostname, namespace=LABEL, hostname=LABEL)
NETWORK_ADDRESS = st.builds(NetworkAddress, network=MAYBE, address=IP)
GATEWAY = st.builds(GatewayAddress, destination=KEY | NETWORK_ADDRESS, hbone_mtls_port=PORT)
LOCALITY = st.builds(Locality, region=MAYBE, zone=MAYBE, subzone=MAYBE)
PORT_MAP = st.builds(PortMap, ports=st.dictionaries(PORT, PORT, max_size=3))
WORKLOADS = st.builds(
    Workload,
    uid=LABEL,
    name=MAYBE,
    namespace=LABEL,
    addresses=st.lists(IP, max_size=2).map(tuple),
    network=MAYBE,
    hostname=MAYBE,
    tunnel_protocol=st.sampled_from(TunnelProtocol),
    trust_domain=LABEL,
    service_account=LABEL,
    node=MAYBE,
    cluster_id=LABEL,
    canonical_name=MAYBE,
    canonical_revision=MAYBE,
    workload_type=st.sampled_from(WorkloadType),
    workload_name=MAYBE,
    network_mode=st.sampled_from(NetworkMode),
    healthy=st.booleans(),
    capacity=st.integers(0, 2**32 - 1),
    locality=LOCALITY,
    services=st.dictionaries(KEY, PORT_MAP, max_size=2),
    authorization_policies=st.lists(LABEL, max_size=2).map(tuple),
    waypoint=st.none() | GATEWAY,
    network_gateway=st.none() | GATEWAY,
    application_tunnel=st.none()
    | st.builds(ApplicationTunnel, protocol=st.sampled_from(ApplicationProtocol), port=PORT),
)
# A range of one address is an address on the wire.
RANGE = NETWORK.filter(lambda network: network.prefixlen < network.max_prefixlen)
SERVICES = st.builds(
    Service,
    name=MAYBE,
    namespace=LABEL,
    hostname=LABEL,
    addresses=st.lists(NETWORK_ADDRESS, max_size=2).map(tuple),
    cidr_addresses=st.lists(st.builds(CidrVip, network=MAYBE, cidr=RANGE), max_size=2).map(tuple),
    ports=st.lists(
        st.builds(
            ServicePort, service_port=PORT, target_port=PORT, app_protocol=st.sampled_from(AppProtocol)
        ),
        max_size=2,
    ).map(tuple),
    subject_alt_names=st.lists(LABEL, max_size=2).map(tuple),
    waypoint=st.none() | GATEWAY,
    weighted_waypoints=st.lists(
        st.builds(WeightedWaypoint, destination=GATEWAY, weight=st.integers(0, 2**32 - 1)), max_size=2
    ).map(tuple),
    load_balancing=st.builds(
        LoadBalancing,
        preference=st.lists(st.sampled_from(LoadBalancingScope), max_size=3).map(tuple),
        mode=st.sampled_from(LoadBalancingMode),
        health_policy=st.sampled_from(HealthPolicy),
    ),
    ip_families=st.sampled_from(IpFamilies),
    canonical=st.booleans(),
    ingress_use_waypoint=st.booleans(),
    visibility=st.sampled_from(Visibility),
)
STRING = st.sampled_from([kind for kind in StringMatchKind if kind is not StringMatchKind.PRESENCE]).flatmap(
    lambda kind: st.builds(StringMatch, kind=st.just(kind), value=MAYBE)
) | st.just(StringMatch(kind=StringMatchKind.PRESENCE))
STRINGS = st.lists(STRING, max_size=2).map(tuple)
ACCOUNTS = st.lists(st.builds(ServiceAccountMatch, namespace=LABEL, service_account=LABEL), max_size=2).map(
    tuple
)
NETWORKS = st.lists(NETWORK, max_size=2).map(tuple)
PORTS = st.lists(PORT, max_size=2).map(tuple)
MATCHES = st.builds(
    Match,
    namespaces=STRINGS,
    not_namespaces=STRINGS,
    principals=STRINGS,
    not_principals=STRINGS,
    service_accounts=ACCOUNTS,
    not_service_accounts=ACCOUNTS,
    source_ips=NETWORKS,
    not_source_ips=NETWORKS,
    destination_ips=NETWORKS,
    not_destination_ips=NETWORKS,
    destination_ports=PORTS,
    not_destination_ports=PORTS,
)
POLICIES = st.builds(
    Authorization,
    name=LABEL,
    namespace=LABEL,
    scope=st.sampled_from(Scope),
    action=st.sampled_from(Action),
    rules=st.lists(st.lists(st.lists(MATCHES, max_size=2).map(tuple), max_size=2).map(tuple), max_size=2).map(
        tuple
    ),
    dry_run=st.booleans(),
)


@given(WORKLOADS | SERVICES)
def test_an_address_survives(value: Workload | Service) -> None:
    assert decode_address(encode_address(value), resource_name(value)) == value


@given(POLICIES)
def test_a_policy_survives(policy: Authorization) -> None:
    assert decode_authorization(encode_authorization(policy), resource_name(policy)) == policy


@given(st.lists(st.tuples(KEY, PORT_MAP), max_size=4, unique_by=lambda pair: pair[0]))
def test_equal_workloads_have_equal_bytes(services: list[tuple[NamespacedHostname, PortMap]]) -> None:
    forward = Workload(uid="u", name="n", namespace="ns", services=dict(services))
    backward = Workload(uid="u", name="n", namespace="ns", services=dict(reversed(services)))
    assert encode_address(forward) == encode_address(backward)


def test_names_are_uid_hostname_and_policy_key() -> None:
    assert resource_name(Workload(uid="c//v1/Pod/a/b", name="b", namespace="a")) == "c//v1/Pod/a/b"
    assert resource_name(Service(name="s", namespace="a", hostname="s.a.svc")) == "a/s.a.svc"
    policy = Authorization(name="p", namespace="a", scope=Scope.GLOBAL, action=Action.DENY)
    assert resource_name(policy) == "a/p"
