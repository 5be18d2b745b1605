# SPDX-License-Identifier: Apache-2.0
"""Linkerd's annotations: retries and timeouts of Services and routes, failure accrual of Services.

What a route's spec says holds before its annotations, and those of a kind (retry, timeout) on
a route before all of that kind on the Service. With a ServiceProfile or VirtualService for the
service they have no effect. Source: linkerd.io reference, retries, timeouts, circuit breaking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.translate.fields import Fields, IllTypedError
from controller.translate.retry_on import GRPC_CONDITIONS
from controller.translate.types import problem
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.destination import Balancer, Balancing, DestinationPolicy, OutlierDetection, TrafficPolicy
from mesh.model.route import Backend, Retry, RouteRule, RouteTable
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import NamespacedHostname

RETRY, TIMEOUT, ACCRUAL = "retry.linkerd.io/", "timeout.linkerd.io/", "balancer.linkerd.io/failure-accrual"
DEFAULT_LIMIT = 1
MAX_LIMIT = 1000
ANNOTATED = frozenset({"HTTPRoute", "GRPCRoute", "HTTPRoute.policy.linkerd.io"})
"""Kinds of sources (`RouteRule.source`) whose annotations are read."""
_STATUSES = {"5xx": range(500, 600), "gateway-error": range(502, 505)}
_RANGE = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the annotations of one object ask for; None: nothing of that kind."""

    retry: Retry | None = None
    try_timeout_s: float | None = None
    """Belongs to `retry`."""
    request_timeout_s: float | None = None

    def __bool__(self) -> bool:
        return self.retry is not None or self.request_timeout_s is not None


def with_annotations(
    world: World,
    services: Mapping[NamespacedHostname, Service],
    tables: Mapping[str, RouteTable],
    objects: Mapping[str, RawObject],
) -> dict[str, RouteTable]:
    """Return the tables with what annotations add; `objects` are by the sources of rules."""
    found = dict(tables)
    of_object = {source: _read(world, obj) for source, obj in objects.items()}
    of_services = _of_services(world, services)
    held: dict[NamespacedHostname, set[int]] = {}
    for name, table in tables.items():
        of_service = of_services.get(table.service, Wishes())
        kinds = {rule.source.partition("/")[0] for rule in table.rules}
        if not table.client_namespace:
            held.setdefault(table.service, set()).add(table.port)
        if kinds <= ANNOTATED:
            rules = tuple(_apply(rule, of_object, of_service) for rule in table.rules)
            found[name] = replace(table, rules=rules)
        elif of_service:
            _report_unused(world, services[table.service], table)
    for key, wishes in of_services.items():
        found.update(_default_tables(world, services[key], wishes, held.get(key, set())))
    return found


def accrual_policies(
    world: World,
    services: Mapping[NamespacedHostname, Service],
    policies: Mapping[str, DestinationPolicy],
) -> dict[str, DestinationPolicy]:
    """Return the policies of Services with a failure accrual and without a DestinationRule."""
    ruled = {policy.service for policy in policies.values()}
    found = {}
    for obj in world.all("", "Service"):
        key = world.hostname(obj.name, obj.namespace)
        if not obj.metadata.get("annotations") or ACCRUAL not in obj.annotations or key not in services:
            continue
        path = ("metadata", "annotations", ACCRUAL)
        if key in ruled:
            reason = f"a DestinationRule is for {key} and comes first; no effect"
            world.problems.append(problem(obj, path, reason))
            continue
        outliers = _accrual(world, obj)
        if outliers is not None:
            source = f"Service/{obj.namespace}/{obj.name}"
            # Linkerd balances so; the accrual is part of that balancer.
            policy = TrafficPolicy(outliers=outliers, balancing=Balancing(balancer=Balancer.PEAK_EWMA))
            found[str(key)] = DestinationPolicy(service=key, sources=(source,), policy=policy)
    return found


# --- routes


def _apply(rule: RouteRule, of_object: Mapping[str, Wishes], of_service: Wishes) -> RouteRule:
    own = of_object.get(rule.source.partition("#")[0], Wishes())
    if rule.retry is None and (wishes := own if own.retry is not None else of_service).retry is not None:
        try_s = rule.try_timeout_s if rule.try_timeout_s is not None else wishes.try_timeout_s
        rule = replace(rule, retry=wishes.retry, try_timeout_s=try_s)
    if rule.request_timeout_s is None:
        timeout_s = own.request_timeout_s
        rule = replace(
            rule, request_timeout_s=of_service.request_timeout_s if timeout_s is None else timeout_s
        )
    return rule


def _default_tables(world: World, service: Service, wishes: Wishes, held: set[int]) -> dict[str, RouteTable]:
    """Make tables for the ports that no route is for, where the Service asks for something."""
    if 0 in held:
        return {}
    if service.waypoint is None and not service.weighted_waypoints:
        obj = _service_object(world, service)
        if obj is not None:
            reason = f"only waypoints honour Linkerd's annotations, and {service.key} has none"
            world.problems.append(problem(obj, ("metadata", "annotations"), reason))
    found = {}
    for port in service.ports:
        number = port.service_port
        if number in held or port.app_protocol in (AppProtocol.TCP, AppProtocol.TLS):
            continue
        rule = RouteRule(
            source=f"Service/{service.namespace}/{service.name}#annotations",
            backends=(Backend(service=service.key, port=number),),
            retry=wishes.retry,
            try_timeout_s=wishes.try_timeout_s,
            request_timeout_s=wishes.request_timeout_s,
        )
        found[f"{service.key}:{number}"] = RouteTable(service=service.key, port=number, rules=(rule,))
    return found


def _report_unused(world: World, service: Service, table: RouteTable) -> None:
    obj = _service_object(world, service)
    if obj is None or table.client_namespace:
        return
    source = table.rules[0].source.partition("#")[0]
    reason = f"{source} routes port {table.port} and comes first; retries and timeouts have no effect there"
    world.problems.append(problem(obj, ("metadata", "annotations"), reason))


def _service_object(world: World, service: Service) -> RawObject | None:
    return world.get("", "Service", service.namespace, service.name) if service.canonical else None


def _of_services(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[NamespacedHostname, Wishes]:
    """Return what Services ask for, of those that ask for something."""
    found = {}
    for obj in world.all("", "Service"):
        if obj.metadata.get("annotations"):
            key = world.hostname(obj.name, obj.namespace)
            if key in services and (wishes := _read(world, obj)):
                found[key] = wishes
    return found


# --- reading


def _read(world: World, obj: RawObject) -> Wishes:
    annotations = obj.annotations
    if not any(name.startswith((RETRY, TIMEOUT)) for name in annotations):
        return Wishes()
    fields = Fields(obj, world.problems, annotations, ("metadata", "annotations"))
    wishes = Wishes()
    try:
        if any(name.startswith(RETRY) for name in annotations):
            retry, try_s = _retry(fields)
            wishes = replace(wishes, retry=retry, try_timeout_s=try_s)
    except IllTypedError as error:
        world.report(obj, error, "nothing is tried again for it")
    try:
        wishes = replace(wishes, request_timeout_s=fields.duration(TIMEOUT + "request") or None)
    except IllTypedError as error:
        world.report(obj, error, "there is no timeout")
    for name in ("response", "idle"):
        if fields.has(TIMEOUT + name):
            reason = "waypoints bound the whole request only (timeout.linkerd.io/request); no effect"
            fields.report(TIMEOUT + name, reason)
    return wishes


def _retry(fields: Fields) -> tuple[Retry | None, float | None]:
    statuses: set[int] = set()
    for part in filter(None, (text.strip() for text in fields.text(RETRY + "http").split(","))):
        found = _RANGE.fullmatch(part)
        if part in _STATUSES:
            statuses.update(_STATUSES[part])
        elif found is not None and int(found[2] or found[1]) >= int(found[1]):
            statuses.update(range(int(found[1]), int(found[2] or found[1]) + 1))
        else:
            raise fields.wrong(RETRY + "http", f"{part[:100]!r} is no status code, 5xx or gateway-error")
    grpc: set[int] = set()
    for part in filter(None, (text.strip() for text in fields.text(RETRY + "grpc").split(","))):
        if part not in GRPC_CONDITIONS:
            raise fields.wrong(RETRY + "grpc", f"{part[:100]!r} is none of {', '.join(GRPC_CONDITIONS)}")
        grpc.add(GRPC_CONDITIONS[part])
    limit = fields.text(RETRY + "limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and int(limit) <= MAX_LIMIT):
        raise fields.wrong(RETRY + "limit", f"must be a whole number from 0 to {MAX_LIMIT}")
    try_s = fields.duration(RETRY + "timeout") or None
    if not statuses and not grpc and try_s is None:
        return None, None
    made = Retry(attempts=int(limit), status_codes=tuple(sorted(statuses)), grpc_statuses=tuple(sorted(grpc)))
    return made, try_s


def _accrual(world: World, obj: RawObject) -> OutlierDetection | None:
    fields = Fields(obj, world.problems, obj.annotations, ("metadata", "annotations"))
    prefix = f"{ACCRUAL}-consecutive-"
    try:
        fields.choice(ACCRUAL, ("consecutive",), "consecutive")
        count = fields.text(prefix + "max-failures", "7")
        if not (count.isascii() and count.isdigit() and 0 < int(count) < 2**31):
            raise fields.wrong(prefix + "max-failures", "must be a whole number, 1 or more")
        least_s = fields.duration(prefix + "min-penalty")
        most_s = fields.duration(prefix + "max-penalty")
        least_s, most_s = 1.0 if least_s is None else least_s, 60.0 if most_s is None else most_s
        if not 0 < least_s <= most_s:
            raise fields.wrong(prefix + "min-penalty", "must be more than 0 and at most max-penalty")
    except IllTypedError as error:
        world.report(obj, error, "no endpoint is ever ejected")
        return None
    return OutlierDetection(
        consecutive_5xx=int(count),
        base_ejection_s=least_s,
        max_ejection_s=most_s,
        max_ejection_percent=100,
    )
