# SPDX-License-Identifier: Apache-2.0
"""Least-privilege AuthorizationPolicies out of recorded connections, grouped as a person would. Pure.

One policy a destination, one rule a set of ports; each with the connections that justify it. What
came without an identity cannot be allowed by one and is told instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.facts import Pod
from cli.flow_log import Flow

SCHEME = "spiffe://"
NOISE = frozenset(
    {"pod-template-hash", "istio.io/dataplane-mode", "version", "service.istio.io/canonical-revision"}
)
"""Labels that say nothing of who a pod is."""
NAMES = ("app.kubernetes.io/name", "app", "k8s-app", "name")
"""Labels that name an application, best first."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one caller did to one port."""

    count: int = 0
    last: str = ""

    def add(self, flow: Flow) -> None:
        """Count a connection."""
        self.count += 1
        self.last = max(self.last, flow.time)


@dataclass(slots=True, kw_only=True)
class Target:
    """One destination: the pods of one application."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    callers: dict[str, dict[int, Seen]] = field(default_factory=dict)
    """Identity -> port -> what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """The policies, and what they leave out."""

    targets: tuple[Target, ...]
    nameless: tuple[str, ...]
    """Callers without identity, with what they called."""
    unknown: tuple[str, ...]
    """Destinations that do not run any more."""


def suggest(flows: Iterable[Flow], pods: Sequence[Pod]) -> Suggestion:
    """Group the connections that were let in by who was called."""
    by_name = {(p.namespace, p.name): p for p in pods}
    owners = {(p.namespace, p.owner): p for p in pods}
    targets: dict[tuple[str, str], Target] = {}
    nameless: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for flow in flows:
        if flow.direction != "inbound" or flow.verdict == "denied":
            continue
        namespace, workload = flow.get("dst.namespace"), flow.get("dst.workload")
        pod = by_name.get((namespace, workload)) or _successor(namespace, workload, owners)
        if pod is None:
            unknown[f"{namespace}/{workload}" if workload else flow.target] = None
            continue
        port = flow.target.rpartition(":")[2]
        if not flow.get("src.identity"):
            nameless[f"{flow.source} to {pod.namespace}/{pod.owner} port {port}"] = None
            continue
        key = (pod.namespace, pod.owner)
        labels = identifying(pod)
        target = targets.setdefault(key, Target(namespace=key[0], name=key[1], labels=labels))
        ports = target.callers.setdefault(flow.get("src.identity"), {})
        ports.setdefault(int(port), Seen()).add(flow)
    return Suggestion(
        targets=tuple(targets[key] for key in sorted(targets)),
        nameless=tuple(nameless),
        unknown=tuple(unknown),
    )


def _successor(namespace: str, workload: str, owners: Mapping[tuple[str, str], Pod]) -> Pod | None:
    """Find who took the place of a pod that is gone: a pod of the Deployment whose name it bore."""
    words = workload.split("-")
    for length in range(len(words) - 1, 0, -1):
        found = owners.get((namespace, "-".join(words[:length])))
        if found is not None:
            return found
    return None


def identifying(pod: Pod) -> dict[str, str]:
    """Return the labels that stand for a pod's application; the fewest that do."""
    labels = pod.raw.labels
    for name in NAMES:
        if name in labels:
            return {name: labels[name]}
    return {key: value for key, value in sorted(labels.items()) if key not in NOISE}


def merge_same(targets: Iterable[Target]) -> list[Target]:
    """Make targets with the same labels one: two versions of one application are called alike."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Target] = {}
    for target in targets:
        key = (target.namespace, tuple(sorted(target.labels.items())))
        if key not in found:
            name = next(iter(target.labels.values()), target.name)
            found[key] = Target(namespace=target.namespace, name=name, labels=target.labels)
        for identity, ports in target.callers.items():
            for port, seen in ports.items():
                into = found[key].callers.setdefault(identity, {}).setdefault(port, Seen())
                into.count += seen.count
                into.last = max(into.last, seen.last)
    return list(found.values())


def policy_of(target: Target) -> dict[str, Any]:
    """Write the policy of a target: callers of the same ports share a rule."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for identity, ports in target.callers.items():
        groups.setdefault(tuple(sorted(ports)), []).append(identity)
    rules = [
        {
            "from": [{"source": {"principals": [i.removeprefix(SCHEME) for i in sorted(identities)]}}],
            "to": [{"operation": {"ports": [str(port) for port in ports]}}],
        }
        for ports, identities in sorted(groups.items())
    ]
    spec: dict[str, Any] = {"action": "ALLOW", "rules": rules}
    if target.labels:
        spec = {"selector": {"matchLabels": dict(target.labels)}, **spec}
    return _object(target.namespace, f"allow-to-{target.name}", spec)


def deny_rest(namespace: str) -> dict[str, Any]:
    """Write the policy that allows nothing to pods of a namespace that no other policy names."""
    return _object(namespace, "allow-nothing", {})


def _object(namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


def justification(target: Target) -> list[str]:
    """Say which connections a policy rests on, a line a caller."""
    lines = []
    for identity, ports in sorted(target.callers.items()):
        for port, seen in sorted(ports.items()):
            times = f"{seen.count} connection" + ("" if seen.count == 1 else "s")
            lines.append(
                f"{identity.removeprefix(SCHEME)} to port {port}: {times}, last at {seen.last[:19]}Z"
            )
    return lines
