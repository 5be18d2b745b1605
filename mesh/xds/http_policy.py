# SPDX-License-Identifier: Apache-2.0
"""L7 policies between model and wire; resource name `namespace/name`.

Ours alone: Istio sends them as Envoy's RBAC filter, which names filters and listeners.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.address import IPNetwork
from mesh.model.http_policy import (
    Condition,
    HttpAction,
    HttpAuthorization,
    HttpRule,
    Operation,
    Source,
    TextKind,
    TextMatch,
    Texts,
)
from mesh.model.workload import NamespacedHostname
from mesh.proto import http_policy_pb2 as pb

HTTP_AUTHORIZATION_TYPE = "type.googleapis.com/ambit.mesh.v1.HttpAuthorization"

_SOURCE_TEXTS = (
    "principals",
    "not_principals",
    "request_principals",
    "not_request_principals",
    "namespaces",
    "not_namespaces",
)
_SOURCE_BLOCKS = ("ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks")
_OPERATION_TEXTS = ("hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths")


def encode_http_authorization(policy: HttpAuthorization) -> bytes:
    """Encode deterministically, so that equal policies have equal bytes and versions."""
    message = pb.HttpAuthorization(
        name=policy.name,
        namespace=policy.namespace,
        action=policy.action.name,
        rules=[_encode_rule(rule) for rule in policy.rules],
        services=[
            pb.ServiceReference(namespace=service.namespace, hostname=service.hostname)
            for service in policy.services
        ],
        waypoints=policy.waypoints,
        provider=policy.provider,
        dry_run=policy.dry_run,
    )
    return message.SerializeToString(deterministic=True)


def decode_http_authorization(value: bytes) -> HttpAuthorization:
    """Decode one policy.

    Raises:
        ValueError: the bytes are no policy or hold a kind, action or block that we do not
            know; whoever sent it is at fault, and the receiver must close what it guards.
    """
    message = pb.HttpAuthorization()
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise ValueError(f"not an L7 policy: {error}") from error
    if not message.name or not message.namespace:
        raise ValueError("an L7 policy has a name and a namespace")
    return HttpAuthorization(
        name=message.name,
        namespace=message.namespace,
        action=HttpAction[pb.HttpAuthorization.Action.Name(message.action)],
        rules=tuple(_decode_rule(rule) for rule in message.rules),
        services=tuple(
            NamespacedHostname(namespace=service.namespace, hostname=service.hostname)
            for service in message.services
        ),
        waypoints=tuple(message.waypoints),
        provider=message.provider,
        dry_run=message.dry_run,
    )


def _encode_rule(rule: HttpRule) -> pb.HttpRule:
    return pb.HttpRule(
        sources=[_encode_source(source) for source in rule.sources],
        operations=[_encode_operation(operation) for operation in rule.operations],
        conditions=[
            pb.HttpCondition(key=c.key, values=c.values, not_values=c.not_values) for c in rule.conditions
        ],
    )


def _decode_rule(message: pb.HttpRule) -> HttpRule:
    return HttpRule(
        sources=tuple(_decode_source(source) for source in message.sources),
        operations=tuple(_decode_operation(operation) for operation in message.operations),
        conditions=tuple(
            Condition(key=c.key, values=tuple(c.values), not_values=tuple(c.not_values))
            for c in message.conditions
        ),
    )


def _encode_source(source: Source) -> pb.HttpSource:
    message = pb.HttpSource(
        service_accounts=source.service_accounts, not_service_accounts=source.not_service_accounts
    )
    for name in _SOURCE_TEXTS:
        getattr(message, name).extend(_encode_texts(getattr(source, name)))
    for name in _SOURCE_BLOCKS:
        getattr(message, name).extend(str(block) for block in getattr(source, name))
    return message


def _decode_source(message: pb.HttpSource) -> Source:
    return Source(
        principals=_decode_texts(message.principals),
        not_principals=_decode_texts(message.not_principals),
        request_principals=_decode_texts(message.request_principals),
        not_request_principals=_decode_texts(message.not_request_principals),
        namespaces=_decode_texts(message.namespaces),
        not_namespaces=_decode_texts(message.not_namespaces),
        service_accounts=tuple(message.service_accounts),
        not_service_accounts=tuple(message.not_service_accounts),
        ip_blocks=_decode_blocks(message.ip_blocks),
        not_ip_blocks=_decode_blocks(message.not_ip_blocks),
        remote_ip_blocks=_decode_blocks(message.remote_ip_blocks),
        not_remote_ip_blocks=_decode_blocks(message.not_remote_ip_blocks),
    )


def _encode_operation(operation: Operation) -> pb.HttpOperation:
    message = pb.HttpOperation(ports=operation.ports, not_ports=operation.not_ports)
    for name in _OPERATION_TEXTS:
        getattr(message, name).extend(_encode_texts(getattr(operation, name)))
    return message


def _decode_operation(message: pb.HttpOperation) -> Operation:
    return Operation(
        hosts=_decode_texts(message.hosts),
        not_hosts=_decode_texts(message.not_hosts),
        methods=_decode_texts(message.methods),
        not_methods=_decode_texts(message.not_methods),
        paths=_decode_texts(message.paths),
        not_paths=_decode_texts(message.not_paths),
        ports=tuple(message.ports),
        not_ports=tuple(message.not_ports),
    )


def _encode_texts(texts: Texts) -> list[pb.TextMatch]:
    return [pb.TextMatch(kind=text.kind.name, value=text.value) for text in texts]


def _decode_texts(messages: Iterable[pb.TextMatch]) -> Texts:
    return tuple(
        TextMatch(kind=TextKind[pb.TextMatch.Kind.Name(message.kind)], value=message.value)
        for message in messages
    )


def _decode_blocks(blocks: Iterable[str]) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(block) for block in blocks)
