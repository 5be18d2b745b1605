# SPDX-License-Identifier: Apache-2.0
"""Gateways of ingress classes, with the HTTPRoutes and GRPCRoutes attached to them, as what they serve.

A route attaches to those listeners that its parentRef names, that admit its namespace and
kind, and that share a hostname with it. For one hostname of one listener, rules of all routes
stand in Gateway API's order, GRPCRoutes first. Source: gateway-api v1, GEP-709 (grants).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from controller.translate.gateway import Status
from controller.translate.gateway_route import (
    Finding,
    Parent,
    Rank,
    RouteReader,
    as_list,
    route_age,
)
from controller.translate.grpc_route import GrpcRouteReader
from controller.translate.hosts import Hosts
from controller.translate.http_route import HttpRouteReader
from controller.translate.ingress_listeners import (
    ReadListener,
    ingress_pods,
    is_hostname,
    is_ingress,
    read_listeners,
)
from controller.translate.ingress_status import gateway_status
from controller.translate.reference_grant import is_granted
from controller.translate.types import Severity, problem
from controller.translate.world import GATEWAY_API, World
from mesh.config.objects import ObjectKey, Path, RawObject
from mesh.model.gateway import HostRules, IngressGateway
from mesh.model.route import RouteRule
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

THROUGH_WAYPOINT = "istio.io/ingress-use-waypoint"
"""Label of a Service or its namespace: `true` leads requests of gateways through its waypoint."""
MAX_HOSTNAMES = 256
_STREAMS = ("TCPRoute", "TLSRoute", "UDPRoute")
_Ranked = list[tuple[int, Rank, RouteRule]]


@dataclass(slots=True, kw_only=True)
class _Attached:
    """One ingress gateway and what is attached to it so far."""

    obj: RawObject
    listeners: list[ReadListener]
    rules: dict[tuple[int, str], _Ranked] = field(default_factory=dict)
    """By listener's index and hostname."""
    counts: dict[int, int] = field(default_factory=dict)
    """Routes by listener's index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """The result: gateways by resource name, and what was found on the way."""

    gateways: Mapping[str, IngressGateway]
    listeners: Sequence[tuple[RawObject, Sequence[ReadListener]]]
    """Of every ingress gateway, as `ingress_objects` runs them."""
    statuses: tuple[Status, ...]
    parents: tuple[Parent, ...]
    findings: tuple[Finding, ...]


def translate_ingress(world: World, services: Mapping[NamespacedHostname, Service]) -> Ingress:
    """Translate every ingress gateway; never raises for what the objects hold."""
    attached = {
        gateway.key: _Attached(obj=gateway, listeners=read_listeners(world, gateway))
        for gateway in world.all(GATEWAY_API, "Gateway")
        if is_ingress(world, gateway)
    }
    if not attached:
        return Ingress(gateways={}, listeners=(), statuses=(), parents=(), findings=())
    translation = _Translation(world, services, attached)
    translation.run()
    for finding in translation.findings:
        severity: Severity = "error" if finding.severity == "error" else "warning"
        world.problems.append(problem(finding.route, finding.path, finding.reason, severity))
    pods = ingress_pods(world)
    return Ingress(
        gateways={f"{key.namespace}/{key.name}": translation.made(found) for key, found in attached.items()},
        listeners=[(found.obj, found.listeners) for found in attached.values()],
        statuses=tuple(
            gateway_status(
                world, found.obj, found.listeners, found.counts, pods.get((key.namespace, key.name), [])
            )
            for key, found in attached.items()
        ),
        parents=tuple(translation.parents),
        findings=tuple(translation.findings),
    )


class _Granted(RouteReader):
    """A reader whose backends in other namespaces need a ReferenceGrant."""

    world: World

    def resolve(self, reference: Mapping[str, Any]) -> tuple[NamespacedHostname | None, int, str, str]:
        namespace = str(reference.get("namespace") or self._route.namespace)
        name = str(reference.get("name", ""))
        of_service = reference.get("kind", "Service") == "Service"
        foreign = namespace != self._route.namespace
        if of_service and foreign and not is_granted(self.world, self._route, namespace, "Service", name):
            return None, 0, f"no ReferenceGrant of {namespace} permits service {name}", "RefNotPermitted"
        return super().resolve(reference)


class _Http(_Granted, HttpRouteReader):
    pass


class _Grpc(_Granted, GrpcRouteReader):
    pass


class _Translation:
    def __init__(
        self,
        world: World,
        services: Mapping[NamespacedHostname, Service],
        attached: Mapping[ObjectKey, _Attached],
    ) -> None:
        self._world = world
        self._services = services
        self._attached = attached
        self._hosts = Hosts(services)
        self.parents: list[Parent] = []
        self.findings: list[Finding] = []

    def run(self) -> None:
        for order, (kind, reader) in enumerate((("GRPCRoute", _Grpc), ("HTTPRoute", _Http))):
            for route in sorted(self._world.all(GATEWAY_API, kind), key=route_age):
                places = list(self._places(route))
                if not places:
                    continue
                read = reader(
                    route, self._hosts, self._services, self._world.options.cluster_domain, self.findings
                )
                read.world = self._world
                ranked = [(order, rank, rule) for rank, rule in read.rules()]
                for found, listener, hostname in places:
                    found.rules.setdefault((listener, hostname), []).extend(ranked)
                for key, listener in {(found.obj.key, listener) for found, listener, _ in places}:
                    counts = self._attached[key].counts
                    counts[listener] = counts.get(listener, 0) + 1
        for kind in _STREAMS:
            for route in self._world.all(GATEWAY_API, kind):
                list(self._places(route))

    # --- where a route attaches

    def _places(self, route: RawObject) -> Iterator[tuple[_Attached, int, str]]:
        """Yield the gateways, listeners and hostnames that a route is for; each once."""
        seen: set[tuple[ObjectKey, int, str]] = set()
        hostnames = self._hostnames(route)
        for index, parent in enumerate(as_list(route.spec.get("parentRefs"))):
            if not isinstance(parent, Mapping):
                continue  # Reported by the routes of services.
            found = self._parent(route, parent)
            if found is None:
                continue
            code, reason = "", ""
            try:
                pairs = self._listeners(route, parent, found, hostnames)
            except _NotAttachedError as error:
                pairs, code, reason = [], error.code, error.reason
                path: Path = ("spec", "parentRefs", index)
                text = f"{reason} ({code})"
                self.findings.append(Finding(route=route, path=path, reason=text, severity="error"))
            self.parents.append(
                Parent(route=route, index=index, services=(), reason=reason, code=code or "Accepted")
            )
            for listener, hostname in pairs:
                if (found.obj.key, listener, hostname) not in seen:
                    seen.add((found.obj.key, listener, hostname))
                    yield found, listener, hostname

    def _parent(self, route: RawObject, parent: Mapping[str, Any]) -> _Attached | None:
        if parent.get("group", GATEWAY_API) != GATEWAY_API or parent.get("kind", "Gateway") != "Gateway":
            return None
        namespace = str(parent.get("namespace") or route.namespace)
        return self._attached.get(ObjectKey(GATEWAY_API, "Gateway", namespace, str(parent.get("name", ""))))

    def _hostnames(self, route: RawObject) -> list[str]:
        """Return a route's hostnames in lower case; `*` where it names none."""
        written = as_list(route.spec.get("hostnames"))
        if not written:
            return ["*"]
        found = []
        for index, text in enumerate(written[:MAX_HOSTNAMES]):
            hostname = str(text).lower()
            if is_hostname(hostname):
                found.append(hostname)
                continue
            path: Path = ("spec", "hostnames", index)
            reason = f"{hostname[:100]!r} is no hostname"
            self.findings.append(Finding(route=route, path=path, reason=reason, severity="error"))
        if len(written) > MAX_HOSTNAMES:
            reason = f"are {len(written)}, more than {MAX_HOSTNAMES}; the others have no effect"
            path = ("spec", "hostnames")
            self.findings.append(Finding(route=route, path=path, reason=reason, severity="error"))
        return found

    def _listeners(
        self, route: RawObject, parent: Mapping[str, Any], found: _Attached, hostnames: Sequence[str]
    ) -> list[tuple[int, str]]:
        """Return the listeners, by index, and hostnames that a parentRef attaches a route to."""
        gateway, section, port = found.obj, parent.get("sectionName"), parent.get("port")
        name = f"{gateway.namespace}/{gateway.name}"
        named = [
            read
            for read in found.listeners
            if section in (None, read.name) and (port is None or _port(gateway, read) == port)
        ]
        if not named:
            raise _NotAttachedError(
                "NoMatchingParent", f"Gateway {name} has no listener {section or ''}, port {port or 'any'}"
            )
        namespace = route.namespace
        admitting = [
            read
            for read in named
            if route.kind in read.kinds and read.allowed.admits(self._world, namespace, gateway.namespace)
        ]
        if not admitting:
            raise _NotAttachedError(
                "NotAllowedByListeners",
                f"no listener of Gateway {name} admits a {route.kind} of namespace {namespace}",
            )
        served = [(read, read.served) for read in admitting if read.served is not None]
        if not served:
            refused = "; ".join(f"{read.name}: {read.reason}" for read in admitting)
            raise _NotAttachedError("NoMatchingParent", f"Gateway {name} does not serve {refused}")
        pairs = [
            (read.index, shared)
            for read, listener in served
            for hostname in hostnames
            if (shared := shared_hostname(listener.hostname, hostname))
        ]
        if not pairs:
            raise _NotAttachedError(
                "NoMatchingListenerHostname", f"no listener of Gateway {name} is for {', '.join(hostnames)}"
            )
        return pairs

    # --- results

    def made(self, found: _Attached) -> IngressGateway:
        """Return a gateway with its rules in their order of precedence."""
        listeners = []
        through = set()
        for read in found.listeners:
            if read.served is None:
                continue
            hosts = []
            for (index, hostname), ranked in sorted(found.rules.items(), key=lambda item: item[0]):
                if index != read.index:
                    continue
                # Stable: entries came by age, name and rule, the last three criteria.
                rules = tuple(rule for _, _, rule in sorted(ranked, key=lambda entry: entry[:2]))
                hosts.append(HostRules(hostname=hostname, rules=rules))
                through |= {key for rule in rules for key in _services_of(rule) if self._through(key)}
            listeners.append(replace(read.served, hosts=tuple(hosts)))
        return IngressGateway(
            namespace=found.obj.namespace,
            name=found.obj.name,
            listeners=tuple(listeners),
            through_waypoint=tuple(sorted(through, key=str)),
        )

    def _through(self, key: NamespacedHostname) -> bool:
        service = self._services.get(key)
        if service is None or service.waypoint is None:
            return False
        written = self._world.get("", "Service", service.namespace, service.name)
        labels = written.labels if written is not None else {}
        given = labels.get(THROUGH_WAYPOINT)
        if given is None:
            given = self._world.namespace_labels(service.namespace).get(THROUGH_WAYPOINT)
        return given == "true"


class _NotAttachedError(Exception):
    """A route does not attach to a parent; `code` is Gateway API's reason."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def shared_hostname(listener: str, route: str) -> str:
    """Return the names that a listener and a route share, as a pattern; empty: there are none."""
    for wide, narrow in ((listener, route), (route, listener)):
        if wide in ("*", narrow) or (wide.startswith("*.") and narrow.endswith(wide[1:])):
            return narrow
    return ""


def _port(gateway: RawObject, read: ReadListener) -> object:
    if read.served is not None:
        return read.served.port
    written = as_list(gateway.spec.get("listeners"))[read.index]
    return written.get("port") if isinstance(written, Mapping) else None


def _services_of(rule: RouteRule) -> list[NamespacedHostname]:
    mirrored = [mirror.service for mirror in rule.mirrors]
    return mirrored + [backend.service for backend in rule.backends if backend.service is not None]
