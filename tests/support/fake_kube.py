# SPDX-License-Identifier: Apache-2.0
"""An API server in memory: `mesh.config.kube_api.KubeApi` without a socket, with faults to set.

It keeps what the real one keeps to: resourceVersions that grow, lists in pages, watches that go on from a
version or answer 410, conflicts on stale versions and wrong uids.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.config.kube_api import AnswerError, UnreachableError

Json = dict[str, Any]


@dataclass(slots=True)
class _Watch:
    collection: str
    selector: str
    queue: asyncio.Queue[Json | Exception | None] = field(default_factory=asyncio.Queue)


class FakeKube:
    """Collections by path, such as `/api/v1/pods`; namespaced objects are reached through both paths."""

    def __init__(self, *collections: str) -> None:
        self.collections = set(collections)
        self.objects: dict[tuple[str, str, str], Json] = {}
        """(collection, namespace, name) -> object"""
        self.history: list[tuple[int, str, Json]] = []
        self.version = 100
        self.compacted = 0
        """Watches and pages from versions below this one are expired."""
        self.down = False
        self.refuse: dict[str, AnswerError] = {}
        """Collection -> what every request to it gets."""
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[Json] = []
        self.reviews: dict[str, Json] = {}
        """Token -> status of its TokenReview."""
        self.watches: list[_Watch] = []

    # What a test does.

    def put(self, collection: str, namespace: str, name: str, **parts: Any) -> Json:
        """Create or replace an object, as somebody else would."""
        key = (collection, namespace, name)
        old = self.objects.get(key)
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        metadata |= parts.pop("metadata", {})
        metadata.setdefault("uid", old["metadata"]["uid"] if old else f"uid-{name}-{self.version}")
        return self._store(key, {**parts, "metadata": metadata}, "MODIFIED" if old else "ADDED")

    def delete(self, collection: str, namespace: str, name: str) -> None:
        """Delete an object, as somebody else would."""
        gone = self.objects.pop((collection, namespace, name))
        self._tell(collection, gone, "DELETED")

    def bookmark(self) -> None:
        """Send every watch a bookmark."""
        for watch in self.watches:
            watch.queue.put_nowait(
                {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
            )

    def compact(self) -> None:
        """Forget the history: watches that start from before it get 410."""
        self.version += 1
        self.compacted = self.version

    def end_watches(self, error: Exception | None = None) -> None:
        """End every watch, as the server does by time, or by an error."""
        for watch in self.watches:
            watch.queue.put_nowait(error)

    def get(self, collection: str, namespace: str, name: str) -> Json:
        """Return an object as it is."""
        return self.objects[(collection, namespace, name)]

    def _store(self, key: tuple[str, str, str], value: Json, kind: str) -> Json:
        self.version += 1
        value = copy.deepcopy(value)
        value["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = value
        self._tell(key[0], value, kind, bump=False)
        return copy.deepcopy(value)

    def _tell(self, collection: str, value: Json, kind: str, *, bump: bool = True) -> None:
        if bump:
            self.version += 1
            value = copy.deepcopy(value)
            value["metadata"]["resourceVersion"] = str(self.version)
        event = {"type": kind, "object": copy.deepcopy(value)}
        self.history.append((self.version, collection, event))
        for watch in self.watches:
            if watch.collection == collection and _selected(watch.selector, value):
                watch.queue.put_nowait(copy.deepcopy(event))

    # What the code under test calls.

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = 30.0,
    ) -> Json:
        await asyncio.sleep(0)
        self.requests.append((method, path))
        if body is not None:
            self.bodies.append(copy.deepcopy(dict(body)))
        if self.down:
            raise UnreachableError("https://fake does not answer: refused")
        if path.endswith("/tokenreviews"):
            assert body is not None
            return {"status": self.reviews.get(body["spec"]["token"], {"authenticated": False})}
        collection, namespace, name, subresource = self._resolve(path)
        if method == "GET" and not name:
            return self._list(collection, namespace, dict(query or {}))
        if method == "POST":
            assert body is not None
            return self._create(collection, namespace, dict(body))
        key = (collection, namespace, name)
        if content_type.startswith("application/apply-patch"):
            assert body is not None
            return self._apply(key, dict(body), subresource)
        if key not in self.objects:
            raise AnswerError(404, "NotFound", f"{name} not found")
        if method == "GET":
            return copy.deepcopy(self.objects[key])
        if method == "DELETE":
            self.delete(*key)
            return {}
        assert body is not None
        return self._change(key, method, dict(body), subresource)

    def _resolve(self, path: str) -> tuple[str, str, str, str]:
        parts = path.strip("/").split("/")
        head = 2 if parts[0] == "api" else 3
        rest, namespace = parts[head:], ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        collection = "/" + "/".join((*parts[:head], rest[0]))
        if collection in self.refuse:
            raise self.refuse[collection]
        if collection not in self.collections:
            raise AnswerError(404, "NotFound", "the server could not find the requested resource")
        return collection, namespace, rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else ""

    def _list(self, collection: str, namespace: str, query: dict[str, str]) -> Json:
        found = [
            value
            for (where, space, _), value in sorted(self.objects.items())
            if where == collection
            and namespace in ("", space)
            and _selected(query.get("fieldSelector", ""), value)
        ]
        start, version = 0, self.version
        if token := query.get("continue"):
            start, version = (int(part) for part in token.split(":"))
            if version < self.compacted:
                raise AnswerError(410, "Expired", "the provided continue parameter is too old")
        end = start + int(query.get("limit", "1000000"))
        metadata: Json = {"resourceVersion": str(version)}
        if end < len(found):
            metadata["continue"] = f"{end}:{version}"
        items = copy.deepcopy(found[start:end])
        for item in items:  # As a real list: its items do not say what they are.
            item.pop("kind", None)
            item.pop("apiVersion", None)
        _, group, *version_part = collection.strip("/").split("/")
        api_version = group if collection.startswith("/api/") else f"{group}/{version_part[0]}"
        return {"apiVersion": api_version, "kind": "List", "metadata": metadata, "items": items}

    def _create(self, collection: str, namespace: str, body: Json) -> Json:
        key = (collection, namespace, body["metadata"]["name"])
        if key in self.objects:
            raise AnswerError(409, "AlreadyExists", f"{key[2]} already exists")
        body["metadata"] = {"uid": f"uid-{key[2]}-{self.version}", **body["metadata"]}
        return self._store(key, body, "ADDED")

    def _change(self, key: tuple[str, str, str], method: str, body: Json, subresource: str) -> Json:
        old = self.objects[key]
        for name in ("uid", "resourceVersion"):
            asked = body.get("metadata", {}).get(name)
            if asked is not None and asked != old["metadata"][name]:
                raise AnswerError(409, "Conflict", f"{name} is {old['metadata'][name]}, not {asked}")
        if method == "PATCH":
            new = _merged(old, body)
        else:
            new = {**body, "metadata": {**old["metadata"], **body["metadata"]}}
        if subresource == "status":  # Metadata may be changed through it, the rest may not.
            new = {**old, "metadata": new["metadata"], "status": new.get("status", old.get("status", {}))}
        return self._store(key, new, "MODIFIED")

    def _apply(self, key: tuple[str, str, str], body: Json, subresource: str) -> Json:
        old = self.objects.get(key)
        if old is None and subresource:
            raise AnswerError(404, "NotFound", f"{key[2]} not found")
        if old is None:
            return self._create(key[0], key[1], body)
        merged = _merged(old, body)
        return copy.deepcopy(old) if merged == old else self._store(key, merged, "MODIFIED")

    async def events(
        self, path: str, query: Mapping[str, str], *, accept: str = "application/json"
    ) -> AsyncGenerator[Json, None]:
        await asyncio.sleep(0)
        self.requests.append(("WATCH", path))
        if self.down:
            raise UnreachableError("https://fake does not answer: refused")
        collection, _, _, _ = self._resolve(path)
        version, selector = int(query["resourceVersion"]), query.get("fieldSelector", "")
        if version < self.compacted:
            yield {
                "type": "ERROR",
                "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"},
            }
            return
        watch = _Watch(collection, selector)
        for number, where, event in self.history:
            if number > version and where == collection and _selected(selector, event["object"]):
                watch.queue.put_nowait(copy.deepcopy(event))
        self.watches.append(watch)
        try:
            while (item := await watch.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.watches.remove(watch)


def _merged(old: Json, patch: Json) -> Json:
    """RFC 7396."""
    new = dict(old)
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        elif isinstance(value, dict):
            before = new.get(name)
            new[name] = _merged(before if isinstance(before, dict) else {}, value)
        else:
            new[name] = value
    return new


def _selected(selector: str, value: Json) -> bool:
    if not selector:
        return True
    path, _, wanted = selector.partition("=")
    found: Any = value
    for part in path.split("."):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return bool(found == wanted)
