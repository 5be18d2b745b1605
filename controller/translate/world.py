# SPDX-License-Identifier: Apache-2.0
"""The objects of one translation by kind, and the waypoint that an object's labels name."""

from __future__ import annotations

from collections.abc import Mapping

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, root
from controller.translate.types import Options, Problem, problem
from mesh.config.objects import ObjectKey, RawObject
from mesh.model.address import parse_ip
from mesh.model.locality import Locality
from mesh.model.workload import GatewayAddress, NamespacedHostname, NetworkAddress

ISTIO_NETWORKING = "networking.istio.io"
ISTIO_SECURITY = "security.istio.io"
GATEWAY_API = "gateway.networking.k8s.io"
HBONE_PORT = 15008


class World:
    """All objects, and the problems found so far; the one thing that translators share."""

    def __init__(self, objects: Mapping[ObjectKey, RawObject], options: Options) -> None:
        self.options = options
        self.problems: list[Problem] = []
        self._objects = objects
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
        self.problems.append(problem(obj, error.path, reason, "error"))

    def waypoint(self, obj: RawObject, traffic: str) -> GatewayAddress | None:
        """Find the waypoint of a workload or service: by its own label, else its namespace's.

        `traffic` is `service` or `workload`. One that is named but cannot be used is reported,
        and connections then go directly, as in Istio.
        """
        labels = obj.labels
        if "istio.io/use-waypoint" not in labels:
            labels = self.namespace_labels(obj.namespace)
        name = labels.get("istio.io/use-waypoint", "")
        if name in ("", "none") or GATEWAY_API + "/gateway-name" in obj.labels:
            return None
        namespace = labels.get("istio.io/use-waypoint-namespace", "") or obj.namespace
        if obj.kind == "Service" and (obj.namespace, obj.name) == (namespace, name):
            # The way to the waypoint cannot lead through it.
            return None
        gateway = self.get(GATEWAY_API, "Gateway", namespace, name)
        path = ("metadata", "labels", "istio.io/use-waypoint")
        if gateway is None:
            reason = f"waypoint {namespace}/{name} does not exist; connections go directly"
            self.problems.append(problem(obj, path, reason))
            return None
        try:
            return self._attach(obj, gateway, traffic)
        except IllTypedError as error:
            reason = f"waypoint {namespace}/{name} is not usable: {error.reason}; connections go directly"
            self.problems.append(problem(obj, path, reason))
            return None

    def _attach(self, obj: RawObject, gateway: RawObject, traffic: str) -> GatewayAddress | None:
        fields = root(gateway, self.problems)
        serves = gateway.labels.get("istio.io/waypoint-for", "service")
        if serves not in (traffic, "all"):
            return None
        port = 0
        for listener in fields.child("spec").children("listeners"):
            if listener.text("protocol") == "HBONE" and self._admits(listener, obj, gateway):
                port = listener.integer("port", HBONE_PORT, 1, MAX_PORT)
        if not port:
            raise IllTypedError((), f"no HBONE listener admits namespace {obj.namespace}")
        for address in fields.child("status").children("addresses"):
            value = address.text("value")
            if address.text("type", "IPAddress") == "Hostname":
                key = NamespacedHostname(namespace=gateway.namespace, hostname=value)
                return GatewayAddress(destination=key, hbone_mtls_port=port)
            try:
                network = NetworkAddress(network=self.options.network, address=parse_ip(value))
            except ValueError as error:
                raise address.wrong("value", "status names no IP address") from error
            return GatewayAddress(destination=network, hbone_mtls_port=port)
        if self.get("", "Service", gateway.namespace, gateway.name) is None:
            raise IllTypedError((), "it has no address yet")
        key = self.hostname(gateway.name, gateway.namespace)
        return GatewayAddress(destination=key, hbone_mtls_port=port)

    def _admits(self, listener: Fields, obj: RawObject, gateway: RawObject) -> bool:
        allowed = listener.child("allowedRoutes").child("namespaces")
        source = allowed.text("from", "Same")
        if source == "Selector":
            labels = self.namespace_labels(obj.namespace)
            wanted = allowed.child("selector").string_map("matchLabels")
            return bool(wanted) and selects_namespace(wanted, labels, obj.namespace)
        return source == "All" or (source == "Same" and obj.namespace == gateway.namespace)


def selects_namespace(wanted: Mapping[str, str], labels: Mapping[str, str], name: str) -> bool:
    """Tell whether a namespace has all wanted labels; its name is always one of them."""
    given = {"kubernetes.io/metadata.name": name, **labels}
    return all(given.get(key) == value for key, value in wanted.items())
