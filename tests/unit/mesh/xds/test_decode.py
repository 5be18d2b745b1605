# SPDX-License-Identifier: Apache-2.0
"""What comes over the wire becomes the model, with Istio's defaults, or is refused by name."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import UInt32Value
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.locality import Locality
from mesh.model.policy import Action, Match, Scope, ServiceAccountMatch, StringMatch, StringMatchKind
from mesh.model.service import AppProtocol, CidrVip, LoadBalancingScope, Service, Visibility
from mesh.model.workload import (
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
from mesh.xds.decode import DecodeError, decode_address, decode_authorization

UID = "Kubernetes//v1/Pod/shop/web"


def workload(**fields: Any) -> bytes:
    message = pb.Workload(**{"uid": UID, "name": "web", "namespace": "shop", **fields})
    return pb.Address(workload=message).SerializeToString()


def service(**fields: Any) -> bytes:
    message = pb.Service(**{"name": "web", "namespace": "shop", "hostname": "web.shop.svc", **fields})
    return pb.Address(service=message).SerializeToString()


def authorization(**fields: Any) -> bytes:
    return security.Authorization(**{"name": "p", "namespace": "shop", **fields}).SerializeToString()


def with_match(**fields: Any) -> bytes:
    match = security.Match(**fields)
    return authorization(rules=[security.Rule(clauses=[security.Clause(matches=[match])])])


# --- workloads


def test_a_bare_workload_gets_istios_defaults() -> None:
    decoded = decode_address(workload(), UID)
    assert isinstance(decoded, Workload)
    assert decoded.identity == "spiffe://cluster.local/ns/shop/sa/default"
    assert (decoded.cluster_id, decoded.capacity, decoded.healthy) == ("Kubernetes", 1, True)
    assert decoded.tunnel_protocol is TunnelProtocol.NONE
    assert decoded.network_mode is NetworkMode.STANDARD
    assert decoded.waypoint is None
    assert decoded.application_tunnel is None


def test_a_full_workload() -> None:
    decoded = decode_address(
        workload(
            addresses=[
                bytes([10, 0, 0, 1]),
                ip_address("fd00::1").packed,
                ip_address("::ffff:10.0.0.2").packed,
            ],
            tunnel_protocol=pb.TunnelProtocol.HBONE,
            trust_domain="td",
            service_account="cart",
            workload_type=pb.WorkloadType.JOB,
            status=pb.WorkloadStatus.UNHEALTHY,
            capacity=UInt32Value(value=0),
            locality=pb.Locality(region="r", zone="z"),
            network_mode=pb.NetworkMode.HOST_NETWORK,
            services={"shop/web.shop.svc": pb.PortList(ports=[pb.Port(service_port=80, target_port=8080)])},
            authorization_policies=["shop/a"],
            waypoint=pb.GatewayAddress(
                hostname=pb.NamespacedHostname(namespace="shop", hostname="wp"), hbone_mtls_port=15008
            ),
            network_gateway=pb.GatewayAddress(address=pb.NetworkAddress(network="n", address=bytes(4))),
            application_tunnel=pb.ApplicationTunnel(protocol=pb.ApplicationTunnel.PROXY, port=15088),
        )
    )
    assert isinstance(decoded, Workload)
    assert decoded.addresses == (ip_address("10.0.0.1"), ip_address("fd00::1"), ip_address("10.0.0.2"))
    assert decoded.identity == "spiffe://td/ns/shop/sa/cart"
    assert decoded.workload_type is WorkloadType.JOB
    assert (decoded.healthy, decoded.capacity) == (False, 0)
    assert decoded.locality == Locality(region="r", zone="z")
    key = NamespacedHostname(namespace="shop", hostname="web.shop.svc")
    assert decoded.services == {key: PortMap(ports={80: 8080})}
    waypoint = NamespacedHostname(namespace="shop", hostname="wp")
    assert decoded.waypoint == GatewayAddress(destination=waypoint, hbone_mtls_port=15008)
    assert decoded.network_gateway is not None
    assert decoded.network_gateway.destination == NetworkAddress(network="n", address=IPv4Address(0))
    assert decoded.application_tunnel is not None
    assert decoded.application_tunnel.port == 15088


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"uid": ""}, "has a uid"),
        ({"addresses": [b"\x01\x02\x03"]}, "4 or 16 bytes, not 3"),
        ({"addresses": [b""]}, "4 or 16 bytes, not 0"),
        ({"tunnel_protocol": 2}, "tunnel_protocol 2 is not known"),
        ({"tunnel_protocol": 9}, "tunnel_protocol 9 is not known"),
        ({"workload_type": 4}, "workload_type 4"),
        ({"status": 2}, "status 2"),
        ({"network_mode": 2}, "network_mode 2"),
        ({"services": {"web": pb.PortList()}}, "'web' is no namespace/hostname"),
        ({"services": {"/web": pb.PortList()}}, "is no namespace/hostname"),
        ({"services": {"shop/": pb.PortList()}}, "is no namespace/hostname"),
        ({"services": {"a/b/c": pb.PortList()}}, "is no namespace/hostname"),
        ({"services": {"a/b": pb.PortList(ports=[pb.Port(service_port=65_536)])}}, "65536 is no port"),
        ({"services": {"a/b": pb.PortList(ports=[pb.Port(target_port=65_536)])}}, "65536 is no port"),
        ({"waypoint": pb.GatewayAddress(hbone_mtls_port=15008)}, "has a destination"),
        ({"waypoint": pb.GatewayAddress(address=pb.NetworkAddress(address=b"1"))}, "4 or 16 bytes"),
        (
            {"waypoint": pb.GatewayAddress(hostname=pb.NamespacedHostname(namespace="a"))},
            "no namespace/hostname",
        ),
        ({"network_gateway": pb.GatewayAddress()}, "has a destination"),
        ({"application_tunnel": pb.ApplicationTunnel(protocol=7)}, "application_tunnel.protocol 7"),
        ({"application_tunnel": pb.ApplicationTunnel(port=70_000)}, "70000 is no port"),
        ({"namespace": "shop/sa/admin"}, "no namespace of a SPIFFE id"),
        ({"namespace": ""}, "no namespace of a SPIFFE id"),
        ({"service_account": "a/b"}, "no service account"),
        ({"trust_domain": "TD"}, "no SPIFFE trust domain"),
    ],
)
def test_a_workload_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        decode_address(workload(**fields))
    assert caught.value.name == fields.get("uid", UID)
    assert str(caught.value).endswith(caught.value.reason)


# --- services


def test_a_full_service() -> None:
    decoded = decode_address(
        service(
            addresses=[
                pb.NetworkAddress(network="n", address=bytes([10, 96, 0, 1])),
                pb.NetworkAddress(address=bytes([10, 96, 0, 2]), length=UInt32Value(value=32)),
                pb.NetworkAddress(address=bytes([10, 97, 5, 5]), length=UInt32Value(value=16)),
                pb.NetworkAddress(address=ip_address("fd00::").packed, length=UInt32Value(value=64)),
                pb.NetworkAddress(
                    address=ip_address("::ffff:10.98.0.0").packed, length=UInt32Value(value=112)
                ),
            ],
            ports=[
                pb.Port(service_port=80, target_port=0, app_protocol=1),
                pb.Port(service_port=81, app_protocol=77),
            ],
            load_balancing=pb.LoadBalancing(routing_preference=[6, 2], mode=2, health_policy=1),
            weighted_waypoints=[
                pb.WeightedWaypoint(
                    destination=pb.GatewayAddress(
                        hostname=pb.NamespacedHostname(namespace="shop", hostname="wp")
                    ),
                    weight=3,
                )
            ],
            visibility=1,
        ),
        "shop/web.shop.svc",
    )
    assert isinstance(decoded, Service)
    assert [str(address) for address in decoded.addresses] == ["n/10.96.0.1", "/10.96.0.2"]
    assert decoded.cidr_addresses == (
        CidrVip(network="", cidr=ip_network("10.97.0.0/16")),
        CidrVip(network="", cidr=ip_network("fd00::/64")),
        CidrVip(network="", cidr=ip_network("10.98.0.0/16")),
    )
    assert [port.app_protocol for port in decoded.ports] == [AppProtocol.HTTP11, AppProtocol.UNKNOWN]
    assert decoded.load_balancing.preference == (LoadBalancingScope.NETWORK, LoadBalancingScope.ZONE)
    assert decoded.weighted_waypoints[0].weight == 3
    assert decoded.visibility is Visibility.NAMESPACE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"namespace": ""}, "no namespace and hostname"),
        ({"hostname": ""}, "no namespace and hostname"),
        ({"hostname": "a/b"}, "no namespace and hostname"),
        ({"addresses": [pb.NetworkAddress(address=b"12")]}, "4 or 16 bytes"),
        (
            {"addresses": [pb.NetworkAddress(address=bytes(4), length=UInt32Value(value=33))]},
            "/33 is no prefix",
        ),
        ({"ports": [pb.Port(service_port=65_536)]}, "65536 is no port"),
        ({"load_balancing": pb.LoadBalancing(routing_preference=[0])}, "routing_preference 0"),
        ({"load_balancing": pb.LoadBalancing(mode=4)}, "load_balancing.mode 4"),
        ({"load_balancing": pb.LoadBalancing(health_policy=2)}, "health_policy 2"),
        ({"ip_families": 4}, "ip_families 4"),
        ({"visibility": 2}, "visibility 2"),
        ({"waypoint": pb.GatewayAddress()}, "has a destination"),
        ({"weighted_waypoints": [pb.WeightedWaypoint(weight=1)]}, "has a destination"),
    ],
)
def test_a_service_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_address(service(**fields))


def test_neither_kind_and_garbage_are_refused() -> None:
    with pytest.raises(DecodeError, match="x: neither a workload nor a service"):
        decode_address(b"", "x")
    with pytest.raises(DecodeError, match=r"x: no istio.workload.Address"):
        decode_address(b"\xff", "x")
    with pytest.raises(DecodeError, match="unnamed resource"):
        decode_address(b"\xff")


def test_a_resource_under_another_name_is_refused() -> None:
    with pytest.raises(DecodeError, match="a: holds Kubernetes//v1/Pod/shop/web, which is another resource"):
        decode_address(workload(), "a")
    with pytest.raises(DecodeError, match="another resource"):
        decode_address(service(), "shop/other")
    with pytest.raises(DecodeError, match="shop/q: holds shop/p, which is another policy"):
        decode_authorization(authorization(), "shop/q")


# --- policies


def test_a_policy_with_every_attribute() -> None:
    decoded = decode_authorization(
        authorization(
            scope=2,
            action=1,
            dry_run=True,
            rules=[
                security.Rule(
                    clauses=[
                        security.Clause(
                            matches=[
                                security.Match(
                                    namespaces=[security.StringMatch(exact="a")],
                                    not_namespaces=[security.StringMatch(prefix="b")],
                                    principals=[security.StringMatch(suffix="c")],
                                    not_principals=[security.StringMatch(presence=security.Empty())],
                                    source_ips=[security.Address(address=bytes([10, 1, 2, 3]), length=8)],
                                    not_source_ips=[security.Address(address=bytes(16), length=0)],
                                    destination_ports=[0, 65_535],
                                    not_service_accounts=[
                                        security.ServiceAccountMatch(namespace="n", serviceAccount="s")
                                    ],
                                )
                            ]
                        ),
                        security.Clause(),
                    ]
                ),
                security.Rule(),
            ],
        ),
        "shop/p",
    )
    assert (decoded.scope, decoded.action, decoded.dry_run) == (Scope.WORKLOAD_SELECTOR, Action.DENY, True)
    match = Match(
        namespaces=(StringMatch(kind=StringMatchKind.EXACT, value="a"),),
        not_namespaces=(StringMatch(kind=StringMatchKind.PREFIX, value="b"),),
        principals=(StringMatch(kind=StringMatchKind.SUFFIX, value="c"),),
        not_principals=(StringMatch(kind=StringMatchKind.PRESENCE),),
        source_ips=(ip_network("10.0.0.0/8"),),
        not_source_ips=(ip_network("::/0"),),
        destination_ports=(0, 65_535),
        not_service_accounts=(ServiceAccountMatch(namespace="n", service_account="s"),),
    )
    assert decoded.rules == (((match,), ()), ())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (authorization(name=""), "is no namespace and name"),
        (authorization(namespace=""), "is no namespace and name"),
        (authorization(name="a/b"), "is no namespace and name"),
        (authorization(scope=3), "scope 3 is not known"),
        (authorization(action=2), "action 2 is not known"),
        (authorization(extensions=[security.Extension(name="e", config=AnyMessage())]), "extensions .*: e"),
        (with_match(extensions=[security.Extension(name="e")]), "extensions .*: e"),
        (with_match(namespaces=[security.StringMatch()]), "says how to compare"),
        (with_match(source_ips=[security.Address(address=b"123", length=8)]), "4 or 16 bytes, not 3"),
        (with_match(source_ips=[security.Address(address=bytes(4), length=33)]), "/33 is no prefix"),
        (with_match(not_source_ips=[security.Address(address=bytes(16), length=129)]), "/129 is no prefix"),
        (with_match(destination_ips=[security.Address()]), "4 or 16 bytes, not 0"),
        (with_match(destination_ports=[65_536 + 80]), "65616 is no port"),
        (with_match(not_destination_ports=[65_536]), "65536 is no port"),
        (
            with_match(service_accounts=[security.ServiceAccountMatch(namespace="n")]),
            "names namespace and account",
        ),
        (with_match(service_accounts=[security.ServiceAccountMatch(serviceAccount="s")]), "names namespace"),
    ],
)
def test_a_policy_is_refused_by_name(value: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_authorization(value)


def test_a_policy_that_is_no_protobuf_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"shop/p: no istio.security.Authorization"):
        decode_authorization(b"\xff", "shop/p")


UNKNOWN_FIELD = bytes([0xA2, 0x06, 0x01, 0x41])  # field 100, one byte


def length_prefixed(tag: int, data: bytes) -> bytes:
    return bytes([tag, len(data)]) + data


@pytest.mark.parametrize(
    ("where", "tail"),
    [
        ("Authorization", UNKNOWN_FIELD),
        ("Rule", length_prefixed(0x2A, UNKNOWN_FIELD)),
        ("Clause", length_prefixed(0x2A, length_prefixed(0x0A, UNKNOWN_FIELD))),
        ("Match", length_prefixed(0x2A, length_prefixed(0x0A, length_prefixed(0x12, UNKNOWN_FIELD)))),
    ],
)
def test_a_field_that_we_do_not_know_refuses_the_policy(where: str, tail: bytes) -> None:
    with pytest.raises(DecodeError, match=f"{where} has unknown fields: 100"):
        decode_authorization(authorization() + tail)


def test_a_refusal_without_a_resource_name_tells_its_own_name() -> None:
    for decode, value, known in (
        (decode_address, service(visibility=2), "shop/web.shop.svc"),
        (decode_address, workload(status=2), UID),
        (decode_authorization, authorization(scope=3), "shop/p"),
    ):
        with pytest.raises(DecodeError) as caught:
            decode(value)
        assert caught.value.name == known
        with pytest.raises(DecodeError) as caught:
            decode(value, "asked")
        assert caught.value.name == "asked"


@pytest.mark.parametrize(
    ("address", "length", "network"),
    [
        ("10.0.0.7", 32, "10.0.0.7/32"),
        ("10.0.0.7", 0, "0.0.0.0/0"),
        ("fd00::7", 128, "fd00::7/128"),
        ("::ffff:10.0.0.7", 128, "10.0.0.7/32"),
        ("::ffff:10.0.0.7", 96, "0.0.0.0/0"),
        ("::ffff:10.0.0.7", 95, "::fffe:0:0/95"),
    ],
)
def test_prefixes_at_their_limits(address: str, length: int, network: str) -> None:
    wire = security.Address(address=ip_address(address).packed, length=length)
    decoded = decode_authorization(with_match(source_ips=[wire]))
    assert decoded.rules[0][0][0].source_ips == (ip_network(network),)


def test_a_v4_mapped_range_becomes_ipv4() -> None:
    mapped = security.Address(address=ip_address("::ffff:10.0.0.0").packed, length=104)
    decoded = decode_authorization(with_match(source_ips=[mapped]))
    assert decoded.rules[0][0][0].source_ips == (ip_network("10.0.0.0/8"),)


@given(st.binary(max_size=80))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for decode in (decode_address, decode_authorization):
        with contextlib.suppress(DecodeError):
            assert decode(data)
