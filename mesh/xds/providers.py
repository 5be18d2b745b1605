# SPDX-License-Identifier: Apache-2.0
"""External authorisers between model and wire; resource name: the provider's. Ours alone."""

from __future__ import annotations

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.provider import Authoriser, AuthoriserProtocol
from mesh.model.workload import NamespacedHostname
from mesh.proto import providers_pb2 as pb

AUTHORISER_TYPE = "type.googleapis.com/ambit.mesh.v1.Authoriser"


def encode_authoriser(provider: Authoriser) -> bytes:
    """Encode deterministically, so that equal providers have equal bytes and versions."""
    message = pb.Authoriser(
        name=provider.name,
        namespace=provider.service.namespace,
        hostname=provider.service.hostname,
        port=provider.port,
        grpc=provider.protocol is AuthoriserProtocol.GRPC,
        timeout_ms=round(provider.timeout_s * 1000),
        fail_open=provider.fail_open,
        status_on_error=provider.status_on_error,
        path_prefix=provider.path_prefix,
        request_headers=provider.request_headers,
        additional_headers=[pb.HeaderValue(name=n, value=v) for n, v in provider.additional_headers],
        upstream_headers=provider.upstream_headers,
        denied_headers=provider.denied_headers,
        allowed_headers=provider.allowed_headers,
    )
    return message.SerializeToString(deterministic=True)


def decode_authoriser(value: bytes) -> Authoriser:
    """Decode one provider.

    Raises:
        ValueError: the bytes are no provider, or one without a service (the controller's fault).
    """
    try:
        message = pb.Authoriser.FromString(value)
    except ProtobufError as error:
        raise ValueError(f"not an authoriser: {error}") from error
    if not message.hostname or not 0 < message.port < 65536:
        raise ValueError(f"authoriser {message.name!r} names no service and port")
    return Authoriser(
        name=message.name,
        service=NamespacedHostname(namespace=message.namespace, hostname=message.hostname),
        port=message.port,
        protocol=AuthoriserProtocol.GRPC if message.grpc else AuthoriserProtocol.HTTP,
        timeout_s=message.timeout_ms / 1000,
        fail_open=message.fail_open,
        status_on_error=message.status_on_error,
        path_prefix=message.path_prefix,
        request_headers=tuple(message.request_headers),
        additional_headers=tuple((h.name, h.value) for h in message.additional_headers),
        upstream_headers=tuple(message.upstream_headers),
        denied_headers=tuple(message.denied_headers),
        allowed_headers=tuple(message.allowed_headers),
    )
