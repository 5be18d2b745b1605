# SPDX-License-Identifier: Apache-2.0
"""Warns of L4 policies that shut a waypoint out of the workloads behind it.

What a waypoint forwards bears the waypoint's identity: a policy that allows clients by
name, and was right before there was a waypoint, refuses everything that comes through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from controller.translate.types import problem
from controller.translate.world import ISTIO_SECURITY, World
from mesh.authz.evaluate import Connection, evaluate
from mesh.identity.spiffe import SpiffeId
from mesh.model.policy import Authorization, Scope
from mesh.model.service import Service
from mesh.model.workload import GatewayAddress, NamespacedHostname, Workload

_SHOWN = 3
"""Workloads that a warning names."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    policy: str
    waypoint: NamespacedHostname
    principal: str


def report_refused_waypoints(
    world: World,
    workloads: Mapping[str, Workload],
    services: Mapping[NamespacedHostname, Service],
    policies: Mapping[str, Authorization],
) -> None:
    """Report each policy by which some workload refuses its own waypoint."""
    if not policies:
        return
    proxies = _proxies(workloads.values(), services.values())
    wide = _wide(policies.values())
    judged: dict[tuple[object, ...], str | None] = {}
    refused: dict[_Refusal, list[str]] = {}
    for workload in workloads.values():
        applied = [
            *wide.get("", []),
            *wide.get(workload.namespace, []),
            *(policies[name] for name in workload.authorization_policies if name in policies),
        ]
        if not applied or not workload.addresses:
            continue
        names = tuple(policy.key for policy in applied)
        for waypoint, port in set(_ways(workload, services)):
            proxy = proxies.get(waypoint)
            if proxy is None:
                continue
            # Workloads of one set of policies are alike to a caller of one identity.
            key = (names, waypoint, port)
            if key not in judged:
                judged[key] = _refused_by(applied, proxy, workload, port)
            if (policy := judged[key]) is not None:
                principal = proxy.identity.removeprefix("spiffe://")
                refused.setdefault(_Refusal(policy, waypoint, principal), []).append(workload.name)
    for refusal, names_of in sorted(refused.items(), key=lambda item: str(item[0])):
        _report(world, refusal, sorted(set(names_of)))


def _proxies(
    workloads: Iterable[Workload], services: Iterable[Service]
) -> dict[NamespacedHostname, Workload]:
    """Return one pod of each waypoint: they all have the same identity."""
    wanted = {key for service in services for key in _keys(service)}
    wanted |= {key for workload in workloads for key in _key(workload.waypoint)}
    return {key: workload for workload in workloads for key in workload.services if key in wanted}


def _keys(service: Service) -> Iterator[NamespacedHostname]:
    yield from _key(service.waypoint)
    for weighted in service.weighted_waypoints:
        yield from _key(weighted.destination)


def _key(gateway: GatewayAddress | None) -> Iterator[NamespacedHostname]:
    if gateway is not None and isinstance(gateway.destination, NamespacedHostname):
        yield gateway.destination


def _wide(policies: Iterable[Authorization]) -> dict[str, list[Authorization]]:
    """Return the policies without a selector by their namespace; empty: those of the whole mesh."""
    found: dict[str, list[Authorization]] = {}
    for policy in policies:
        if policy.scope is Scope.GLOBAL:
            found.setdefault("", []).append(policy)
        elif policy.scope is Scope.NAMESPACE:
            found.setdefault(policy.namespace, []).append(policy)
    return found


def _ways(
    workload: Workload, services: Mapping[NamespacedHostname, Service]
) -> Iterator[tuple[NamespacedHostname, int]]:
    """Yield the waypoints that send to a workload, and the port of it that they send to."""
    for key, ports in workload.services.items():
        service = services.get(key)
        for waypoint in _keys(service) if service is not None else ():
            for port in ports.ports.values():
                yield waypoint, port
            # Ports of the service that the workload does not number itself.
            for declared in service.ports if service is not None else ():
                if declared.service_port not in ports.ports and declared.target_port:
                    yield waypoint, declared.target_port


def _refused_by(policies: list[Authorization], proxy: Workload, workload: Workload, port: int) -> str | None:
    identity = SpiffeId(proxy.trust_domain, proxy.namespace, proxy.service_account)
    connection = Connection(
        source_identity=identity,
        source_ip=proxy.addresses[0] if proxy.addresses else workload.addresses[0],
        destination_ip=workload.addresses[0],
        destination_port=port,
    )
    verdict = evaluate(policies, connection)
    return None if verdict.allowed else verdict.policy


def _report(world: World, refusal: _Refusal, names: list[str]) -> None:
    namespace, _, name = refusal.policy.partition("/")
    policy = world.get(ISTIO_SECURITY, "AuthorizationPolicy", namespace, name)
    if policy is None:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    reason = (
        f"requests that come through waypoint {refusal.waypoint} are refused at {shown}: they bear its "
        f"identity; allow principal {refusal.principal} here, and clients in a policy with targetRefs"
    )
    world.problems.append(problem(policy, ("spec", "rules"), reason))
