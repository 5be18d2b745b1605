# SPDX-License-Identifier: Apache-2.0
"""What would happen to a connection, by the same tables that decide real ones; for `ambit why`.

Pure. Only asks `decide_outbound`, `admit` and `judge`: it holds no rule of its own about
what is allowed or chosen, so that its answer cannot differ from what the proxy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from mesh.authz.evaluate import Connection
from mesh.identity.spiffe import SpiffeId
from mesh.model.address import IPAddress
from mesh.model.service import Service
from mesh.model.workload import Workload
from mesh.state.balance import candidates, nearest, target_port
from mesh.state.store import Store
from mesh.telemetry.reasons import Reason
from ztunnel.resolve.admit import Refused, admit
from ztunnel.resolve.decide import ZTUNNEL_PORTS, Reject, Upstream, decide_outbound
from ztunnel.resolve.judge import Judgement, judge

DRAWS = 1000
"""Connections that are tried to learn the shares of the possible outcomes."""
LEAST_DRAWS = 60
WORK = 20_000
"""Endpoints looked at over all draws: the answer must not hold up the process that gives it."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """One member of the service, and why it is not chosen."""

    workload: Workload
    port: int | None
    """Its own port; None: it does not serve the one asked for."""
    why_not: str = ""
    """Empty: it can be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One thing that can happen, and to which share of connections."""

    share: float
    result: Upstream | Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundView:
    """Everything that can happen to a connection on its way out."""

    service: Service | None
    endpoints: tuple[EndpointView, ...]
    outcomes: tuple[Outcome, ...]
    """Most frequent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundView:
    """What the destination's proxy would say."""

    address: IPAddress | None
    """The application's; None: refused before policy."""
    port: int
    allowed: bool
    reason: Reason
    detail: str
    policy: str = ""
    dry_run: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    """`namespace/name` of the policies in force for the workload."""


def explain_outbound(store: Store, source: Workload, address: IPAddress, port: int) -> OutboundView:
    """Say what can happen to connections of `source` to an address and port."""
    service = store.find_service(address, source.namespace)
    endpoints = _endpoints(store, service, source, address, port) if service is not None else ()
    draws = max(LEAST_DRAWS, min(DRAWS, WORK // max(len(endpoints), 1)))
    results: dict[Hashable, Upstream | Reject] = {}
    counts: dict[Hashable, int] = {}
    for number in range(draws):
        result = decide_outbound(store, source, address, port, _sequence(number, draws))
        key = _key(result)
        results[key] = result
        counts[key] = counts.get(key, 0) + 1
    outcomes = [Outcome(share=counts[key] / draws, result=result) for key, result in results.items()]
    outcomes.sort(key=lambda outcome: -outcome.share)
    return OutboundView(service=service, endpoints=endpoints, outcomes=tuple(outcomes))


def _key(result: Upstream | Reject) -> Hashable:
    workload = result.workload.uid if result.workload is not None else ""
    if isinstance(result, Reject):
        return result.reason, result.detail, workload
    return result.kind, result.address, result.hostname, result.port, result.authority, workload


def _sequence(number: int, draws: int) -> Callable[[], float]:
    """Return a source of numbers in [0, 1) that covers them evenly over all draws, in two dimensions too."""
    value = (number + 0.5) / draws
    factor = draws * _GOLDEN

    def following() -> float:
        nonlocal value
        found = value
        value = value * factor % 1.0
        return found

    return following


def _endpoints(
    store: Store, service: Service, source: Workload, address: IPAddress, port: int
) -> tuple[EndpointView, ...]:
    usable = candidates(store, service, port, ipv6=address.version == 6)
    near = {target.workload.uid for target in nearest(service.load_balancing, source, usable)}
    possible = {target.workload.uid for target in usable}
    found = []
    for endpoint in store.endpoints(service.key):
        workload = endpoint.workload
        own_port = target_port(service, endpoint, port)
        why = ""
        if own_port is None:
            why = f"it has no port for {port}"
        elif not workload.capacity:
            why = "its weight is 0"
        elif workload.uid not in possible:
            why = "it is not ready" if not workload.healthy else "it cannot be reached from here"
        elif workload.uid not in near:
            why = "others are nearer"
        found.append(EndpointView(workload=workload, port=own_port, why_not=why))
    return tuple(found)


def explain_inbound(
    store: Store,
    local: Workload,
    *,
    dialled: IPAddress,
    port: int,
    authority: str,
    identity: SpiffeId | None,
    source_ip: IPAddress,
) -> InboundView:
    """Say what the proxy of `local` answers: to a CONNECT of `authority`, or without one to plain TCP."""
    address = dialled
    if authority:
        decision = admit(store, local, dialled, authority, identity.namespace if identity else "")
        if isinstance(decision, Refused):
            return _refused(decision.reason, decision.detail, port)
        address, port = decision.address, decision.port
    elif port in ZTUNNEL_PORTS:
        return _refused(Reason.ILLEGAL_PORT, f"port {port} of {local.uid} is ztunnel's own", port)
    connection = Connection(
        source_identity=identity, source_ip=source_ip, destination_ip=address, destination_port=port
    )
    verdict: Judgement = judge(store, local, connection)
    return InboundView(
        address=address,
        port=port,
        allowed=verdict.allowed,
        reason=verdict.reason,
        detail=verdict.detail,
        policy=verdict.policy,
        dry_run=verdict.dry_run,
        policies=tuple(sorted(policy.key for policy in store.policies_for(local).policies)),
    )


def _refused(reason: Reason, detail: str, port: int) -> InboundView:
    return InboundView(address=None, port=port, allowed=False, reason=reason, detail=detail)
