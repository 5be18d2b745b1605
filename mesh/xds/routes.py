# SPDX-License-Identifier: Apache-2.0
"""Route tables between model and wire; resource name `namespace/hostname:port[@client namespace]`.

Ours alone: Istio sends routes as Envoy's configuration, which names listeners and
clusters that our proxies do not have.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.route import (
    Backend,
    Cors,
    DirectResponse,
    Fault,
    HeaderOperations,
    Mirror,
    PathKind,
    PathMatch,
    PathRewrite,
    Redirect,
    RequestMatch,
    Retry,
    Rewrite,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.workload import NamespacedHostname
from mesh.proto import routes_pb2 as pb
from mesh.xds.destinations import decode_retry_budget, encode_retry_budget

ROUTE_TABLE_TYPE = "type.googleapis.com/ambit.mesh.v1.RouteTable"


def route_table_name(table: RouteTable) -> str:
    """Return the table's resource name."""
    scope = f"@{table.client_namespace}" if table.client_namespace else ""
    return f"{table.service}:{table.port}{scope}"


def encode_route_table(table: RouteTable) -> bytes:
    """Encode deterministically, so that equal tables have equal bytes and versions."""
    message = pb.RouteTable(
        namespace=table.service.namespace,
        hostname=table.service.hostname,
        port=table.port,
        rules=[encode_rule(rule) for rule in table.rules],
        client_namespace=table.client_namespace,
        retry_budget=None if table.retry_budget is None else encode_retry_budget(table.retry_budget),
    )
    return message.SerializeToString(deterministic=True)


def decode_route_table(value: bytes) -> RouteTable:
    """Decode one table.

    Raises:
        ValueError: the bytes are no table or hold a kind that we do not know; whoever
            sent it is at fault, and the table in force stays.
    """
    message = pb.RouteTable()
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise ValueError(f"not a route table: {error}") from error
    if not message.namespace or not message.hostname:
        raise ValueError("a route table names its service")
    return RouteTable(
        service=NamespacedHostname(namespace=message.namespace, hostname=message.hostname),
        port=message.port,
        rules=tuple(decode_rule(rule) for rule in message.rules),
        client_namespace=message.client_namespace,
        retry_budget=decode_retry_budget(message.retry_budget) if message.HasField("retry_budget") else None,
    )


def encode_rule(rule: RouteRule) -> pb.RouteRule:
    """Encode one rule of whatever holds rules."""
    message = pb.RouteRule(
        source=rule.source,
        matches=[_encode_match(match) for match in rule.matches],
        backends=[encode_backend(backend) for backend in rule.backends],
        request_headers=_encode_operations(rule.request_headers),
        response_headers=_encode_operations(rule.response_headers),
        request_timeout_ms=_milliseconds(rule.request_timeout_s),
        try_timeout_ms=_milliseconds(rule.try_timeout_s),
        direct=None if (d := rule.direct) is None else pb.DirectResponse(status=d.status, body=d.body),
        fault=None if rule.fault is None else _encode_fault(rule.fault),
        mirrors=[_encode_mirror(mirror) for mirror in rule.mirrors],
        cors=None if rule.cors is None else _encode_cors(rule.cors),
    )
    if (redirect := rule.redirect) is not None:
        message.redirect.CopyFrom(
            pb.Redirect(
                scheme=redirect.scheme,
                hostname=redirect.hostname,
                port=redirect.port,
                path=_encode_path_rewrite(redirect.path),
                status=redirect.status,
            )
        )
    if (rewrite := rule.rewrite) is not None:
        message.rewrite.CopyFrom(
            pb.Rewrite(path=_encode_path_rewrite(rewrite.path), hostname=rewrite.hostname)
        )
    if (retry := rule.retry) is not None:
        message.retry.CopyFrom(
            pb.Retry(
                attempts=retry.attempts,
                status_codes=retry.status_codes,
                on_connect_failure=retry.on_connect_failure,
                grpc_statuses=retry.grpc_statuses,
                on_reset=retry.on_reset,
                on_refused=retry.on_refused,
                on_reset_before_request=retry.on_reset_before_request,
                other_endpoint=retry.other_endpoint,
                backoff_ms=round(retry.backoff_s * 1000),
            )
        )
    return message


def decode_rule(message: pb.RouteRule) -> RouteRule:
    """Decode one rule; ValueError: it holds a kind that we do not know."""
    redirect = rewrite = retry = None
    if message.HasField("redirect"):
        wire = message.redirect
        redirect = Redirect(
            scheme=wire.scheme if wire.HasField("scheme") else None,
            hostname=wire.hostname if wire.HasField("hostname") else None,
            port=wire.port if wire.HasField("port") else None,
            path=_decode_path_rewrite(wire.path) if wire.HasField("path") else None,
            status=wire.status,
        )
    if message.HasField("rewrite"):
        rewrite = Rewrite(
            path=_decode_path_rewrite(message.rewrite.path) if message.rewrite.HasField("path") else None,
            hostname=message.rewrite.hostname if message.rewrite.HasField("hostname") else None,
        )
    if message.HasField("retry"):
        retry = Retry(
            attempts=message.retry.attempts,
            status_codes=tuple(message.retry.status_codes),
            grpc_statuses=tuple(message.retry.grpc_statuses),
            on_connect_failure=message.retry.on_connect_failure,
            on_reset=message.retry.on_reset,
            on_refused=message.retry.on_refused,
            on_reset_before_request=message.retry.on_reset_before_request,
            other_endpoint=message.retry.other_endpoint,
            backoff_s=message.retry.backoff_ms / 1000,
        )
    return RouteRule(
        source=message.source,
        matches=tuple(_decode_match(match) for match in message.matches),
        backends=tuple(decode_backend(backend) for backend in message.backends),
        redirect=redirect,
        rewrite=rewrite,
        request_headers=_decode_operations(message.request_headers),
        response_headers=_decode_operations(message.response_headers),
        request_timeout_s=message.request_timeout_ms / 1000 or None,
        try_timeout_s=message.try_timeout_ms / 1000 or None,
        retry=retry,
        direct=DirectResponse(status=message.direct.status, body=message.direct.body)
        if message.HasField("direct")
        else None,
        fault=_decode_fault(message.fault) if message.HasField("fault") else None,
        mirrors=tuple(_decode_mirror(mirror) for mirror in message.mirrors),
        cors=_decode_cors(message.cors) if message.HasField("cors") else None,
    )


def _encode_fault(fault: Fault) -> pb.Fault:
    return pb.Fault(
        delay_ms=round(fault.delay_s * 1000),
        delay_percent=fault.delay_percent,
        abort_status=fault.abort_status,
        abort_grpc=fault.abort_grpc,
        abort_percent=fault.abort_percent,
    )


def _decode_fault(message: pb.Fault) -> Fault:
    return Fault(
        delay_s=message.delay_ms / 1000,
        delay_percent=message.delay_percent,
        abort_status=message.abort_status,
        abort_grpc=message.abort_grpc if message.HasField("abort_grpc") else None,
        abort_percent=message.abort_percent,
    )


def _encode_mirror(mirror: Mirror) -> pb.Mirror:
    service = mirror.service
    return pb.Mirror(
        namespace=service.namespace,
        hostname=service.hostname,
        port=mirror.port,
        subset=mirror.subset,
        percent=mirror.percent,
    )


def _decode_mirror(message: pb.Mirror) -> Mirror:
    service = NamespacedHostname(namespace=message.namespace, hostname=message.hostname)
    return Mirror(service=service, port=message.port, subset=message.subset, percent=message.percent)


def _encode_cors(cors: Cors) -> pb.Cors:
    return pb.Cors(
        origins=[_encode_value(origin) for origin in cors.origins],
        methods=cors.methods,
        headers=cors.headers,
        expose=cors.expose,
        max_age_s=cors.max_age_s,
        credentials=cors.credentials,
        forward_unmatched=cors.forward_unmatched,
    )


def _decode_cors(message: pb.Cors) -> Cors:
    return Cors(
        origins=tuple(_decode_value(origin) for origin in message.origins),
        methods=tuple(message.methods),
        headers=tuple(message.headers),
        expose=tuple(message.expose),
        max_age_s=message.max_age_s if message.HasField("max_age_s") else None,
        credentials=message.credentials,
        forward_unmatched=message.forward_unmatched,
    )


def _milliseconds(seconds: float | None) -> int:
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _encode_match(match: RequestMatch) -> pb.RequestMatch:
    return pb.RequestMatch(
        path=None if match.path is None else _encode_path(match.path),
        method=None if match.method is None else _encode_value(match.method),
        authority=None if match.authority is None else _encode_value(match.authority),
        headers=[_encode_value(header) for header in match.headers],
        query=[_encode_value(parameter) for parameter in match.query],
        more_paths=[_encode_path(path) for path in match.more_paths],
    )


def _decode_match(message: pb.RequestMatch) -> RequestMatch:
    return RequestMatch(
        path=_decode_path(message.path) if message.HasField("path") else None,
        method=_decode_value(message.method) if message.HasField("method") else None,
        authority=_decode_value(message.authority) if message.HasField("authority") else None,
        headers=tuple(_decode_value(header) for header in message.headers),
        query=tuple(_decode_value(parameter) for parameter in message.query),
        more_paths=tuple(_decode_path(path) for path in message.more_paths),
    )


def _encode_path(path: PathMatch) -> pb.PathMatch:
    return pb.PathMatch(
        kind=path.kind.name, value=path.value, ignore_case=path.ignore_case, invert=path.invert
    )


def _decode_path(message: pb.PathMatch) -> PathMatch:
    return PathMatch(
        kind=PathKind[pb.PathMatch.Kind.Name(message.kind)],
        value=message.value,
        ignore_case=message.ignore_case,
        invert=message.invert,
    )


def _encode_value(match: ValueMatch) -> pb.ValueMatch:
    return pb.ValueMatch(name=match.name, kind=match.kind.name, value=match.value, invert=match.invert)


def _decode_value(message: pb.ValueMatch) -> ValueMatch:
    return ValueMatch(
        name=message.name,
        kind=ValueKind[pb.ValueMatch.Kind.Name(message.kind)],
        value=message.value,
        invert=message.invert,
    )


def encode_backend(backend: Backend) -> pb.Backend:
    """Encode a backend as part of another message."""
    service = backend.service
    return pb.Backend(
        namespace=service.namespace if service else "",
        hostname=service.hostname if service else "",
        port=backend.port,
        subset=backend.subset,
        weight=backend.weight,
        request_headers=_encode_operations(backend.request_headers),
        response_headers=_encode_operations(backend.response_headers),
        problem=backend.problem,
        problem_status=backend.problem_status,
    )


def decode_backend(message: pb.Backend) -> Backend:
    """Decode a backend that is part of another message."""
    service = None
    if message.hostname:
        service = NamespacedHostname(namespace=message.namespace, hostname=message.hostname)
    return Backend(
        service=service,
        port=message.port,
        subset=message.subset,
        weight=message.weight,
        request_headers=_decode_operations(message.request_headers),
        response_headers=_decode_operations(message.response_headers),
        problem=message.problem,
        problem_status=message.problem_status,
    )


def _encode_operations(operations: HeaderOperations) -> pb.HeaderOperations | None:
    if not operations:
        return None
    return pb.HeaderOperations(
        set=[pb.Header(name=name, value=value) for name, value in operations.set],
        add=[pb.Header(name=name, value=value) for name, value in operations.add],
        remove=operations.remove,
    )


def _decode_operations(message: pb.HeaderOperations) -> HeaderOperations:
    return HeaderOperations(
        set=tuple((header.name, header.value) for header in message.set),
        add=tuple((header.name, header.value) for header in message.add),
        remove=tuple(message.remove),
    )


def _encode_path_rewrite(rewrite: PathRewrite | None) -> pb.PathRewrite | None:
    if rewrite is None:
        return None
    return pb.PathRewrite(
        full=rewrite.full, prefix=rewrite.prefix, regex=rewrite.regex, substitution=rewrite.substitution
    )


def _decode_path_rewrite(message: pb.PathRewrite) -> PathRewrite:
    kind = message.WhichOneof("kind")
    return PathRewrite(
        full=message.full if kind == "full" else None,
        prefix=message.prefix if kind == "prefix" else None,
        regex=message.regex if kind == "regex" else None,
        substitution=message.substitution,
    )
