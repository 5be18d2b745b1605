# SPDX-License-Identifier: Apache-2.0
"""Services of a lab: ClusterIPs, EndpointSlices, and the kernel's and the resolver's view of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.layout import DNS_IP, DNS_IP6, SERVICE_NET, SERVICE_NET6
from lab.nft import Forward
from lab.workloads import is_ready
from mesh.config.objects import RawObject

FIRST_VIP = 20
"""Below it are the addresses of the cluster's own services."""
LAST_VIP = 65000
HEADLESS = "None"
SLICE_LABEL = "kubernetes.io/service-name"


def cluster_ips(service: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a Service's addresses; none: headless, ExternalName, or not given yet."""
    spec = service.get("spec") or {}
    found = [str(a) for a in spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])]
    return tuple(a for a in found if a and a != HEADLESS)


def is_headless(service: Mapping[str, Any]) -> bool:
    """Whether a Service's name stands for its endpoints' own addresses."""
    return bool((service.get("spec") or {}).get("clusterIP") == HEADLESS)


def allocate(
    services: Iterable[RawObject], known: Mapping[tuple[str, str], Sequence[str]]
) -> list[dict[str, Any]]:
    """Return Services with their addresses: the ones named, those they had, or free ones."""
    services = list(services)
    taken = {DNS_IP, DNS_IP6}
    for item in services:
        taken.update(cluster_ips(item.data))
    taken.update(address for addresses in known.values() for address in addresses)
    free = (n for n in range(FIRST_VIP, LAST_VIP) if _vip4(n) not in taken and _vip6(n) not in taken)
    return [_with_addresses(item, known.get((item.namespace, item.name), ()), free) for item in services]


def _with_addresses(item: RawObject, known: Sequence[str], free: Iterable[int]) -> dict[str, Any]:
    spec = dict(item.spec)
    data = {**item.data, "metadata": {**item.metadata, "namespace": item.namespace}, "spec": spec}
    if is_headless(data) or spec.get("type") == "ExternalName":
        return data
    if not cluster_ips(data):
        addresses = list(known)
        if not addresses:
            number = next(iter(free))
            both = [_vip4(number), _vip6(number)]
            only = _single_family(spec)
            addresses = [a for a in both if not only or (":" in a) == (only == "IPv6")]
        spec["clusterIPs"] = addresses
    spec.setdefault("clusterIPs", list(cluster_ips(data)))
    spec["clusterIP"] = spec["clusterIPs"][0]
    spec["ipFamilies"] = ["IPv6" if ":" in a else "IPv4" for a in spec["clusterIPs"]]
    return data


def _single_family(spec: Mapping[str, Any]) -> str:
    """Return the one family that a Service asks for; empty: both, a lab's default."""
    families = [str(f) for f in spec.get("ipFamilies") or ()]
    if spec.get("ipFamilyPolicy") == "SingleStack":
        return families[0] if families else "IPv4"
    return families[0] if len(families) == 1 and "ipFamilyPolicy" not in spec else ""


def _vip4(number: int) -> str:
    return f"{SERVICE_NET}.{number >> 8}.{number & 255}"


def _vip6(number: int) -> str:
    return f"{SERVICE_NET6}{number:x}"


def _target_port(port: Mapping[str, Any], pod: Mapping[str, Any]) -> int | None:
    """Return the pod's port for a service port; None: it has no port of that name."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in pod["spec"].get("containers") or ():
        for candidate in container.get("ports") or ():
            if candidate.get("name") == target:
                return int(candidate["containerPort"])
    return None


def endpoint_slices(service: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a selecting Service's EndpointSlices, one per family and set of target ports."""
    selector = (service.get("spec") or {}).get("selector") or {}
    metadata = service["metadata"]
    if not selector:
        return []
    groups: dict[tuple[str, tuple[int | None, ...]], list[dict[str, Any]]] = {}
    ports = service["spec"].get("ports") or ()
    for pod in sorted(pods, key=lambda p: str(p["metadata"]["name"])):
        labels = pod["metadata"].get("labels") or {}
        if pod["metadata"].get("namespace") != metadata["namespace"]:
            continue
        if any(labels.get(key) != value for key, value in selector.items()):
            continue
        status = pod.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            continue
        targets = tuple(_target_port(port, pod) for port in ports)
        for entry in status.get("podIPs") or ():
            family = "IPv6" if ":" in entry["ip"] else "IPv4"
            groups.setdefault((family, targets), []).append(_endpoint(pod, str(entry["ip"])))
    return [
        _slice(metadata, family, number, [(p, t) for p, t in zip(ports, targets, strict=True)], endpoints)
        for number, ((family, targets), endpoints) in enumerate(
            sorted(groups.items(), key=lambda g: str(g[0]))
        )
    ]


def _endpoint(pod: Mapping[str, Any], address: str) -> dict[str, Any]:
    terminating = pod["metadata"].get("deletionTimestamp") is not None
    ready = is_ready(pod)
    endpoint: dict[str, Any] = {
        "addresses": [address],
        "conditions": {"ready": ready and not terminating, "serving": ready, "terminating": terminating},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    }
    if pod["spec"].get("hostname"):
        endpoint["hostname"] = pod["spec"]["hostname"]
    return endpoint


def _slice(
    metadata: Mapping[str, Any],
    family: str,
    number: int,
    ports: list[tuple[Mapping[str, Any], int | None]],
    endpoints: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{metadata['name']}-{family.lower()}-{number}",
            "namespace": metadata["namespace"],
            "labels": {SLICE_LABEL: metadata["name"]},
        },
        "addressType": family,
        "ports": [
            {"name": port.get("name", ""), "port": target, "protocol": port.get("protocol", "TCP")}
            for port, target in ports
            if target is not None
        ],
        "endpoints": endpoints,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What the resolver answers for one name."""

    addresses: tuple[str, ...] = ()
    srv: tuple[tuple[int, str], ...] = ()
    """(port, target name)."""
    alias: str = ""
    """Canonical name elsewhere (ExternalName)."""


def _of_service(slices: Iterable[Mapping[str, Any]], namespace: str, name: str) -> list[Mapping[str, Any]]:
    return [
        s
        for s in slices
        if s["metadata"].get("namespace") == namespace
        and (s["metadata"].get("labels") or {}).get(SLICE_LABEL) == name
    ]


def forwards(services: Iterable[Mapping[str, Any]], slices: Sequence[Mapping[str, Any]]) -> list[Forward]:
    """Return what the kernel does for ClusterIPs: ready endpoints per port."""
    found: list[Forward] = []
    for service in services:
        metadata = service["metadata"]
        mine = _of_service(slices, metadata["namespace"], metadata["name"])
        for vip in cluster_ips(service):
            family = "IPv6" if ":" in vip else "IPv4"
            for port in service["spec"].get("ports") or ():
                endpoints = {
                    (str(address), int(target["port"]))
                    for item in mine
                    if item["addressType"] == family
                    for target in item.get("ports") or ()
                    if target.get("name", "") == port.get("name", "")
                    for endpoint in item.get("endpoints") or ()
                    if (endpoint.get("conditions") or {}).get("ready", True)
                    for address in endpoint["addresses"]
                }
                found.append(
                    Forward(
                        vip=vip,
                        port=int(port["port"]),
                        protocol=str(port.get("protocol", "TCP")).lower(),
                        endpoints=tuple(sorted(endpoints)),
                    )
                )
    return found


def names(
    services: Iterable[Mapping[str, Any]], slices: Sequence[Mapping[str, Any]], domain: str
) -> dict[str, Name]:
    """Return the cluster's names, lower-case and without the last dot."""
    found: dict[str, Name] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        base = f"{metadata['name']}.{metadata['namespace']}.svc.{domain}"
        if spec.get("type") == "ExternalName":
            found[base] = Name(alias=str(spec.get("externalName", "")).rstrip("."))
            continue
        addresses = cluster_ips(service)
        if is_headless(service):
            addresses = _headless(service, slices, base, found)
        found[base] = Name(addresses=addresses)
        for port in spec.get("ports") or ():
            if port.get("name"):
                protocol = str(port.get("protocol", "TCP")).lower()
                found[f"_{port['name']}._{protocol}.{base}"] = Name(srv=((int(port["port"]), base),))
    return found


def _headless(
    service: Mapping[str, Any], slices: Sequence[Mapping[str, Any]], base: str, found: dict[str, Name]
) -> tuple[str, ...]:
    metadata = service["metadata"]
    unready = service["spec"].get("publishNotReadyAddresses") is True
    addresses: list[str] = []
    for item in _of_service(slices, metadata["namespace"], metadata["name"]):
        for endpoint in item.get("endpoints") or ():
            if unready or (endpoint.get("conditions") or {}).get("ready", True):
                addresses += endpoint["addresses"]
                if endpoint.get("hostname"):
                    name = f"{endpoint['hostname']}.{base}"
                    before = found.get(name, Name()).addresses
                    found[name] = Name(addresses=(*before, *endpoint["addresses"]))
    return tuple(addresses)
