# SPDX-License-Identifier: Apache-2.0
"""Status of HTTPRoutes and GRPCRoutes: what each parent became, and what of the route is not honoured.

Source: gateway-api RouteStatus; reasons and messages as Istio writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controller.translate.gateway import Status, condition
from controller.translate.http_route import Finding, Parent
from mesh.config.objects import ObjectKey, RawObject

CONTROLLER = "istio.io/gateway-controller"


def route_statuses(parents: Iterable[Parent], findings: Iterable[Finding]) -> list[Status]:
    """Return the status of every route that has a parent in the mesh."""
    of_route: dict[ObjectKey, list[Parent]] = {}
    for parent in parents:
        of_route.setdefault(parent.route.key, []).append(parent)
    errors: dict[ObjectKey, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "error" and finding.path[:2] != ("spec", "parentRefs"):
            errors.setdefault(finding.route.key, []).append(finding)
    return [
        Status(
            obj=mine[0].route,
            status={
                "parents": [
                    _parent(parent, errors.get(key, []))
                    for parent in sorted(mine, key=lambda parent: parent.index)
                ]
            },
        )
        for key, mine in of_route.items()
    ]


def unique(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings without those that were made twice: for services, and for gateways."""
    return list({(finding.route.key, finding.path, finding.reason): finding for finding in findings}.values())


def _parent(parent: Parent, errors: list[Finding]) -> dict[str, Any]:
    route = parent.route
    unresolved = [finding for finding in errors if finding.code]
    refused = [finding for finding in errors if not finding.code]
    generation = route.metadata.get("generation")
    if parent.reason:
        accepted = condition("Accepted", "False", parent.code, parent.reason, generation)
    else:
        accepted = condition("Accepted", "True", "Accepted", "Route was valid", generation)
    if unresolved:
        first = unresolved[0]
        resolved = condition("ResolvedRefs", "False", first.code, _message(unresolved), generation)
    else:
        message = "All references resolved"
        resolved = condition("ResolvedRefs", "True", "ResolvedRefs", message, generation)
    conditions = [accepted, resolved]
    if refused:
        message = _message(refused)
        conditions.append(condition("PartiallyInvalid", "True", "UnsupportedValue", message, generation))
    return {
        "controllerName": CONTROLLER,
        "parentRef": dict(_reference(route, parent.index)),
        "conditions": conditions,
    }


def _message(findings: list[Finding]) -> str:
    return "; ".join(f"{'.'.join(str(step) for step in f.path)}: {f.reason}" for f in findings)[:32_768]


def _reference(route: RawObject, index: int) -> dict[str, Any]:
    found: dict[str, Any] = route.spec["parentRefs"][index]
    return found
