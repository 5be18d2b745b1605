# SPDX-License-Identifier: Apache-2.0
"""One kind's objects as an API server tells them: lists and watch events in, objects out; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.config.kube_api import KubeError, error_of
from mesh.config.objects import CLUSTER_SCOPED, ObjectKey, RawObject, Rejection, make_object

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind to follow."""

    group: str
    """Empty: the core group."""
    versions: tuple[str, ...]
    """Preferred first; the next is tried where the server does not serve one."""
    kind: str
    plural: str
    custom: bool = False
    """Defined by a CustomResourceDefinition: it may be absent, and come later."""
    namespace: str = ""
    """Where it is followed; empty: everywhere."""
    field_selector: str = ""
    label_selector: str = ""

    def path(self, version: str) -> str:
        """The collection in its namespace, or over all of them."""
        base = f"/apis/{self.group}" if self.group else "/api"
        where = f"namespaces/{self.namespace}/" if self.namespace else ""
        return f"{base}/{version}/{where}{self.plural}"

    @property
    def definition(self) -> str:
        """Name of its CustomResourceDefinition."""
        return f"{self.plural}.{self.group}"

    @property
    def selectors(self) -> dict[str, str]:
        """Query of a list or watch."""
        pairs = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: value for name, value in pairs.items() if value}

    def __str__(self) -> str:
        name = f"{self.kind} ({self.group})" if self.group else self.kind
        only = self.field_selector or self.label_selector
        return f"{name} {only}" if only else name


@dataclass(slots=True)
class Store:
    """The objects of one kind; `resource_version` is where a watch goes on, empty: list first."""

    kind: Kind
    resource_version: str = ""
    api_version: str = ""
    objects: dict[ObjectKey, RawObject] = field(default_factory=dict)
    rejections: dict[ObjectKey, Rejection] = field(default_factory=dict)

    def replace(self, items: Iterable[Any], envelope: Mapping[str, Any]) -> bool:
        """Take a complete list over; return whether anything is other than before."""
        metadata = envelope.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
        self.resource_version = str(version or "")
        self.api_version = str(envelope.get("apiVersion") or "")
        before, before_refused = self.objects, self.rejections
        self.objects, self.rejections = {}, {}
        for item in items:
            self._take(item, before)
        return (
            self.rejections != before_refused
            or self.objects.keys() != before.keys()
            or any(_differs(item, before[key]) for key, item in self.objects.items())
        )

    def apply(self, event: Mapping[str, Any]) -> bool:
        """Take one watch event over; return whether anything is other than before.

        Raises:
            AnswerError: the server ends the watch by an error (`expired`: list anew).
            KubeError: the event is not one.
        """
        kind, data = event.get("type"), event.get("object")
        if not isinstance(data, Mapping):
            raise KubeError(f"a watch event of type {kind!r} has no object")
        if kind == "ERROR":
            raise error_of(data, 500)
        metadata = data.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
        if version:
            self.resource_version = str(version)
        if kind == "BOOKMARK":
            return False
        if kind in ("ADDED", "MODIFIED"):
            return self._take(data, self.objects)
        if kind == "DELETED":
            key = self._key(data)
            refused = self.rejections.pop(key, None)
            return self.objects.pop(key, None) is not None or refused is not None
        raise KubeError(f"a watch event of unknown type {kind!r}")

    def clear(self) -> bool:
        """Drop everything, as the kind is no longer there; return whether there was anything."""
        had = bool(self.objects or self.rejections)
        self.objects, self.rejections, self.resource_version = {}, {}, ""
        return had

    def _take(self, item: Any, before: Mapping[ObjectKey, RawObject]) -> bool:
        data = self._slim(item if isinstance(item, Mapping) else {})
        key = self._key(data)
        known = before.get(key)
        try:
            made = make_object(data)
        except ValueError as error:
            refusal = Rejection(file="", line=0, reason=f"{key}: {error}", key=key)
            changed = self.rejections.get(key) != refusal
            self.rejections[key] = refusal
            if known is not None:
                self.objects[key] = known
            return changed
        refused = self.rejections.pop(key, None)
        self.objects[key] = made
        return refused is not None or known is None or _differs(made, known)

    def _slim(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Name what the items of a list leave out, and drop what is large and never read."""
        data = dict(item)
        data["kind"] = self.kind.kind
        if not data.get("apiVersion"):
            data["apiVersion"] = self.api_version
        metadata = data.get("metadata")
        if isinstance(metadata, Mapping):
            kept = {name: value for name, value in metadata.items() if name != "managedFields"}
            annotations = kept.get("annotations")
            if isinstance(annotations, Mapping) and LAST_APPLIED in annotations:
                kept["annotations"] = {k: v for k, v in annotations.items() if k != LAST_APPLIED}
            data["metadata"] = kept
        return data

    def _key(self, data: Mapping[str, Any]) -> ObjectKey:
        metadata = data.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        namespace = "" if self.kind.kind in CLUSTER_SCOPED else str(metadata.get("namespace") or "default")
        return ObjectKey(self.kind.group, self.kind.kind, namespace, str(metadata.get("name")))


def _differs(one: RawObject, other: RawObject) -> bool:
    """Whether two versions of an object differ in more than their version."""
    return _content(one) != _content(other)


def _content(item: RawObject) -> dict[str, Any]:
    metadata = {name: value for name, value in item.metadata.items() if name != "resourceVersion"}
    return {**item.data, "metadata": metadata}
