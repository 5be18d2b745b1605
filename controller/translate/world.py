# SPDX-License-Identifier: Apache-2.0
"""The objects of one translation by kind, and what nodes and namespaces say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.translate.fields import IllTypedError
from controller.translate.types import Options, Problem, problem
from mesh.config.objects import ObjectKey, RawObject
from mesh.model.locality import Locality
from mesh.model.workload import NamespacedHostname

ISTIO_NETWORKING = "networking.istio.io"
ISTIO_SECURITY = "security.istio.io"
GATEWAY_API = "gateway.networking.k8s.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a reference, for a status."""

    accepted: bool
    code: str
    message: str


class World:
    """All objects, and the problems found so far; the one thing that translators share."""

    def __init__(self, objects: Mapping[ObjectKey, RawObject], options: Options) -> None:
        self.options = options
        self.problems: list[Problem] = []
        self.bindings: dict[ObjectKey, Outcome] = {}
        """What became of the waypoints that objects name."""
        self.targets: dict[ObjectKey, list[Outcome]] = {}
        """What became of the targets that policies name, one each."""
        self._objects = dict(objects)
        self._by_kind: dict[tuple[str, str], list[RawObject]] = {}
        for key in sorted(objects, key=lambda key: (key.group, key.kind, key.namespace, key.name)):
            self._by_kind.setdefault((key.group, key.kind), []).append(objects[key])

    def kinds(self) -> list[tuple[str, str]]:
        """Return the groups and kinds that occur."""
        return list(self._by_kind)

    def all(self, group: str, kind: str) -> list[RawObject]:
        """Return the objects of one kind, by namespace and name."""
        return self._by_kind.get((group, kind), [])

    def get(self, group: str, kind: str, namespace: str, name: str) -> RawObject | None:
        """Return one object, if there is such."""
        return self._objects.get(ObjectKey(group, kind, namespace, name))

    def put(self, obj: RawObject) -> None:
        """Take another version of an object that there is, for all translators that follow."""
        self._objects[obj.key] = obj
        kind = self._by_kind[obj.key.group, obj.key.kind]
        kind[[other.key for other in kind].index(obj.key)] = obj

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace; empty when it has no object."""
        found = self.get("", "Namespace", "", namespace)
        return found.labels if found is not None else {}

    def locality(self, node: str) -> Locality:
        """Return the place of a node by its well-known labels."""
        found = self.get("", "Node", "", node)
        labels = found.labels if found is not None else {}
        return Locality(
            region=labels.get("topology.kubernetes.io/region", ""),
            zone=labels.get("topology.kubernetes.io/zone", ""),
            subzone=labels.get("topology.istio.io/subzone", ""),
        )

    def network_of(self, obj: RawObject) -> str:
        """Return the network that the object, or else its namespace, is labelled with."""
        name = "topology.istio.io/network"
        labelled = obj.labels.get(name) or self.namespace_labels(obj.namespace).get(name)
        return labelled or self.options.network

    def hostname(self, name: str, namespace: str) -> NamespacedHostname:
        """Return the key of a Kubernetes Service."""
        domain = self.options.cluster_domain
        return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.{domain}")

    def report(self, obj: RawObject, error: IllTypedError, consequence: str) -> None:
        """Report an ill-typed field and what became of the object."""
        reason = f"{error.reason}; {consequence}"
        self.problems.append(problem(obj, error.path, reason, "error", "Invalid"))
