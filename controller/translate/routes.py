# SPDX-License-Identifier: Apache-2.0
"""All route dialects together: which one holds where several speak of one service.

For the clients of one namespace, routes of that namespace (consumer routes, profiles) come
before those for all. Then, port by port, the first dialect that says anything has the word,
and nothing of the others is merged into it:

1. Linkerd ServiceProfile and SMI TrafficSplit (Linkerd: a profile replaces route policies)
2. GRPCRoute, 3. HTTPRoute, Gateway API's and Linkerd's own (the more specific kind; the loser
   is Conflicted)
4. VirtualService (Istio leaves the mixture undefined)

Connections that are not HTTP: TCPRoute, unless a GRPCRoute or HTTPRoute is for the port, then
VirtualService. Whoever loses is told so, on the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controller.translate.gateway_route import Finding, Parent, source_of
from controller.translate.grpc_route import translate_grpc_routes
from controller.translate.http_route import translate_http_routes
from controller.translate.linkerd import with_annotations
from controller.translate.service_profile import translate_profiles
from controller.translate.tcp_route import translate_tcp_routes
from controller.translate.types import Severity, problem
from controller.translate.virtual_service import translate_virtual_services
from controller.translate.world import GATEWAY_API, ISTIO_NETWORKING, World
from mesh.config.objects import RawObject
from mesh.model.destination import DestinationPolicy
from mesh.model.route import RouteTable
from mesh.model.service import Service
from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname

POLICY = "policy.linkerd.io"
KINDS = {
    "ServiceProfile": ("linkerd.io", "ServiceProfile"),
    "TrafficSplit": ("split.smi-spec.io", "TrafficSplit"),
    "GRPCRoute": (GATEWAY_API, "GRPCRoute"),
    "HTTPRoute": (GATEWAY_API, "HTTPRoute"),
    f"HTTPRoute.{POLICY}": (POLICY, "HTTPRoute"),
    "TCPRoute": (GATEWAY_API, "TCPRoute"),
    "VirtualService": (ISTIO_NETWORKING, "VirtualService"),
}
"""Group and kind of the sources that rules name."""
READ = frozenset({*KINDS.values(), ("specs.smi-spec.io", "HTTPRouteGroup")})
"""Groups and kinds that are translated here."""
Table = RouteTable | StreamTable
_Place = tuple[NamespacedHostname, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """What is served, and what became of the routes of Gateway API."""

    tables: Mapping[str, RouteTable]
    """By resource name (`mesh.xds.routes.route_table_name`)."""
    streams: Mapping[str, StreamTable]
    """Of connections that are not HTTP; by resource name."""
    parents: tuple[Parent, ...]
    findings: tuple[Finding, ...]
    """Of Gateway API's routes; they are among the world's problems too."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """A table, or part of one, that another dialect keeps from being used."""

    table: Table
    winner: Table
    whole: bool


def translate_routes(
    world: World,
    services: Mapping[NamespacedHostname, Service],
    destinations: Mapping[str, DestinationPolicy],
) -> Routes:
    """Translate every object that routes requests; never raises for what they hold."""
    domain = world.options.cluster_domain
    grpc = translate_grpc_routes(world.all(GATEWAY_API, "GRPCRoute"), services, domain)
    written = [*world.all(GATEWAY_API, "HTTPRoute"), *world.all(POLICY, "HTTPRoute")]
    http = translate_http_routes(written, services, domain)
    tcp = translate_tcp_routes(world.all(GATEWAY_API, "TCPRoute"), services, domain)
    virtual = translate_virtual_services(world, services, destinations)
    tables, losses = combine([translate_profiles(world, services), grpc.tables, http.tables, virtual.routes])
    # On one port, routes of requests come before those of connections.
    held = [grpc.tables, http.tables]
    streams, lost = combine([*held, tcp.tables, virtual.streams])
    losses += [loss for loss in lost if isinstance(loss.table, StreamTable)]
    _report(world, losses)
    annotated = {source_of(parent.route): parent.route for parent in (*grpc.parents, *http.parents)}
    served = {name: table for name, table in tables.items() if isinstance(table, RouteTable)}
    served = with_annotations(world, services, served, annotated)
    written_parents = (*grpc.parents, *http.parents, *tcp.parents)
    parents = _parents(world, services, written_parents, losses)
    findings = (*grpc.findings, *http.findings, *tcp.findings)
    for finding in findings:
        severity: Severity = "error" if finding.severity == "error" else "warning"
        world.problems.append(problem(finding.route, finding.path, finding.reason, severity))
    return Routes(
        tables=served,
        streams={name: table for name, table in streams.items() if isinstance(table, StreamTable)},
        parents=tuple(parents),
        findings=findings,
    )


def combine(layers: Iterable[Mapping[str, Table]]) -> tuple[dict[str, Table], list[_Loss]]:
    """Return the tables in force, by name, and those that are not.

    `layers` go from the first to have the word to the last.
    """
    found: dict[str, Table] = {}
    losses: list[_Loss] = []
    taken: dict[_Place, dict[int, Table]] = {}
    for layer in layers:
        fresh = []
        for name in sorted(layer):
            table = layer[name]
            winner, partial = _winner(taken, table)
            if winner is not None:
                losses.append(_Loss(table, winner, True))
                continue
            losses += [_Loss(table, other, False) for other in partial]
            found[name] = table
            fresh.append(table)
        for table in fresh:
            taken.setdefault((table.service, table.client_namespace), {})[table.port] = table
    return found, losses


def _winner(taken: Mapping[_Place, Mapping[int, Table]], table: Table) -> tuple[Table | None, list[Table]]:
    """Return the table that replaces this one, else those that replace it on some port."""
    places = [(table.service, table.client_namespace)]
    if table.client_namespace and _kinds(table) == {"VirtualService"}:
        # Not a namespace's own routes, but those of the service that ask who the client is.
        places.append((table.service, ""))
    for place in places:
        held = taken.get(place, {})
        winner = held.get(0) or held.get(table.port)
        if winner is not None:
            return winner, []
    held = taken.get(places[0], {})
    return None, [held[port] for port in sorted(held)] if table.port == 0 else []


# --- who is told


def _kinds(table: Table) -> set[str]:
    return {source.partition("/")[0] for source in _sources(table)}


def _sources(table: Table) -> list[str]:
    """Return the objects that wrote a table, `kind/namespace/name`."""
    rules = [table] if isinstance(table, StreamTable) else table.rules
    return list(dict.fromkeys(rule.source.partition("#")[0] for rule in rules))


def _object(world: World, source: str) -> RawObject | None:
    kind, namespace, name = source.split("/", 2)
    return world.get(*KINDS[kind], namespace, name)


def _report(world: World, losses: Iterable[_Loss]) -> None:
    for loss in losses:
        for source in _sources(loss.table):
            obj = _object(world, source)
            if obj is not None:
                world.problems.append(problem(obj, ("spec",), _reason(loss)))


def _reason(loss: _Loss) -> str:
    winner = loss.winner
    where = f"{winner.service}" + (f", port {winner.port}" if winner.port else "")
    clients = f" for clients of {winner.client_namespace}" if winner.client_namespace else ""
    return f"{', '.join(_sources(winner))} routes {where}{clients} and comes first; no effect there"


def _parents(
    world: World,
    services: Mapping[NamespacedHostname, Service],
    gathered: Iterable[Parent],
    losses: Iterable[_Loss],
) -> list[Parent]:
    lost = {
        (source, loss.table.service, loss.table.client_namespace, loss.table.port): loss
        for loss in losses
        if loss.whole
        for source in _sources(loss.table)
    }
    found = []
    for written in gathered:
        parent = written
        source = source_of(parent.route)
        own = [
            loss
            for key in parent.services
            if (loss := lost.get((source, key, parent.client_namespace, parent.port)))
        ]
        if own and len(own) == len(parent.services):
            parent = replace(parent, services=(), reason=_reason(own[0]), code="Conflicted")
        for key in parent.services:
            if services[key].waypoint is None and not services[key].weighted_waypoints:
                reason = f"service {key} has no waypoint, so that the route is not respected there"
                path = ("spec", "parentRefs", parent.index)
                world.problems.append(problem(parent.route, path, reason))
        found.append(parent)
    return found
