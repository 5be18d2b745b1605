# SPDX-License-Identifier: Apache-2.0
"""HTTPRoutes of services (Gateway API, mesh use) as route tables.

Order of precedence is Gateway API's: exact path, longest prefix, method, most headers, most
query parameters, oldest route, name, first rule. Source: gateway-api HTTPRoute v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controller.translate.gateway_route import (
    FieldError,
    Finding,
    GatewayRoutes,
    Parent,
    Rank,
    RouteReader,
    as_list,
    as_mapping,
    check_regex,
    collect_routes,
    read_duration,
    read_values,
)
from mesh.config.objects import Path, RawObject
from mesh.model.route import (
    Cors,
    PathKind,
    PathMatch,
    PathRewrite,
    Redirect,
    RequestMatch,
    Retry,
    Rewrite,
    RouteRule,
    ValueKind,
    ValueMatch,
)
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

__all__ = ["Finding", "Parent", "translate_http_routes"]

DEFAULT_ATTEMPTS = 2
MAX_ATTEMPTS = 1000
MAX_AGE_S = 2**31 - 1
REDIRECT_CODES = (301, 302, 303, 307, 308)


def translate_http_routes(
    routes: Iterable[RawObject], services: Mapping[NamespacedHostname, Service], cluster_domain: str
) -> GatewayRoutes:
    """Translate every HTTPRoute; never raises for what a route holds."""
    return collect_routes(routes, HttpRouteReader, services, cluster_domain)


class HttpRouteReader(RouteReader):
    """Reads one HTTPRoute."""

    fields = frozenset({"name", "matches", "filters", "backendRefs", "timeouts", "retry"})

    def read_match(self, raw: Mapping[str, Any], path: Path) -> RequestMatch:
        return _match(raw, path)

    def rank(self, match: RequestMatch) -> Rank:
        return _rank(match)

    def read_filter(
        self, rule: RouteRule, raw: Mapping[str, Any], path: Path, matches: Sequence[RequestMatch]
    ) -> RouteRule:
        kind = raw.get("type")
        if kind == "RequestRedirect":
            value = as_mapping(raw.get("requestRedirect"))
            return replace(rule, redirect=_redirect(value, (*path, "requestRedirect"), matches))
        if kind == "URLRewrite":
            value = as_mapping(raw.get("urlRewrite"))
            rewritten = _path_rewrite(value.get("path"), (*path, "urlRewrite", "path"), matches)
            hostname = _text(value, "hostname", (*path, "urlRewrite"))
            return replace(rule, rewrite=Rewrite(path=rewritten, hostname=hostname))
        if kind == "CORS":
            return replace(rule, cors=_cors(as_mapping(raw.get("cors")), (*path, "cors")))
        return super().read_filter(rule, raw, path, matches)

    def read_rest(self, rule: RouteRule, raw: Mapping[str, Any], path: Path) -> RouteRule:
        if rule.redirect is not None and rule.backends:
            self._find((*path, "backendRefs"), "a rule that redirects sends to no backend", "warning")
            rule = replace(rule, backends=())
        timeouts = as_mapping(raw.get("timeouts"))
        retry = _retry(as_mapping(raw["retry"]), (*path, "retry")) if raw.get("retry") is not None else None
        request_s = read_duration(timeouts.get("request"), (*path, "timeouts", "request"))
        try_s = read_duration(timeouts.get("backendRequest"), (*path, "timeouts", "backendRequest"))
        if request_s is not None and try_s is not None and try_s > request_s:
            raise FieldError((*path, "timeouts", "backendRequest"), "must not exceed timeouts.request")
        if try_s is not None and retry is None:
            # Istio's reading: without a retry stanza it bounds the whole request.
            request_s = min(request_s, try_s) if request_s is not None else try_s
        return replace(rule, request_timeout_s=request_s, try_timeout_s=try_s, retry=retry)


def _match(raw: Mapping[str, Any], path: Path) -> RequestMatch:
    compared = as_mapping(raw.get("path")) or {"type": "PathPrefix", "value": "/"}
    kind = {
        "Exact": PathKind.EXACT,
        "PathPrefix": PathKind.SEGMENT_PREFIX,
        "RegularExpression": PathKind.REGEX,
    }.get(str(compared.get("type", "PathPrefix")))
    if kind is None:
        raise FieldError((*path, "path", "type"), f"{compared.get('type')!r} is not supported")
    value = str(compared.get("value", "/"))
    if kind is PathKind.REGEX:
        check_regex(value, (*path, "path", "value"))
    elif not value.startswith("/"):
        raise FieldError((*path, "path", "value"), "must begin with /")
    method = raw.get("method")
    return RequestMatch(
        path=PathMatch(kind=kind, value=value),
        method=ValueMatch(name="", kind=ValueKind.EXACT, value=str(method)) if method else None,
        headers=read_values(raw.get("headers"), (*path, "headers"), lower=True),
        query=read_values(raw.get("queryParams"), (*path, "queryParams"), lower=False),
    )


def _rank(match: RequestMatch) -> tuple[Any, ...]:
    """Sort key of Gateway API's precedence; smaller goes first."""
    path = match.path or PathMatch(kind=PathKind.SEGMENT_PREFIX, value="/")
    order = {PathKind.EXACT: 0, PathKind.SEGMENT_PREFIX: 1}.get(path.kind, 2)
    length = len(path.value.rstrip("/")) if path.kind is PathKind.SEGMENT_PREFIX else len(path.value)
    return (order, -length, match.method is None, -len(match.headers), -len(match.query))


def _text(raw: Mapping[str, Any], name: str, path: Path) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise FieldError((*path, name), "must be text")
    return value


def _redirect(raw: Mapping[str, Any], path: Path, matches: Sequence[RequestMatch]) -> Redirect:
    status = raw.get("statusCode", 302)
    if status not in REDIRECT_CODES:
        raise FieldError((*path, "statusCode"), f"must be one of {REDIRECT_CODES}")
    port = raw.get("port")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536):
        raise FieldError((*path, "port"), "must be a port number")
    return Redirect(
        scheme=_text(raw, "scheme", path),
        hostname=_text(raw, "hostname", path),
        port=port,
        path=_path_rewrite(raw.get("path"), (*path, "path"), matches),
        status=int(status),
    )


def _path_rewrite(raw: Any, path: Path, matches: Sequence[RequestMatch]) -> PathRewrite | None:
    if raw is None:
        return None
    value = as_mapping(raw)
    if value.get("type") == "ReplaceFullPath":
        return PathRewrite(full=str(value.get("replaceFullPath", "/")))
    if value.get("type") == "ReplacePrefixMatch":
        if any(m.path is None or m.path.kind is not PathKind.SEGMENT_PREFIX for m in matches):
            raise FieldError(path, "ReplacePrefixMatch needs matches of type PathPrefix only")
        return PathRewrite(prefix=str(value.get("replacePrefixMatch", "")))
    raise FieldError((*path, "type"), f"{value.get('type')!r} is not supported")


def _cors(raw: Mapping[str, Any], path: Path) -> Cors:
    max_age = raw.get("maxAge")
    if max_age is not None and (isinstance(max_age, bool) or not isinstance(max_age, int)):
        raise FieldError((*path, "maxAge"), "must be a whole number of seconds")
    if max_age is not None and not 0 <= max_age <= MAX_AGE_S:
        raise FieldError((*path, "maxAge"), f"must be from 0 to {MAX_AGE_S}")
    return Cors(
        origins=tuple(_origin(str(origin)) for origin in as_list(raw.get("allowOrigins"))),
        methods=tuple(str(method) for method in as_list(raw.get("allowMethods"))),
        headers=tuple(str(name) for name in as_list(raw.get("allowHeaders"))),
        expose=tuple(str(name) for name in as_list(raw.get("exposeHeaders"))),
        max_age_s=5 if max_age is None else max_age,
        credentials=raw.get("allowCredentials") is True,
    )


def _origin(text: str) -> ValueMatch:
    if "*" in text and text != "*":
        pattern = re.escape(text).replace(r"\*", r"[^/]*")
        return ValueMatch(name="", kind=ValueKind.REGEX, value=pattern)
    return ValueMatch(name="", kind=ValueKind.EXACT, value=text)


def _retry(raw: Mapping[str, Any], path: Path) -> Retry:
    codes = as_list(raw.get("codes"))
    if any(not isinstance(code, int) or not 400 <= code <= 599 for code in codes):
        raise FieldError((*path, "codes"), "must be status codes from 400 to 599")
    attempts = raw.get("attempts", DEFAULT_ATTEMPTS)
    if not isinstance(attempts, int) or isinstance(attempts, bool) or not 0 <= attempts <= MAX_ATTEMPTS:
        raise FieldError((*path, "attempts"), f"must be a whole number from 0 to {MAX_ATTEMPTS}")
    backoff_s = read_duration(raw.get("backoff"), (*path, "backoff"))
    return Retry(
        attempts=attempts,
        status_codes=tuple(codes),
        on_connect_failure=True,
        on_reset=True,
        backoff_s=backoff_s if backoff_s is not None else 0.025,
    )
