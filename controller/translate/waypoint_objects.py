# SPDX-License-Identifier: Apache-2.0
"""A waypoint's Gateway to the objects that run it: ServiceAccount, Service, Deployment.

Who writes them (files of a lab, the API of a cluster) is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from controller.translate.fields import IllTypedError, root
from controller.translate.gateway import managed, refusal_of
from controller.translate.types import Options, problem
from controller.translate.waypoints import (
    GATEWAY_LABEL,
    HBONE_PORT,
    TRAFFIC,
    WAYPOINT_FOR,
    traffic_type,
)
from controller.translate.world import GATEWAY_API, World
from mesh.config.objects import RawObject

MANAGED_LABEL = "gateway.istio.io/managed"
MANAGED_BY = "istio.io-mesh-controller"
REPLICAS = "ambit.io/replicas"
"""Annotation of a Gateway: how many pods; absent: not said, so that autoscalers may decide."""
MAX_REPLICAS = 1000
READINESS_PORT = 15021
METRICS_PORT = 15020
GRACE_S = 30
TOKEN_DIR = "/var/run/secrets/tokens"  # noqa: S105 - a place, no secret
ROOT_DIR = "/var/run/secrets/istio"
USER = 1337

Object = dict[str, Any]


def derive_all(world: World) -> list[Object]:
    """Return the objects of all Gateways that we run; an object of that name which is another's stays his."""
    found = []
    options = with_image(world)
    for gateway in world.all(GATEWAY_API, "Gateway"):
        if not managed(world, gateway):
            continue
        if refusal := refusal_of(gateway):
            reason = f"{refusal[:1].lower()}{refusal[1:]}; the waypoint is not run"
            world.problems.append(problem(gateway, ("spec", "listeners"), reason, "error"))
            continue
        _report_traffic(world, gateway)
        report_annotations(world, gateway)
        found += own_objects(world, gateway, derive(gateway, options, traffic_type(world, gateway)))
    return found


def own_objects(world: World, gateway: RawObject, objects: list[Object]) -> list[Object]:
    """Return those objects whose name is not that of somebody else's object; the others are reported."""
    found = []
    for data in objects:
        group = "apps" if data["kind"] == "Deployment" else ""
        other = world.get(group, data["kind"], gateway.namespace, data["metadata"]["name"])
        if other is not None and (
            other.labels.get(GATEWAY_LABEL) != gateway.name
            # Another controller (Istio's own) may run gateways of the same class.
            or other.labels.get(MANAGED_LABEL, MANAGED_BY) != MANAGED_BY
        ):
            reason = f"{other.key} exists and is not of this Gateway, or another controller's; rename one"
            world.problems.append(problem(gateway, ("metadata", "name"), reason, "error"))
            continue
        found.append(data)
    return found


def with_image(world: World) -> Options:
    """Return the options with the image of gateways' pods filled in."""
    return replace(world.options, waypoint=replace(world.options.waypoint, image=_image(world)))


def _image(world: World) -> str:
    """Return the image of waypoints: the one that was asked for, else the controller's own."""
    template = world.options.waypoint
    if template.image:
        return template.image
    pod = world.get("", "Pod", *template.image_of)
    containers = pod.spec.get("containers") if pod is not None else None
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, Mapping) and isinstance(container.get("image"), str):
            return str(container["image"])
    return "ambit"


def _report_traffic(world: World, gateway: RawObject) -> None:
    found = gateway.labels.get(WAYPOINT_FOR)
    if found is not None and found not in TRAFFIC:
        reason = f"{found[:100]!r} is none of {', '.join(TRAFFIC)}; the waypoint serves nothing"
        world.problems.append(problem(gateway, ("metadata", "labels", WAYPOINT_FOR), reason, "error"))


def report_annotations(world: World, gateway: RawObject) -> None:
    """Report what of a Gateway's wishes for its pods is not honoured."""
    if _replicas(gateway) is None and REPLICAS in gateway.annotations:
        reason = f"{gateway.annotations[REPLICAS][:100]!r} is no number from 0 to {MAX_REPLICAS}; no effect"
        world.problems.append(problem(gateway, ("metadata", "annotations", REPLICAS), reason, "error"))
    infrastructure = gateway.spec.get("infrastructure")
    if isinstance(infrastructure, Mapping) and infrastructure.get("parametersRef") is not None:
        path = ("spec", "infrastructure", "parametersRef")
        world.problems.append(problem(gateway, path, "parametersRef is not honoured"))


def derive(gateway: RawObject, options: Options, serves: str) -> list[Object]:
    """Return the ServiceAccount, Service and Deployment of a waypoint, all named as the Gateway.

    Args:
        gateway: of a waypoint class, with an HBONE listener.
        options: names of the mesh; image and command of waypoint pods.
        serves: its type of traffic (`istio.io/waypoint-for`).
    """
    metadata = metadata_of(gateway, gateway.name)
    metadata["labels"][WAYPOINT_FOR] = serves
    selector = {GATEWAY_LABEL: gateway.name}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "v1", "kind": "Service", "metadata": _near(metadata), "spec": _service(selector)},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": deployment(gateway, options, selector),
        },
    ]


def _infrastructure(gateway: RawObject, name: str) -> dict[str, str]:
    try:
        return root(gateway, []).child("spec").child("infrastructure").string_map(name)
    except IllTypedError:
        return {}


def metadata_of(gateway: RawObject, name: str) -> Object:
    """Return the metadata of an object that helps to run a Gateway."""
    found: Object = {
        "name": name,
        "namespace": gateway.namespace,
        "labels": {
            **_infrastructure(gateway, "labels"),
            GATEWAY_LABEL: gateway.name,
            MANAGED_LABEL: MANAGED_BY,
        },
    }
    if annotations := _infrastructure(gateway, "annotations"):
        found["annotations"] = annotations
    if uid := gateway.metadata.get("uid"):
        # Kubernetes removes what a Gateway that is gone owned.
        found["ownerReferences"] = [
            {
                "apiVersion": gateway.api_version,
                "kind": "Gateway",
                "name": gateway.name,
                "uid": uid,
                "controller": True,
            }
        ]
    return found


def _near(metadata: Object) -> Object:
    """Prefer a waypoint pod of the client's own zone."""
    annotations = {"networking.istio.io/traffic-distribution": "PreferClose"}
    return {**metadata, "annotations": {**annotations, **metadata.get("annotations", {})}}


def _service(selector: Mapping[str, str]) -> Object:
    return {
        "type": "ClusterIP",
        "ipFamilyPolicy": "PreferDualStack",
        "selector": dict(selector),
        "ports": [
            {"name": "status-port", "port": READINESS_PORT, "targetPort": READINESS_PORT, "protocol": "TCP"},
            {"name": "mesh", "port": HBONE_PORT, "targetPort": HBONE_PORT, "protocol": "TCP"},
        ],
    }


def _replicas(gateway: RawObject) -> int | None:
    text = gateway.annotations.get(REPLICAS, "")
    if text.isascii() and text.isdigit() and len(text) <= 4 and int(text) <= MAX_REPLICAS:
        return int(text)
    return None


def deployment(gateway: RawObject, options: Options, selector: Mapping[str, str]) -> Object:
    """Return the specification of a Deployment of waypoints."""
    replicas = _replicas(gateway)
    return {
        **({} if replicas is None else {"replicas": replicas}),
        "selector": {"matchLabels": dict(selector)},
        # A new pod is ready before an old one goes: there is no way past a waypoint.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {
                "labels": {
                    **_infrastructure(gateway, "labels"),
                    "service.istio.io/canonical-name": gateway.name,
                    "service.istio.io/canonical-revision": "latest",
                    "sidecar.istio.io/inject": "false",
                    "istio.io/dataplane-mode": "none",
                    GATEWAY_LABEL: gateway.name,
                    MANAGED_LABEL: MANAGED_BY,
                },
                "annotations": {
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": str(METRICS_PORT),
                    "prometheus.io/path": "/metrics",
                    **_infrastructure(gateway, "annotations"),
                },
            },
            "spec": {
                "serviceAccountName": gateway.name,
                "terminationGracePeriodSeconds": GRACE_S,
                # With the container's, what namespaces of Pod Security level `restricted` admit.
                "securityContext": {
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "runAsNonRoot": True,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [_container(gateway, options)],
                "volumes": _volumes(),
            },
        },
    }


def _container(gateway: RawObject, options: Options) -> Object:
    return {
        "name": "waypoint",
        "image": options.waypoint.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(options.waypoint.command),
        "env": _environment(gateway, options),
        "ports": [
            {"name": "mesh", "containerPort": HBONE_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
            {"name": "status-port", "containerPort": READINESS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": READINESS_PORT},
            "periodSeconds": 2,
            "failureThreshold": 3,
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "1Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "istio-token", "mountPath": TOKEN_DIR, "readOnly": True},
            {"name": "istiod-ca-cert", "mountPath": ROOT_DIR, "readOnly": True},
        ],
    }


def _environment(gateway: RawObject, options: Options) -> list[Object]:
    from_pod = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
        "INSTANCE_IP": "status.podIP",
        "NODE_NAME": "spec.nodeName",
    }
    fixed = {
        "GATEWAY_NAME": gateway.name,
        "XDS_ADDRESS": options.waypoint.controller,
        "XDS_ROOT_CA": f"{ROOT_DIR}/root-cert.pem",
        "CA_ADDRESS": options.waypoint.controller,
        "CA_ROOT_CA": f"{ROOT_DIR}/root-cert.pem",
        "AUTH_TOKEN": f"{TOKEN_DIR}/istio-token",
        "TRUST_DOMAIN": options.trust_domain,
        "CLUSTER_ID": options.cluster_id,
        "NETWORK": options.network,
        "AMBIT_ADMIN_ADDR": "127.0.0.1:15000",
        "AMBIT_METRICS_ADDR": f"0.0.0.0:{METRICS_PORT}",
        "AMBIT_READINESS_ADDR": f"0.0.0.0:{READINESS_PORT}",
        "TERMINATION_GRACE_PERIOD_SECONDS": str(GRACE_S),
    }
    return [
        *({"name": k, "valueFrom": {"fieldRef": {"fieldPath": path}}} for k, path in from_pod.items()),
        *({"name": k, "value": value} for k, value in fixed.items()),
    ]


def _volumes() -> list[Object]:
    token = {"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"}
    return [
        {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
    ]
