# SPDX-License-Identifier: Apache-2.0
"""The lab's objects on disk as a person changes and reads them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import Code, LabError
from lab.layout import Layout
from lab.manifests import dump, object_path
from lab.shell import write_file
from mesh.config.objects import CLUSTER_SCOPED, RawObject, parse_documents
from mesh.config.source import DirectorySource, Snapshot

REPLICAS = "ambit.io/replicas"
"""Annotation of a Gateway: how many waypoint pods (controller/translate/waypoint_objects.py)."""
ALIASES = {
    "po": "Pod", "svc": "Service", "deploy": "Deployment", "ns": "Namespace", "no": "Node", "cm": "ConfigMap",
    "sa": "ServiceAccount", "ep": "EndpointSlice", "se": "ServiceEntry", "pa": "PeerAuthentication",
    "ap": "AuthorizationPolicy", "gtw": "Gateway",
}  # fmt: skip


ORIGIN = "# from "
"""Begins the first line of an applied object: the file and line that it was applied from."""


def snapshot(layout: Layout) -> Snapshot:
    """Read everything there is, each object with its status."""
    return DirectorySource([layout.objects, layout.generated, layout.status]).read()


def kind_named(word: str, present: Iterable[str]) -> str:
    """Return the kind that a person means: any case, plural, or kubectl's short name.

    Raises:
        LabError: there is no such kind.
    """
    lower = word.lower()
    if lower in ALIASES:
        return ALIASES[lower]
    known = {
        kind.lower(): kind for kind in (*ALIASES.values(), "Secret", "Enrollment", "HTTPRoute", *present)
    }
    for candidate in (
        lower,
        lower.removesuffix("s"),
        lower.removesuffix("es"),
        lower.removesuffix("ies") + "y",
    ):
        if candidate in known:
            return known[candidate]
    kinds = ", ".join(sorted(set(known.values())))
    raise LabError(Code.NOT_FOUND, f"there is no kind {word!r}", remedy=f"kinds are {kinds}")


def apply_objects(layout: Layout, objects: Iterable[RawObject]) -> list[tuple[str, str]]:
    """Write objects; return (object, `created`, `configured` or `unchanged`) in order."""
    results: list[tuple[str, str]] = []
    for item in objects:
        path = object_path(layout.objects, item.kind, item.namespace, item.name)
        data = copy.deepcopy(dict(item.data))
        data.pop("status", None)
        if item.namespace:
            data["metadata"] = {**data["metadata"], "namespace": item.namespace}
        text = dump(data)
        before = path.read_text() if path.exists() else None
        # Where it was written, for messages; comments are no part of an object.
        marked = f"{ORIGIN}{Path(item.file).absolute()}:{item.line}\n{text}" if item.file else text
        if before != marked:
            write_file(path, marked)
        same = before is not None and before.removeprefix(_origin_line(before)) == text
        result = "created" if before is None else "unchanged" if same else "configured"
        results.append((str(item.key), result))
    return results


def _origin_line(text: str) -> str:
    """Return the first line if it says where the object was written, else nothing."""
    first = text.partition("\n")[0] + "\n"
    return first if first.startswith(ORIGIN) else ""


def written(item: RawObject, applied: Path) -> RawObject:
    """Return an object as it stands in the file that it was applied from, if that says the same.

    `applied` is the lab's copy of it.
    """
    try:
        with applied.open(encoding="utf-8") as file:
            first = file.readline().rstrip("\n")
        if not first.startswith(ORIGIN):
            return item
        name = first.removeprefix(ORIGIN).rpartition(":")[0]
        found, _ = parse_documents(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError):
        return item
    for other in found:
        if other.key == item.key and other.spec == item.spec:
            return other
    return item


def delete_objects(layout: Layout, objects: Iterable[RawObject]) -> list[tuple[str, str]]:
    """Remove objects; return (object, `deleted` or `not found`) in order."""
    results: list[tuple[str, str]] = []
    for item in objects:
        path = object_path(layout.objects, item.kind, item.namespace, item.name)
        found = path.exists()
        path.unlink(missing_ok=True)
        results.append((str(item.key), "deleted" if found else "not found"))
    return results


def find(layout: Layout, kind: str, namespace: str, name: str) -> tuple[Path, RawObject]:
    """Return the file to change for an object: the applied one, or a Deployment's pod's assignment.

    Raises:
        LabError: there is none.
    """
    directories = [layout.objects]
    if kind == "Pod":
        directories += [layout.assigned / node for node in layout.node_names]
    if kind in CLUSTER_SCOPED:
        namespace = ""
    for directory in directories:
        path = object_path(directory, kind, namespace, name)
        for item in DirectorySource([path.parent]).read().of(kind) if path.exists() else ():
            if item.name == name:
                return path, item
    where = f"{namespace}/{name}" if namespace else name
    raise LabError(Code.NOT_FOUND, f"{kind} {where} does not exist")


def change(path: Path, data: Mapping[str, Any]) -> None:
    """Write a changed object."""
    write_file(path, dump(data))


def set_labels(layout: Layout, kind: str, namespace: str, name: str, words: Iterable[str]) -> None:
    """Set (KEY=VALUE) and remove (KEY-) labels of an object.

    Raises:
        LabError: the object does not exist, or a word is neither.
    """
    words = list(words)
    for word in words:
        if "=" not in word and not word.endswith("-"):
            raise LabError(Code.USAGE, f"{word!r} is neither KEY=VALUE nor KEY-")
    if kind == "Namespace" and not object_path(layout.objects, kind, "", name).exists():
        if not object_path(layout.status, kind, "", name).exists():
            raise LabError(Code.NOT_FOUND, f"Namespace {name} does not exist")
        data: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        path = object_path(layout.objects, kind, "", name)
    else:
        path, item = find(layout, kind, namespace, name)
        data = copy.deepcopy(dict(item.data))
    labels = dict(data["metadata"].get("labels") or {})
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            labels[key] = value
        else:
            labels.pop(key.removesuffix("-"), None)
    data["metadata"]["labels"] = labels
    change(path, data)


def scale(layout: Layout, namespace: str, name: str, replicas: int) -> None:
    """Set a Deployment's replicas."""
    if replicas < 0:
        raise LabError(Code.USAGE, f"--replicas {replicas} is less than 0")
    places = [object_path(d, "Deployment", namespace, name) for d in (layout.objects, layout.generated)]
    if [place.exists() for place in places] == [False, True]:
        _scale_gateway(layout, namespace, name, replicas)
        return
    path, item = find(layout, "Deployment", namespace, name)
    data = copy.deepcopy(dict(item.data))
    data["spec"]["replicas"] = replicas
    change(path, data)


def _scale_gateway(layout: Layout, namespace: str, name: str, replicas: int) -> None:
    """Scale the Deployment that the controller derives from a Gateway: by the Gateway's annotation."""
    path, item = find(layout, "Gateway", namespace, name)
    data = copy.deepcopy(dict(item.data))
    annotations = {**(data["metadata"].get("annotations") or {}), REPLICAS: str(replicas)}
    data["metadata"]["annotations"] = annotations
    change(path, data)


def restart_pod(layout: Layout, namespace: str, name: str) -> None:
    """Delete a pod so that it is made anew."""
    for node in layout.node_names:
        path = object_path(layout.assigned / node, "Pod", namespace, name)
        if path.exists():
            path.unlink()
            return
    raise LabError(Code.NOT_FOUND, f"pod {namespace}/{name} does not exist")
