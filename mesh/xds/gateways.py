# SPDX-License-Identifier: Apache-2.0
"""Ingress gateways between model and wire; resource name `namespace/name`."""

from __future__ import annotations

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.gateway import GatewayListener, HostRules, IngressGateway, ListenerProtocol
from mesh.model.workload import NamespacedHostname
from mesh.proto import gateways_pb2 as pb
from mesh.xds.routes import decode_rule, encode_rule

GATEWAY_TYPE = "type.googleapis.com/ambit.mesh.v1.IngressGateway"
_TO_WIRE = {
    ListenerProtocol.HTTP: pb.LISTENER_PROTOCOL_HTTP,
    ListenerProtocol.HTTPS: pb.LISTENER_PROTOCOL_HTTPS,
}
_FROM_WIRE = {number: protocol for protocol, number in _TO_WIRE.items()}


def encode_gateway(gateway: IngressGateway) -> bytes:
    """Encode deterministically, so that equal gateways have equal bytes and versions."""
    message = pb.IngressGateway(
        namespace=gateway.namespace,
        name=gateway.name,
        listeners=[_encode_listener(listener) for listener in gateway.listeners],
        through_waypoint=[str(key) for key in gateway.through_waypoint],
    )
    return message.SerializeToString(deterministic=True)


def decode_gateway(value: bytes) -> IngressGateway:
    """Decode one gateway.

    Raises:
        ValueError: the bytes are no gateway or hold a kind that we do not know; whoever
            sent it is at fault, and the gateway in force stays.
    """
    message = pb.IngressGateway()
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise ValueError(f"not an ingress gateway: {error}") from error
    if not message.namespace or not message.name:
        raise ValueError("an ingress gateway has a namespace and a name")
    return IngressGateway(
        namespace=message.namespace,
        name=message.name,
        listeners=tuple(_decode_listener(listener) for listener in message.listeners),
        through_waypoint=tuple(_decode_key(key) for key in message.through_waypoint),
    )


def _encode_listener(listener: GatewayListener) -> pb.GatewayListener:
    return pb.GatewayListener(
        name=listener.name,
        port=listener.port,
        protocol=_TO_WIRE[listener.protocol],
        hostname=listener.hostname,
        certificates=listener.certificates,
        hosts=[
            pb.HostRules(hostname=host.hostname, rules=[encode_rule(rule) for rule in host.rules])
            for host in listener.hosts
        ],
    )


def _decode_listener(message: pb.GatewayListener) -> GatewayListener:
    protocol = _FROM_WIRE.get(message.protocol)
    if protocol is None:
        raise ValueError(f"listener {message.name} has the unknown protocol {message.protocol}")
    if not 0 < message.port < 65536 or not message.hostname:
        raise ValueError(f"listener {message.name} has no valid port or no hostname")
    return GatewayListener(
        name=message.name,
        port=message.port,
        protocol=protocol,
        hostname=message.hostname,
        certificates=tuple(message.certificates),
        hosts=tuple(
            HostRules(hostname=host.hostname, rules=tuple(decode_rule(rule) for rule in host.rules))
            for host in message.hosts
        ),
    )


def _decode_key(text: str) -> NamespacedHostname:
    namespace, slash, hostname = text.partition("/")
    if not slash or not namespace or not hostname:
        raise ValueError(f"{text!r} is no namespace/hostname")
    return NamespacedHostname(namespace=namespace, hostname=hostname)
