# SPDX-License-Identifier: Apache-2.0
"""The status of a waypoint's Gateway.

A waypoint has an address from the time when one of its pods has been ready: until then
connections go past it, as in Istio; from then on they fail rather than go past it. What
runs it: `waypoint_objects.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from controller.translate.fields import IllTypedError, root
from controller.translate.waypoints import (
    HBONE_PORT,
    is_waypoint,
    pods_by_gateway,
)
from controller.translate.world import GATEWAY_API, World
from mesh.config.objects import RawObject

REVISION = "istio.io/rev"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status that an object should have; conditions without `lastTransitionTime`."""

    obj: RawObject
    status: Mapping[str, Any]


def managed(world: World, gateway: RawObject) -> bool:
    """Tell whether we run this Gateway: a waypoint of our revision without an address of its user's."""
    return (
        is_waypoint(world, gateway)
        and gateway.labels.get(REVISION, "default") in ("", "default")
        and not gateway.spec.get("addresses")
    )


def update_statuses(world: World) -> list[Status]:
    """Bring the statuses of Gateways that we run up to date in `world`, and return them.

    The status that a Gateway has so far is part of the input: an address once given stays.
    """
    gateways = [gateway for gateway in world.all(GATEWAY_API, "Gateway") if managed(world, gateway)]
    pods = pods_by_gateway(world) if gateways else {}
    statuses = []
    for gateway in gateways:
        mine = pods.get((gateway.namespace, gateway.name), [])
        status = Status(obj=gateway, status=_gateway_status(world, gateway, mine))
        statuses.append(status)
        world.put(replace(gateway, data={**gateway.data, "status": status.status}))
    return statuses


def _gateway_status(world: World, gateway: RawObject, pods: Sequence[RawObject]) -> dict[str, Any]:
    refusal = refusal_of(gateway)
    host = world.hostname(gateway.name, gateway.namespace).hostname
    service = world.get("", "Service", gateway.namespace, gateway.name)
    given = [a for a in _list(gateway.status.get("addresses")) if isinstance(a, Mapping)]
    ready = service is not None and any(map(is_ready, pods))
    addresses = []
    if not refusal and (ready or any(a.get("value") == host for a in given)):
        addresses = [{"type": "Hostname", "value": host}]
    generation = gateway.metadata.get("generation")
    accepted = (
        condition("Accepted", "False", "ListenersNotValid", refusal, generation)
        if refusal
        else condition("Accepted", "True", "Accepted", "Resource accepted", generation)
    )
    if refusal:
        programmed = condition("Programmed", "False", "Invalid", refusal, generation)
    elif not addresses:
        message = "Waiting for a ready waypoint pod; until then connections go past it"
        programmed = condition("Programmed", "False", "AddressNotAssigned", message, generation)
    elif not ready:
        message = f"No pod of {host} is ready: connections through it fail"
        programmed = condition("Programmed", "False", "AddressNotUsable", message, generation)
    else:
        message = f"Resource programmed, assigned to service(s) {host}:{HBONE_PORT}"
        programmed = condition("Programmed", "True", "Programmed", message, generation)
    return {
        "addresses": addresses,
        "conditions": [accepted, programmed],
        "listeners": _listeners(gateway, generation, programmed["status"]),
    }


def is_ready(pod: RawObject) -> bool:
    """Tell whether a pod serves."""
    return "deletionTimestamp" not in pod.metadata and any(
        isinstance(c, Mapping) and c.get("type") == "Ready" and c.get("status") == "True"
        for c in _list(pod.status.get("conditions"))
    )


def refusal_of(gateway: RawObject) -> str:
    """Return why a Gateway cannot be a waypoint; empty: it can."""
    fields = root(gateway, [])
    try:
        listeners = fields.child("spec").children("listeners")
        for listener in listeners:
            if listener.text("protocol") == "HBONE":
                port = listener.integer("port", HBONE_PORT, 1, 65535)
                return "" if port == HBONE_PORT else f"The HBONE listener has port {port}, not {HBONE_PORT}"
    except IllTypedError as error:
        return f"{'.'.join(str(step) for step in error.path)} {error.reason}"
    return f"A waypoint has a listener of protocol HBONE on port {HBONE_PORT}"


def _listeners(gateway: RawObject, generation: Any, programmed: str) -> list[dict[str, Any]]:
    found = []
    for listener in _list(gateway.spec.get("listeners")):
        if not isinstance(listener, Mapping) or not isinstance(listener.get("name"), str):
            continue
        good = listener.get("protocol") == "HBONE"
        refused = f"A waypoint has no listeners of protocol {listener.get('protocol')}"
        state = programmed if good else "False"
        found.append(
            {
                "name": listener["name"],
                "attachedRoutes": 0,
                "supportedKinds": [],
                "conditions": [
                    condition("Accepted", "True", "Accepted", "No errors found", generation)
                    if good
                    else condition("Accepted", "False", "UnsupportedProtocol", refused, generation),
                    condition("Conflicted", "False", "NoConflicts", "No errors found", generation),
                    condition(
                        "Programmed", state, "Programmed" if state == "True" else "Pending", "", generation
                    ),
                    condition("ResolvedRefs", "True", "ResolvedRefs", "No errors found", generation),
                ],
            }
        )
    return found


def condition(kind: str, status: str, reason: str, message: str, generation: Any) -> dict[str, Any]:
    """Make a condition; `generation` is that of the object, or None where there is none."""
    found: dict[str, Any] = {"type": kind, "status": status, "reason": reason, "message": message}
    if isinstance(generation, int):
        found["observedGeneration"] = generation
    return found


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
