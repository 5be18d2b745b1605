# SPDX-License-Identifier: Apache-2.0
"""Which pods of this node are to be enrolled, and why the others are not; pure.

Reads Kubernetes objects as plain mappings (their one parser is `mesh.config.objects`)
and returns values; finding a pod's network namespace and enrolling it come later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemonset.codes import Code
from mesh.model.address import IPAddress, parse_ip

MODE_LABEL = "istio.io/dataplane-mode"
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
"""The object stands for a pod of a file on the node, whose own uid (a hash) it does not have."""
SIDECAR_ANNOTATION = "sidecar.istio.io/status"
RESOLVERS_ANNOTATION = "ambit.io/resolvers"
NON_TCP_ANNOTATION = "ambit.io/non-tcp"
DEADLINE_ANNOTATION = "ambit.io/plaintext-deadline"
NEVER = "never"
"""For that deadline: there is none."""
"""Seconds after which connections from before capture are ended."""
MAX_RESOLVERS = 3
"""Nameservers that a resolver library uses (resolv.conf(5), MAXNS); ztunnel has a port for each."""
_STATIC_UID = re.compile(r"[0-9a-f]{32}")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""It names files and pins."""
GUEST_KERNEL_RUNTIMES = ("kata", "gvisor", "runsc", "kubevirt")
"""Runtime classes, by prefix, whose sockets the node's kernel does not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """What the agent needs of a Pod object."""

    uid: str
    namespace: str
    name: str
    service_account: str = "default"
    node: str = ""
    addresses: tuple[IPAddress, ...] = ()
    phase: str = "Pending"
    host_network: bool = False
    runtime_class: str = ""
    terminating: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    nameservers: tuple[IPAddress, ...] = ()
    """Those that the object itself names: annotation, else dnsConfig; see `resolvers`."""
    dns_policy: str = "ClusterFirst"
    plaintext_deadline_s: float | None = None
    """When to end connections that are older than capture; None: as the node says; infinity: never."""

    @property
    def key(self) -> str:
        """`namespace/name`, for messages."""
        return f"{self.namespace}/{self.name}"


class MalformedPodError(ValueError):
    """A Pod object cannot be read; says which field and why."""


def _uid(value: object) -> str:
    text = _text(value, "metadata.uid")
    if text and not _UID.fullmatch(text):
        raise MalformedPodError(f"metadata.uid {text[:80]!r} is no uid: letters, digits, - and _ only")
    return text


def _mapping(value: object, path: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MalformedPodError(f"{path} is no mapping")
    return value


def _list(value: object, path: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedPodError(f"{path} is no list")
    return value


def _text(value: object, path: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedPodError(f"{path} is no string")
    return value


def _texts(value: object, path: str) -> dict[str, str]:
    return {str(k): _text(v, f"{path}[{k}]") for k, v in _mapping(value, path).items()}


def _addresses(values: list[object], path: str) -> tuple[IPAddress, ...]:
    parsed: dict[IPAddress, None] = {}
    for value in values:
        try:
            parsed[parse_ip(_text(value, path))] = None
        except ValueError as error:
            raise MalformedPodError(f"{path}: {error}") from error
    return tuple(parsed)


def parse_pod(data: Mapping[str, object]) -> Pod:
    """Read a Pod object.

    Raises:
        MalformedPodError: a field that the agent needs has the wrong type or form.
    """
    metadata = _mapping(data.get("metadata"), "metadata")
    spec = _mapping(data.get("spec"), "spec")
    status = _mapping(data.get("status"), "status")
    annotations = _texts(metadata.get("annotations"), "metadata.annotations")
    pod_ips = [
        _mapping(entry, "status.podIPs").get("ip") for entry in _list(status.get("podIPs"), "status.podIPs")
    ]
    if not pod_ips and status.get("podIP"):
        pod_ips = [status.get("podIP")]
    return Pod(
        uid=_uid(metadata.get("uid")),
        namespace=_text(metadata.get("namespace"), "metadata.namespace") or "default",
        name=_text(metadata.get("name"), "metadata.name"),
        service_account=_text(spec.get("serviceAccountName"), "spec.serviceAccountName") or "default",
        node=_text(spec.get("nodeName"), "spec.nodeName"),
        addresses=_addresses(pod_ips, "status.podIPs"),
        phase=_text(status.get("phase"), "status.phase") or "Pending",
        host_network=spec.get("hostNetwork") is True,
        runtime_class=_text(spec.get("runtimeClassName"), "spec.runtimeClassName"),
        terminating=metadata.get("deletionTimestamp") is not None,
        labels=_texts(metadata.get("labels"), "metadata.labels"),
        annotations=annotations,
        nameservers=_nameservers(spec, annotations),
        dns_policy=_text(spec.get("dnsPolicy"), "spec.dnsPolicy") or "ClusterFirst",
        plaintext_deadline_s=_deadline(annotations),
    )


def _deadline(annotations: Mapping[str, str]) -> float | None:
    text = annotations.get(DEADLINE_ANNOTATION)
    if text is None:
        return None
    try:
        value = float("inf") if text == NEVER else float(text)
    except ValueError:
        value = -1.0
    if not value >= 0 or (value == float("inf") and text != NEVER):
        raise MalformedPodError(
            f"annotation {DEADLINE_ANNOTATION}: {text!r} is neither a number of seconds nor `{NEVER}`"
        )
    return value


def _nameservers(spec: Mapping[str, object], annotations: Mapping[str, str]) -> tuple[IPAddress, ...]:
    named = annotations.get(RESOLVERS_ANNOTATION)
    if named is not None:
        parts: list[object] = [part.strip() for part in named.split(",") if part.strip()]
        return _addresses(parts, f"annotation {RESOLVERS_ANNOTATION}")
    config = _mapping(spec.get("dnsConfig"), "spec.dnsConfig")
    path = "spec.dnsConfig.nameservers"
    return _addresses(_list(config.get("nameservers"), path), path)


def resolvers(pod: Pod, cluster_dns: tuple[IPAddress, ...]) -> tuple[IPAddress, ...] | None:
    """Return the nameservers that the kubelet writes into the pod's resolv.conf.

    None: the object does not tell (dnsPolicy Default, or the cluster's DNS is not configured here);
    the file of a process of the pod does.

    Source: Kubernetes, DNS for services and pods.
    """
    if RESOLVERS_ANNOTATION in pod.annotations or pod.dns_policy == "None":
        return pod.nameservers[:MAX_RESOLVERS]
    if pod.dns_policy == "Default" or not cluster_dns:
        return None
    return tuple(dict.fromkeys((*cluster_dns, *pod.nameservers)))[:MAX_RESOLVERS]


def ignored_by_name(uid: str, namespace: str, excluded_namespaces: frozenset[str]) -> tuple[Code, str] | None:
    """Say why a starting pod is left alone whatever its object says; None: its object decides.

    The node's own pods must start when no API server answers, as it may need them.

    Source: kubelet, `applyDefaults` of its file source: a static pod's uid is an MD5 sum in hex.
    """
    if namespace in excluded_namespaces:
        return Code.EXCLUDED_NAMESPACE, f"is in the excluded namespace {namespace}"
    if _STATIC_UID.fullmatch(uid):
        return Code.STATIC_POD, "is a static pod"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enroll:
    """The pod belongs into the mesh."""

    pod: Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignore:
    """The pod stays as it is, or leaves the mesh."""

    pod: Pod
    code: Code
    reason: str


Decision = Enroll | Ignore


def decide(
    pod: Pod,
    namespace_labels: Mapping[str, str],
    *,
    node: str,
    excluded_namespaces: frozenset[str] = frozenset(),
    starting: bool = False,
) -> Decision:
    """Decide about one pod.

    `namespace_labels` are those of the pod's Namespace (empty when there is none), `node` is this
    agent's. `starting`: the CNI asks, so no container runs yet and the addresses come with its call.
    """
    refusal = _refusal(pod, node=node, excluded=excluded_namespaces) or _unwanted(pod, namespace_labels)
    if refusal is None and not starting:
        refusal = _not_running(pod)
    if refusal is not None:
        code, reason = refusal
        return Ignore(pod=pod, code=code, reason=f"pod {pod.key} {reason}")
    return Enroll(pod=pod)


def _refusal(pod: Pod, *, node: str, excluded: frozenset[str]) -> tuple[Code, str] | None:
    """What no label can change."""
    if not pod.uid or not pod.name:
        return Code.MALFORMED_POD, "has no metadata.uid or metadata.name"
    if pod.node != node:
        return Code.OTHER_NODE, f"runs on node {pod.node or '(none)'}, this is {node}"
    if pod.namespace in excluded:
        return Code.EXCLUDED_NAMESPACE, f"is in the excluded namespace {pod.namespace}"
    if pod.host_network:
        return Code.HOST_NETWORK, "uses the node's network (hostNetwork)"
    if pod.phase in ("Succeeded", "Failed"):
        return Code.FINISHED, f"has ended ({pod.phase})"
    return None


def _unwanted(pod: Pod, namespace_labels: Mapping[str, str]) -> tuple[Code, str] | None:
    mode, where = pod.labels.get(MODE_LABEL), "its own label"
    if mode is None:
        mode, where = namespace_labels.get(MODE_LABEL), f"the label of namespace {pod.namespace}"
    if mode is None:
        return Code.NOT_LABELLED, f"has no label {MODE_LABEL}, nor has namespace {pod.namespace}"
    if mode == "none":
        return Code.OPTED_OUT, f"is opted out by {where}"
    if mode != "ambient":
        return Code.UNKNOWN_MODE, f"has {MODE_LABEL}={mode!r} by {where}; only ambient and none are known"
    if SIDECAR_ANNOTATION in pod.annotations:
        return Code.SIDECAR, "has a sidecar"
    if MIRROR_ANNOTATION in pod.annotations:
        return Code.STATIC_POD, "is a static pod, which cannot be told by its object's uid"
    if pod.runtime_class.lower().startswith(GUEST_KERNEL_RUNTIMES):
        return Code.RUNTIME, f"has runtime class {pod.runtime_class}"
    return None


def _not_running(pod: Pod) -> tuple[Code, str] | None:
    if not pod.addresses:
        return Code.NOT_STARTED, f"has no address yet (phase {pod.phase})"
    return None


def parse_resolv_conf(text: str) -> tuple[IPAddress, ...]:
    """Return the nameservers of a resolv.conf, in order, at most MAX_RESOLVERS.

    Lines that hold no address are skipped, as the resolver library does; a scope
    (`fe80::1%eth0`) is not kept, since such a server is reached on the link only.

    Source: resolv.conf(5).
    """
    found: dict[IPAddress, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver" or "%" in words[1]:
            continue
        try:
            found[parse_ip(words[1])] = None
        except ValueError:
            continue
    return tuple(found)[:MAX_RESOLVERS]
