# SPDX-License-Identifier: Apache-2.0
"""DestinationRules to one DestinationPolicy a service, as waypoints honour them.

The client is the waypoint: its namespace's rules come first, then those of the service's
namespace, then the root namespace's, each as far as exported. Of one namespace the most
specific host wins; several rules for that host are one: all their subsets, and the oldest
trafficPolicy. Source: istio pilot/pkg/model/push_context.go, destination_rule.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.translate.balancer import with_balancers
from controller.translate.fields import Fields, IllTypedError, age, spec
from controller.translate.hosts import (
    Exports,
    Hosts,
    WaypointNamespaces,
    matches,
    resolve_host,
    specificity,
)
from controller.translate.linkerd import accrual_policies
from controller.translate.traffic_policy import Level, read_level
from controller.translate.types import problem
from controller.translate.world import ISTIO_NETWORKING, World
from mesh.config.objects import RawObject
from mesh.model.destination import DestinationPolicy, EndpointLabels, Subset
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname, Workload

MAX_SUBSETS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One DestinationRule, read."""

    obj: RawObject
    host: str
    exports: Exports
    level: Level | None
    """None: it has no trafficPolicy."""
    subsets: tuple[tuple[str, tuple[tuple[str, str], ...], Level], ...]


def translate_destination_rules(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[str, DestinationPolicy]:
    """Return policies by resource name (`mesh.xds.destinations.destination_policy_name`).

    Services that no rule is for have none, or what annotations say (Linkerd's, our own). A waypoint
    takes the policy of its own namespace (`namespace/hostname@waypoint namespace`) where
    there is one.
    """
    objects = sorted(world.all(ISTIO_NETWORKING, "DestinationRule"), key=age)
    rules = [rule for rule in (_read(world, obj) for obj in objects) if rule is not None]
    found = _Selection(world, services, rules).policies() if rules else {}
    return with_balancers(world, services, found | accrual_policies(world, services, found))


def endpoint_labels(
    policies: Iterable[DestinationPolicy], workloads: Iterable[tuple[Mapping[str, str], Workload]]
) -> dict[str, EndpointLabels]:
    """Return by uid what waypoints need of workloads' labels: those that a policy asks for.

    `workloads` are the labels and the workload with its services. Labels that a failover
    priority names are sent of every workload, as a waypoint compares them with its own.
    """
    by_service: dict[NamespacedHostname, set[str]] = {}
    everywhere: set[str] = set()
    for policy in policies:
        asked = by_service.setdefault(policy.service, set())
        asked.update(key for subset in policy.subsets for key, _ in subset.labels)
        levels = [policy.policy, *(entry.policy for entry in policy.ports)]
        for subset in policy.subsets:
            levels += [subset.policy, *(entry.policy for entry in subset.ports)]
        for level in levels:
            if level.balancing.locality is not None:
                everywhere.update(
                    label.partition("=")[0] for label in level.balancing.locality.failover_priority
                )
    if not everywhere and not any(by_service.values()):
        return {}
    found = {}
    known: dict[tuple[NamespacedHostname, ...], list[str]] = {}
    for labels, workload in workloads:
        services = tuple(workload.services)
        keys = known.get(services)
        if keys is None:
            asked = everywhere.union(*(by_service.get(service, ()) for service in services))
            keys = known[services] = sorted(asked)
        given = tuple((key, labels[key]) for key in keys if key in labels)
        if given:
            found[workload.uid] = EndpointLabels(uid=workload.uid, labels=given)
    return found


# --- reading


def _read(world: World, obj: RawObject) -> _Rule | None:
    fields = spec(obj, world.problems)
    try:
        host = fields.text("host")
        if not host:
            raise fields.wrong("host", "is missing")
        if fields.has("workloadSelector"):
            reason = "selects clients by label, which waypoints have not; the rule has no effect"
            fields.report("workloadSelector", reason)
            return None
        rule = _Rule(
            obj=obj,
            host=resolve_host(host, obj.namespace, world.options.cluster_domain),
            exports=Exports(fields, obj.namespace),
            level=_level(world, obj, fields) if fields.has("trafficPolicy") else None,
            subsets=tuple(_subsets(world, obj, fields)),
        )
    except IllTypedError as error:
        world.report(obj, error, "the rule has no effect")
        return None
    fields.finish()
    return rule


def _level(world: World, obj: RawObject, fields: Fields) -> Level:
    def refuse(error: IllTypedError, consequence: str) -> None:
        world.report(obj, error, consequence)

    return read_level(fields.child("trafficPolicy"), refuse)


def _subsets(
    world: World, obj: RawObject, fields: Fields
) -> Iterable[tuple[str, tuple[tuple[str, str], ...], Level]]:
    for entry in fields.children("subsets", MAX_SUBSETS):
        try:
            name = entry.text("name")
            if not name:
                raise entry.wrong("name", "is missing")
            labels = tuple(sorted(entry.string_map("labels").items()))
            level = _level(world, obj, entry)
        except IllTypedError as error:
            world.report(obj, error, "the subset is not defined, and requests for it are answered 503")
            continue
        entry.finish()
        yield name, labels, level


# --- selection


class _Selection:
    """Chooses for each service the rules that hold."""

    def __init__(
        self, world: World, services: Mapping[NamespacedHostname, Service], rules: list[_Rule]
    ) -> None:
        self._world = world
        self._root = world.options.root_namespace
        self._services = services
        self._hosts = Hosts(services)
        self._waypoints = WaypointNamespaces(services)
        self._clients = self._waypoints.all(services.values())
        self._rules = rules
        self._by_namespace: dict[str, dict[str, list[_Rule]]] = {}
        self._wildcards: dict[str, list[_Rule]] = {}
        for rule in rules:
            self._by_namespace.setdefault(rule.obj.namespace, {}).setdefault(rule.host, []).append(rule)
            if rule.host.startswith("*"):
                self._wildcards.setdefault(rule.obj.namespace, []).append(rule)

    def policies(self) -> dict[str, DestinationPolicy]:
        found: dict[str, DestinationPolicy] = {}
        used: dict[int, list[Service]] = {}
        for service, clients in self._concerned():
            base = self._choose(service, "")
            chosen = {"": base} | {
                client: rules
                for client in sorted(clients)
                if (rules := self._choose(service, client)) != base
            }
            for client, rules in chosen.items():
                if not rules:
                    continue
                policy = self._merge(service, client, rules)
                scope = f"@{client}" if client else ""
                found[f"{service.key}{scope}"] = policy
                for rule in rules:
                    used.setdefault(id(rule), []).append(service)
        self._report(used)
        return found

    def _concerned(self) -> list[tuple[Service, set[str]]]:
        """Return the services that rules are for, and the waypoints' namespaces that see others."""
        found: dict[NamespacedHostname, set[str]] = {}
        for rule in self._rules:
            clients = self._clients & {rule.obj.namespace, *rule.exports.namespaces}
            for service in self._hosts.all(rule.host):
                found.setdefault(service.key, set()).update(clients)
        return [(self._services[key], found[key]) for key in sorted(found, key=str)]

    def _choose(self, service: Service, client: str) -> list[_Rule]:
        """Return the rules that hold for a waypoint in the namespace `client`; empty: anywhere else."""
        if client:
            own = self._match(client, service.hostname, client)
            if client == self._root:
                # Rules for the whole mesh must not hide those of the service's namespace.
                own = [rule for rule in own if not rule.exports.everywhere]
            if own:
                return own
        return self._match(service.namespace, service.hostname, client) or self._match(
            self._root, service.hostname, client
        )

    def _match(self, namespace: str, hostname: str, client: str) -> list[_Rule]:
        """Return the visible rules of a namespace for its most specific host that covers the name."""
        exact = self._by_namespace.get(namespace, {}).get(hostname, [])
        covering = [rule for rule in self._wildcards.get(namespace, []) if matches(rule.host, hostname)]
        visible = [rule for rule in [*exact, *covering] if rule.exports.visible_in(client)]
        best = max((specificity(rule.host) for rule in visible), default=None)
        return [rule for rule in visible if specificity(rule.host) == best]

    def _merge(self, service: Service, client: str, rules: list[_Rule]) -> DestinationPolicy:
        level = next((rule.level for rule in rules if rule.level is not None), Level())
        subsets: dict[str, Subset] = {}
        for rule in rules:
            for name, labels, own in rule.subsets:
                if name not in subsets:
                    policy, ports = own.policies(level)
                    subsets[name] = Subset(name=name, labels=labels, policy=policy, ports=ports)
        policy, ports = level.policies()
        return DestinationPolicy(
            service=service.key,
            client_namespace=client,
            sources=tuple(f"DestinationRule/{rule.obj.namespace}/{rule.obj.name}" for rule in rules),
            policy=policy,
            ports=ports,
            subsets=tuple(subsets.values()),
        )

    # --- what is not in force

    def _report(self, used: Mapping[int, list[Service]]) -> None:
        defined: dict[tuple[str, str, str], _Rule] = {}
        for rule in self._rules:
            services = used.get(id(rule), [])
            self._report_use(rule, services)
            for index, (name, _, _) in enumerate(rule.subsets):
                key = (rule.obj.namespace, rule.host, name)
                first = defined.setdefault(key, rule)
                if first is not rule or [n for n, _, _ in rule.subsets].index(name) != index:
                    reason = f"subset {name} of {rule.host} is defined before, by {first.obj.key}; no effect"
                    self._problem(rule, ("spec", "subsets", index, "name"), reason)
            older = self._by_namespace[rule.obj.namespace][rule.host]
            first_policy = next((other for other in older if other.level is not None), rule)
            if rule.level is not None and first_policy is not rule:
                reason = f"{first_policy.obj.key} is older and its trafficPolicy holds; this has no effect"
                self._problem(rule, ("spec", "trafficPolicy"), reason)

    def _report_use(self, rule: _Rule, services: list[Service]) -> None:
        path = ("spec", "host")
        if not self._hosts.all(rule.host):
            self._problem(rule, path, f"{rule.host} names no service of the mesh; no effect")
        elif not services:
            reason = (
                f"no waypoint reads it: rules for {rule.host} are read in the namespaces of the waypoint, "
                "of the service and of the root, the nearest and the most specific host first"
            )
            self._problem(rule, path, reason)
        elif not any(service.waypoint is not None for service in services):
            reason = f"only waypoints honour DestinationRules, and {services[0].key} has none"
            self._problem(rule, path, reason)
        if rule.level is not None and len(services) == 1:
            for number, _ in rule.level.ports:
                if services[0].port(number) is None:
                    reason = f"service {services[0].key} has no port {number}; no effect"
                    self._problem(rule, ("spec", "trafficPolicy", "portLevelSettings"), reason)

    def _problem(self, rule: _Rule, path: tuple[str | int, ...], reason: str) -> None:
        self._world.problems.append(problem(rule.obj, path, reason))
