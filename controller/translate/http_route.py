# SPDX-License-Identifier: Apache-2.0
"""HTTPRoutes of services (Gateway API, mesh use) as route tables.

Producer routes stand in the service's namespace and hold for every client; consumer
routes stand in another and replace them for clients of their own namespace. Order of
precedence is Gateway API's: exact path, longest prefix, method, most headers, most query
parameters, oldest route, name, first rule. Source: gateway-api HTTPRoute v1, GEP-1324.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mesh.config.objects import Path, RawObject
from mesh.model.route import (
    Backend,
    Cors,
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
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

DEFAULT_ATTEMPTS = 2
REDIRECT_CODES = (301, 302, 303, 307, 308)
_DURATION = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,5})s)?(?:(\d{1,5})ms)?")
_GROUPS = ("", "core")
_NO_BACKEND = "BackendNotFound"


class FieldError(Exception):
    """A field cannot be honoured; says where and why. The rule that holds it answers 500."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something of a route that is not honoured as written."""

    route: RawObject
    path: Path
    reason: str
    severity: str
    """error or warning"""
    code: str = ""
    """Gateway API's reason, where a reference cannot be resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What became of one parentRef of a route."""

    route: RawObject
    index: int
    services: tuple[NamespacedHostname, ...]
    """Those that it is attached to."""
    reason: str
    """Why there are none; empty: there are."""


@dataclass(slots=True, kw_only=True)
class HttpRoutes:
    """The result: tables, and what was found on the way."""

    tables: dict[str, RouteTable] = field(default_factory=dict)
    """By resource name."""
    findings: list[Finding] = field(default_factory=list)
    parents: list[Parent] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attachment:
    """One route on one port of one service."""

    service: NamespacedHostname
    port: int
    client_namespace: str


def translate_http_routes(
    routes: Iterable[RawObject], services: Mapping[NamespacedHostname, Service], cluster_domain: str
) -> HttpRoutes:
    """Translate every route; never raises for what a route holds."""
    result = HttpRoutes()
    gathered: dict[_Attachment, list[tuple[tuple[Any, ...], RouteRule]]] = {}
    for route in sorted(routes, key=_age):
        translator = _Translator(route, services, cluster_domain, result.findings)
        attachments = translator.attachments()
        result.parents.extend(translator.parents)
        if not attachments:
            continue
        ranked = list(translator.rules())
        for attachment in attachments:
            gathered.setdefault(attachment, []).extend(ranked)
    for attachment, entries in gathered.items():
        # sorted() is stable: entries came by age, name and rule, the last three criteria.
        rules = tuple(rule for _, rule in sorted(entries, key=lambda entry: entry[0]))
        table = RouteTable(
            service=attachment.service,
            port=attachment.port,
            rules=rules,
            client_namespace=attachment.client_namespace,
        )
        scope = f"@{table.client_namespace}" if table.client_namespace else ""
        result.tables[f"{table.service}:{table.port}{scope}"] = table
    return result


def _age(route: RawObject) -> tuple[str, str, str]:
    """Order by age, then namespace and name; a route without a time is the youngest."""
    return (str(route.metadata.get("creationTimestamp") or "~"), route.namespace, route.name)


class _Translator:
    """Reads one route."""

    def __init__(
        self,
        route: RawObject,
        services: Mapping[NamespacedHostname, Service],
        cluster_domain: str,
        findings: list[Finding],
    ) -> None:
        self._route = route
        self._services = services
        self._domain = cluster_domain
        self._findings = findings
        self.parents: list[Parent] = []

    def _find(self, path: Path, reason: str, severity: str = "error", code: str = "") -> None:
        finding = Finding(route=self._route, path=path, reason=reason, severity=severity, code=code)
        self._findings.append(finding)

    def _host(self, name: str, namespace: str) -> NamespacedHostname:
        return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.{self._domain}")

    def attachments(self) -> list[_Attachment]:
        """Return the services' ports that the route is for."""
        found: list[_Attachment] = []
        for index, parent in enumerate(_list(self._route.spec.get("parentRefs"))):
            path: Path = ("spec", "parentRefs", index)
            if not isinstance(parent, Mapping):
                self._find(path, "must be a mapping")
                continue
            if parent.get("kind", "Gateway") == "Gateway":
                continue  # Not a mesh route, but some ingress's.
            namespace, keys, reason = self._parent(parent)
            accepted = [key for key in keys if self._has_port(key, parent.get("port"))]
            if not reason and not accepted:
                path, reason = (*path, "port"), f"service {keys[0]} has no port {parent.get('port')}"
            if reason:
                self._find(path, f"{reason} (NoMatchingParent)")
            consumer = self._route.namespace if self._route.namespace != namespace else ""
            found += [
                _Attachment(service=key, port=parent.get("port") or 0, client_namespace=consumer)
                for key in accepted
            ]
            self.parents.append(
                Parent(route=self._route, index=index, services=tuple(accepted), reason=reason)
            )
        return found

    def _parent(self, parent: Mapping[str, Any]) -> tuple[str, list[NamespacedHostname], str]:
        """Return a parent's namespace and services, or why there are none."""
        group, kind = parent.get("group", "gateway.networking.k8s.io"), parent.get("kind")
        namespace, name = str(parent.get("namespace") or self._route.namespace), str(parent.get("name", ""))
        if kind == "Service" and group in _GROUPS:
            key = self._host(name, namespace)
            if key in self._services:
                return namespace, [key], ""
            return namespace, [], f"service {namespace}/{name} does not exist"
        if (group, kind) == ("networking.istio.io", "ServiceEntry"):
            keys = [
                key
                for key, service in self._services.items()
                if (service.namespace, service.name, service.canonical) == (namespace, name, False)
            ]
            return namespace, keys, "" if keys else f"ServiceEntry {namespace}/{name} is not served"
        return (
            namespace,
            [],
            f"parent of kind {kind} is not served: routes are for Services and ServiceEntries",
        )

    def _has_port(self, key: NamespacedHostname, port: object) -> bool:
        return port is None or (isinstance(port, int) and self._services[key].port(port) is not None)

    def rules(self) -> Iterator[tuple[tuple[Any, ...], RouteRule]]:
        """Yield one rule per match, with the key that it is sorted by."""
        for index, rule in enumerate(_list(self._route.spec.get("rules", [{}]))):
            path: Path = ("spec", "rules", index)
            source = f"HTTPRoute/{self._route.namespace}/{self._route.name}#{index}"
            if not isinstance(rule, Mapping):
                self._find(path, "must be a mapping")
                continue
            matches: list[RequestMatch] = []
            try:
                for position, match in enumerate(_list(rule.get("matches")) or [{}]):
                    matches.append(_match(_mapping(match), (*path, "matches", position)))
                translated = self._rule(rule, path, source, matches)
            except FieldError as error:
                self._find(error.path, f"{error.reason}; the rule's requests are answered 500")
                translated = _broken(source, error.reason)
            except (TypeError, ValueError) as error:
                self._find(path, f"holds a value of the wrong type: {error}; its requests are answered 500")
                translated = _broken(source, str(error))
            for match in matches or [RequestMatch()]:
                yield _rank(match), replace(translated, matches=(match,))

    def _rule(
        self, rule: Mapping[str, Any], path: Path, source: str, matches: Sequence[RequestMatch]
    ) -> RouteRule:
        for name in rule.keys() - {"name", "matches", "filters", "backendRefs", "timeouts", "retry"}:
            self._find((*path, name), "is not honoured", "warning")
        translated = RouteRule(source=source, backends=tuple(self._backends(rule, path)))
        for index, entry in enumerate(_list(rule.get("filters"))):
            translated = self._filter(translated, _mapping(entry), (*path, "filters", index), matches)
        if translated.redirect is not None and translated.backends:
            self._find((*path, "backendRefs"), "a rule that redirects sends to no backend", "warning")
            translated = replace(translated, backends=())
        timeouts = _mapping(rule.get("timeouts"))
        retry = _retry(_mapping(rule["retry"]), (*path, "retry")) if rule.get("retry") is not None else None
        request_s = _duration(timeouts.get("request"), (*path, "timeouts", "request"))
        try_s = _duration(timeouts.get("backendRequest"), (*path, "timeouts", "backendRequest"))
        if request_s is not None and try_s is not None and try_s > request_s:
            raise FieldError((*path, "timeouts", "backendRequest"), "must not exceed timeouts.request")
        if try_s is not None and retry is None:
            # Istio's reading: without a retry stanza it bounds the whole request.
            request_s = min(request_s, try_s) if request_s is not None else try_s
        return replace(translated, request_timeout_s=request_s, try_timeout_s=try_s, retry=retry)

    def _backends(self, rule: Mapping[str, Any], path: Path) -> Iterator[Backend]:
        for index, entry in enumerate(_list(rule.get("backendRefs"))):
            where: Path = (*path, "backendRefs", index)
            reference = _mapping(entry)
            weight = reference.get("weight", 1)
            if not isinstance(weight, int) or isinstance(weight, bool) or weight < 0:
                raise FieldError((*where, "weight"), "must be a whole number, 0 or more")
            service, port, problem, code = self._resolve(reference)
            if problem:
                problem = f"{problem} ({code})"
                self._find(where, problem, code=code)
            backend = Backend(service=service, port=port, weight=weight, problem=problem)
            for position, raw in enumerate(_list(reference.get("filters"))):
                backend = self._backend_filter(backend, _mapping(raw), (*where, "filters", position))
            yield backend

    def _resolve(self, reference: Mapping[str, Any]) -> tuple[NamespacedHostname | None, int, str, str]:
        """Resolve a reference to a service and port; the others say why it cannot be, in words and a code."""
        if reference.get("group", "") not in _GROUPS or reference.get("kind", "Service") != "Service":
            kind = f"{reference.get('group')}/{reference.get('kind')}"
            return None, 0, f"kind {kind} is no backend here", "InvalidKind"
        namespace = str(reference.get("namespace") or self._route.namespace)
        service = self._services.get(self._host(str(reference.get("name", "")), namespace))
        if service is None:
            return None, 0, f"service {namespace}/{reference.get('name')} does not exist", _NO_BACKEND
        port = reference.get("port")
        if not isinstance(port, int) or isinstance(port, bool):
            return None, 0, "port is missing", "UnsupportedValue"
        if service.port(port) is None:
            return None, 0, f"service {service.key} has no port {port}", _NO_BACKEND
        return service.key, port, "", ""

    def _backend_filter(self, backend: Backend, raw: Mapping[str, Any], path: Path) -> Backend:
        kind = raw.get("type")
        if kind == "RequestHeaderModifier":
            operations = _headers(raw.get("requestHeaderModifier"), (*path, "requestHeaderModifier"))
            return replace(backend, request_headers=operations)
        if kind == "ResponseHeaderModifier":
            operations = _headers(raw.get("responseHeaderModifier"), (*path, "responseHeaderModifier"))
            return replace(backend, response_headers=operations)
        raise FieldError((*path, "type"), f"filter {kind!r} is not supported on a backend")

    def _filter(
        self, rule: RouteRule, raw: Mapping[str, Any], path: Path, matches: Sequence[RequestMatch]
    ) -> RouteRule:
        kind = raw.get("type")
        if kind == "RequestHeaderModifier":
            operations = _headers(raw.get("requestHeaderModifier"), (*path, "requestHeaderModifier"))
            return replace(rule, request_headers=operations)
        if kind == "ResponseHeaderModifier":
            operations = _headers(raw.get("responseHeaderModifier"), (*path, "responseHeaderModifier"))
            return replace(rule, response_headers=operations)
        if kind == "RequestRedirect":
            value = _mapping(raw.get("requestRedirect"))
            return replace(rule, redirect=_redirect(value, (*path, "requestRedirect"), matches))
        if kind == "URLRewrite":
            value = _mapping(raw.get("urlRewrite"))
            rewritten = _path_rewrite(value.get("path"), (*path, "urlRewrite", "path"), matches)
            return replace(rule, rewrite=Rewrite(path=rewritten, hostname=value.get("hostname")))
        if kind == "RequestMirror":
            return self._mirror(rule, _mapping(raw.get("requestMirror")), (*path, "requestMirror"))
        if kind == "CORS":
            return replace(rule, cors=_cors(_mapping(raw.get("cors"))))
        raise FieldError((*path, "type"), f"filter {kind!r} is not supported")

    def _mirror(self, rule: RouteRule, raw: Mapping[str, Any], path: Path) -> RouteRule:
        service, port, problem, code = self._resolve(_mapping(raw.get("backendRef")))
        if service is None:
            # Gateway API: an invalid mirror is dropped, the request itself is not touched.
            words = f"{problem} ({code}); requests are not mirrored"
            self._find((*path, "backendRef"), words, code=code)
            return rule
        percent = 100.0
        if raw.get("percent") is not None:
            percent = float(raw["percent"])
        elif (fraction := _mapping(raw.get("fraction"))) and fraction.get("denominator", 100):
            percent = 100.0 * float(fraction.get("numerator", 0)) / float(fraction.get("denominator", 100))
        mirror = Mirror(service=service, port=port, percent=percent)
        return replace(rule, mirrors=(*rule.mirrors, mirror))


def _broken(source: str, reason: str) -> RouteRule:
    return RouteRule(source=source, backends=(Backend(service=None, problem=reason),))


def _match(raw: Mapping[str, Any], path: Path) -> RequestMatch:
    compared = _mapping(raw.get("path")) or {"type": "PathPrefix", "value": "/"}
    kind = {
        "Exact": PathKind.EXACT,
        "PathPrefix": PathKind.SEGMENT_PREFIX,
        "RegularExpression": PathKind.REGEX,
    }.get(str(compared.get("type", "PathPrefix")))
    if kind is None:
        raise FieldError((*path, "path", "type"), f"{compared.get('type')!r} is not supported")
    value = str(compared.get("value", "/"))
    if kind is PathKind.REGEX:
        _check_regex(value, (*path, "path", "value"))
    elif not value.startswith("/"):
        raise FieldError((*path, "path", "value"), "must begin with /")
    method = raw.get("method")
    return RequestMatch(
        path=PathMatch(kind=kind, value=value),
        method=ValueMatch(name="", kind=ValueKind.EXACT, value=str(method)) if method else None,
        headers=_values(raw.get("headers"), (*path, "headers"), lower=True),
        query=_values(raw.get("queryParams"), (*path, "queryParams"), lower=False),
    )


def _values(raw: Any, path: Path, *, lower: bool) -> tuple[ValueMatch, ...]:
    found: dict[str, ValueMatch] = {}
    for index, entry in enumerate(_list(raw)):
        item = _mapping(entry)
        name = str(item.get("name", ""))
        name = name.lower() if lower else name
        kind = {"Exact": ValueKind.EXACT, "RegularExpression": ValueKind.REGEX}.get(
            str(item.get("type", "Exact"))
        )
        if kind is None or not name:
            raise FieldError((*path, index), "needs a name and type Exact or RegularExpression")
        value = str(item.get("value", ""))
        if kind is ValueKind.REGEX:
            _check_regex(value, (*path, index, "value"))
        # Of equal names the first counts.
        found.setdefault(name, ValueMatch(name=name, kind=kind, value=value))
    return tuple(found.values())


def _rank(match: RequestMatch) -> tuple[Any, ...]:
    """Sort key of Gateway API's precedence; smaller goes first."""
    path = match.path or PathMatch(kind=PathKind.SEGMENT_PREFIX, value="/")
    order = {PathKind.EXACT: 0, PathKind.SEGMENT_PREFIX: 1}.get(path.kind, 2)
    length = len(path.value.rstrip("/")) if path.kind is PathKind.SEGMENT_PREFIX else len(path.value)
    return (order, -length, match.method is None, -len(match.headers), -len(match.query))


def _headers(raw: Any, path: Path) -> HeaderOperations:
    value = _mapping(raw)
    for name in value.keys() - {"set", "add", "remove"}:
        raise FieldError((*path, name), "is not known")
    return HeaderOperations(
        set=_pairs(value.get("set"), (*path, "set")),
        add=_pairs(value.get("add"), (*path, "add")),
        remove=tuple(str(name).lower() for name in _list(value.get("remove"))),
    )


def _pairs(raw: Any, path: Path) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for index, entry in enumerate(_list(raw)):
        item = _mapping(entry)
        name, value = str(item.get("name", "")).lower(), str(item.get("value", ""))
        if not name or any(character in name + value for character in "\r\n\0"):
            raise FieldError((*path, index), "is no valid header")
        found.setdefault(name, value)
    return tuple(found.items())


def _redirect(raw: Mapping[str, Any], path: Path, matches: Sequence[RequestMatch]) -> Redirect:
    status = raw.get("statusCode", 302)
    if status not in REDIRECT_CODES:
        raise FieldError((*path, "statusCode"), f"must be one of {REDIRECT_CODES}")
    return Redirect(
        scheme=raw.get("scheme"),
        hostname=raw.get("hostname"),
        port=raw.get("port"),
        path=_path_rewrite(raw.get("path"), (*path, "path"), matches),
        status=int(status),
    )


def _path_rewrite(raw: Any, path: Path, matches: Sequence[RequestMatch]) -> PathRewrite | None:
    if raw is None:
        return None
    value = _mapping(raw)
    if value.get("type") == "ReplaceFullPath":
        return PathRewrite(full=str(value.get("replaceFullPath", "/")))
    if value.get("type") == "ReplacePrefixMatch":
        if any(m.path is None or m.path.kind is not PathKind.SEGMENT_PREFIX for m in matches):
            raise FieldError(path, "ReplacePrefixMatch needs matches of type PathPrefix only")
        return PathRewrite(prefix=str(value.get("replacePrefixMatch", "")))
    raise FieldError((*path, "type"), f"{value.get('type')!r} is not supported")


def _cors(raw: Mapping[str, Any]) -> Cors:
    max_age = raw.get("maxAge")
    return Cors(
        origins=tuple(_origin(str(origin)) for origin in _list(raw.get("allowOrigins"))),
        methods=tuple(str(method) for method in _list(raw.get("allowMethods"))),
        headers=tuple(str(name) for name in _list(raw.get("allowHeaders"))),
        expose=tuple(str(name) for name in _list(raw.get("exposeHeaders"))),
        max_age_s=int(max_age) if isinstance(max_age, int) else 5,
        credentials=raw.get("allowCredentials") is True,
    )


def _origin(text: str) -> ValueMatch:
    if "*" in text and text != "*":
        pattern = re.escape(text).replace(r"\*", r"[^/]*")
        return ValueMatch(name="", kind=ValueKind.REGEX, value=pattern)
    return ValueMatch(name="", kind=ValueKind.EXACT, value=text)


def _retry(raw: Mapping[str, Any], path: Path) -> Retry:
    codes = _list(raw.get("codes"))
    if any(not isinstance(code, int) or not 400 <= code <= 599 for code in codes):
        raise FieldError((*path, "codes"), "must be status codes from 400 to 599")
    attempts = raw.get("attempts", DEFAULT_ATTEMPTS)
    if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 0:
        raise FieldError((*path, "attempts"), "must be a whole number, 0 or more")
    backoff_s = _duration(raw.get("backoff"), (*path, "backoff"))
    return Retry(
        attempts=attempts,
        status_codes=tuple(codes),
        on_connect_failure=True,
        on_reset=True,
        backoff_s=backoff_s if backoff_s is not None else 0.025,
    )


def _duration(raw: Any, path: Path) -> float | None:
    """Parse a Gateway API duration (GEP-2257) to seconds; None: absent, or 0, which disables."""
    if raw is None:
        return None
    match = _DURATION.fullmatch(str(raw))
    if match is None or not str(raw):
        raise FieldError(path, f"{raw!r} is no duration such as 500ms, 2s or 1m30s")
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return (hours * 3600 + minutes * 60 + seconds + milliseconds / 1000) or None


def _check_regex(pattern: str, path: Path) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise FieldError(path, f"is no regular expression: {error}") from error


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _mapping(raw: Any) -> Mapping[str, Any]:
    return raw if isinstance(raw, Mapping) else {}
