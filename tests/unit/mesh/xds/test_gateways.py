# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways on the wire."""

from __future__ import annotations

import pytest

from mesh.model.gateway import GatewayListener, HostRules, IngressGateway, ListenerProtocol
from mesh.model.route import Backend, RouteRule
from mesh.model.workload import NamespacedHostname
from mesh.proto import gateways_pb2 as pb
from mesh.xds.gateways import decode_gateway, encode_gateway

WEB = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")
GATEWAY = IngressGateway(
    namespace="shop",
    name="front",
    listeners=(
        GatewayListener(
            name="https",
            port=443,
            protocol=ListenerProtocol.HTTPS,
            hostname="*.example.com",
            certificates=("/certs/a", "/certs/b"),
            hosts=(
                HostRules(
                    hostname="a.example.com",
                    rules=(
                        RouteRule(source="HTTPRoute/shop/web#0", backends=(Backend(service=WEB, port=80),)),
                    ),
                ),
            ),
        ),
        GatewayListener(name="http", port=80, protocol=ListenerProtocol.HTTP),
    ),
    through_waypoint=(WEB,),
)


def test_a_gateway_survives_the_wire() -> None:
    assert decode_gateway(encode_gateway(GATEWAY)) == GATEWAY


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (pb.IngressGateway(name="front"), "namespace"),
        (pb.IngressGateway(namespace="a", name="b", listeners=[pb.GatewayListener(name="x")]), "protocol"),
        (
            pb.IngressGateway(
                namespace="a", name="b", listeners=[pb.GatewayListener(name="x", protocol=1, hostname="*")]
            ),
            "port",
        ),
        (pb.IngressGateway(namespace="a", name="b", through_waypoint=["nowhere"]), "namespace/hostname"),
    ],
)
def test_what_is_no_gateway_is_refused(message: pb.IngressGateway, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode_gateway(message.SerializeToString())


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(ValueError, match="not an ingress gateway"):
        decode_gateway(b"\xff\xff")
