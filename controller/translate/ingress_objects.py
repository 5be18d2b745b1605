# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway to the objects that run it: the waypoint's program with listeners of its own.

Named `GATEWAY-CLASS`, as Istio names them. Certificates are mounted from their Secrets, so
that the controller neither reads nor sends a private key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from controller.translate.ingress_listeners import CERTIFICATES_DIR, ReadListener, object_name
from controller.translate.types import Options, problem
from controller.translate.waypoint_objects import (
    READINESS_PORT,
    Object,
    deployment,
    metadata_of,
    own_objects,
    report_annotations,
    with_image,
)
from controller.translate.waypoints import GATEWAY_LABEL
from controller.translate.world import World
from mesh.config.objects import RawObject

SERVICE_TYPE = "networking.istio.io/service-type"
"""Annotation of a Gateway."""
SERVICE_TYPES = ("LoadBalancer", "ClusterIP", "NodePort")


def derive_ingress(
    world: World, gateways: Sequence[tuple[RawObject, Sequence[ReadListener]]]
) -> list[Object]:
    """Return the objects of all ingress gateways that have a listener; what is wrong is reported."""
    options = with_image(world)
    found: list[Object] = []
    for gateway, listeners in gateways:
        if not any(read.served is not None for read in listeners):
            continue
        report_annotations(world, gateway)
        if _service_type(gateway) != gateway.annotations.get(SERVICE_TYPE, "LoadBalancer"):
            reason = f"is none of {', '.join(SERVICE_TYPES)}; LoadBalancer it is"
            path = ("metadata", "annotations", SERVICE_TYPE)
            world.problems.append(problem(gateway, path, reason, "error"))
        found += own_objects(world, gateway, derive(gateway, options, listeners))
    return found


def derive(gateway: RawObject, options: Options, listeners: Sequence[ReadListener]) -> list[Object]:
    """Return the ServiceAccount, Service and Deployment of an ingress gateway."""
    name = object_name(gateway)
    metadata = metadata_of(gateway, name)
    selector = {GATEWAY_LABEL: gateway.name}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "type": _service_type(gateway),
                "ipFamilyPolicy": "PreferDualStack",
                "selector": selector,
                "ports": _service_ports(listeners),
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": _deployment(gateway, name, options, listeners),
        },
    ]


def _service_type(gateway: RawObject) -> str:
    found = gateway.annotations.get(SERVICE_TYPE, "")
    return found if found in SERVICE_TYPES else "LoadBalancer"


def _ports(listeners: Sequence[ReadListener]) -> dict[int, str]:
    """Return the ports to open, each with the name of its first listener."""
    found: dict[int, str] = {}
    for read in listeners:
        if read.served is not None:
            found.setdefault(read.served.port, f"{read.served.protocol.value.lower()}-{read.served.port}")
    return found


def _service_ports(listeners: Sequence[ReadListener]) -> list[Object]:
    ports = {READINESS_PORT: "status-port", **_ports(listeners)}
    return [
        {
            "name": name,
            "port": port,
            "targetPort": port,
            "protocol": "TCP",
            # TLS ends at the gateway: who dials the Service sends it as it is.
            **({"appProtocol": "https"} if name.startswith("https-") else {}),
        }
        for port, name in ports.items()
    ]


def _deployment(gateway: RawObject, name: str, options: Options, listeners: Sequence[ReadListener]) -> Object:
    made = deployment(gateway, options, {GATEWAY_LABEL: gateway.name})
    made["template"]["metadata"]["labels"]["service.istio.io/canonical-name"] = name
    pod = made["template"]["spec"]
    pod["serviceAccountName"] = name
    # Listeners below 1024 without a capability, as Istio's gateways have it.
    pod["securityContext"]["sysctls"] = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    # Of this group mounted keys are, which nobody else may read.
    pod["securityContext"]["fsGroup"] = pod["securityContext"]["runAsGroup"]
    (container,) = pod["containers"]
    container["env"].append({"name": "GATEWAY_MODE", "value": "ingress"})
    status = [port for port in container["ports"] if port["name"] != "mesh"]
    opened = [
        {"name": f"port-{port}", "containerPort": port, "protocol": "TCP"} for port in _ports(listeners)
    ]
    container["ports"] = opened + status
    secrets = sorted({secret for read in listeners if read.served is not None for secret in read.secrets})
    for secret in secrets:
        # A Secret's name may be longer than a volume's, and may have dots.
        volume = f"tls-{hashlib.sha256(secret.encode()).hexdigest()[:16]}"
        source = {"secretName": secret, "defaultMode": 0o440, "optional": True}
        pod["volumes"].append({"name": volume, "secret": source})
        mount = {"name": volume, "mountPath": f"{CERTIFICATES_DIR}/{secret}", "readOnly": True}
        container["volumeMounts"].append(mount)
    return made
