# SPDX-License-Identifier: Apache-2.0
"""Which Gateways are ingress gateways, and which of their listeners can be served.

A listener that asks for something that is not honoured and that guards something (client
certificates, TLS that is passed on) is not served at all. Source: gateway-api Gateway v1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, spec
from controller.translate.gateway import REVISION
from controller.translate.reference_grant import is_granted
from controller.translate.types import problem
from controller.translate.waypoints import HBONE_PORT, pods_by_gateway
from controller.translate.world import GATEWAY_API, World
from mesh.config.objects import RawObject
from mesh.model.gateway import GatewayListener, ListenerProtocol

CLASSES = ("istio", "ambit")
"""Classes that there are without a GatewayClass object."""
CONTROLLERS = ("istio.io/gateway-controller", "ambit.io/gateway-controller")
"""`controllerName` of classes whose Gateways are ingress gateways."""
ROUTE_KINDS = ("HTTPRoute", "GRPCRoute")
CERTIFICATES_DIR = "/var/run/secrets/listeners"
"""In the gateway's pod; a directory for each Secret."""
MAX_LISTENERS = 64
"""Gateway API's."""
_OWN_PORTS = frozenset({15000, 15020, 15021, HBONE_PORT})
_HOSTNAME = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The namespaces whose routes a listener takes."""

    source: str
    """All, Same, Selector or None."""
    selector: Mapping[str, Any]

    def admits(self, world: World, namespace: str, own: str) -> bool:
        """Tell whether routes of a namespace may attach to a listener of `own`."""
        if self.source == "Selector":
            labels = {"kubernetes.io/metadata.name": namespace, **world.namespace_labels(namespace)}
            return _selected(self.selector, labels)
        return self.source == "All" or (self.source == "Same" and namespace == own)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadListener:
    """A listener as written, and whether it is served."""

    name: str
    index: int
    served: GatewayListener | None
    """Without its hosts; None: it is not served."""
    allowed: Selection
    kinds: tuple[str, ...]
    """Of routes that it takes."""
    condition: str = ""
    """Gateway API's condition that says why not: Accepted, Conflicted or ResolvedRefs."""
    code: str = ""
    reason: str = ""
    secrets: tuple[str, ...] = ()


class _RefusedError(IllTypedError):
    """A listener cannot be served; says by which condition, and Gateway API's reason."""

    def __init__(self, error: IllTypedError, condition: str, code: str) -> None:
        super().__init__(error.path, error.reason)
        self.condition = condition
        self.code = code


def is_ingress_class(world: World, name: str) -> bool:
    """Tell whether Gateways of this class are ingress gateways."""
    found = world.get(GATEWAY_API, "GatewayClass", "", name)
    return name in CLASSES if found is None else found.spec.get("controllerName") in CONTROLLERS


def is_ingress(world: World, gateway: RawObject) -> bool:
    """Tell whether a Gateway is an ingress gateway of our revision."""
    name = gateway.spec.get("gatewayClassName")
    ours = gateway.labels.get(REVISION, "default") in ("", "default")
    return ours and isinstance(name, str) and is_ingress_class(world, name)


def object_name(gateway: RawObject) -> str:
    """Return the name of the objects that run a gateway, as Istio has it."""
    return f"{gateway.name}-{gateway.spec.get('gatewayClassName')}"


def ingress_pods(world: World) -> dict[tuple[str, str], list[RawObject]]:
    """Return the pods of ingress gateways, by the gateway's namespace and name."""
    return {
        place: pods
        for place, pods in pods_by_gateway(world).items()
        if (gateway := world.get(GATEWAY_API, "Gateway", *place)) is not None and is_ingress(world, gateway)
    }


def read_listeners(world: World, gateway: RawObject) -> list[ReadListener]:
    """Read every listener; what is not honoured is reported by its path."""
    fields = spec(gateway, world.problems)
    for name in sorted(gateway.spec.keys() - {"gatewayClassName", "listeners", "infrastructure", "tls"}):
        fields.report(str(name), "is not honoured", "error")
    try:
        written = fields.children("listeners", MAX_LISTENERS)
        if fields.child("tls").has("backend"):
            fields.child("tls").report("backend", "is not honoured: backends are reached over HBONE", "error")
    except IllTypedError as error:
        world.report(gateway, error, "the gateway serves nothing")
        return []
    found: list[ReadListener] = []
    for index, listener in enumerate(written):
        read = _read(world, gateway, listener, index)
        if read.served is not None:
            read = _without_conflict(world, gateway, read, found)
        found.append(read)
    return found


def _read(world: World, gateway: RawObject, listener: Fields, index: int) -> ReadListener:
    nobody = Selection(source="None", selector={})
    read = ReadListener(name=f"#{index}", index=index, served=None, allowed=nobody, kinds=())
    try:
        read = replace(read, name=listener.text("name") or read.name)
        read = replace(read, allowed=_allowed(listener), kinds=_kinds(listener))
        made, secrets = _listener(world, gateway, listener, read.name)
    except _RefusedError as error:
        world.report(gateway, error, "the listener is not served")
        return replace(read, condition=error.condition, code=error.code, reason=error.reason)
    except IllTypedError as error:
        world.report(gateway, error, "the listener is not served")
        return replace(read, condition="Accepted", code="UnsupportedValue", reason=error.reason)
    listener.finish()
    return replace(read, served=made, secrets=secrets)


def _listener(
    world: World, gateway: RawObject, listener: Fields, name: str
) -> tuple[GatewayListener, tuple[str, ...]]:
    protocol = listener.text("protocol")
    port = listener.integer("port", 0, 1, MAX_PORT)
    if not port:
        raise listener.wrong("port", "is missing")
    if port in _OWN_PORTS:
        raise _RefusedError(
            listener.wrong("port", f"{port} is a port of the gateway's own"), "Accepted", "PortUnavailable"
        )
    if protocol not in ("HTTP", "HTTPS"):
        why = listener.wrong("protocol", f"{protocol[:100]!r} is not served: HTTP and HTTPS are")
        raise _RefusedError(why, "Accepted", "UnsupportedProtocol")
    hostname = listener.text("hostname").lower() or "*"
    if hostname != "*" and not is_hostname(hostname):
        raise listener.wrong("hostname", f"{hostname[:100]!r} is no hostname")
    made = GatewayListener(name=name, port=port, protocol=ListenerProtocol(protocol), hostname=hostname)
    if made.protocol is ListenerProtocol.HTTP:
        listener.skip("tls")  # Gateway API: of no effect on HTTP.
        return made, ()
    tls = listener.child("tls")
    mode = tls.text("mode", "Terminate")
    if mode != "Terminate":
        raise tls.wrong("mode", f"{mode[:100]} is not supported: TLS ends at the gateway")
    if tls.has("frontendValidation"):
        raise tls.wrong("frontendValidation", "client certificates are not supported")
    if spec(gateway, []).child("tls").has("frontend"):
        raise IllTypedError(("spec", "tls", "frontend"), "client certificates are not supported")
    for option in tls.child("options").names():
        tls.report("options", f"option {str(option)[:100]!r} is not honoured")
    secrets = tuple(_secret(world, gateway, reference) for reference in tls.children("certificateRefs", 64))
    if not secrets:
        why = tls.wrong("certificateRefs", "an HTTPS listener names its certificate")
        raise _RefusedError(why, "ResolvedRefs", "InvalidCertificateRef")
    tls.finish()
    return replace(made, certificates=tuple(f"{CERTIFICATES_DIR}/{name}" for name in secrets)), secrets


def _secret(world: World, gateway: RawObject, reference: Fields) -> str:
    """Return the name of a Secret with a certificate."""
    group, kind = reference.text("group"), reference.text("kind", "Secret")
    name, namespace = reference.text("name"), reference.text("namespace", gateway.namespace)
    if (group, kind) not in (("", "Secret"), ("core", "Secret")) or not name:
        why = reference.wrong("", f"{kind[:100]} {name[:100]!r} is no Secret")
        raise _RefusedError(why, "ResolvedRefs", "InvalidCertificateRef")
    if namespace == gateway.namespace:
        return name
    if not is_granted(world, gateway, namespace, "Secret", name):
        why = reference.wrong("namespace", f"no ReferenceGrant of {namespace[:100]} permits it")
        raise _RefusedError(why, "ResolvedRefs", "RefNotPermitted")
    why = reference.wrong(
        "namespace",
        "Secrets are mounted, which another namespace's cannot be; "
        f"copy {namespace[:100]}/{name[:100]} to {gateway.namespace}",
    )
    raise _RefusedError(why, "ResolvedRefs", "InvalidCertificateRef")


def _without_conflict(
    world: World, gateway: RawObject, read: ReadListener, earlier: Sequence[ReadListener]
) -> ReadListener:
    """Refuse a listener that an earlier one leaves no room."""
    made = read.served
    assert made is not None
    for other in earlier:
        if other.name == read.name:
            code, reason = "HostnameConflict", f"another listener is called {read.name}"
        elif other.served is None or other.served.port != made.port:
            continue
        elif other.served.protocol is not made.protocol:
            code, reason = "ProtocolConflict", f"listener {other.name} speaks another protocol at the port"
        elif other.served.hostname == made.hostname:
            code, reason = "HostnameConflict", f"listener {other.name} has the same port and hostname"
        else:
            continue
        path = ("spec", "listeners", read.index)
        world.problems.append(problem(gateway, path, f"{reason}; the listener is not served", "error"))
        return replace(read, served=None, condition="Conflicted", code=code, reason=reason)
    return read


def _allowed(listener: Fields) -> Selection:
    namespaces = listener.child("allowedRoutes").child("namespaces")
    source = namespaces.choice("from", ("All", "Same", "Selector", "None"), "Same")
    selector = namespaces.child("selector")
    made = {
        "matchLabels": selector.string_map("matchLabels"),
        "matchExpressions": [
            (each.text("key"), each.choice("operator", _OPERATORS, "none"), each.strings("values"))
            for each in selector.children("matchExpressions")
        ],
    }
    if source == "Selector" and not any(made.values()):
        raise namespaces.wrong("selector", "selects nothing")
    return Selection(source=source, selector=made)


_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def _selected(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector["matchLabels"].items()):
        return False
    for key, operator, values in selector["matchExpressions"]:
        held = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not held:
            return False
    return True


def _kinds(listener: Fields) -> tuple[str, ...]:
    found = []
    written = listener.child("allowedRoutes").children("kinds")
    for entry in written:
        kind = entry.text("kind")
        if entry.text("group", GATEWAY_API) == GATEWAY_API and kind in ROUTE_KINDS:
            found.append(kind)
        else:
            entry.report("kind", f"routes of kind {kind[:100]!r} are not served", "error")
    if written and not found:
        why = listener.wrong("allowedRoutes", "names no kind of route that is served")
        raise _RefusedError(why, "ResolvedRefs", "InvalidRouteKinds")
    return tuple(found) or ROUTE_KINDS


def is_hostname(text: str) -> bool:
    """Tell whether a text is a DNS name, or one after `*.`."""
    return len(text) <= 253 and _HOSTNAME.fullmatch(text) is not None
