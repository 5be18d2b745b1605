# SPDX-License-Identifier: Apache-2.0
"""What policies, and what is bound to waypoints, are told in their statuses; types and reasons are Istio's.

The status of an object has conditions of others too: they are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controller.translate.authorization import UNSUPPORTED
from controller.translate.gateway import Status, condition
from controller.translate.ingress_listeners import CONTROLLERS
from controller.translate.types import Problem
from controller.translate.waypoints import MESH_CONTROLLER
from controller.translate.world import GATEWAY_API, ISTIO_NETWORKING, ISTIO_SECURITY, Outcome, World
from mesh.config.objects import ObjectKey, RawObject

BOUND = "istio.io/WaypointBound"
BY_ZTUNNEL, BY_WAYPOINT = "ZtunnelAccepted", "WaypointAccepted"
INVALID = "Invalid"
_BINDABLE = (("", "Service"), (ISTIO_NETWORKING, "ServiceEntry"), (ISTIO_NETWORKING, "WorkloadEntry"))
_MAX_MESSAGE = 32_768
"""Of metav1.Condition."""


def condition_statuses(world: World) -> list[Status]:
    """Return the statuses that differ from none: of classes, of what names waypoints, of policies."""
    return [
        status
        for obj, made in (*_classes(world), *_bindings(world), *_policies(world))
        if (status := _status(obj, made)) is not None
    ]


def _status(obj: RawObject, made: Mapping[str, dict[str, Any] | None]) -> Status | None:
    """Put our conditions among those that there are, or take them away (None).

    None: nothing of ours is or was there.
    """
    old = obj.status.get("conditions")
    given = [c for c in old if isinstance(c, Mapping)] if isinstance(old, list) else []
    ours = [c for c in made.values() if c is not None]
    if not ours and not any(str(c.get("type")) in made for c in given):
        return None
    others = [dict(c) for c in given if str(c.get("type")) not in made]
    return Status(obj=obj, status={**obj.status, "conditions": [*others, *ours]})


Made = tuple[RawObject, dict[str, dict[str, Any] | None]]


def _classes(world: World) -> Iterable[Made]:
    for obj in world.all(GATEWAY_API, "GatewayClass"):
        if obj.spec.get("controllerName") in (MESH_CONTROLLER, *CONTROLLERS):
            yield obj, {"Accepted": _make(obj, "Accepted", True, "Accepted", "Handled by Ambit's controller")}


def _bindings(world: World) -> Iterable[Made]:
    for group, kind in _BINDABLE:
        for obj in world.all(group, kind):
            found = world.bindings.get(obj.key)
            if found is None:
                yield obj, {BOUND: None}
                continue
            yield obj, {BOUND: _make(obj, BOUND, found.accepted, found.code, found.message)}


def _policies(world: World) -> Iterable[Made]:
    problems: dict[ObjectKey, list[Problem]] = {}
    for each in world.problems:
        if each.key.kind == "AuthorizationPolicy":
            problems.setdefault(each.key, []).append(each)
    for obj in world.all(ISTIO_SECURITY, "AuthorizationPolicy"):
        mine = problems.get(obj.key, [])
        targets = world.targets.get(obj.key)
        if targets is not None:
            yield obj, {BY_WAYPOINT: _of_targets(obj, targets, mine), BY_ZTUNNEL: None}
        else:
            yield obj, {BY_ZTUNNEL: _of_ztunnel(obj, mine), BY_WAYPOINT: None}


def _of_ztunnel(obj: RawObject, problems: list[Problem]) -> dict[str, Any]:
    if any(each.code == INVALID for each in problems):
        return _make(obj, BY_ZTUNNEL, False, INVALID, _text(problems, INVALID))
    unsupported = [each for each in problems if each.code == UNSUPPORTED]
    if not unsupported:
        return _make(obj, BY_ZTUNNEL, True, "Accepted", "attached to ztunnel")
    # A field of `rules` costs that rule; an action that is not enforced costs the policy.
    partly = all(each.path[:2] == ("spec", "rules") for each in unsupported)
    return _make(obj, BY_ZTUNNEL, partly, UNSUPPORTED, _text(unsupported, UNSUPPORTED))


def _of_targets(obj: RawObject, targets: list[Outcome], problems: list[Problem]) -> dict[str, Any]:
    bad = [target for target in targets if not target.accepted]
    if any(each.code == INVALID for each in problems) and not bad:
        return _make(obj, BY_WAYPOINT, False, INVALID, _text(problems, INVALID))
    if not bad:
        message = "bound to " + ", ".join(dict.fromkeys(target.message for target in targets))
        return _make(obj, BY_WAYPOINT, True, "Accepted", message)
    message = "; ".join(target.message for target in bad)
    if len(bad) < len(targets):
        return _make(obj, BY_WAYPOINT, True, "PartiallyInvalid", message)
    return _make(obj, BY_WAYPOINT, False, bad[0].code, message)


def _text(problems: list[Problem], code: str) -> str:
    return "; ".join(
        f"{'.'.join(map(str, each.path))}: {each.reason}" for each in problems if each.code == code
    )


def _make(obj: RawObject, kind: str, accepted: bool, reason: str, message: str) -> dict[str, Any]:
    generation = obj.metadata.get("generation")
    return condition(kind, "True" if accepted else "False", reason, message[:_MAX_MESSAGE], generation)
