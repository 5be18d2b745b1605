# SPDX-License-Identifier: Apache-2.0
"""Headers of a CONNECT that say who calls: `baggage`, `forwarded`, `traceparent`. Pure.

They label telemetry and never decide anything: a peer may write into them what it likes.

Source: Istio's ztunnel (W3C baggage with its own keys), RFC 7239, W3C trace context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from mesh.model.locality import Locality
from mesh.model.workload import Workload, WorkloadType

MAX_BAGGAGE_BYTES = 8192
"""Source: W3C baggage section 4.3.2; a longer header is ignored."""
_TYPE_KEYS = {
    WorkloadType.DEPLOYMENT: "k8s.deployment.name",
    WorkloadType.CRONJOB: "k8s.cronjob.name",
    WorkloadType.POD: "k8s.pod.name",
    WorkloadType.JOB: "k8s.job.name",
}


def format_baggage(workload: Workload) -> bytes:
    """Describe a workload to the other end."""
    entries = [
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (_TYPE_KEYS[workload.workload_type], workload.workload_name or workload.name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    ]
    return ",".join(f"{key}={quote(value, safe='')}" for key, value in entries if value).encode()


class BaggageCache:
    """Remembers the header of each workload as long as that stays the same value; bounded."""

    def __init__(self, max_workloads: int = 1024) -> None:
        self._max = max_workloads
        self._known: dict[str, tuple[Workload, bytes]] = {}

    def get(self, workload: Workload) -> bytes:
        """Return `format_baggage` of a workload."""
        known = self._known.get(workload.uid)
        if known is not None and known[0] is workload:
            return known[1]
        if len(self._known) >= self._max:
            self._known.clear()
        value = format_baggage(workload)
        self._known[workload.uid] = (workload, value)
        return value


def parse_baggage(value: bytes) -> dict[str, str]:
    """Parse what is well-formed of a baggage header and skip the rest."""
    if len(value) > MAX_BAGGAGE_BYTES:
        return {}
    found: dict[str, str] = {}
    for entry in value.decode("latin-1").split(","):
        key, equals, text = entry.partition(";")[0].partition("=")
        if equals and key.strip():
            found.setdefault(key.strip(), unquote(text.strip(), errors="replace"))
    return found


def workload_from_baggage(baggage: Mapping[str, str], identity: str) -> Workload | None:
    """Describe a caller that is not known here, for labels only; None if the header says nothing."""
    if not baggage:
        return None
    name = ""
    kind = WorkloadType.POD
    for candidate, key in _TYPE_KEYS.items():
        if baggage.get(key):
            name, kind = baggage[key], candidate
    parts = identity.removeprefix("spiffe://").split("/")
    return Workload(
        uid="",
        name=name,
        # The certificate proves the namespace; the header only claims one.
        namespace=parts[2] if len(parts) == 5 else baggage.get("k8s.namespace.name", ""),
        service_account=parts[4] if len(parts) == 5 else "",
        cluster_id=baggage.get("k8s.cluster.name", ""),
        workload_type=kind,
        workload_name=name,
        canonical_name=baggage.get("service.name", ""),
        canonical_revision=baggage.get("service.version", ""),
        locality=Locality(
            region=baggage.get("cloud.region", ""), zone=baggage.get("cloud.availability_zone", "")
        ),
    )


def format_forwarded(client: str, host: str = "") -> bytes:
    """Name the client socket and, of a service, the hostname that it addressed."""
    value = f'for="{client}"'
    return f"{value};host={host}".encode() if host else value.encode()


def forwarded_host(value: bytes) -> str:
    """Return the `host` of the last element of a forwarded header; empty if it has none."""
    last = value.decode("latin-1").rpartition(",")[2]
    for pair in last.split(";"):
        key, _, text = pair.strip().partition("=")
        if key.lower() == "host":
            return text.strip().strip('"').lower()
    return ""


def format_traceparent(random: Iterable[int]) -> bytes:
    """Make a trace context of 24 random bytes: 16 of trace id, 8 of parent id; not sampled."""
    raw = bytes(random)
    return f"00-{raw[:16].hex()}-{raw[16:24].hex()}-00".encode()


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Return the first value of a header (name in lower case); empty if absent."""
    for key, value in headers:
        if key == name:
            return value
    return b""
