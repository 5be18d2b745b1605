# SPDX-License-Identifier: Apache-2.0
"""The status of an ingress gateway: its address, its listeners, what each of them became.

Source: gateway-api GatewayStatus; messages as Istio writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controller.translate.gateway import Status, condition, is_ready
from controller.translate.ingress_listeners import ReadListener, object_name
from controller.translate.world import GATEWAY_API, World
from mesh.config.objects import RawObject

Condition = dict[str, Any]


def gateway_status(
    world: World,
    gateway: RawObject,
    listeners: Sequence[ReadListener],
    counts: Mapping[int, int],
    pods: Sequence[RawObject],
) -> Status:
    """Return the status of a gateway.

    Args:
        world: for its Service.
        gateway: an ingress gateway.
        listeners: as they were read.
        counts: routes by listener's index.
        pods: those that run it.
    """
    generation = gateway.metadata.get("generation")
    served = any(read.served is not None for read in listeners)
    accepted = _accepted(listeners, generation, served=served)
    programmed, addresses = _programmed(world, gateway, pods, generation, served=served)
    return Status(
        obj=gateway,
        status={
            "addresses": addresses,
            "conditions": [accepted, programmed],
            "listeners": [
                _listener(read, counts.get(read.index, 0), generation, programmed["status"])
                for read in listeners
            ],
        },
    )


def _accepted(listeners: Sequence[ReadListener], generation: Any, *, served: bool) -> Condition:
    refused = "; ".join(f"{read.name}: {read.reason}" for read in listeners if read.served is None)
    if not refused and served:
        return condition("Accepted", "True", "Accepted", "Resource accepted", generation)
    message = refused or "The gateway has no listeners"
    return condition("Accepted", "True" if served else "False", "ListenersNotValid", message, generation)


def _programmed(
    world: World, gateway: RawObject, pods: Sequence[RawObject], generation: Any, *, served: bool
) -> tuple[Condition, list[dict[str, str]]]:
    if not served:
        return condition("Programmed", "False", "Invalid", "No listener is served", generation), []
    name = object_name(gateway)
    host = world.hostname(name, gateway.namespace).hostname
    service = world.get("", "Service", gateway.namespace, name)
    addresses = _addresses(service, host) if service is not None else []
    if not addresses:
        message = f"Assigned to service(s) {host}, which has no address yet"
        return condition("Programmed", "False", "AddressNotAssigned", message, generation), []
    if not any(map(is_ready, pods)):
        message = f"No pod of {host} is ready"
        return condition("Programmed", "False", "NoResources", message, generation), addresses
    message = f"Resource programmed, assigned to service(s) {host}"
    return condition("Programmed", "True", "Programmed", message, generation), addresses


def _addresses(service: RawObject, host: str) -> list[dict[str, str]]:
    if service.spec.get("type") != "LoadBalancer":
        return [{"type": "Hostname", "value": host}]
    balancer = service.status.get("loadBalancer")
    given = balancer.get("ingress") if isinstance(balancer, Mapping) else None
    found = []
    for entry in given if isinstance(given, list) else []:
        if isinstance(entry, Mapping) and entry.get("ip"):
            found.append({"type": "IPAddress", "value": str(entry["ip"])})
        elif isinstance(entry, Mapping) and entry.get("hostname"):
            found.append({"type": "Hostname", "value": str(entry["hostname"])})
    return found


def _listener(read: ReadListener, routes: int, generation: Any, programmed: str) -> dict[str, Any]:
    good = {
        "Accepted": ("True", "Accepted"),
        "Conflicted": ("False", "NoConflicts"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    conditions = []
    for kind, (status, reason) in good.items():
        if read.served is None and read.condition == kind:
            bad = "True" if kind == "Conflicted" else "False"
            conditions.append(condition(kind, bad, read.code, read.reason, generation))
        else:
            conditions.append(condition(kind, status, reason, "No errors found", generation))
    if read.served is None:
        conditions.append(condition("Programmed", "False", "Invalid", read.reason, generation))
    else:
        reason = "Programmed" if programmed == "True" else "Pending"
        conditions.append(condition("Programmed", programmed, reason, "", generation))
    return {
        "name": read.name,
        "attachedRoutes": routes,
        "supportedKinds": [{"group": GATEWAY_API, "kind": kind} for kind in read.kinds],
        "conditions": conditions,
    }
