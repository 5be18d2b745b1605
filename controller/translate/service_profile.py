# SPDX-License-Identifier: Apache-2.0
"""Linkerd ServiceProfiles, and SMI TrafficSplits, as route tables, one a service port.

The name is that of the service. A profile in the service's namespace is for all clients; in
another, for that namespace's clients. Routes are tried in order; what none takes goes to the
service itself. A TrafficSplit replaces `dstOverrides`, as Linkerd's adaptor does. Source:
linkerd2 ServiceProfile CRD (v1alpha2); linkerd2-proxy app/core/src/classify.rs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, spec
from controller.translate.hosts import Hosts, resolve_host
from controller.translate.quantity import parse_quantity, whole_weights
from controller.translate.request_condition import read_condition
from controller.translate.smi import Split, Splits, read_splits
from controller.translate.status_condition import FAILED_GRPC, failures
from controller.translate.types import problem
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.destination import RetryBudget
from mesh.model.route import Backend, RequestMatch, Retry, RouteRule, RouteTable
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import NamespacedHostname

GROUP = "linkerd.io"
MAX_ATTEMPTS = 10
"""Linkerd bounds retries by the budget alone; this bounds what one request takes of it."""
MAX_ROUTES = 1024
MAX_OVERRIDES = 256
DEFAULT_BUDGET = RetryBudget(percent=20.0, interval_s=10.0, min_per_second=10.0)
_NOT_HTTP = (AppProtocol.TCP, AppProtocol.TLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    """One ServiceProfile, read; ports of backends may be 0: that of the request."""

    rules: tuple[RouteRule, ...] = ()
    overrides: tuple[Backend, ...] = ()
    budget: RetryBudget | None = None
    opaque: tuple[range, ...] = ()
    source: str = ""


def translate_profiles(world: World, services: Mapping[NamespacedHostname, Service]) -> dict[str, RouteTable]:
    """Return tables by resource name (`mesh.xds.routes.route_table_name`)."""
    return _Translator(world, services).tables()


class _Translator:
    def __init__(self, world: World, services: Mapping[NamespacedHostname, Service]) -> None:
        self._world = world
        self._services = services
        self._hosts = Hosts(services)

    def tables(self) -> dict[str, RouteTable]:
        splits = read_splits(self._world, self._services)
        profiles: dict[tuple[NamespacedHostname, str], _Profile] = {}
        for obj in self._world.all(GROUP, "ServiceProfile"):
            service = self._hosts.find(obj.name.lower(), obj.namespace)
            if service is None:
                self._problem(
                    obj, ("metadata", "name"), f"{obj.name} names no service of the mesh; no effect"
                )
                continue
            if service.waypoint is None and not service.weighted_waypoints:
                reason = f"only waypoints honour ServiceProfiles, and {service.key} has none"
                self._problem(obj, ("metadata", "name"), reason)
            client = "" if obj.namespace == service.namespace else obj.namespace
            profiles[service.key, client] = self._read(obj, service)
        for key in splits:
            profiles.setdefault((key, ""), _Profile())
        found = {}
        for (key, client), profile in sorted(profiles.items(), key=str):
            own = splits.get(key, Splits())
            if client:
                own = Splits(rest=own.rest)
            for table in self._of_service(self._services[key], client, profile, own):
                found[f"{key}:{table.port}{f'@{client}' if client else ''}"] = table
        return found

    def _of_service(
        self, service: Service, client: str, profile: _Profile, splits: Splits
    ) -> list[RouteTable]:
        if not (profile.rules or profile.overrides or splits.rest or splits.matching):
            return []
        tables = []
        for port in service.ports:
            number = port.service_port
            if port.app_protocol in _NOT_HTTP or any(number in ports for ports in profile.opaque):
                continue
            tables.append(
                RouteTable(
                    service=service.key,
                    port=number,
                    rules=tuple(self._rules(service.key, number, profile, splits)),
                    client_namespace=client,
                    retry_budget=profile.budget if any(rule.retry for rule in profile.rules) else None,
                )
            )
        return tables

    def _rules(
        self, service: NamespacedHostname, port: int, profile: _Profile, splits: Splits
    ) -> list[RouteRule]:
        itself = (Backend(service=service),)
        shares = splits.rest.backends if splits.rest else profile.overrides or itself
        found = [self._of_split(split, port) for split in splits.matching if split.matches]
        found += [replace(rule, backends=self._at(shares, port)) for rule in profile.rules]
        source = splits.rest.source if splits.rest else f"{profile.source}#default"
        if not splits.rest and not profile.source:
            source = f"{splits.matching[0].source.partition('#')[0]}#default"
        found.append(RouteRule(source=source, backends=self._at(shares, port)))
        return found

    def _of_split(self, split: Split, port: int) -> RouteRule:
        return RouteRule(source=split.source, matches=split.matches, backends=self._at(split.backends, port))

    def _at(self, backends: tuple[Backend, ...], port: int) -> tuple[Backend, ...]:
        """Return the backends of a port; those that have no such port get nothing of it."""
        found = []
        for backend in backends:
            number = backend.port or port
            if backend.service is not None and self._services[backend.service].port(number) is not None:
                found.append(replace(backend, port=number))
        return tuple(found)

    # --- reading

    def _read(self, obj: RawObject, service: Service) -> _Profile:
        fields = spec(obj, self._world.problems)
        source = f"ServiceProfile/{obj.namespace}/{obj.name}"
        try:
            children = fields.children("routes", MAX_ROUTES)
            profile = _Profile(
                overrides=self._overrides(fields),
                budget=self._budget(fields),
                opaque=_opaque(fields),
                source=source,
            )
        except IllTypedError as error:
            self._world.report(obj, error, "the profile has no effect")
            return _Profile(source=source)
        fields.finish()
        rules = [self._route(child, f"{source}#{index}") for index, child in enumerate(children)]
        made = tuple(rule for rule in rules if rule is not None)
        if profile.budget is None:
            made = tuple(replace(rule, retry=None) for rule in made)
        return replace(profile, rules=made)

    def _budget(self, fields: Fields) -> RetryBudget | None:
        try:
            return _budget(fields.child("retryBudget")) if fields.has("retryBudget") else DEFAULT_BUDGET
        except IllTypedError as error:
            self._world.report(fields.obj, error, "no route is tried again")
            return None

    def _route(self, fields: Fields, source: str) -> RouteRule | None:
        fields.skip("name")
        try:
            matches: tuple[RequestMatch, ...] = read_condition(fields.child("condition"))
            retryable = fields.boolean("isRetryable")
            failed = failures(fields.children("responseClasses"))
            timeout_s = fields.duration("timeout") or None
        except IllTypedError as error:
            self._world.report(fields.obj, error, "the route takes no requests")
            return None
        if fields.has("retries"):
            reason = "is no field here: isRetryable allows retries, the profile's retryBudget bounds them"
            fields.report("retries", reason, "error")
        fields.finish()
        retry = None
        if retryable:
            retry = Retry(attempts=MAX_ATTEMPTS, status_codes=failed, grpc_statuses=FAILED_GRPC)
        return RouteRule(source=source, matches=matches, retry=retry, request_timeout_s=timeout_s)

    def _overrides(self, fields: Fields) -> tuple[Backend, ...]:
        found = []
        for index, child in enumerate(fields.children("dstOverrides", MAX_OVERRIDES)):
            raw = fields.obj.spec["dstOverrides"][index].get("weight")
            weight = parse_quantity(0 if raw is None else raw)
            if weight is None:
                raise child.wrong("weight", "must be a quantity such as 1 or 500m")
            child.skip("weight")
            host, port = self._authority(child)
            service = self._hosts.find(host, fields.obj.namespace)
            child.finish()
            if service is None or (port and service.port(port) is None):
                name = f"{host}:{port}" if port else host
                error = child.wrong("authority", f"{name} is no port of a service of the mesh")
                self._world.report(fields.obj, error, "it gets no requests")
            elif weight:
                found.append((service.key, port, weight))
        weights = whole_weights(weight for _, _, weight in found)
        return tuple(
            Backend(service=key, port=port, weight=weight)
            for (key, port, _), weight in zip(found, weights, strict=True)
        )

    def _authority(self, fields: Fields) -> tuple[str, int]:
        host, _, port = fields.text("authority").partition(":")
        if not host or (port and not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT)):
            raise fields.wrong("authority", "is no name of a service with or without a port")
        name = resolve_host(host, fields.obj.namespace, self._world.options.cluster_domain)
        return name, int(port or 0)

    def _problem(self, obj: RawObject, path: tuple[str, ...], reason: str) -> None:
        self._world.problems.append(problem(obj, path, reason))


def _budget(fields: Fields) -> RetryBudget:
    ratio = fields.number("retryRatio", 0.2, 0.0, 1000.0)
    least = fields.integer("minRetriesPerSecond", 10, 0, 2**31 - 1)
    ttl_s = fields.duration("ttl")
    ttl_s = 10.0 if ttl_s is None else ttl_s
    if not 1.0 <= ttl_s <= 60.0:
        raise fields.wrong("ttl", "must be from 1s to 60s")
    fields.finish()
    return RetryBudget(percent=ratio * 100, interval_s=ttl_s, min_per_second=float(least))


def _opaque(fields: Fields) -> tuple[range, ...]:
    found = []
    for text in fields.strings("opaquePorts"):
        first, dash, last = text.partition("-")
        numbers = [first, last] if dash else [first, first]
        if not all(n.isascii() and n.isdigit() and len(n) < 6 for n in numbers):
            raise fields.wrong("opaquePorts", f"{text[:100]!r} is no port and no range of ports")
        found.append(range(int(numbers[0]), int(numbers[1]) + 1))
    return tuple(found)
