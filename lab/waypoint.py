# SPDX-License-Identifier: Apache-2.0
"""What a waypoint pod needs in a lab beyond its manifest: Python, and the way to the controller. Pure.

The Deployment of a waypoint is the one that a cluster gets. There, an image has Python and
`ambit-controller.istio-system.svc` is a Service; here, the lab's own Python runs it and the name leads
to the machine's end of the node's link.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.container import DEFAULT_CAPABILITIES
from lab.layout import CLUSTER_DOMAIN, Node
from mesh.config.objects import RawObject

REPOSITORY = Path(__file__).resolve().parents[1]
MANAGED_LABEL = "gateway.istio.io/managed"
MANAGED_BY = "istio.io-mesh-controller"
CONTROLLER_NAMES = (
    "ambit-controller.istio-system.svc",
    f"ambit-controller.istio-system.svc.{CLUSTER_DOMAIN}",
)
WAYPOINT_CLASS = "istio-waypoint"
REVISION = "istio.io/rev"
TOKEN_FILE = "istio-token"  # noqa: S105 - a name, no secret


def is_waypoint(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod was made for a Gateway."""
    return (pod["metadata"].get("labels") or {}).get(MANAGED_LABEL) == MANAGED_BY


def why_not_programmed(gateway: RawObject) -> str:
    """Say why a waypoint's Gateway is not in use; empty: it is, or others run it."""
    if gateway.spec.get("gatewayClassName") != WAYPOINT_CLASS or REVISION in gateway.labels:
        return ""
    for condition in gateway.status.get("conditions") or ():
        if condition.get("type") == "Programmed":
            return "" if condition.get("status") == "True" else str(condition.get("message"))
    return "the controller has not seen it yet"


def aliases(pod: Mapping[str, Any], node: Node) -> list[str]:
    """Return more lines for the pod's hosts file."""
    return [f"{node.machine_ip} {' '.join(CONTROLLER_NAMES)}"] if is_waypoint(pod) else []


def adapted(pod: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a container's specification with the lab's Python in place of the image's.

    It runs as root with a container's usual capabilities: the sources may be readable to
    their owner only.
    """
    if not is_waypoint(pod):
        return dict(spec)
    argv = list(spec["argv"])
    if argv[0] == "python":
        argv[0] = sys.executable
    env = {**spec["env"], "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    user = {"uid": None, "gid": None, "groups": [], "capabilities": sorted(DEFAULT_CAPABILITIES)}
    return {**spec, **user, "argv": argv, "env": env, "mounts": [*spec["mounts"], *_program()]}


def _program() -> list[dict[str, Any]]:
    """Return mounts of the sources and the interpreter where a container's own /tmp or /run hides them."""
    needed = dict.fromkeys((REPOSITORY, Path(sys.prefix)))
    return [
        {"source": str(path), "target": str(path), "file": False, "read_only": True}
        for path in needed
        if path.is_relative_to("/tmp") or path.is_relative_to("/run")  # noqa: S108 - each container's own
    ]


def is_token(volume: Mapping[str, Any]) -> bool:
    """Tell whether a volume is the pod's token, which a lab's pods all have."""
    sources = (volume.get("projected") or {}).get("sources") or ()
    tokens = [source.get("serviceAccountToken") or {} for source in sources]
    return len(tokens) == 1 and tokens[0].get("path") == TOKEN_FILE
