# SPDX-License-Identifier: Apache-2.0
"""One http route of a VirtualService as a rule, for whatever port it is asked for.

A part that cannot be read closes the rule: its requests are answered 500. Source: istio.io/api
VirtualService; istiod's meaning of it for waypoints (pilot/pkg/networking/core/route/route.go).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace

from controller.translate.fields import MAX_PORT, Fields, IllTypedError
from controller.translate.hosts import Hosts, resolve_host
from controller.translate.virtual_service_actions import (
    FROM_REQUEST_PORT,
    Changes,
    combine_changes,
    read_cors,
    read_direct,
    read_fault,
    read_headers,
    read_percent,
    read_redirect,
    read_retry,
    read_rewrite,
)
from controller.translate.virtual_service_match import Entry, read_entry
from mesh.model.route import (
    Backend,
    HeaderOperations,
    Mirror,
    PathKind,
    PathMatch,
    RequestMatch,
    Rewrite,
    RouteRule,
)
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

MAX_WEIGHT = 2**31 - 1
MAX_PARTS = 256
"""Matches, destinations or mirrors of one route."""
UNRESOLVED = 503
"""What a destination that does not exist is answered with (Envoy's NC)."""
_ACTIONS = ("route", "redirect", "directResponse")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRule:
    """A rule of which the port is open: where it says 0, the port of the request is meant."""

    entries: tuple[Entry, ...]
    rule: RouteRule

    def at(
        self, port: int, namespace: str, services: Mapping[NamespacedHostname, Service]
    ) -> list[RouteRule]:
        """Return the rules, one a match, for a service port and clients of a namespace (empty: any)."""
        matches = [
            entry.match
            for entry in self.entries
            if entry.port in (0, port) and entry.namespace in ("", namespace)
        ]
        if not matches:
            return []
        rule = replace(
            self.rule,
            backends=tuple(backend_at(backend, port, services) for backend in self.rule.backends),
            mirrors=tuple(
                found for found in (_mirror_at(m, port, services) for m in self.rule.mirrors) if found
            ),
        )
        if rule.redirect is not None and rule.redirect.port == FROM_REQUEST_PORT:
            rule = replace(rule, redirect=replace(rule.redirect, port=port))
        return [replace(rule, matches=(match,)) for match in matches]


def backend_at(backend: Backend, port: int, services: Mapping[NamespacedHostname, Service]) -> Backend:
    """Return a backend with the port of the request where it names none."""
    if backend.service is None or backend.port:
        return backend
    if services[backend.service].port(port) is not None:
        return replace(backend, port=port)
    problem = f"service {backend.service} has no port {port}, and the destination names none"
    return replace(backend, service=None, subset="", problem=problem, problem_status=UNRESOLVED)


def _mirror_at(mirror: Mirror, port: int, services: Mapping[NamespacedHostname, Service]) -> Mirror | None:
    if mirror.port:
        return mirror
    return replace(mirror, port=port) if services[mirror.service].port(port) is not None else None


class HttpReader:
    """Reads http routes; knows services and subsets."""

    def __init__(
        self,
        hosts: Hosts,
        subsets: Container[tuple[NamespacedHostname, str]],
        cluster_domain: str,
        report: Callable[[IllTypedError, str], None],
    ) -> None:
        """Build it; `report` is told of what cannot be read and what becomes of it."""
        self._hosts = hosts
        self._subsets = subsets
        self._domain = cluster_domain
        self._report = report

    def read(self, fields: Fields, source: str) -> HttpRule:
        """Read one route; never raises for what it holds."""
        entries = self._entries(fields)
        try:
            rule = self._rule(fields, source)
        except IllTypedError as error:
            self._report(error, "the route's requests are answered 500")
            broken = Backend(service=None, problem=error.reason)
            return HttpRule(entries=entries, rule=RouteRule(source=source, backends=(broken,)))
        fields.finish()
        if rule.rewrite is not None and rule.rewrite.path is not None:
            entries = tuple(_with_path(entry) for entry in entries)
        return HttpRule(entries=entries, rule=rule)

    def _entries(self, fields: Fields) -> tuple[Entry, ...]:
        try:
            children = fields.children("match", MAX_PARTS)
        except IllTypedError as error:
            self._report(error, "the route matches nothing")
            return ()
        if not children:
            return (Entry(match=RequestMatch()),)
        found = []
        for child in children:
            try:
                entry = read_entry(child)
            except IllTypedError as error:
                self._report(error, "this alternative matches nothing")
                continue
            if entry is not None:
                found.append(entry)
        return tuple(found)

    def _rule(self, fields: Fields, source: str) -> RouteRule:
        fields.skip("name", "websocketUpgrade", "delegate")
        given = [name for name in _ACTIONS if fields.has(name)]
        if len(given) != 1:
            raise fields.wrong("", f"needs exactly one of {', '.join(_ACTIONS)}")
        rule = RouteRule(source=source, request_timeout_s=fields.duration("timeout") or None)
        if fields.has("retries"):
            retry, try_s = read_retry(fields.child("retries"))
            rule = replace(rule, retry=retry, try_timeout_s=try_s)
        if fields.has("fault"):
            rule = replace(rule, fault=read_fault(fields.child("fault")))
        if fields.has("corsPolicy"):
            rule = replace(rule, cors=read_cors(fields.child("corsPolicy")))
        rewrite = read_rewrite(fields.child("rewrite")) if fields.has("rewrite") else Rewrite()
        level = read_headers(fields.child("headers"))
        authority = rewrite.hostname or level[1] or None
        if rewrite.path is not None or authority is not None:
            rule = replace(rule, rewrite=Rewrite(path=rewrite.path, hostname=authority))
        rule = replace(rule, mirrors=self._mirrors(fields))
        if given == ["redirect"]:
            rule = _with_changes(rule, level)
            return replace(rule, redirect=read_redirect(fields.child("redirect")))
        if given == ["directResponse"]:
            rule = _with_changes(rule, level)
            return replace(rule, direct=read_direct(fields.child("directResponse")))
        return self._forwarding(rule, fields, level, authority)

    def _forwarding(
        self, rule: RouteRule, fields: Fields, route: tuple[Changes, str, Changes], authority: str | None
    ) -> RouteRule:
        """Return the rule with its backends, and what route and destination change in headers.

        For a single destination istiod makes one of both; of several, Envoy applies the
        destination's changes first.
        """
        backends, levels = self._read_destinations(fields)
        single = len(backends) == 1
        rule = _with_changes(rule, route)
        if any(request for request, _, _ in levels):
            rule = replace(rule, request_headers=HeaderOperations())
            backends = [
                replace(backend, request_headers=_combined(route[0], own[0], single))
                for backend, own in zip(backends, levels, strict=True)
            ]
        if any(response for _, _, response in levels):
            rule = replace(rule, response_headers=HeaderOperations())
            backends = [
                replace(backend, response_headers=_combined(route[2], own[2], single))
                for backend, own in zip(backends, levels, strict=True)
            ]
        if authority is None:
            backends = [_with_host(backend, own[1]) for backend, own in zip(backends, levels, strict=True)]
        return replace(rule, backends=tuple(backends))

    def read_backends(self, fields: Fields) -> tuple[Backend, ...]:
        """Read `route` without regard to headers; a port of 0 is that of the request.

        Raises:
            IllTypedError: it cannot be read, or no destination has a weight.
        """
        return tuple(self._read_destinations(fields)[0])

    def _read_destinations(self, fields: Fields) -> tuple[list[Backend], list[tuple[Changes, str, Changes]]]:
        children = fields.children("route", MAX_PARTS)
        backends, levels = [], []
        for child in children:
            # Of several destinations one without a weight has 0; a single one needs none.
            weight = child.integer("weight", 0, 0, MAX_WEIGHT)
            backends.append(replace(self._destination(child), weight=weight if len(children) > 1 else 1))
            levels.append(read_headers(child.child("headers")))
            child.finish()
        if not any(backend.weight for backend in backends):
            raise fields.wrong("route", "no destination has a weight")
        return backends, levels

    def _destination(self, parent: Fields) -> Backend:
        fields = parent.child("destination")
        service, port, subset, reason = self._resolve(fields)
        if reason:
            self._report(fields.wrong("", reason), f"its requests are answered {UNRESOLVED}")
        if service is None:
            return Backend(service=None, problem=reason, problem_status=UNRESOLVED)
        return Backend(service=service.key, port=port, subset=subset)

    def _resolve(self, fields: Fields) -> tuple[Service | None, int, str, str]:
        """Return service, port (0: the request's), subset, and what is wrong with them."""
        host, subset = fields.text("host"), fields.text("subset")
        number = fields.child("port").integer("number", 0, 0, MAX_PORT)
        if not host:
            raise fields.wrong("host", "is missing")
        fields.finish()
        namespace = fields.obj.namespace
        name = resolve_host(host, namespace, self._domain)
        service = self._hosts.find(name, namespace)
        if service is None:
            return None, 0, "", f"host {name} names no service of the mesh"
        if number and service.port(number) is None:
            return None, 0, "", f"service {service.key} has no port {number}"
        if not number and len(service.ports) == 1:
            number = service.ports[0].service_port
        if subset and (service.key, subset) not in self._subsets:
            return service, number, subset, f"no DestinationRule defines subset {subset} of {service.key}"
        return service, number, subset, ""

    def _mirrors(self, fields: Fields) -> tuple[Mirror, ...]:
        found = []
        if fields.has("mirror"):
            percent = read_percent(fields, "mirrorPercentage", "mirrorPercent", 100.0)
            found.append(self._mirror(fields.child("mirror"), percent))
        else:
            for name in ("mirrorPercentage", "mirrorPercent"):
                if fields.has(name):
                    fields.report(name, "has no effect without mirror")
        for child in fields.children("mirrors", MAX_PARTS):
            percent = read_percent(child, "percentage", "percent", 100.0)
            found.append(self._mirror(child.child("destination"), percent))
            child.finish()
        return tuple(mirror for mirror in found if mirror is not None and mirror.percent > 0)

    def _mirror(self, fields: Fields, percent: float) -> Mirror | None:
        service, port, subset, reason = self._resolve(fields)
        if reason:
            self._report(fields.wrong("", reason), "requests are not mirrored there")
            return None
        if service is None:
            return None
        return Mirror(service=service.key, port=port, subset=subset, percent=percent)


def _with_changes(rule: RouteRule, level: tuple[Changes, str, Changes]) -> RouteRule:
    return replace(
        rule,
        request_headers=combine_changes([level[0]], as_one=True),
        response_headers=combine_changes([level[2]], as_one=True),
    )


def _combined(route: Changes, own: Changes, single: bool) -> HeaderOperations:
    return combine_changes([route, own] if single else [own, route], as_one=single)


def _with_host(backend: Backend, host: str) -> Backend:
    if not host:
        return backend
    operations = backend.request_headers
    return replace(backend, request_headers=replace(operations, set=(("host", host), *operations.set)))


def _with_path(entry: Entry) -> Entry:
    """Name the prefix that a rewrite replaces where the match names no path: Envoy's default."""
    if entry.match.path is not None:
        return entry
    path = PathMatch(kind=PathKind.PREFIX, value="/")
    return replace(entry, match=replace(entry.match, path=path))
