# SPDX-License-Identifier: Apache-2.0
"""Pod to Workload: addresses, identity, owner, readiness and whether it is captured.

Membership of services and attached policies are added by those who know them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, root
from controller.translate.waypoints import waypoint_for, waypoint_of_pod
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.address import IPAddress
from mesh.model.workload import NetworkMode, TunnelProtocol, Workload, WorkloadType

REDIRECTION = "ambient.istio.io/redirection"
"""Annotation of a captured pod; its value is then `enabled`."""
_CRONJOB_RUN = re.compile(r"(.+)-\d{8,10}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A workload together with what services and policies select it by."""

    workload: Workload
    labels: Mapping[str, str]
    ports: Mapping[str, int]
    """Numbers of its named ports."""
    source: RawObject


def translate_pods(world: World) -> list[Instance]:
    """Return the pods that can take or make connections; finished and addressless ones are none."""
    enrolled = _enrolled(world)
    found = []
    for pod in world.all("", "Pod"):
        try:
            instance = _translate(world, pod, enrolled)
        except IllTypedError as error:
            world.report(pod, error, "the pod is left out of the mesh")
            continue
        if instance is not None:
            found.append(instance)
    return found


def _enrolled(world: World) -> set[tuple[str, str, str]]:
    return {
        (obj.namespace, obj.name, str(obj.data.get("podUid") or ""))
        for obj in world.all("ambit.io", "Enrollment")
    }


def _translate(world: World, pod: RawObject, enrolled: set[tuple[str, str, str]]) -> Instance | None:
    fields = root(pod, world.problems)
    spec, status, metadata = fields.child("spec"), fields.child("status"), fields.child("metadata")
    addresses = _addresses(status)
    if status.text("phase") in ("Succeeded", "Failed") or not addresses:
        return None
    host = spec.boolean("hostNetwork")
    uid = metadata.text("uid")
    # A waypoint speaks HBONE by itself, without being captured.
    tunnelled = (
        pod.annotations.get(REDIRECTION) == "enabled"
        or (bool(uid) and (pod.namespace, pod.name, uid) in enrolled)
        or waypoint_of_pod(world, pod) is not None
    )
    kind, owner = _owner(metadata, pod)
    node = spec.text("nodeName")
    workload = Workload(
        uid=f"{world.options.cluster_id}//Pod/{pod.namespace}/{pod.name}",
        name=pod.name,
        namespace=pod.namespace,
        addresses=addresses,
        network=world.network_of(pod),
        tunnel_protocol=TunnelProtocol.HBONE if tunnelled and not host else TunnelProtocol.NONE,
        trust_domain=world.options.trust_domain,
        service_account=spec.text("serviceAccountName") or "default",
        node=node,
        cluster_id=world.options.cluster_id,
        canonical_name=canonical_name(pod.labels, owner),
        canonical_revision=canonical_revision(pod.labels),
        workload_type=kind,
        workload_name=owner,
        network_mode=NetworkMode.HOST_NETWORK if host else NetworkMode.STANDARD,
        healthy=_ready(status) and not metadata.has("deletionTimestamp"),
        locality=world.locality(node),
        waypoint=waypoint_for(world, pod, "workload"),
    )
    return Instance(workload=workload, labels=pod.labels, ports=_ports(spec), source=pod)


def canonical_name(labels: Mapping[str, str], fallback: str) -> str:
    """Return the canonical service name in Istio's order of labels."""
    for label in ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"):
        if labels.get(label):
            return labels[label]
    return fallback


def canonical_revision(labels: Mapping[str, str]) -> str:
    """Return the canonical revision in Istio's order of labels."""
    for label in ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"):
        if labels.get(label):
            return labels[label]
    return "latest"


def _addresses(status: Fields) -> tuple[IPAddress, ...]:
    found = [entry.address("ip") for entry in status.children("podIPs")]
    if not found and status.text("podIP"):
        found = [status.address("podIP")]
    return tuple(dict.fromkeys(found))


def _ready(status: Fields) -> bool:
    return any(
        condition.text("type") == "Ready" and condition.text("status") == "True"
        for condition in status.children("conditions")
    )


def _owner(metadata: Fields, pod: RawObject) -> tuple[WorkloadType, str]:
    """Name what made the pod: its Deployment by the ReplicaSet's name without the hash."""
    for owner in metadata.children("ownerReferences"):
        if not owner.boolean("controller"):
            continue
        kind, name = owner.text("kind"), owner.text("name")
        if kind == "ReplicaSet":
            suffix = "-" + pod.labels.get("pod-template-hash", "")
            if suffix != "-" and name.endswith(suffix):
                return WorkloadType.DEPLOYMENT, name.removesuffix(suffix)
            return WorkloadType.DEPLOYMENT, name
        if kind == "Deployment":
            return WorkloadType.DEPLOYMENT, name  # Where there are no ReplicaSets: a lab.
        if kind == "Job":
            run = _CRONJOB_RUN.fullmatch(name)
            if run is not None:
                return WorkloadType.CRONJOB, run.group(1)
            return WorkloadType.JOB, name
        # Neither the wire nor Istio has a type of its own for the others.
        return WorkloadType.POD, name or pod.name
    return WorkloadType.POD, pod.name


def _ports(spec: Fields) -> dict[str, int]:
    found: dict[str, int] = {}
    sidecars = [c for c in spec.children("initContainers") if c.text("restartPolicy") == "Always"]
    for container in [*spec.children("containers"), *sidecars]:
        for port in container.children("ports"):
            name = port.text("name")
            if name and port.text("protocol", "TCP") == "TCP" and port.has("containerPort"):
                found.setdefault(name, port.integer("containerPort", 0, 1, MAX_PORT))
    return found
