# SPDX-License-Identifier: Apache-2.0
"""All objects to all that proxies are told: workloads, services, policies and, for waypoints, routes.

Pure: equal objects give an equal mesh. An object that cannot be read costs itself only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.translate.authorization import Policy, translate_authorization
from controller.translate.behind_waypoint import report_refused_waypoints
from controller.translate.conditions import condition_statuses
from controller.translate.destination_rule import endpoint_labels, translate_destination_rules
from controller.translate.gateway import Status, update_statuses
from controller.translate.http_authorization import translate_http_authorization
from controller.translate.ingress import translate_ingress
from controller.translate.ingress_listeners import ingress_pods
from controller.translate.ingress_objects import derive_ingress
from controller.translate.members import Members
from controller.translate.peer_authentication import PeerModes
from controller.translate.pods import Instance, translate_pods
from controller.translate.providers import translate_providers
from controller.translate.request_authentication import translate_request_authentication
from controller.translate.route_status import route_statuses, unique
from controller.translate.routes import READ as ROUTES
from controller.translate.routes import translate_routes
from controller.translate.service_entry import translate_service_entries
from controller.translate.services import translate_services, unserved_slices
from controller.translate.telemetry import GROUP as TELEMETRY
from controller.translate.telemetry import KIND as TELEMETRY_KIND
from controller.translate.telemetry import translate_telemetry
from controller.translate.types import Options, Problem, problem
from controller.translate.waypoint_objects import Object, derive_all
from controller.translate.waypoints import pod_names, waypoint_pods
from controller.translate.workload_entry import translate_workload_entries
from controller.translate.world import GATEWAY_API, ISTIO_NETWORKING, ISTIO_SECURITY, World
from mesh.config.objects import ObjectKey, RawObject
from mesh.model.destination import DestinationPolicy, EndpointLabels
from mesh.model.gateway import IngressGateway
from mesh.model.http_policy import HttpAuthorization
from mesh.model.policy import Authorization
from mesh.model.provider import Authoriser
from mesh.model.route import RouteTable
from mesh.model.service import Service
from mesh.model.stream import StreamTable
from mesh.model.telemetry import TelemetryPolicy
from mesh.model.token import RequestAuthentication
from mesh.model.workload import NamespacedHostname, Workload

__all__ = ["Mesh", "Options", "Problem", "translate"]

READ = frozenset(
    {
        *(("", kind) for kind in ("Namespace", "Node", "Pod", "Service")),
        ("discovery.k8s.io", "EndpointSlice"),
        ("ambit.io", "Enrollment"),
        (ISTIO_NETWORKING, "DestinationRule"),
        (ISTIO_NETWORKING, "ServiceEntry"),
        (ISTIO_NETWORKING, "WorkloadEntry"),
        (ISTIO_SECURITY, "AuthorizationPolicy"),
        (ISTIO_SECURITY, "PeerAuthentication"),
        (ISTIO_SECURITY, "RequestAuthentication"),
        (GATEWAY_API, "Gateway"),
        (GATEWAY_API, "GatewayClass"),
        (TELEMETRY, TELEMETRY_KIND),
        (GATEWAY_API, "ReferenceGrant"),
        *ROUTES,
        *(("", kind) for kind in ("ConfigMap", "Secret", "ServiceAccount", "Endpoints", "Event")),
    }
)
"""Kinds that are translated, or that say nothing to the mesh (the last line)."""
WITHOUT_EFFECT = frozenset(
    {
        "apps",
        "batch",
        "autoscaling",
        "policy",
        "coordination.k8s.io",
        "rbac.authorization.k8s.io",
        "apiextensions.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    }
)
"""Groups of kinds that are the cluster's business alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What is served: workloads by uid, services by key, policies by `namespace/name`."""

    workloads: Mapping[str, Workload]
    services: Mapping[NamespacedHostname, Service]
    policies: Mapping[str, Authorization]
    """Enforced by ztunnels."""
    routes: Mapping[str, RouteTable]
    """By resource name (`mesh.xds.routes.route_table_name`)."""
    streams: Mapping[str, StreamTable]
    """Where connections go that are not HTTP; by resource name."""
    http_policies: Mapping[str, HttpAuthorization]
    """Enforced by waypoints."""
    authentications: Mapping[str, RequestAuthentication]
    """The tokens that waypoints believe."""
    destinations: Mapping[str, DestinationPolicy]
    """How waypoints choose and reach endpoints, by resource name."""
    endpoint_labels: Mapping[str, EndpointLabels]
    """Labels that destinations ask for, by the workload's uid."""
    authorisers: Mapping[str, Authoriser]
    """Asked by waypoints, by the name that policies use."""
    telemetry: Mapping[str, TelemetryPolicy]
    """What waypoints trace, log and count, by `namespace/name`."""
    gateways: Mapping[str, IngressGateway]
    """What ingress gateways serve, by `namespace/name`."""
    waypoint_pods: frozenset[tuple[str, str, str]]
    """(namespace, name, uid) of the pods that may read all of this besides ztunnels."""
    derived: tuple[Object, ...]
    """Objects that there should be: what runs waypoints and ingress gateways."""
    statuses: tuple[Status, ...]
    problems: tuple[Problem, ...]


def translate(objects: Mapping[ObjectKey, RawObject], options: Options) -> Mesh:
    """Translate a snapshot of the cluster; never raises for what the objects hold."""
    world = World(objects, options)
    statuses = update_statuses(world)
    members = Members(translate_pods(world))
    _add_entries(world, members)
    services = translate_services(world, members)
    unserved_slices(world, services)
    services.update(translate_service_entries(world, members, services))
    policies = translate_authorization(world)
    modes = PeerModes(world)
    served = {policy.authorization.key: policy.authorization for policy in policies}
    everywhere = [policy for policy in policies if policy.everywhere]
    selecting: dict[str, list[Policy]] = {}
    for policy in policies:
        if not policy.everywhere:
            selecting.setdefault(policy.authorization.namespace, []).append(policy)
    workloads = {}
    joined = members.joined()
    for instance, workload in joined:
        near = [*everywhere, *selecting.get(workload.namespace, [])]
        applied = _applied(instance, workload, near, modes)
        served.update({authorization.key: authorization for authorization in applied})
        names = tuple(authorization.key for authorization in applied)
        workloads[workload.uid] = replace(workload, authorization_policies=names)
    destinations = translate_destination_rules(world, services)
    routes = translate_routes(world, services, destinations)
    ingress = translate_ingress(world, services)
    statuses += ingress.statuses
    statuses += route_statuses(
        (*routes.parents, *ingress.parents), unique((*routes.findings, *ingress.findings))
    )
    http_policies = translate_http_authorization(world, services)
    authentications = translate_request_authentication(world, services)
    labels = endpoint_labels(
        destinations.values(), ((instance.labels, workload) for instance, workload in joined)
    )
    report_refused_waypoints(world, workloads, services, served)
    derived = [*derive_all(world), *derive_ingress(world, ingress.listeners)]
    statuses += condition_statuses(world)
    _report_kinds(world)
    return Mesh(
        workloads=workloads,
        services=services,
        policies=served,
        routes=routes.tables,
        streams=routes.streams,
        http_policies=http_policies,
        authentications=authentications,
        destinations=destinations,
        endpoint_labels=labels,
        authorisers=translate_providers(world, services),
        telemetry=translate_telemetry(world, services),
        gateways=ingress.gateways,
        waypoint_pods=waypoint_pods(world) | pod_names(ingress_pods(world)),
        derived=tuple(derived),
        statuses=tuple(statuses),
        problems=tuple(dict.fromkeys(world.problems)),
    )


def _add_entries(world: World, members: Members) -> None:
    """Take WorkloadEntries in, save those that would take the address of another."""
    for instance in translate_workload_entries(world):
        workload = instance.workload
        owner = next(filter(None, (members.at(workload.network, a) for a in workload.addresses)), None)
        if owner is not None:
            reason = f"the address is that of {owner.workload.uid}; the entry is left out of the mesh"
            world.problems.append(problem(instance.source, ("spec", "address"), reason, "error"))
            continue
        members.add(instance)


def _applied(
    instance: Instance, workload: Workload, policies: list[Policy], modes: PeerModes
) -> list[Authorization]:
    found = [p.authorization for p in policies if p.applies(workload.namespace, instance.labels)]
    strict = modes.policy_for(workload.namespace, instance.labels)
    if strict is not None:
        found.append(strict)
    return sorted(found, key=lambda policy: policy.key)


def _report_kinds(world: World) -> None:
    for group, kind in world.kinds():
        if (group, kind) in READ or group in WITHOUT_EFFECT:
            continue
        for obj in world.all(group, kind):
            world.problems.append(problem(obj, ("kind",), f"{kind} is not honoured by ztunnel; no effect"))
