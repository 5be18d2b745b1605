# SPDX-License-Identifier: Apache-2.0
"""Token rules between model and wire; resource name `namespace/name`.

Ours alone: Istio sends them as Envoy's JWT filter, which names filters and clusters.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.token import RequestAuthentication, TokenHeader, TokenRule
from mesh.model.workload import NamespacedHostname
from mesh.proto import http_policy_pb2
from mesh.proto import request_authentication_pb2 as pb

REQUEST_AUTHENTICATION_TYPE = "type.googleapis.com/ambit.mesh.v1.RequestAuthentication"


def encode_request_authentication(authentication: RequestAuthentication) -> bytes:
    """Encode deterministically, so that equal values have equal bytes and versions."""
    message = pb.RequestAuthentication(
        name=authentication.name,
        namespace=authentication.namespace,
        rules=[_encode_rule(rule) for rule in authentication.rules],
        services=[
            http_policy_pb2.ServiceReference(namespace=service.namespace, hostname=service.hostname)
            for service in authentication.services
        ],
        waypoints=authentication.waypoints,
        problem=authentication.problem,
    )
    return message.SerializeToString(deterministic=True)


def decode_request_authentication(value: bytes) -> RequestAuthentication:
    """Decode one authentication.

    Raises:
        ValueError: the bytes are none; whoever sent them is at fault, and the receiver must
            close what it is for.
    """
    message = pb.RequestAuthentication()
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise ValueError(f"not a request authentication: {error}") from error
    if not message.name or not message.namespace:
        raise ValueError("a request authentication has a name and a namespace")
    return RequestAuthentication(
        name=message.name,
        namespace=message.namespace,
        rules=tuple(_decode_rule(rule) for rule in message.rules),
        services=tuple(
            NamespacedHostname(namespace=service.namespace, hostname=service.hostname)
            for service in message.services
        ),
        waypoints=tuple(message.waypoints),
        problem=message.problem,
    )


def _encode_rule(rule: TokenRule) -> pb.TokenRule:
    return pb.TokenRule(
        issuer=rule.issuer,
        audiences=rule.audiences,
        jwks=rule.jwks,
        jwks_uri=rule.jwks_uri,
        headers=[pb.TokenRule.Header(name=header.name, prefix=header.prefix) for header in rule.headers],
        params=rule.params,
        cookies=rule.cookies,
        forward=rule.forward,
        payload_header=rule.payload_header,
        claim_headers=[
            pb.TokenRule.Claim(header=header, claim=claim) for header, claim in rule.claim_headers
        ],
        spaced_claims=rule.spaced_claims,
        timeout_ms=round(rule.timeout_s * 1000),
    )


def _decode_rule(message: pb.TokenRule) -> TokenRule:
    return TokenRule(
        issuer=message.issuer,
        audiences=tuple(message.audiences),
        jwks=message.jwks,
        jwks_uri=message.jwks_uri,
        headers=tuple(TokenHeader(name=header.name, prefix=header.prefix) for header in message.headers),
        params=tuple(message.params),
        cookies=tuple(message.cookies),
        forward=message.forward,
        payload_header=message.payload_header,
        claim_headers=tuple((entry.header, entry.claim) for entry in message.claim_headers),
        spaced_claims=tuple(message.spaced_claims),
        timeout_s=message.timeout_ms / 1000,
    )
