# SPDX-License-Identifier: Apache-2.0
"""Which pods there should be, and where: Deployments and Pods to assignments. Pure.

An assignment is a whole Pod object with uid, node and addresses, before a kubelet adds
what became of it. Random parts of names come in as a function.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.layout import PODS_PER_NODE, Layout
from mesh.config.objects import RawObject

HASH_LABEL = "pod-template-hash"
NUMBER_ANNOTATION = "ambit.io/lab-pod-number"
"""The pod's number on its node: makes its addresses and its link's name."""
Key = tuple[str, str]
"""Namespace and name of a pod."""
PodData = dict[str, Any]


@dataclass(slots=True)
class Plan:
    """What to write and what to remove; and what cannot be placed."""

    write: dict[Key, PodData] = field(default_factory=dict)
    remove: set[Key] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def template_hash(template: Mapping[str, Any]) -> str:
    """Return a short name for a pod template's content."""
    text = json.dumps(template, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:9]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a Pod's Ready condition is True."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def owner_of(pod: Mapping[str, Any]) -> str:
    """Return the name of the Deployment that a pod belongs to; empty: none."""
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == "Deployment":
            return str(owner["name"])
    return ""


def plan(
    objects: Iterable[RawObject],
    assigned: Mapping[Key, PodData],
    ready: frozenset[Key],
    layout: Layout,
    random: Callable[[int], str],
    leaving: Iterable[Mapping[str, Any]] = (),
) -> Plan:
    """Compare the pods that there should be with those assigned, and return the difference.

    A Deployment's pods are replaced when its template changed: new ones come first, old
    ones go when as many new ones are ready. `leaving`: pods that nodes still have, whose
    addresses are not free yet.
    """
    state = _State(layout, dict(assigned), random, leaving)
    wanted: set[Key] = set()
    for item in objects:
        if item.kind == "Pod":
            key = (item.namespace, item.name)
            wanted.add(key)
            state.ensure_pod(key, item.data)
        elif item.kind == "Deployment":
            wanted |= state.ensure_deployment(item, ready)
    state.plan.remove = set(assigned) - wanted
    for key in state.plan.remove:
        state.plan.write.pop(key, None)
    return state.plan


class _State:
    """One planning: what is taken so far, and what comes out."""

    def __init__(
        self,
        layout: Layout,
        assigned: dict[Key, PodData],
        random: Callable[[int], str],
        leaving: Iterable[Mapping[str, Any]],
    ) -> None:
        self._layout = layout
        self._assigned = assigned
        self._random = random
        self._numbers: dict[str, set[int]] = {name: set() for name in layout.node_names}
        for pod in (*assigned.values(), *leaving):
            if NUMBER_ANNOTATION in (pod["metadata"].get("annotations") or {}):
                self._numbers[pod["spec"]["nodeName"]].add(number_of(pod))
        self.plan = Plan()

    def ensure_pod(self, key: Key, data: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> bool:
        """Assign a pod, or carry changed labels and annotations over to the running one."""
        pod: PodData = copy.deepcopy(dict(data))
        pod.pop("status", None)
        pod["metadata"] = {**pod.get("metadata", {}), "namespace": key[0], "name": key[1], **(extra or {})}
        current = self._assigned.get(key)
        if current is not None:
            merged = copy.deepcopy(current)
            for name in ("labels", "annotations"):
                values = {k: str(v) for k, v in (pod["metadata"].get(name) or {}).items()}
                if name == "annotations":
                    values[NUMBER_ANNOTATION] = str(number_of(current))
                merged["metadata"][name] = values
            if merged != current:
                self.plan.write[key] = merged
            return True
        return self._assign(key, pod)

    def _assign(self, key: Key, pod: PodData) -> bool:
        for other in self._assigned:
            if other != key and "-".join(other) == "-".join(key):
                self.plan.problems.append(
                    f"pods {'/'.join(key)} and {'/'.join(other)} would share the network namespace's name; "
                    "rename one"
                )
                return False
        node = self._place(key, str(pod["spec"].get("nodeName") or ""))
        if node is None:
            return False
        number = next(n for n in range(2, PODS_PER_NODE + 2) if n not in self._numbers[node])
        self._numbers[node].add(number)
        pod.setdefault("apiVersion", "v1")
        pod["kind"] = "Pod"
        pod["spec"]["nodeName"] = node
        pod["spec"].setdefault("serviceAccountName", "default")
        annotations = dict(pod["metadata"].get("annotations") or {})
        annotations[NUMBER_ANNOTATION] = str(number)
        pod["metadata"]["annotations"] = annotations
        pod["metadata"]["uid"] = _uuid(self._random)
        self._assigned[key] = pod
        self.plan.write[key] = pod
        return True

    def _place(self, key: Key, wanted: str) -> str | None:
        """Return the node: the one that is named, or the emptiest."""
        where = f"pod {key[0]}/{key[1]}"
        if wanted and wanted not in self._numbers:
            names = ", ".join(self._numbers)
            self.plan.problems.append(f"{where} wants node {wanted}; there are {names}")
            return None
        nodes = [wanted] if wanted else sorted(self._numbers, key=lambda n: len(self._numbers[n]))
        if len(self._numbers[nodes[0]]) >= PODS_PER_NODE:
            self.plan.problems.append(f"{where}: node {nodes[0]} has its {PODS_PER_NODE} pods")
            return None
        return nodes[0]

    def ensure_deployment(self, item: RawObject, ready: frozenset[Key]) -> set[Key]:
        """Assign a Deployment's pods and return those that it keeps."""
        template = item.spec["template"]
        digest = template_hash(template)
        mine = [
            (key, pod)
            for key, pod in sorted(self._assigned.items())
            if key[0] == item.namespace and owner_of(pod) == item.name
        ]
        new = [key for key, pod in mine if pod["metadata"]["labels"].get(HASH_LABEL) == digest]
        old = [key for key, pod in mine if key not in new]
        replicas = int(item.spec.get("replicas", 1))
        # Those that serve stay when some must go.
        new.sort(key=lambda key: key not in ready)
        keep = set(new[:replicas])
        if sum(key in ready for key in keep) < replicas:
            keep |= set(old)
        for _ in range(replicas - len(new)):
            key = (item.namespace, f"{item.name}-{digest}-{self._random(5)}")
            extra = {
                "labels": {**(template["metadata"].get("labels") or {}), HASH_LABEL: digest},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "Deployment", "name": item.name, "controller": True}
                ],
            }
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": template["metadata"],
                "spec": template["spec"],
            }
            if self.ensure_pod(key, pod, extra):
                keep.add(key)
        return keep


def number_of(pod: Mapping[str, Any]) -> int:
    """Return a pod's number on its node."""
    return int(pod["metadata"]["annotations"][NUMBER_ANNOTATION])


def _uuid(random: Callable[[int], str]) -> str:
    return "-".join(random(n) for n in (8, 4, 4, 4, 12))


def deployment_status(item: RawObject, pods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a Deployment with its status from its pods."""
    digest = template_hash(item.spec["template"])
    mine = [p for p in pods if p["metadata"].get("namespace") == item.namespace and owner_of(p) == item.name]
    wanted = int(item.spec.get("replicas", 1))
    available = sum(is_ready(p) for p in mine)
    status = {
        "replicas": len(mine),
        "updatedReplicas": sum(p["metadata"]["labels"].get(HASH_LABEL) == digest for p in mine),
        "readyReplicas": available,
        "availableReplicas": available,
        "conditions": [{"type": "Available", "status": "True" if available >= wanted else "False"}],
    }
    return {**item.data, "metadata": {**item.metadata, "namespace": item.namespace}, "status": status}
