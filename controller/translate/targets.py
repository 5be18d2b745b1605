# SPDX-License-Identifier: Apache-2.0
"""What `targetRefs` of a policy name: services, waypoints, or every waypoint of a class.

Source: gateway-api PolicyTargetReference; Istio's kinds of targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.translate.fields import Fields
from controller.translate.ingress_listeners import is_ingress
from controller.translate.waypoints import is_waypoint, is_waypoint_class
from controller.translate.world import GATEWAY_API, ISTIO_NETWORKING, Outcome, World
from mesh.config.objects import RawObject
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname, NetworkAddress

MAX_TARGETS = 16
ALL_WAYPOINTS = "*"
_NOT_FOUND = "it has no effect there until that changes"


@dataclass(slots=True, kw_only=True)
class Targets:
    """What one policy is for."""

    services: list[NamespacedHostname] = field(default_factory=list)
    waypoints: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    """One of each service, Gateway or class that a reference stands for."""

    def bound(self, message: str) -> None:
        """Note a target that waypoints enforce the policy for."""
        self.outcomes.append(Outcome(accepted=True, code="Accepted", message=message))

    def lost(self, reference: Fields, code: str, reason: str) -> None:
        """Note and report a target at which nobody enforces the policy."""
        self.outcomes.append(Outcome(accepted=False, code=code, message=reason))
        reference.report("name", f"{reason} ({code}); {_NOT_FOUND}", "error", code)


class TargetReader:
    """Reads the targets of one policy."""

    def __init__(self, world: World, obj: RawObject, services: Mapping[NamespacedHostname, Service]) -> None:
        self._world = world
        self._obj = obj
        self._services = services

    def waypoints_here(self) -> list[str]:
        """Return the waypoints of the object's namespace, for one that cannot be read."""
        namespace = self._obj.namespace
        return [
            f"{gateway.namespace}/{gateway.name}"
            for gateway in self._world.all(GATEWAY_API, "Gateway")
            if gateway.namespace == namespace and self._enforces(gateway)
        ]

    def read(self, fields: Fields) -> Targets:
        """Read `targetRefs` and `targetRef` of a spec.

        Raises:
            IllTypedError: it is unclear what is meant.
        """
        references = fields.children("targetRefs")
        if fields.has("targetRef"):
            references.append(fields.child("targetRef"))
        if len(references) > MAX_TARGETS:
            raise fields.wrong("targetRefs", f"names {len(references)} targets, more than {MAX_TARGETS}")
        targets = Targets()
        for reference in references:
            self._target(reference, targets)
        return targets

    def _target(self, reference: Fields, targets: Targets) -> None:
        group, kind, name = reference.text("group"), reference.text("kind"), reference.text("name")
        if not name:
            raise reference.wrong("name", "is missing")
        if reference.text("namespace", self._obj.namespace) != self._obj.namespace:
            raise reference.wrong("namespace", "a target is in the policy's own namespace")
        if reference.has("sectionName"):
            raise reference.wrong("sectionName", "a policy is for a whole object")
        reference.refuse_unknown()
        match group, kind:
            case (("" | "core"), "Service"):
                self._service(reference, self._world.hostname(name, self._obj.namespace), targets)
            case "networking.istio.io", "ServiceEntry":
                self._service_entry(reference, name, targets)
            case "gateway.networking.k8s.io", "Gateway":
                self._gateway(reference, name, targets)
            case "gateway.networking.k8s.io", "GatewayClass":
                self._gateway_class(reference, name, targets)
            case _:
                raise reference.wrong("kind", f"{group[:100]!r} {kind[:100]!r} is no kind of target")

    def _service(self, reference: Fields, key: NamespacedHostname, targets: Targets) -> None:
        targets.services.append(key)
        service = self._services.get(key)
        if service is None:
            targets.lost(reference, "TargetNotFound", f"service {key} does not exist")
        elif service.waypoint is None:
            targets.lost(reference, "AncestorNotBound", f"service {key} is not bound to a waypoint")
        else:
            targets.bound(_named(service.waypoint.destination))

    def _service_entry(self, reference: Fields, name: str, targets: Targets) -> None:
        namespace = self._obj.namespace
        entry = self._world.get(ISTIO_NETWORKING, "ServiceEntry", namespace, name)
        if entry is None:
            targets.lost(reference, "TargetNotFound", f"ServiceEntry {namespace}/{name} does not exist")
            return
        hosts = entry.spec.get("hosts")
        for host in hosts if isinstance(hosts, list) else []:
            self._service(
                reference, NamespacedHostname(namespace=namespace, hostname=str(host).lower()), targets
            )

    def _gateway(self, reference: Fields, name: str, targets: Targets) -> None:
        namespace = self._obj.namespace
        targets.waypoints.append(f"{namespace}/{name}")
        gateway = self._world.get(GATEWAY_API, "Gateway", namespace, name)
        if gateway is None:
            targets.lost(reference, "TargetNotFound", f"Gateway {namespace}/{name} does not exist")
        elif not self._enforces(gateway):
            reason = f"Gateway {namespace}/{name} is no waypoint or ingress gateway of ours"
            targets.lost(reference, "Invalid", reason)
        else:
            targets.bound(f"{namespace}/{name}")

    def _enforces(self, gateway: RawObject) -> bool:
        return is_waypoint(self._world, gateway) or is_ingress(self._world, gateway)

    def _gateway_class(self, reference: Fields, name: str, targets: Targets) -> None:
        root = self._world.options.root_namespace
        if self._obj.namespace != root:
            targets.lost(reference, "Invalid", f"a GatewayClass is a target for policies of {root} only")
        elif not is_waypoint_class(self._world, name):
            targets.lost(reference, "Invalid", f"GatewayClass {name} is no waypoint class")
        else:
            targets.waypoints.append(ALL_WAYPOINTS)
            targets.bound(f"every waypoint of class {name}")


def _named(waypoint: NamespacedHostname | NetworkAddress) -> str:
    """Return a waypoint as `namespace/name`; one known by its address alone as that."""
    if isinstance(waypoint, NamespacedHostname):
        return f"{waypoint.namespace}/{waypoint.hostname.partition('.')[0]}"
    return str(waypoint)
