# SPDX-License-Identifier: Apache-2.0
"""Which Gateways are waypoints, which pods run them, and whose traffic goes through which.

A waypoint pod carries the name of its Gateway in a label. The label alone makes nothing
of a pod: the Gateway has to exist in the pod's namespace and be of a waypoint class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, root
from controller.translate.types import problem
from controller.translate.world import GATEWAY_API, Outcome, World
from mesh.config.objects import Path, RawObject
from mesh.model.address import parse_ip
from mesh.model.service import WeightedWaypoint
from mesh.model.workload import GatewayAddress, NamespacedHostname, NetworkAddress

WAYPOINT_CLASS = "istio-waypoint"
"""The class that there is without a GatewayClass object."""
MESH_CONTROLLER = "istio.io/mesh-controller"
"""`controllerName` of classes whose Gateways are waypoints."""
GATEWAY_LABEL = f"{GATEWAY_API}/gateway-name"
USE_WAYPOINT = "istio.io/use-waypoint"
CANARY = "istio.io/use-waypoint-canary"
CANARY_WEIGHT = "istio.io/use-waypoint-canary-weight"
"""Annotation beside the label above: percentage of the connections."""
WAYPOINT_FOR = "istio.io/waypoint-for"
TRAFFIC = ("service", "workload", "all", "none")
"""Values of the label above."""
HBONE_PORT = 15008


def is_waypoint(world: World, gateway: RawObject) -> bool:
    """Tell whether a Gateway is of a waypoint class."""
    name = gateway.spec.get("gatewayClassName")
    return isinstance(name, str) and is_waypoint_class(world, name)


def is_waypoint_class(world: World, name: str) -> bool:
    """Tell whether Gateways of this class are waypoints."""
    if name == WAYPOINT_CLASS:
        return True
    found = world.get(GATEWAY_API, "GatewayClass", "", name)
    return found is not None and found.spec.get("controllerName") == MESH_CONTROLLER


def waypoint_of_pod(world: World, pod: RawObject) -> RawObject | None:
    """Return the Gateway that a pod is a waypoint of; None: it is none."""
    name = pod.labels.get(GATEWAY_LABEL, "")
    gateway = world.get(GATEWAY_API, "Gateway", pod.namespace, name) if name else None
    return gateway if gateway is not None and is_waypoint(world, gateway) else None


def waypoint_pods(world: World) -> frozenset[tuple[str, str, str]]:
    """Return (namespace, name, uid) of every waypoint pod: those that may read the configuration."""
    return pod_names(
        {
            (namespace, name): pods
            for (namespace, name), pods in pods_by_gateway(world).items()
            if (gateway := world.get(GATEWAY_API, "Gateway", namespace, name)) and is_waypoint(world, gateway)
        }
    )


def pod_names(pods: Mapping[tuple[str, str], list[RawObject]]) -> frozenset[tuple[str, str, str]]:
    """Return (namespace, name, uid) of all pods of some gateways."""
    return frozenset(
        (pod.namespace, pod.name, str(pod.metadata.get("uid", ""))) for each in pods.values() for pod in each
    )


def pods_by_gateway(world: World) -> dict[tuple[str, str], list[RawObject]]:
    """Return the pods that name a Gateway, by its namespace and name, whether it exists or not."""
    found: dict[tuple[str, str], list[RawObject]] = {}
    for pod in world.all("", "Pod"):
        if name := pod.labels.get(GATEWAY_LABEL):
            found.setdefault((pod.namespace, name), []).append(pod)
    return found


def traffic_type(world: World, gateway: RawObject) -> str:
    """Return what a waypoint serves: its own label, else its class's, else `service`."""
    found = gateway.labels.get(WAYPOINT_FOR)
    if found is None:
        name = gateway.spec.get("gatewayClassName")
        owner = world.get(GATEWAY_API, "GatewayClass", "", name) if isinstance(name, str) else None
        found = owner.labels.get(WAYPOINT_FOR) if owner is not None else None
    return found if found is not None else "service"


class NotAttachedError(IllTypedError):
    """A waypoint cannot be used; `code` is Istio's reason."""

    def __init__(self, code: str, reason: str, path: Path = ()) -> None:
        super().__init__(path, f"{reason} ({code})")
        self.code = code


NOT_READY = "WaypointIsNotReady"


@dataclass(frozen=True, slots=True)
class Reference:
    """The waypoint that an object names, by its own labels or its namespace's."""

    namespace: str
    name: str
    own: bool
    """By its own labels."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def reference_of(world: World, obj: RawObject, label: str = USE_WAYPOINT) -> Reference | None:
    """Return the waypoint that a workload or service names, whether it exists or not."""
    labels = obj.labels
    own = label in labels
    if not own:
        labels = world.namespace_labels(obj.namespace)
    name = labels.get(label, "")
    # A gateway's own pods and Service have no waypoint: the way there cannot lead through another.
    if name in ("", "none") or GATEWAY_LABEL in obj.labels:
        return None
    namespace = labels.get(f"{label}-namespace", "") or obj.namespace
    if obj.kind == "Service" and (obj.namespace, obj.name) == (namespace, name):
        return None
    return Reference(namespace, name, own)


def waypoint_for(world: World, obj: RawObject, traffic: str) -> GatewayAddress | None:
    """Find the waypoint of a workload or service: by its own label, else its namespace's.

    `traffic` is `service` or `workload`. One that is named but cannot be used is reported,
    and connections then go directly, as in Istio.
    """
    reference = reference_of(world, obj)
    if reference is None:
        return None
    try:
        found = _resolve(world, obj, reference, traffic)
    except NotAttachedError as error:
        path: Path = ("metadata", "labels", USE_WAYPOINT)
        world.problems.append(problem(obj, path, f"{error.reason}; connections go directly"))
        world.bindings[obj.key] = Outcome(accepted=False, code=error.code, message=error.reason)
        return None
    if found is not None:
        message = f"Successfully attached to waypoint {reference}"
        world.bindings[obj.key] = Outcome(accepted=True, code="WaypointAccepted", message=message)
    return found


def weighted_waypoints(
    world: World, obj: RawObject, primary: GatewayAddress | None
) -> tuple[WeightedWaypoint, ...]:
    """Share a service's connections between its waypoint and a canary of it; empty: all are the waypoint's.

    A canary that cannot be used, or whose weight is wrong, is reported and takes nothing.
    """
    reference = reference_of(world, obj, CANARY)
    if reference is None or primary is None:
        return ()
    try:
        weight = _weight(world, obj, reference)
        canary = _canary(world, obj, reference, primary)
    except NotAttachedError as error:
        path: Path = ("metadata", "labels", CANARY)
        reason = f"{error.reason}; the service's waypoint takes all connections"
        world.problems.append(problem(obj, path, reason))
        bound = world.bindings[obj.key]
        message = f"{bound.message}. Canary waypoint not attached: {error.reason}"
        world.bindings[obj.key] = replace(bound, message=message)
        return ()
    if weight == 0:
        return ()
    return (
        WeightedWaypoint(destination=primary, weight=100 - weight),
        WeightedWaypoint(destination=canary, weight=weight),
    )


def _canary(world: World, obj: RawObject, reference: Reference, primary: GatewayAddress) -> GatewayAddress:
    canary = _resolve(world, obj, reference, "service")
    if canary is None:
        raise NotAttachedError("UnsupportedTrafficType", f"waypoint {reference} does not serve services")
    if canary == primary:
        raise NotAttachedError("CanarySameAsPrimary", f"waypoint {reference} is the service's waypoint")
    gateway = world.get(GATEWAY_API, "Gateway", reference.namespace, reference.name)
    conditions = gateway.status.get("conditions") if gateway is not None else None
    found = [c for c in conditions if isinstance(c, Mapping)] if isinstance(conditions, list) else []
    # Other than for the waypoint itself, there is one to stand in for a canary that is lost.
    if any(c.get("type") == "Programmed" and c.get("status") != "True" for c in found):
        raise NotAttachedError(NOT_READY, f"waypoint {reference} is not ready")
    return canary


def _weight(world: World, obj: RawObject, reference: Reference) -> int:
    """Read the weight beside the label that names the canary; 0 where there is none."""
    namespace = world.get("", "Namespace", "", obj.namespace)
    holder = obj if reference.own else namespace
    text = holder.annotations.get(CANARY_WEIGHT, "0") if holder is not None else "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100):
        reason = f"{CANARY_WEIGHT} {text[:100]!r} is no number from 0 to 100"
        raise NotAttachedError("CanaryInvalidWeight", reason)
    return int(text)


def _resolve(world: World, obj: RawObject, reference: Reference, traffic: str) -> GatewayAddress | None:
    """Return where a waypoint is; None: it is for other traffic, and only a namespace names it.

    Raises:
        NotAttachedError: it cannot be used; says why.
    """
    gateway = world.get(GATEWAY_API, "Gateway", reference.namespace, reference.name)
    if gateway is None:
        raise NotAttachedError(NOT_READY, f"waypoint {reference} does not exist")
    serves = traffic_type(world, gateway)
    if serves not in (traffic, "all"):
        if not reference.own:
            return None
        reason = f"waypoint {reference} is for {serves}, not for {traffic}"
        raise NotAttachedError("UnsupportedTrafficType", reason)
    try:
        return _address(world, obj, gateway, reference)
    except NotAttachedError:
        raise
    except IllTypedError as error:
        reason = f"waypoint {reference} is not usable: {error.reason}"
        raise NotAttachedError(NOT_READY, reason, error.path) from error


def _address(world: World, obj: RawObject, gateway: RawObject, reference: Reference) -> GatewayAddress:
    fields = root(gateway, world.problems)
    port = 0
    for listener in fields.child("spec").children("listeners"):
        if listener.text("protocol") == "HBONE" and _admits(world, listener, obj, gateway):
            port = listener.integer("port", HBONE_PORT, 1, MAX_PORT)
    if not port:
        reason = f"no HBONE listener of waypoint {reference} admits namespace {obj.namespace}"
        raise NotAttachedError("AttachmentDenied", reason)
    for address in fields.child("status").children("addresses"):
        value = address.text("value")
        if address.text("type", "IPAddress") == "Hostname":
            key = NamespacedHostname(namespace=gateway.namespace, hostname=value)
            return GatewayAddress(destination=key, hbone_mtls_port=port)
        try:
            network = NetworkAddress(network=world.options.network, address=parse_ip(value))
        except ValueError as error:
            raise address.wrong("value", "status names no IP address") from error
        return GatewayAddress(destination=network, hbone_mtls_port=port)
    # Our own waypoints have an address when one of their pods has been ready (gateway.py).
    if is_waypoint(world, gateway) or world.get("", "Service", gateway.namespace, gateway.name) is None:
        raise NotAttachedError(NOT_READY, f"waypoint {reference} has no address yet")
    key = world.hostname(gateway.name, gateway.namespace)
    return GatewayAddress(destination=key, hbone_mtls_port=port)


def _admits(world: World, listener: Fields, obj: RawObject, gateway: RawObject) -> bool:
    allowed = listener.child("allowedRoutes").child("namespaces")
    source = allowed.text("from", "Same")
    if source == "Selector":
        labels = world.namespace_labels(obj.namespace)
        wanted = allowed.child("selector").string_map("matchLabels")
        return bool(wanted) and selects_namespace(wanted, labels, obj.namespace)
    return source == "All" or (source == "Same" and obj.namespace == gateway.namespace)


def selects_namespace(wanted: Mapping[str, str], labels: Mapping[str, str], name: str) -> bool:
    """Tell whether a namespace has all wanted labels; its name is always one of them."""
    given = {"kubernetes.io/metadata.name": name, **labels}
    return all(given.get(key) == value for key, value in wanted.items())
