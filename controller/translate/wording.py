# SPDX-License-Identifier: Apache-2.0
"""Routes and destination policies in words: what objects come to, in whatever dialect they are written."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

from mesh.model.destination import DestinationPolicy, TrafficPolicy
from mesh.model.route import (
    Backend,
    HeaderOperations,
    PathKind,
    PathMatch,
    PathRewrite,
    RequestMatch,
    Retry,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname

_PATHS = {
    PathKind.EXACT: "is",
    PathKind.PREFIX: "begins with",
    PathKind.SEGMENT_PREFIX: "is in",
    PathKind.REGEX: "matches",
}
_VALUES = {ValueKind.EXACT: "is", ValueKind.PREFIX: "begins with", ValueKind.REGEX: "matches"}


def describe(
    routes: Mapping[str, RouteTable],
    streams: Mapping[str, StreamTable],
    destinations: Mapping[str, DestinationPolicy],
    sources: Container[str],
) -> list[str]:
    """Return lines about what the objects named by `sources` (`kind/namespace/name`) have a part in."""
    found: list[str] = []
    for name in sorted(routes):
        if any(_object(rule.source) in sources for rule in routes[name].rules):
            found += _table(routes[name])
    for name in sorted(streams):
        if _object(streams[name].source) in sources:
            found += _stream(streams[name])
    for name in sorted(destinations):
        if any(source in sources for source in destinations[name].sources):
            found += _destination(destinations[name])
    return found


def _object(source: str) -> str:
    return source.partition("#")[0]


def _place(service: NamespacedHostname, port: int, client: str, what: str) -> str:
    where = f"{service}, port {port}" if port else f"{service}, every other port"
    return f"{what} {where}" + (f", from namespace {client}:" if client else ":")


def _table(table: RouteTable) -> list[str]:
    lines = [_place(table.service, table.port, table.client_namespace, "requests to")]
    for number, rule in enumerate(_joined(table.rules), 1):
        conditions = " or ".join(filter(None, map(_match, rule.matches)))
        lines.append(f"  {number}. {f'if {conditions}' if conditions else 'any'}: {_action(rule)}")
        lines += [f"       {text}" for text in _extras(rule)]
        lines.append(f"       from {rule.source}")
    if table.retry_budget is not None:
        budget = table.retry_budget
        lines.append(
            f"  tries for {budget.percent:g}% more requests, {budget.min_per_second:g} a second at least"
        )
    return lines


def _joined(rules: Iterable[RouteRule]) -> list[RouteRule]:
    """Put rules that follow each other and differ in their matches only into one again."""
    found: list[RouteRule] = []
    for rule in rules:
        if found and replace(found[-1], matches=()) == replace(rule, matches=()):
            found[-1] = replace(rule, matches=(*found[-1].matches, *rule.matches))
        else:
            found.append(rule)
    return found


def _stream(table: StreamTable) -> list[str]:
    place = _place(table.service, table.port, table.client_namespace, "connections to")
    return [place, f"  {_backends(table.backends)}", f"       from {table.source}"]


# --- conditions


def _match(match: RequestMatch) -> str:
    parts = [_path(path) for path in ([match.path] if match.path else []) + list(match.more_paths)]
    if match.method is not None:
        parts.append(_value("method", match.method))
    if match.authority is not None:
        parts.append(_value("authority", match.authority))
    parts += [_value(f"header {value.name}", value) for value in match.headers]
    parts += [_value(f"parameter {value.name}", value) for value in match.query]
    return " and ".join(part for part in parts if part)


def _path(path: PathMatch) -> str:
    if path.kind is PathKind.SEGMENT_PREFIX and path.value == "/" and not path.invert:
        return ""
    case = " in any case" if path.ignore_case else ""
    return f"path {'not: ' if path.invert else ''}{_PATHS[path.kind]} {path.value}{case}"


def _value(what: str, match: ValueMatch) -> str:
    if match.kind is ValueKind.PRESENT:
        return f"{what} is {'absent' if match.invert else 'there'}"
    return f"{what} {'not: ' if match.invert else ''}{_VALUES[match.kind]} {match.value!r}"


# --- what is done


def _action(rule: RouteRule) -> str:
    if rule.direct is not None:
        return f"answer {rule.direct.status}"
    if rule.redirect is not None:
        target = rule.redirect
        parts = [target.scheme and f"scheme {target.scheme}", target.hostname and f"host {target.hostname}"]
        parts += [f"port {target.port}" if target.port else "", _rewritten(target.path)]
        return f"redirect ({target.status}) to " + ", ".join(part for part in parts if part)
    return _backends(rule.backends)


def _backends(backends: Iterable[Backend]) -> str:
    used = [backend for backend in backends if backend.weight]
    if not used:
        return "no backend"
    total = sum(backend.weight for backend in used)
    if len(used) == 1:
        return f"to {_backend(used[0])}"
    return ", ".join(f"{100 * backend.weight / total:.3g}% to {_backend(backend)}" for backend in used)


def _backend(backend: Backend) -> str:
    if backend.service is None:
        return f"nowhere ({backend.problem})"
    return f"{backend.service}:{backend.port}" + (f" subset {backend.subset}" if backend.subset else "")


def _extras(rule: RouteRule) -> list[str]:
    found: list[str] = []
    if rule.rewrite is not None:
        parts = (_rewritten(rule.rewrite.path), rule.rewrite.hostname and f"host {rule.rewrite.hostname}")
        found.append("rewritten to " + ", ".join(part for part in parts if part))
    found += _headers("request", rule.request_headers) + _headers("response", rule.response_headers)
    for backend in rule.backends:
        found += _headers(f"request to {_backend(backend)}", backend.request_headers)
        found += _headers(f"response of {_backend(backend)}", backend.response_headers)
    if rule.request_timeout_s is not None:
        found.append(f"at most {rule.request_timeout_s:g} s")
    if rule.try_timeout_s is not None:
        found.append(f"at most {rule.try_timeout_s:g} s a try")
    if rule.retry is not None:
        found.append(_retry(rule.retry))
    if (fault := rule.fault) is not None:
        status = f"gRPC {fault.abort_grpc}" if fault.abort_grpc is not None else str(fault.abort_status)
        if fault.delay_percent:
            found.append(f"{fault.delay_percent:g}% delayed by {fault.delay_s:g} s")
        if fault.abort_percent:
            found.append(f"{fault.abort_percent:g}% answered {status}")
    for mirror in rule.mirrors:
        found.append(f"{mirror.percent:g}% copied to {mirror.service}:{mirror.port}")
    if rule.cors is not None:
        found.append("cross-origin: " + (", ".join(origin.value for origin in rule.cors.origins) or "nobody"))
    return found


def _rewritten(path: PathRewrite | None) -> str:
    if path is None:
        return ""
    if path.regex is not None:
        return f"path with {path.regex} replaced by {path.substitution}"
    return f"path {path.full}" if path.full is not None else f"path with the prefix {path.prefix}"


def _headers(what: str, operations: HeaderOperations) -> list[str]:
    parts = [f"set {name}" for name, _ in operations.set] + [f"add {name}" for name, _ in operations.add]
    parts += [f"remove {name}" for name in operations.remove]
    return [f"{what}: {', '.join(parts)}"] if parts else []


def _retry(retry: Retry) -> str:
    if not retry.attempts:
        return "never tried again"
    reasons = [_ranges(retry.status_codes)] if retry.status_codes else []
    reasons += [f"gRPC {', '.join(map(str, retry.grpc_statuses))}"] if retry.grpc_statuses else []
    reasons += ["no connection"] if retry.on_connect_failure else []
    reasons += ["reset"] if retry.on_reset else ["refused stream"] if retry.on_refused else []
    return f"tried again up to {retry.attempts} times on {', '.join(reasons) or 'nothing'}"


def _ranges(codes: Iterable[int]) -> str:
    """Write 500-504, 599."""
    found: list[list[int]] = []
    for code in sorted(codes):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in found)


# --- destinations


def _destination(policy: DestinationPolicy) -> list[str]:
    where = f", for waypoints in {policy.client_namespace}" if policy.client_namespace else ""
    lines = [f"endpoints of {policy.service}{where}: {_policy(policy.policy)}"]
    lines += [f"  port {entry.port}: {_policy(entry.policy)}" for entry in policy.ports]
    for subset in policy.subsets:
        labels = ", ".join(f"{key}={value}" for key, value in subset.labels) or "all"
        lines.append(f"  subset {subset.name} ({labels}): {_policy(subset.policy)}")
        lines += [f"    port {entry.port}: {_policy(entry.policy)}" for entry in subset.ports]
    lines.append(f"       from {', '.join(policy.sources)}")
    return lines


def _policy(policy: TrafficPolicy) -> str:
    by = policy.balancing.hash
    parts = [f"by {by.kind.value} {by.name}".rstrip() if by else policy.balancing.balancer.value]
    bounds = (
        (policy.pool.max_connections, "connections"),
        (policy.pool.max_requests, "requests"),
        (policy.pool.max_pending_requests, "waiting requests"),
        (policy.pool.max_retries, "retries"),
    )
    parts += [f"at most {bound} {what}" for bound, what in bounds if bound is not None]
    if (out := policy.outliers) is not None:
        parts.append(f"ejected for {out.base_ejection_s:g} s after {out.consecutive_5xx} failures")
    if policy.tls is not None:
        parts.append(f"tls {policy.tls.mode.value}")
    return ", ".join(parts)
