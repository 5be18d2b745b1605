# SPDX-License-Identifier: Apache-2.0
"""Annotation `ambit.io/load-balancer` of Services: the balancer where no DestinationRule names another.

It is there for what no dialect can say (peak EWMA), and for Services without a DestinationRule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from controller.translate.fields import Fields, IllTypedError
from controller.translate.world import World
from mesh.model.destination import Balancer, Balancing, DestinationPolicy, PortPolicy, TrafficPolicy
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

ANNOTATION = "ambit.io/load-balancer"
_BALANCERS = {
    balancer.value.replace("_", "-"): balancer
    for balancer in (Balancer.LEAST_REQUEST, Balancer.PEAK_EWMA, Balancer.RANDOM, Balancer.ROUND_ROBIN)
}


def with_balancers(
    world: World,
    services: Mapping[NamespacedHostname, Service],
    policies: Mapping[str, DestinationPolicy],
) -> dict[str, DestinationPolicy]:
    """Return the policies, and new ones, with what Services ask for."""
    found = dict(policies)
    for obj in world.all("", "Service"):
        key = world.hostname(obj.name, obj.namespace)
        if not obj.metadata.get("annotations") or ANNOTATION not in obj.annotations or key not in services:
            continue
        fields = Fields(obj, world.problems, obj.annotations, ("metadata", "annotations"))
        try:
            balancer = _BALANCERS[fields.choice(ANNOTATION, _BALANCERS, "least-request")]
        except IllTypedError as error:
            world.report(obj, error, "the balancer is that of the DestinationRule, or least-request")
            continue
        source = f"Service/{obj.namespace}/{obj.name}"
        names = [name for name, policy in policies.items() if policy.service == key]
        for name in names:
            found[name] = _balanced(policies[name], balancer, source)
        if str(key) not in names:
            policy = TrafficPolicy(balancing=Balancing(balancer=balancer))
            found[str(key)] = DestinationPolicy(service=key, sources=(source,), policy=policy)
    return found


def _balanced(policy: DestinationPolicy, balancer: Balancer, source: str) -> DestinationPolicy:
    return replace(
        policy,
        sources=(*policy.sources, source),
        policy=_level(policy.policy, balancer),
        ports=_ports(policy.ports, balancer),
        subsets=tuple(
            replace(subset, policy=_level(subset.policy, balancer), ports=_ports(subset.ports, balancer))
            for subset in policy.subsets
        ),
    )


def _ports(ports: tuple[PortPolicy, ...], balancer: Balancer) -> tuple[PortPolicy, ...]:
    return tuple(replace(entry, policy=_level(entry.policy, balancer)) for entry in ports)


def _level(policy: TrafficPolicy, balancer: Balancer) -> TrafficPolicy:
    if policy.balancing.balancer is not Balancer.LEAST_REQUEST:
        return policy
    return replace(policy, balancing=replace(policy.balancing, balancer=balancer))
