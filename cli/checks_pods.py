# SPDX-License-Identifier: Apache-2.0
"""The checks of pods and of the objects that shape their traffic; pure functions of `Facts`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from cli.check_engine import Check, Outcome, failed, ok, warned
from cli.codes import Code
from cli.facts import Facts, Pod
from cli.output import plural
from mesh.config.objects import RawObject

TUNNEL_PORT = 15008
OPTED_OUT = frozenset({"AMB2001", "AMB2002", "AMB2005", "AMB2006", "AMB2009"})
"""Why pods are left out as somebody wished, or for now."""
POWERFUL = frozenset({"SYS_ADMIN", "BPF", "CAP_SYS_ADMIN", "CAP_BPF", "ALL"})
WAYPOINT_LABEL = "istio.io/use-waypoint"
WAYPOINT_NAMESPACE_LABEL = "istio.io/use-waypoint-namespace"
GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
ROOT_NAMESPACE = "istio-system"
SHOWN = 10
"""Lines of one finding; the rest is counted."""


def pod_checks(facts: Facts) -> list[Check]:
    """Return the checks of pods and objects."""

    def check(place: str, key: str, title: str, run: Any, *needs: str) -> Check:
        return Check(key=key, category=place, title=title, run=partial(run, facts), needs=needs)

    agents = tuple(f"{node}/agent" for node in facts.target.nodes())
    return [
        check("pods", "enrolled", "every labelled pod is in the mesh", _enrolled, *agents),
        check("pods", "left-out", "no pod of a mesh namespace is left out", _left_out, *agents),
        check("pods", "ready", "every pod of the mesh is ready", _ready),
        check("pods", "older", "no connection is older than its pod's capture", _older, *agents),
        check("pods", "powerful", "no pod can undo capture", _powerful),
        check("objects", "endpoints", "every service of the mesh has an endpoint", _endpoints),
        check("objects", "idle-policies", "every policy selects something", _idle_policies),
        check("objects", "network-policies", "no NetworkPolicy blocks the tunnel", _blocked),
        check("objects", "waypoints", "every waypoint that is named exists and is ready", _waypoints),
    ]


def _lines(lines: Iterable[str]) -> list[str]:
    every = list(lines)
    more = len(every) - SHOWN
    return [*every[:SHOWN], f"... and {more} more"] if more > 0 else every


def _enrolled(facts: Facts) -> Outcome:
    wanted = [p for p in facts.pods() if p.wanted and not p.ended]
    missing = [p for p in wanted if not p.enrolled and p.state != "ignored"]
    if missing:
        lines = [
            f"{p.key} on {p.node or 'no node'}: {p.reason or 'its agent does not know it'}" for p in missing
        ]
        remedies = {p.remedy for p in missing if p.remedy}
        return failed(Code.NOT_ENROLLED, *_lines(lines), remedy="; ".join(sorted(remedies)))
    return ok(plural(len(wanted), "pod"))


def _left_out(facts: Facts) -> Outcome:
    pods = [p for p in facts.pods() if p.state == "ignored" and p.wanted and p.code not in OPTED_OUT]
    lines = [f"{p.key}: {p.code}: {p.reason}" for p in pods]
    return warned(Code.LEFT_OUT, *_lines(lines)) if lines else ok()


def _ready(facts: Facts) -> Outcome:
    lines = [f"{p.key}: {p.not_ready}" for p in facts.pods() if p.wanted and not p.ended and p.not_ready]
    return warned(Code.POD_NOT_READY, *_lines(lines)) if lines else ok()


def _older(facts: Facts) -> Outcome:
    lines = [
        f"{p.key}: {plural(len(p.older), 'connection')}: {', '.join(p.older[:3])}"
        for p in facts.pods()
        if p.older
    ]
    return warned(Code.OLDER_CONNECTIONS, *_lines(lines)) if lines else ok()


def powers(pod: Pod) -> str:
    """Say which rights make a pod the node's equal; empty: none."""
    for container in (*(pod.raw.spec.get("initContainers") or ()), *(pod.raw.spec.get("containers") or ())):
        context = container.get("securityContext") or {}
        if context.get("privileged"):
            return f"container {container['name']} is privileged"
        added = POWERFUL.intersection((context.get("capabilities") or {}).get("add") or ())
        if added:
            return f"container {container['name']} has {', '.join(sorted(added))}"
    return ""


def _powerful(facts: Facts) -> Outcome:
    lines = [f"{p.key}: {why}" for p in facts.pods() if p.wanted and (why := powers(p))]
    return warned(Code.POWERFUL_PODS, *_lines(lines)) if lines else ok()


def ready_endpoints(facts: Facts, service: RawObject) -> int:
    """Count the ready endpoints of a service over its EndpointSlices."""
    return sum(
        (endpoint.get("conditions") or {}).get("ready") is not False
        for piece in facts.of("EndpointSlice")
        if piece.namespace == service.namespace
        and piece.labels.get("kubernetes.io/service-name") == service.name
        for endpoint in piece.data.get("endpoints") or ()
    )


def _endpoints(facts: Facts) -> Outcome:
    lines = [
        f"{service.namespace}/{service.name}"
        for service in facts.of("Service")
        if facts.meshed(service.namespace)
        and service.spec.get("selector")
        and not ready_endpoints(facts, service)
    ]
    return warned(Code.NO_ENDPOINTS, *_lines(lines)) if lines else ok()


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether `matchLabels` and `matchExpressions` hold; no selector selects all."""
    for key, value in ((selector or {}).get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for rule in (selector or {}).get("matchExpressions") or ():
        value, wanted = labels.get(rule["key"]), rule.get("values") or ()
        holds = {
            "In": value in wanted,
            "NotIn": value not in wanted,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(rule["operator"], False)
        if not holds:
            return False
    return True


def _idle_policies(facts: Facts) -> Outcome:
    lines = []
    for policy in facts.of("AuthorizationPolicy", "PeerAuthentication"):
        selector = policy.spec.get("selector")
        if not selector:
            continue
        pods = [
            p
            for p in facts.pods()
            if policy.namespace in (p.namespace, ROOT_NAMESPACE) and selects(selector, p.raw.labels)
        ]
        if not pods:
            labels = ", ".join(f"{k}={v}" for k, v in (selector.get("matchLabels") or {}).items())
            written = facts.target.written(policy)
            lines.append(f"{policy.key} selects no pod ({labels}); {written.file}:{written.line}")
    return warned(Code.IDLE_POLICY, *_lines(lines)) if lines else ok()


def admits_tunnel(policy: RawObject) -> bool:
    """Whether a NetworkPolicy lets somebody reach the tunnel port."""
    for rule in policy.spec.get("ingress") or ():
        ports = rule.get("ports")
        if not ports:
            return True
        for port in ports:
            number = port.get("port")
            if port.get("protocol", "TCP") != "TCP":
                continue
            if number is None or (
                isinstance(number, int) and number <= TUNNEL_PORT <= port.get("endPort", number)
            ):
                return True
    return False


def _blocked(facts: Facts) -> Outcome:
    lines = []
    policies = [
        p for p in facts.of("NetworkPolicy") if "Ingress" in (p.spec.get("policyTypes") or ["Ingress"])
    ]
    for pod in facts.pods():
        near = [
            p
            for p in policies
            if p.namespace == pod.namespace and selects(p.spec.get("podSelector"), pod.raw.labels)
        ]
        if pod.enrolled and near and not any(admits_tunnel(p) for p in near):
            lines.append(f"{pod.key}: {', '.join(p.name for p in near)}")
    return warned(Code.BLOCKED_TUNNEL, *_lines(lines)) if lines else ok()


def _waypoints(facts: Facts) -> Outcome:
    lines = []
    for item in facts.of("Namespace", "Service", "Pod"):
        name = item.labels.get(WAYPOINT_LABEL, "none")
        if name == "none":
            continue
        home = item.namespace or item.name
        if why := waypoint_missing(facts, item.labels.get(WAYPOINT_NAMESPACE_LABEL, home), name):
            lines.append(f"{item.key}: {why}")
    return failed(Code.NO_WAYPOINT, *_lines(lines)) if lines else ok()


def waypoint_missing(facts: Facts, namespace: str, name: str) -> str:
    """Say why a waypoint cannot serve; empty: it can."""
    if not any((g.namespace, g.name) == (namespace, name) for g in facts.of("Gateway")):
        return f"there is no Gateway {namespace}/{name}"
    pods = [p for p in facts.pods() if p.namespace == namespace and p.raw.labels.get(GATEWAY_LABEL) == name]
    if not any(not p.not_ready for p in pods):
        return f"waypoint {namespace}/{name} has no ready pod" + (f" ({pods[0].not_ready})" if pods else "")
    return ""
