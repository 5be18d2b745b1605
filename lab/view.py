# SPDX-License-Identifier: Apache-2.0
"""A lab as a person sees it: what is still missing, why, and objects as tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import waypoint
from lab.errors import Code, LabError
from lab.layout import Layout
from lab.store import snapshot
from lab.workloads import is_ready
from mesh.config.objects import RawObject
from mesh.config.source import Snapshot

MODE_LABEL = "istio.io/dataplane-mode"
EXCLUDED = frozenset({"istio-system", "kube-system"})
POLL_S = 0.15
LOG_LINES = 8
"""Of a part that does not come up, shown with the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One thing that is not as it should be."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


def daemons(layout: Layout) -> list[dict[str, Any]]:
    """Return the programs' states as the manager last wrote them; empty: it has not begun."""
    try:
        rows: list[dict[str, Any]] = json.loads((layout.state / "daemons.json").read_text())
    except (OSError, ValueError):
        return []
    return rows


def wants_mesh(pod: RawObject, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether labels put a pod into the mesh."""
    if pod.namespace in EXCLUDED:
        return False
    mode = pod.labels.get(MODE_LABEL, namespaces.get(pod.namespace, {}).get(MODE_LABEL))
    return mode == "ambient"


def enrolled(found: Snapshot) -> set[str]:
    """Return the uids of the pods that the agents say are captured."""
    return {str(item.data.get("podUid")) for item in found.of("Enrollment")}


def why_not_ready(pod: RawObject) -> str:
    """Say in a line why a pod is not ready; empty: it is."""
    if is_ready(pod.data):
        return ""
    status = pod.status
    if status.get("message"):
        return str(status["message"])
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container["state"].get("waiting")
        ended = container["state"].get("terminated")
        if waiting and waiting.get("message"):
            return f"container {container['name']}: {waiting['message']}"
        if ended and ended["exitCode"]:
            return f"container {container['name']} ended with code {ended['exitCode']}"
    for condition in status.get("conditions") or ():
        if condition.get("message"):
            return str(condition["message"])
    return f"it is {status.get('phase', 'Pending')}, not ready"


def missing(layout: Layout, found: Snapshot) -> list[Missing]:
    """Return what keeps a lab from being up; pure but for two small files of the manager."""
    rows: list[Missing] = []
    states = daemons(layout)
    if not states:
        rows.append(Missing(what="lab.manager", why="it has not started; see manager.log"))
    rows += [
        Missing(what=str(s["name"]), why=str(s["last"] or "not started")) for s in states if not s["running"]
    ]
    problems = layout.state / "problems.txt"
    if problems.exists():
        rows += [Missing(what=line, why="") for line in problems.read_text().splitlines()]
    labels = {item.name: item.labels for item in found.of("Namespace")}
    captured = enrolled(found)
    for pod in found.of("Pod"):
        name = f"pod {pod.namespace}/{pod.name}"
        if pod.status.get("phase") == "Succeeded":
            continue
        if why := why_not_ready(pod):
            rows.append(Missing(what=name, why=why))
        elif layout.mesh and wants_mesh(pod, labels) and str(pod.metadata.get("uid")) not in captured:
            rows.append(Missing(what=name, why="it is not in the mesh yet"))
    for item in found.of("Deployment"):
        wanted, ready = int(item.spec.get("replicas", 1)), int(item.status.get("readyReplicas", 0))
        if ready < wanted:
            rows.append(
                Missing(
                    what=f"deployment {item.namespace}/{item.name}", why=f"{ready} of {wanted} pods ready"
                )
            )
    if layout.mesh:
        for item in found.of("Gateway"):
            if why := waypoint.why_not_programmed(item):
                rows.append(Missing(what=f"waypoint {item.namespace}/{item.name}", why=why))
    return rows


def wait_up(layout: Layout, *, timeout_s: float, say: Callable[[str], None]) -> None:
    """Wait until everything runs and is meshed as labelled, and tell what happens meanwhile.

    Raises:
        LabError: it is not so in time; names what is missing, with the log of a part that ends.
    """
    deadline = time.monotonic() + timeout_s
    told: set[str] = set()
    while True:
        found = snapshot(layout)
        lacking = missing(layout, found)
        _tell(layout, found, told, say)
        if not lacking:
            return
        if time.monotonic() > deadline:
            raise _not_up(layout, lacking, timeout_s)
        time.sleep(POLL_S)


def _tell(layout: Layout, found: Snapshot, told: set[str], say: Callable[[str], None]) -> None:
    """Say each thing once, when it is first so."""
    lines = [f"{s['name']} runs" for s in daemons(layout) if s["running"]]
    captured = enrolled(found)
    for pod in found.of("Pod"):
        name = f"pod {pod.namespace}/{pod.name}"
        if is_ready(pod.data):
            how = ", in the mesh" if str(pod.metadata.get("uid")) in captured else ""
            lines.append(f"{name} runs on {pod.spec.get('nodeName')}{how}")
        elif (why := why_not_ready(pod)) and pod.status.get("message"):
            # At a start all pods wait for the mesh for one reason: that is one line.
            for_mesh = pod.status.get("reason") == "WaitingForMesh"
            lines.append(f"pods wait for the mesh: {why}" if for_mesh else f"{name} waits: {why}")
    for line in lines:
        if line not in told:
            told.add(line)
            say(line)


def _not_up(layout: Layout, lacking: Sequence[Missing], timeout_s: float) -> LabError:
    lines = [str(item) for item in lacking]
    for state in daemons(layout):
        if not state["running"] or state["restarts"]:
            lines.append(f"the end of {state['log']}:")
            lines += [f"    {line}" for line in tail(str(state["log"]), LOG_LINES)]
    return LabError(
        Code.NOT_READY, f"lab {layout.name} is not up after {timeout_s:.0f} s:\n  " + "\n  ".join(lines)
    )


def tail(path: str, lines: int) -> list[str]:
    """Return the last lines of a log; empty: there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 200 * max(lines, 1) * 4))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


Row = tuple[str, ...]


def table(headers: Row, rows: Sequence[Row]) -> str:
    """Return aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headers, *rows)
    )


def columns(kind: str, items: Sequence[RawObject], found: Snapshot, *, wide: bool) -> tuple[Row, list[Row]]:
    """Return headers and rows for a list of one kind."""
    if kind == "Pod":
        return _pods(items, found, wide=wide)
    if kind == "Service":
        return ("NAMESPACE", "NAME", "CLUSTER-IPS", "PORTS", "ENDPOINTS"), [_service(i, found) for i in items]
    if kind == "Deployment":
        return ("NAMESPACE", "NAME", "READY", "UPDATED"), [
            (
                i.namespace,
                i.name,
                f"{i.status.get('readyReplicas', 0)}/{i.spec.get('replicas', 1)}",
                str(i.status.get("updatedReplicas", 0)),
            )
            for i in items
        ]
    if kind == "Namespace":
        return ("NAME", "MESH", "WAYPOINT"), [
            (i.name, i.labels.get(MODE_LABEL, "-"), i.labels.get("istio.io/use-waypoint", "-")) for i in items
        ]
    if kind in _STATED:
        headers, row = _STATED[kind]
        return ("NAMESPACE", "NAME", *headers), [(i.namespace, i.name, *row(i)) for i in items]
    if kind == "Node":
        return ("NAME", "ADDRESSES"), [
            (i.name, ",".join(a["address"] for a in i.status["addresses"] if a["type"] == "InternalIP"))
            for i in items
        ]
    return ("NAMESPACE", "NAME"), [(i.namespace or "-", i.name) for i in items]


def _condition(conditions: Any, *types: str) -> str:
    """Return the status of the first condition of these types, with its reason unless it is True."""
    for condition in conditions or ():
        if condition.get("type") in types:
            status = str(condition.get("status"))
            return status if status == "True" else f"{status} ({condition.get('reason')})"
    return "-"


def _gateway(item: RawObject) -> Row:
    addresses = [str(a.get("value")) for a in item.status.get("addresses") or ()]
    programmed = _condition(item.status.get("conditions"), "Programmed")
    return str(item.spec.get("gatewayClassName", "-")), ",".join(addresses) or "-", programmed


def _route(item: RawObject) -> Row:
    names = [str(parent.get("name")) for parent in item.spec.get("parentRefs") or ()]
    parents = item.status.get("parents") or ()
    states = [
        ",".join(dict.fromkeys(_condition(parent.get("conditions"), kind) for parent in parents)) or "-"
        for kind in ("Accepted", "ResolvedRefs")
    ]
    return ",".join(names) or "-", *states


def _policy(item: RawObject) -> Row:
    conditions = item.status.get("conditions")
    by = "waypoint" if item.spec.get("targetRefs") or item.spec.get("targetRef") else "ztunnel"
    accepted = _condition(conditions, "ZtunnelAccepted", "WaypointAccepted")
    return str(item.spec.get("action", "ALLOW")), by, accepted


_STATED: dict[str, tuple[Row, Callable[[RawObject], Row]]] = {
    "Gateway": (("CLASS", "ADDRESS", "PROGRAMMED"), _gateway),
    "HTTPRoute": (("PARENTS", "ACCEPTED", "RESOLVED"), _route),
    "GRPCRoute": (("PARENTS", "ACCEPTED", "RESOLVED"), _route),
    "AuthorizationPolicy": (("ACTION", "BY", "ACCEPTED"), _policy),
}
"""Kinds whose rows come from their statuses."""


def _pods(items: Sequence[RawObject], found: Snapshot, *, wide: bool) -> tuple[Row, list[Row]]:
    captured = enrolled(found)
    headers: Row = ("NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "MESH", "NODE", "IP")
    rows: list[Row] = []
    for item in items:
        containers = item.status.get("containerStatuses") or ()
        phase = str(item.status.get("phase", "Pending"))
        for container in containers:
            if waiting := container["state"].get("waiting"):
                phase = waiting["reason"]
        if item.metadata.get("deletionTimestamp"):
            phase = "Terminating"
        ips = [entry["ip"] for entry in item.status.get("podIPs") or ()]
        row: Row = (
            item.namespace,
            item.name,
            f"{sum(bool(c['ready']) for c in containers)}/{len(item.spec.get('containers') or ())}",
            str(item.status.get("reason") or phase),
            str(sum(int(c["restartCount"]) for c in containers)),
            "enrolled" if str(item.metadata.get("uid")) in captured else "-",
            str(item.spec.get("nodeName", "-")),
            (",".join(ips) if wide else "".join(ips[:1])) or "-",
        )
        rows.append((*row, why_not_ready(item) or "-") if wide else row)
    return ((*headers, "WHY") if wide else headers), rows


def _service(item: RawObject, found: Snapshot) -> Row:
    addresses = item.spec.get("clusterIPs") or [item.spec.get("clusterIP", "-")]
    ports = ",".join(f"{p['port']}/{p.get('protocol', 'TCP')}" for p in item.spec.get("ports") or ())
    ready = {
        address
        for piece in found.of("EndpointSlice")
        if piece.namespace == item.namespace
        and piece.labels.get("kubernetes.io/service-name") == item.name
        and piece.data.get("addressType") == "IPv4"
        for endpoint in piece.data.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    }
    return item.namespace, item.name, ",".join(map(str, addresses)), ports, str(len(ready))
