# SPDX-License-Identifier: Apache-2.0
"""What HTTPRoute and GRPCRoute of services (Gateway API, mesh use) have in common.

Producer routes stand in the service's namespace and hold for every client; consumer
routes stand in another and replace them for clients of their own namespace. A route of
one port and one of all ports are both in the table of that port. What a rule matches, and
which goes first, is each kind's own. Source: gateway-api v1, GEP-1324, GEP-1294.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from controller.translate.hosts import Hosts
from controller.translate.regex import regex_problem
from mesh.config.objects import Path, RawObject
from mesh.model.route import (
    Backend,
    HeaderOperations,
    Mirror,
    RequestMatch,
    RouteRule,
    RouteTable,
    ValueKind,
    ValueMatch,
)
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

_DURATION = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,5})s)?(?:(\d{1,5})ms)?")
GATEWAY_API = "gateway.networking.k8s.io"
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_GROUPS = ("", "core")
_ISTIO = "networking.istio.io"
_NO_BACKEND = "BackendNotFound"

MAX_WEIGHT = 1_000_000
"""Gateway API's."""
MAX_PARTS = 4096
"""Matches and backends of one route; Gateway API's schema allows fewer."""
Rank = tuple[Any, ...]
"""Sorts the matches of one kind; smaller goes first."""


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
    code: str = "NoMatchingParent"
    """Gateway API's name of the reason."""
    port: int = 0
    """0: every port."""
    client_namespace: str = ""
    """Of the clients that it is for; empty: all."""


@dataclass(slots=True, kw_only=True)
class GatewayRoutes:
    """The result: tables, and what was found on the way."""

    tables: dict[str, RouteTable] = field(default_factory=dict)
    """By resource name."""
    findings: list[Finding] = field(default_factory=list)
    parents: list[Parent] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One route on one port of one service."""

    service: NamespacedHostname
    port: int
    """0: every port."""
    client_namespace: str


def collect_routes(
    routes: Iterable[RawObject],
    reader: type[RouteReader],
    services: Mapping[NamespacedHostname, Service],
    cluster_domain: str,
) -> GatewayRoutes:
    """Translate every route of one kind; never raises for what a route holds."""
    result = GatewayRoutes()
    hosts = Hosts(services)
    scopes: dict[tuple[NamespacedHostname, str], list[tuple[set[int], list[tuple[Rank, RouteRule]]]]] = {}
    for route in sorted(routes, key=route_age):
        read = reader(route, hosts, services, cluster_domain, result.findings)
        ports: dict[tuple[NamespacedHostname, str], set[int]] = {}
        for attachment in read.attachments():
            ports.setdefault((attachment.service, attachment.client_namespace), set()).add(attachment.port)
        result.parents.extend(read.parents)
        ranked = list(read.rules()) if ports else []
        if read.too_large:
            continue
        for scope, numbers in ports.items():
            scopes.setdefault(scope, []).append((numbers, ranked))
    for (service, client), attached in scopes.items():
        for port in sorted(set().union(*(numbers for numbers, _ in attached))):
            entries = [entry for numbers, ranked in attached if numbers & {0, port} for entry in ranked]
            # sorted() is stable: entries came by age, name and rule, the last three criteria.
            rules = tuple(rule for _, rule in sorted(entries, key=lambda entry: entry[0]))
            table = RouteTable(service=service, port=port, rules=rules, client_namespace=client)
            result.tables[f"{service}:{port}{f'@{client}' if client else ''}"] = table
    return result


def source_of(route: RawObject) -> str:
    """Return `kind/namespace/name`, of a kind that is not Gateway API's with its group."""
    group = route.key.group
    kind = route.kind if group == GATEWAY_API else f"{route.kind}.{group}"
    return f"{kind}/{route.namespace}/{route.name}"


def route_age(route: RawObject) -> tuple[str, str, str]:
    """Order by age, then namespace and name; a route without a time is the youngest."""
    return (str(route.metadata.get("creationTimestamp") or "~"), route.namespace, route.name)


class RouteReader:
    """Reads one route; a kind says how its matches, filters and other fields are read."""

    fields: ClassVar[frozenset[str]]
    """Of a rule, those that the kind knows."""
    broken_status: ClassVar[int] = 500
    """What an invalid backend is answered with."""

    def __init__(
        self,
        route: RawObject,
        hosts: Hosts,
        services: Mapping[NamespacedHostname, Service],
        cluster_domain: str,
        findings: list[Finding],
    ) -> None:
        self._route = route
        self._hosts = hosts
        self._services = services
        self._domain = cluster_domain
        self._findings = findings
        self.parents: list[Parent] = []
        self.too_large = False
        """Found by `rules`: the route is left out."""

    # --- of each kind

    def read_match(self, raw: Mapping[str, Any], path: Path) -> RequestMatch:
        """Read one match."""
        raise NotImplementedError

    def rank(self, match: RequestMatch) -> Rank:
        """Return the sort key of a match."""
        raise NotImplementedError

    def read_filter(
        self, rule: RouteRule, raw: Mapping[str, Any], path: Path, matches: Sequence[RequestMatch]
    ) -> RouteRule:
        """Return the rule with a filter that no other kind has."""
        raise FieldError((*path, "type"), f"filter {raw.get('type')!r} is not supported")

    def read_rest(self, rule: RouteRule, raw: Mapping[str, Any], path: Path) -> RouteRule:
        """Return the rule with what else the kind has."""
        return rule

    # --- of both

    def _find(self, path: Path, reason: str, severity: str = "error", code: str = "") -> None:
        finding = Finding(route=self._route, path=path, reason=reason, severity=severity, code=code)
        self._findings.append(finding)

    def _host(self, name: str, namespace: str) -> NamespacedHostname:
        return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.{self._domain}")

    def attachments(self) -> list[Attachment]:
        """Return the services' ports that the route is for."""
        found: list[Attachment] = []
        for index, parent in enumerate(as_list(self._route.spec.get("parentRefs"))):
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
                Attachment(service=key, port=parent.get("port") or 0, client_namespace=consumer)
                for key in accepted
            ]
            self.parents.append(
                Parent(
                    route=self._route,
                    index=index,
                    services=tuple(accepted),
                    reason=reason,
                    port=parent.get("port") or 0,
                    client_namespace=consumer,
                )
            )
        return found

    def _parent(self, parent: Mapping[str, Any]) -> tuple[str, list[NamespacedHostname], str]:
        """Return a parent's namespace and services, or why there are none."""
        group, kind = parent.get("group", GATEWAY_API), parent.get("kind")
        namespace, name = str(parent.get("namespace") or self._route.namespace), str(parent.get("name", ""))
        if kind == "Service" and group in _GROUPS:
            key = self._host(name, namespace)
            if key in self._services:
                return namespace, [key], ""
            return namespace, [], f"service {namespace}/{name} does not exist"
        if (group, kind) == (_ISTIO, "ServiceEntry"):
            keys = self._hosts.of_entry(namespace, name)
            return namespace, keys, "" if keys else f"ServiceEntry {namespace}/{name} is not served"
        return (
            namespace,
            [],
            f"parent of kind {kind} is not served: routes are for Services and ServiceEntries",
        )

    def _has_port(self, key: NamespacedHostname, port: object) -> bool:
        return port is None or (isinstance(port, int) and self._services[key].port(port) is not None)

    def rules(self) -> Iterator[tuple[Rank, RouteRule]]:
        """Yield one rule per match, with the key that it is sorted by."""
        written = as_list(self._route.spec.get("rules", [{}]))
        count = sum(
            max(1, len(as_list(as_mapping(rule).get(name))))
            for rule in written
            for name in ("matches", "backendRefs")
        )
        if count > MAX_PARTS:
            reason = f"have {count} matches and backends, more than {MAX_PARTS}; the route has no effect"
            self._find(("spec", "rules"), reason)
            self.too_large = True
            return
        for index, rule in enumerate(written):
            path: Path = ("spec", "rules", index)
            source = f"{source_of(self._route)}#{index}"
            if not isinstance(rule, Mapping):
                self._find(path, "must be a mapping")
                continue
            status = self.broken_status
            matches: list[RequestMatch] = []
            try:
                for position, match in enumerate(as_list(rule.get("matches")) or [{}]):
                    matches.append(self.read_match(as_mapping(match), (*path, "matches", position)))
                translated = self._rule(rule, path, source, matches)
            except FieldError as error:
                self._find(error.path, f"{error.reason}; the rule's requests are answered {status}")
                translated = self._broken(source, error.reason)
            except (TypeError, ValueError) as error:
                reason = f"holds a value of the wrong type: {error}; its requests are answered {status}"
                self._find(path, reason)
                translated = self._broken(source, str(error))
            for match in matches or [RequestMatch()]:
                yield self.rank(match), replace(translated, matches=(match,))

    def _broken(self, source: str, reason: str) -> RouteRule:
        backend = Backend(service=None, problem=reason, problem_status=self.broken_status)
        return RouteRule(source=source, backends=(backend,))

    def _rule(
        self, rule: Mapping[str, Any], path: Path, source: str, matches: Sequence[RequestMatch]
    ) -> RouteRule:
        for name in sorted(map(str, rule.keys() - self.fields)):
            self._find((*path, name), "is not honoured", "warning")
        translated = RouteRule(source=source, backends=tuple(self._backends(rule, path)))
        for index, entry in enumerate(as_list(rule.get("filters"))):
            where: Path = (*path, "filters", index)
            translated = self._filter(translated, as_mapping(entry), where, matches)
        return self.read_rest(translated, rule, path)

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
        if kind == "RequestMirror":
            return self._mirror(rule, as_mapping(raw.get("requestMirror")), (*path, "requestMirror"))
        return self.read_filter(rule, raw, path, matches)

    def _backends(self, rule: Mapping[str, Any], path: Path) -> Iterator[Backend]:
        for index, entry in enumerate(as_list(rule.get("backendRefs"))):
            where: Path = (*path, "backendRefs", index)
            reference = as_mapping(entry)
            weight = reference.get("weight", 1)
            if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
                raise FieldError((*where, "weight"), f"must be a whole number from 0 to {MAX_WEIGHT}")
            service, port, problem, code = self.resolve(reference)
            if problem:
                problem = f"{problem} ({code})"
                self._find(where, problem, code=code)
            backend = Backend(service=service, port=port, weight=weight, problem=problem)
            if service is None:
                backend = replace(backend, problem_status=self.broken_status)
            for position, raw in enumerate(as_list(reference.get("filters"))):
                backend = self._backend_filter(backend, as_mapping(raw), (*where, "filters", position))
            yield backend

    def resolve(self, reference: Mapping[str, Any]) -> tuple[NamespacedHostname | None, int, str, str]:
        """Resolve a reference to a service and port; the others say why it cannot be, in words and a code."""
        group, kind = reference.get("group", ""), reference.get("kind", "Service")
        name = str(reference.get("name", ""))
        namespace = str(reference.get("namespace") or self._route.namespace)
        if group in _GROUPS and kind == "Service":
            service = self._services.get(self._host(name, namespace))
        elif (group, kind) == (_ISTIO, "Hostname"):
            service = self._hosts.find(name.lower(), namespace)
        else:
            return None, 0, f"kind {group}/{kind} is no backend here", "InvalidKind"
        if service is None:
            return None, 0, f"service {namespace}/{name} does not exist", _NO_BACKEND
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

    def _mirror(self, rule: RouteRule, raw: Mapping[str, Any], path: Path) -> RouteRule:
        service, port, problem, code = self.resolve(as_mapping(raw.get("backendRef")))
        if service is None:
            # Gateway API: an invalid mirror is dropped, the request itself is not touched.
            words = f"{problem} ({code}); requests are not mirrored"
            self._find((*path, "backendRef"), words, code=code)
            return rule
        percent = 100.0
        if raw.get("percent") is not None:
            percent = float(raw["percent"])
        elif (fraction := as_mapping(raw.get("fraction"))) and fraction.get("denominator", 100):
            percent = 100.0 * float(fraction.get("numerator", 0)) / float(fraction.get("denominator", 100))
        mirror = Mirror(service=service, port=port, percent=percent)
        return replace(rule, mirrors=(*rule.mirrors, mirror))


def read_values(raw: Any, path: Path, *, lower: bool) -> tuple[ValueMatch, ...]:
    """Read matches of header fields (names in lower case) or query parameters."""
    found: dict[str, ValueMatch] = {}
    for index, entry in enumerate(as_list(raw)):
        item = as_mapping(entry)
        name = str(item.get("name", ""))
        name = name.lower() if lower else name
        kind = {"Exact": ValueKind.EXACT, "RegularExpression": ValueKind.REGEX}.get(
            str(item.get("type", "Exact"))
        )
        if kind is None or not name:
            raise FieldError((*path, index), "needs a name and type Exact or RegularExpression")
        value = str(item.get("value", ""))
        if kind is ValueKind.REGEX:
            check_regex(value, (*path, index, "value"))
        # Of equal names the first counts.
        found.setdefault(name, ValueMatch(name=name, kind=kind, value=value))
    return tuple(found.values())


def _headers(raw: Any, path: Path) -> HeaderOperations:
    value = as_mapping(raw)
    for name in value.keys() - {"set", "add", "remove"}:
        raise FieldError((*path, name), "is not known")
    return HeaderOperations(
        set=_pairs(value.get("set"), (*path, "set")),
        add=_pairs(value.get("add"), (*path, "add")),
        remove=tuple(str(name).lower() for name in as_list(value.get("remove"))),
    )


def _pairs(raw: Any, path: Path) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for index, entry in enumerate(as_list(raw)):
        item = as_mapping(entry)
        name, value = str(item.get("name", "")).lower(), str(item.get("value", ""))
        if _FIELD_NAME.fullmatch(name) is None or any(character in value for character in "\r\n\0"):
            raise FieldError((*path, index), "is no valid header")
        found.setdefault(name, value)
    return tuple(found.items())


def read_duration(raw: Any, path: Path) -> float | None:
    """Parse a Gateway API duration (GEP-2257) to seconds; None: absent, or 0, which disables."""
    if raw is None:
        return None
    match = _DURATION.fullmatch(str(raw))
    if match is None or not str(raw):
        raise FieldError(path, f"{raw!r} is no duration such as 500ms, 2s or 1m30s")
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return (hours * 3600 + minutes * 60 + seconds + milliseconds / 1000) or None


def check_regex(pattern: str, path: Path) -> None:
    """Raise FieldError for an expression that cannot be used."""
    if reason := regex_problem(pattern):
        raise FieldError(path, reason)


def as_list(raw: Any) -> list[Any]:
    """Return a list; what is none is an empty one."""
    return raw if isinstance(raw, list) else []


def as_mapping(raw: Any) -> Mapping[str, Any]:
    """Return a mapping; what is none is an empty one."""
    return raw if isinstance(raw, Mapping) else {}
