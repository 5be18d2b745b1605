# SPDX-License-Identifier: Apache-2.0
"""What every translator is given and gives back; no Kubernetes or Istio field is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mesh.config.objects import ObjectKey, Path, RawObject

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaypointTemplate:
    """What the cluster's operator decides about waypoint pods."""

    image: str = ""
    """Empty: that of the pod below, and `ambit` where there is none."""
    image_of: tuple[str, str] = ("", "")
    """(namespace, name) of the controller's own pod: one image serves all our processes."""
    command: tuple[str, ...] = ("python", "-m", "waypoint")
    controller: str = "https://ambit-controller.istio-system.svc:15012"
    """URL of the controller, as pods reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the cluster is called; equal for all objects."""

    trust_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    network: str = ""
    cluster_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    waypoint: WaypointTemplate = WaypointTemplate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something an object says that is not in force: where, and why."""

    key: ObjectKey
    path: Path
    line: int
    """Line of the field in `file`, from 1; 0: not from a file."""
    file: str
    reason: str
    severity: Severity
    code: str = ""
    """Reason for the object's status, where it has one (`conditions.py`)."""

    def __str__(self) -> str:
        field = ".".join(str(step) for step in self.path)
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.severity}: {self.key}: {field}: {self.reason}"


def problem(
    obj: RawObject, path: Path, reason: str, severity: Severity = "warning", code: str = ""
) -> Problem:
    """Make a problem of the field at `path` of `obj`."""
    return Problem(
        key=obj.key,
        path=path,
        line=obj.line_of(path),
        file=obj.file,
        reason=reason,
        severity=severity,
        code=code,
    )
