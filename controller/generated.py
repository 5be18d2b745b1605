# SPDX-License-Identifier: Apache-2.0
"""What the controller writes where there is no API server: one object a file, whole, with its status.

One owner of the directory. What is no longer wanted is removed. Statuses are read back at
the start, since an address that a waypoint once had is part of the next translation.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from controller.ca.store import write_file
from controller.translate.gateway import Status
from controller.translate.waypoint_objects import Object
from mesh.config.objects import ObjectKey, RawObject
from mesh.config.source import DirectorySource

OF_OTHERS = frozenset({"Service"})
"""Kinds whose statuses a lab writes itself, whole: two copies would keep each other alive."""

_log = logging.getLogger("controller.generated")


class Generated:
    """The directory; `write` gives it the new state, whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._statuses: dict[ObjectKey, Mapping[str, Any]] = {
            key: obj.status for key, obj in DirectorySource([directory]).read().objects.items() if obj.status
        }
        self._written: dict[Path, Mapping[str, Any]] = {}

    def with_statuses(self, objects: Mapping[ObjectKey, RawObject]) -> dict[ObjectKey, RawObject]:
        """Return the objects with the statuses that were written last."""
        found = dict(objects)
        for key, status in self._statuses.items():
            if key in found and not found[key].status:
                found[key] = replace(found[key], data={**found[key].data, "status": status})
        return found

    def write(self, objects: Iterable[Object], statuses: Iterable[Status], now_s: float) -> None:
        """Write what changed, and remove what is not there any more."""
        wanted: dict[Path, Mapping[str, Any]] = {}
        current: dict[ObjectKey, Mapping[str, Any]] = {}
        for data in objects:
            wanted[self._path(data)] = data
        for entry in statuses:
            if entry.obj.kind in OF_OTHERS:
                continue
            key = entry.obj.key
            current[key] = stamped(entry.status, self._statuses.get(key, {}), now_s)
            metadata = {**entry.obj.metadata}
            if entry.obj.namespace:
                metadata["namespace"] = entry.obj.namespace
            whole = {**entry.obj.data, "metadata": metadata, "status": current[key]}
            wanted[self._path(whole)] = whole
        self._statuses = current
        for path, each in wanted.items():
            if self._written.get(path) != each:
                self._write(path, each)
        for path in set(self._directory.glob("*/*/*.yaml")) - wanted.keys():
            self._written.pop(path, None)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", path, error.strerror)

    def _path(self, data: Mapping[str, Any]) -> Path:
        metadata = data["metadata"]
        namespace = str(metadata.get("namespace") or "_")
        return self._directory / str(data["kind"]) / namespace / f"{metadata['name']}.yaml"

    def _write(self, path: Path, data: Mapping[str, Any]) -> None:
        text = _dump(data)
        try:
            if not path.exists() or path.read_bytes() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, text, 0o644)
        except OSError as error:
            self._written.pop(path, None)
            _log.warning("%s cannot be written: %s", path, error.strerror)
        else:
            self._written[path] = data


def stamped(status: Any, before: Any, now_s: float) -> Any:
    """Give conditions their `lastTransitionTime`: the one before while their status is the same."""
    if isinstance(status, Mapping):
        old = before if isinstance(before, Mapping) else {}
        made = {name: stamped(value, old.get(name), now_s) for name, value in status.items()}
        if {"type", "status", "reason"} <= status.keys():
            same = old.get("status") == status["status"] and old.get("lastTransitionTime")
            made["lastTransitionTime"] = same or _time(now_s)
        return made
    if isinstance(status, list):
        return [stamped(item, _same(item, index, before), now_s) for index, item in enumerate(status)]
    return status


def _same(item: Any, index: int, before: Any) -> Any:
    """Find an item's earlier self: a condition by its type, anything else by its place."""
    if not isinstance(before, list):
        return None
    if isinstance(item, Mapping) and "type" in item:
        return next((b for b in before if isinstance(b, Mapping) and b.get("type") == item["type"]), None)
    return before[index] if index < len(before) else None


def _time(now_s: float) -> str:
    return datetime.datetime.fromtimestamp(now_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Dumper(yaml.CSafeDumper):
    """Plain YAML without anchors: the readers refuse merged aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(data: Mapping[str, Any]) -> bytes:
    text = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False)
    return str(text).encode()
