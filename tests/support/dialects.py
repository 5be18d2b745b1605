# SPDX-License-Identifier: Apache-2.0
"""Route dialects under test: a few services, and the waypoint's own matcher to ask a table.

Not a copy of any translator: objects are written as YAML, answers are plans of
`waypoint.routing.plan`.
"""

from __future__ import annotations

import yaml

from controller.translate.destination_rule import translate_destination_rules
from controller.translate.types import Options
from controller.translate.virtual_service import translate_virtual_services
from controller.translate.world import World
from mesh.config.objects import RawObject, make_object
from mesh.model.route import RouteRule, RouteTable
from mesh.model.service import Service, ServicePort
from mesh.model.workload import GatewayAddress, NamespacedHostname
from waypoint.http.message import Framing, RequestHead
from waypoint.routing.match import RouteMatcher
from waypoint.routing.plan import Answer, Forward, plan_request

TO = "route: [{destination: {host: ratings, port: {number: 80}}}]"
ROUTE = "route: [{destination: {host: reviews}}]"


def key(name: str, namespace: str = "app") -> NamespacedHostname:
    return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.cluster.local")


def service(name: str, *ports: int, namespace: str = "app", waypoint: str = "app") -> Service:
    address = GatewayAddress(destination=key("waypoint", waypoint), hbone_mtls_port=15008)
    return Service(
        name=name,
        namespace=namespace,
        hostname=key(name, namespace).hostname,
        ports=tuple(ServicePort(service_port=port, target_port=8080) for port in ports),
        waypoint=address if waypoint else None,
        canonical=True,
    )


SERVICES = {
    made.key: made
    for made in (
        service("reviews", 80),
        service("ratings", 80, 81),
        service("other", 9080),
        service("bare", 80, waypoint=""),
        service("shop", 80, namespace="edge", waypoint="gate"),
    )
}
REVIEWS = f"{key('reviews')}:80"
SUBSETS = make_object(
    {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "subsets", "namespace": "app"},
        "spec": {
            "host": "reviews",
            "subsets": [
                {"name": "v1", "labels": {"version": "v1"}},
                {"name": "v2", "labels": {"version": "v2"}},
            ],
        },
    }
)


def virtual(
    spec: str, name: str = "v", namespace: str = "app", created: str = "2026-01-01T00:00:00Z"
) -> RawObject:
    return make_object(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
            "spec": {"hosts": ["reviews"]} | yaml.safe_load(spec),
        }
    )


def translated_virtual(*objects: RawObject) -> tuple[dict[str, RouteTable], list[str]]:
    world = World({obj.key: obj for obj in (*objects, SUBSETS)}, Options())
    destinations = translate_destination_rules(world, SERVICES)
    found = dict(translate_virtual_services(world, SERVICES, destinations).routes)
    return found, [f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in world.problems]


def table(*objects: RawObject, name: str = REVIEWS) -> RouteTable:
    """Translate, and require that nothing is wrong."""
    found, problems = translated_virtual(*objects)
    assert problems == []
    return found[name]


def rule(route: str) -> RouteRule:
    (only,) = table(virtual(f"http: [{{{route}}}]")).rules
    return only


def ask(
    made: RouteTable,
    target: str,
    *headers: tuple[str, str],
    method: str = "GET",
    authority: str = "reviews",
    draw: float = 0.0,
) -> Forward | Answer:
    head = RequestHead(
        method=method,
        target=target,
        authority=authority,
        headers=list(headers),
        framing=Framing.NONE,
    )
    return plan_request(
        head, service=made.service, port=made.port, matcher=RouteMatcher(made), random=lambda: draw
    )


def taken(plan: Forward | Answer) -> str | int:
    """Return the short name and subset of the backend, or the status of the answer."""
    if isinstance(plan, Answer):
        return plan.status
    name = plan.service.hostname.partition(".")[0]
    return f"{name}/{plan.subset}" if plan.subset else name


def forward(plan: Forward | Answer) -> Forward:
    assert isinstance(plan, Forward)
    return plan


def answered(plan: Forward | Answer) -> Answer:
    assert isinstance(plan, Answer)
    return plan
