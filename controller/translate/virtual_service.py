# SPDX-License-Identifier: Apache-2.0
"""VirtualServices of the mesh gateway as route tables, one a service port.

A VirtualService counts for a service whose host it names if it stands in the service's
namespace or in that of its waypoint. Several for one service are one list, oldest first;
in the list the first match wins. Source: istio pilot/pkg/networking/core/listener_waypoint.go,
pilot/pkg/model/virtualservice.go (delegates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from controller.translate.delegates import merge_routes
from controller.translate.fields import Fields, IllTypedError, age, spec
from controller.translate.hosts import Exports, Hosts, WaypointNamespaces, resolve_host
from controller.translate.types import problem
from controller.translate.virtual_service_http import HttpReader, HttpRule
from controller.translate.virtual_service_match import MESH
from controller.translate.virtual_service_tcp import TcpRule, read_tcp_rule
from controller.translate.world import ISTIO_NETWORKING, World
from mesh.config.objects import Path, RawObject
from mesh.model.destination import DestinationPolicy
from mesh.model.route import RouteTable
from mesh.model.service import AppProtocol, Service
from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname

KIND = "VirtualService"
MAX_HOSTS = 1024
MAX_ROUTES = 1024
_NOT_HTTP = (AppProtocol.TCP, AppProtocol.TLS)
_HTTP = (AppProtocol.HTTP11, AppProtocol.HTTP2, AppProtocol.GRPC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Virtual:
    """One VirtualService, read."""

    obj: RawObject
    hosts: tuple[str, ...]
    exports: Exports
    rules: tuple[HttpRule, ...]
    streams: tuple[TcpRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTables:
    """By resource name (`mesh.xds.routes.route_table_name`)."""

    routes: Mapping[str, RouteTable]
    streams: Mapping[str, StreamTable]


def translate_virtual_services(
    world: World,
    services: Mapping[NamespacedHostname, Service],
    destinations: Mapping[str, DestinationPolicy],
) -> VirtualTables:
    """Return the tables of requests and of other connections.

    `destinations` are the policies of DestinationRules, which define subsets. A table with a
    client namespace is there where a match asks for the clients' namespace.
    """
    return _Translator(world, services, destinations).tables()


def _name(table: RouteTable | StreamTable) -> str:
    scope = f"@{table.client_namespace}" if table.client_namespace else ""
    return f"{table.service}:{table.port}{scope}"


class _Translator:
    def __init__(
        self,
        world: World,
        services: Mapping[NamespacedHostname, Service],
        destinations: Mapping[str, DestinationPolicy],
    ) -> None:
        self._world = world
        self._services = services
        self._subsets = frozenset(
            (policy.service, subset.name) for policy in destinations.values() for subset in policy.subsets
        )
        self._hosts = Hosts(services)
        self._waypoints = WaypointNamespaces(services)
        self._delegated: set[tuple[str, str]] = set()

    def tables(self) -> VirtualTables:
        objects = sorted(self._world.all(ISTIO_NETWORKING, KIND), key=age)
        virtuals = [virtual for virtual in map(self._read, objects) if virtual is not None]
        for obj in objects:
            if not obj.spec.get("hosts") and (obj.namespace, obj.name) not in self._delegated:
                self._problem(obj, ("spec", "hosts"), "names no host and nobody delegates to it; no effect")
        lists: dict[NamespacedHostname, list[_Virtual]] = {}
        for virtual in virtuals:
            for key in self._served(virtual):
                lists.setdefault(key, []).append(virtual)
        routes: dict[str, RouteTable] = {}
        streams: dict[str, StreamTable] = {}
        for key in sorted(lists, key=str):
            service = self._services[key]
            for table in self._of_service(service, [r for v in lists[key] for r in v.rules]):
                routes[_name(table)] = table
            for stream in self._streams(service, [r for v in lists[key] for r in v.streams]):
                streams[_name(stream)] = stream
        return VirtualTables(routes=routes, streams=streams)

    def _streams(self, service: Service, rules: list[TcpRule]) -> list[StreamTable]:
        namespaces = {namespace for rule in rules for _, namespace in rule.entries}
        tables = []
        for port in service.ports:
            if port.app_protocol in _HTTP:
                continue
            for namespace in ("", *sorted(namespaces - {""})):
                offered = ((r, r.at(port.service_port, namespace, self._services)) for r in rules)
                for rule, backends in offered:
                    if backends is not None:
                        table = StreamTable(
                            service=service.key,
                            port=port.service_port,
                            source=rule.source,
                            backends=backends,
                            client_namespace=namespace,
                        )
                        tables.append(table)
                        break
        return tables

    def _of_service(self, service: Service, rules: list[HttpRule]) -> list[RouteTable]:
        namespaces = {entry.namespace for rule in rules for entry in rule.entries}
        tables = []
        for port in service.ports:
            if port.app_protocol in _NOT_HTTP:
                continue
            for namespace in ("", *sorted(namespaces - {""})):
                made = [
                    own for rule in rules for own in rule.at(port.service_port, namespace, self._services)
                ]
                if made:
                    table = RouteTable(
                        service=service.key,
                        port=port.service_port,
                        rules=tuple(made),
                        client_namespace=namespace,
                    )
                    tables.append(table)
        return tables

    # --- whom it is for

    def _served(self, virtual: _Virtual) -> list[NamespacedHostname]:
        found: list[NamespacedHostname] = []
        namespace = virtual.obj.namespace
        for index, host in enumerate(virtual.hosts):
            path: Path = ("spec", "hosts", index)
            services = self._hosts.all(host)
            if not services:
                self._problem(virtual.obj, path, f"{host} names no service of the mesh; no effect")
            elif not any(namespace in (s.namespace, self._waypoints.of(s)) for s in services):
                reason = (
                    f"{host} is not for {namespace} to route: a VirtualService stands in the namespace of "
                    "the service or of its waypoint; no effect"
                )
                self._world.problems.append(problem(virtual.obj, path, reason, "error"))
            else:
                found += self._visible(virtual, path, services)
        return list(dict.fromkeys(found))

    def _visible(self, virtual: _Virtual, path: Path, services: list[Service]) -> list[NamespacedHostname]:
        found = []
        for service in services:
            client = self._waypoints.of(service)
            if virtual.obj.namespace not in (service.namespace, client):
                continue
            if not virtual.exports.visible_in(client or service.namespace):
                where = client or service.namespace
                reason = f"leaves out {where}, where the waypoint of {service.key} is"
                self._problem(virtual.obj, ("spec", "exportTo"), reason)
                continue
            if not client and service.waypoint is None:
                reason = f"only waypoints honour VirtualServices, and {service.key} has none"
                self._problem(virtual.obj, path, reason)
            found.append(service.key)
        return found

    # --- reading

    def _read(self, obj: RawObject) -> _Virtual | None:
        fields = spec(obj, self._world.problems)
        try:
            hosts, gateways = fields.strings("hosts"), fields.strings("gateways")
            if len(hosts) > MAX_HOSTS:
                raise fields.wrong("hosts", f"names {len(hosts)} hosts, more than {MAX_HOSTS}")
            exports = Exports(fields, obj.namespace)
            if not hosts:
                return None
            if gateways and MESH not in gateways:
                reason = f"waypoints serve the gateway {MESH} only; no effect"
                fields.report("gateways", reason)
                return None
            rules = tuple(self._rules(fields))
            streams = tuple(
                self._stream(child, index) for index, child in enumerate(fields.children("tcp", MAX_ROUTES))
            )
        except IllTypedError as error:
            self._world.report(obj, error, "the VirtualService has no effect")
            return None
        if fields.has("tls"):
            reason = "waypoints do not look for server names; these connections go to the service itself"
            fields.report("tls", reason, "error")
        fields.finish()
        names = tuple(resolve_host(host, obj.namespace, self._world.options.cluster_domain) for host in hosts)
        return _Virtual(obj=obj, hosts=names, exports=exports, rules=rules, streams=streams)

    def _rules(self, fields: Fields) -> list[HttpRule]:
        found = []
        for index, child in enumerate(fields.children("http", MAX_ROUTES)):
            if child.has("delegate"):
                found += self._delegate(child, index)
            else:
                found.append(self._rule(child, index))
        return found

    def _rule(self, fields: Fields, index: int) -> HttpRule:
        obj = fields.obj
        return self._reader(obj).read(fields, f"{KIND}/{obj.namespace}/{obj.name}#{index}")

    def _stream(self, fields: Fields, index: int) -> TcpRule:
        obj = fields.obj
        source = f"{KIND}/{obj.namespace}/{obj.name}#tcp{index}"
        return read_tcp_rule(fields, source, self._reader(obj), partial(self._world.report, obj))

    def _reader(self, obj: RawObject) -> HttpReader:
        domain = self._world.options.cluster_domain
        return HttpReader(self._hosts, self._subsets, domain, partial(self._world.report, obj))

    def _delegate(self, fields: Fields, index: int) -> list[HttpRule]:
        """Read the routes of the VirtualService that a route hands over to."""
        obj = fields.obj
        try:
            child = fields.child("delegate")
            name, namespace = child.text("name"), child.text("namespace", obj.namespace)
            child.finish()
            if fields.has("route") or fields.has("redirect"):
                raise fields.wrong("delegate", "stands beside route or redirect; one of them is allowed")
            target = self._world.get(ISTIO_NETWORKING, KIND, namespace, name)
            if target is None:
                raise fields.wrong("delegate", f"VirtualService {namespace}/{name} does not exist")
            self._delegated.add((namespace, name))
            if target.spec.get("hosts"):
                raise fields.wrong("delegate", f"VirtualService {namespace}/{name} has hosts of its own")
            theirs = spec(target, self._world.problems)
            if not Exports(theirs, namespace).visible_in(obj.namespace):
                raise fields.wrong("delegate", f"{namespace}/{name} is not exported to {obj.namespace}")
            theirs.children("http", MAX_ROUTES)
            theirs.skip("hosts", "gateways")
            theirs.finish()
        except IllTypedError as error:
            self._world.report(obj, error, "the route is left out")
            return []
        return self._merged(obj, index, target)

    def _merged(self, obj: RawObject, index: int, target: RawObject) -> list[HttpRule]:
        mine: Mapping[str, Any] = obj.spec["http"][index]
        found = []
        for position, route in enumerate(target.spec.get("http") or ()):
            path: Path = ("spec", "http", position)
            if "delegate" in route:
                self._problem(
                    target, (*path, "delegate"), "a delegate cannot delegate; the route is left out"
                )
                continue
            merged = merge_routes(mine, route)
            if merged is None:
                reason = f"its match is not part of that of {obj.key}, route {index}; the route is left out"
                self._problem(target, (*path, "match"), reason)
                continue
            found.append(self._rule(Fields(target, self._world.problems, merged, path), position))
        return found

    def _problem(self, obj: RawObject, path: Path, reason: str) -> None:
        self._world.problems.append(problem(obj, path, reason))
