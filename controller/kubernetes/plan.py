# SPDX-License-Identifier: Apache-2.0
"""What has to be written so that the cluster has what the translation wants; pure.

Objects are applied server-side, so that fields of others stay theirs. Of a status with
`parents`, which one list holds for all controllers, the entries of others are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.generated import stamped
from controller.kubernetes.kinds import PLURALS
from controller.translate.gateway import Status
from controller.translate.route_status import CONTROLLER
from controller.translate.waypoint_objects import Object
from mesh.config.objects import ObjectKey, RawObject, make_object

Live = Mapping[ObjectKey, RawObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One request to make."""

    key: ObjectKey
    path: str
    """Of the object; of its status when `status`."""
    body: Mapping[str, Any]
    status: bool
    exists: bool
    """It was seen on the cluster, and is ours to write."""

    @property
    def digest(self) -> str:
        """What is wanted, as text, whatever version it is written over."""
        part = self.body["status"] if self.status else self.body
        return json.dumps(part, sort_keys=True)


def plan(objects: Iterable[Object], statuses: Iterable[Status], live: Live, now_s: float) -> list[Write]:
    """Return what differs, in the order in which it is to be written."""
    writes = [write for data in objects if (write := _object(data, live)) is not None]
    entries = list(statuses)
    told = {entry.obj.key for entry in entries}
    # Routes that have no parent of ours any more may still say that they had one.
    entries += [
        Status(obj=obj, status={"parents": []})
        for key, obj in live.items()
        if key not in told and obj.status.get("parents")
    ]
    writes += [write for entry in entries if (write := _status(entry, live, now_s)) is not None]
    return writes


def _object(data: Object, live: Live) -> Write | None:
    made = make_object(data)
    namespace = live.get(ObjectKey("", "Namespace", "", made.namespace))
    if made.namespace and (namespace is None or "deletionTimestamp" in namespace.metadata):
        return None  # Nothing can be made there, and nothing lives there for long.
    there = live.get(made.key)
    if there is not None and contains(there.data, data):
        return None
    return Write(key=made.key, path=path_of(made), body=data, status=False, exists=there is not None)


def _status(entry: Status, live: Live, now_s: float) -> Write | None:
    there = live.get(entry.obj.key)
    if there is None:
        return None
    wanted = merged(entry.status, there.status, there.spec.get("parentRefs"), now_s)
    if contains(there.status, wanted):
        return None
    # Of the version that the status was made from: it may hold conditions of others.
    metadata = {"resourceVersion": entry.obj.metadata.get("resourceVersion")}
    return Write(
        key=there.key,
        path=f"{path_of(there)}/status",
        body={"metadata": metadata, "status": wanted},
        status=True,
        exists=True,
    )


def merged(
    wanted: Mapping[str, Any], before: Mapping[str, Any], references: Any, now_s: float
) -> dict[str, Any]:
    """Return a status with its conditions' times, and with the parents that others wrote.

    Others are controllers of another name, and such of our name (Istio's) that speak for a
    parent which the route has (`references`) and we do not speak for.
    """
    if "parents" not in wanted:
        made: dict[str, Any] = stamped(wanted, before, now_s)
        return made
    old = [entry for entry in before.get("parents") or () if isinstance(entry, Mapping)]
    mine = [entry["parentRef"] for entry in wanted["parents"]]
    parents: list[Any] = [entry for entry in old if not _is_ours(entry, mine, references)]
    ours = [entry for entry in old if _is_ours(entry, mine, references)]
    for entry in wanted["parents"]:
        known = next((o for o in ours if contains(o.get("parentRef"), entry["parentRef"])), None)
        parents.append(stamped(entry, known, now_s))
    return {**wanted, "parents": parents}


def _is_ours(entry: Mapping[str, Any], mine: list[Any], references: Any) -> bool:
    if entry.get("controllerName") != CONTROLLER:
        return False
    of = entry.get("parentRef")
    there = references if isinstance(references, list) else []
    return any(contains(of, reference) for reference in mine) or not any(
        contains(of, reference) for reference in there
    )


def contains(there: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; what the API server or others added does not count."""
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return not wanted and there is None
        return all(contains(there.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(there, list):
            return not wanted and there is None
        return len(there) == len(wanted) and all(map(contains, there, wanted))
    return bool(there == wanted)


def path_of(obj: RawObject) -> str:
    """Return an object's path on the API server."""
    group, slash, _ = obj.api_version.partition("/")
    base = f"/apis/{obj.api_version}" if slash else f"/api/{obj.api_version}"
    where = f"/namespaces/{obj.namespace}" if obj.namespace else ""
    return f"{base}{where}/{PLURALS[(group if slash else '', obj.kind)]}/{obj.name}"
