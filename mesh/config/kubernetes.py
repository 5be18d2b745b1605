# SPDX-License-Identifier: Apache-2.0
"""The objects of an API server as one set, followed as they change.

The same snapshots as of a directory (`mesh.config.source`): the first comes when every
kind was listed, so that half a cluster is never taken for the whole; those after it
bring what changed within a moment together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mesh.config.kube_api import KubeApi
from mesh.config.kube_reflector import DEFINITIONS, Definitions, Reflector
from mesh.config.kube_store import Kind
from mesh.config.objects import ObjectKey, RawObject, Rejection
from mesh.config.source import Snapshot
from mesh.runtime.clock import Clock, SystemClock
from mesh.runtime.tasks import TaskOwner, create_task

DEBOUNCE_S = 0.1
"""Changes within so long of the first come in one snapshot."""


class KubernetesSource:
    """Follows some kinds; one `watch` at a time."""

    def __init__(
        self,
        api: KubeApi,
        kinds: Sequence[Kind],
        *,
        clock: Clock | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._api = api
        self._kinds = tuple(kinds)
        self._clock = clock or SystemClock()
        self._chance = chance or random.Random()
        self._changed = asyncio.Event()
        self._reflectors: list[Reflector] = []
        self._all: list[Reflector] = []

    async def watch(self) -> AsyncIterator[Snapshot]:
        """Yield a snapshot when every kind was read, and after each change.

        Only a bug ends it by an exception: what the server refuses is tried again (see `describe`).
        """
        owner = TaskOwner("kubernetes source")
        failed: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                failed.append(error)
                self._changed.set()

        try:
            for reflector in self._make_reflectors():
                name = f"follow {reflector.kind}"
                create_task(reflector.run(), name=name, owner=owner).add_done_callback(ended)
            while True:
                await self._changed.wait()
                if failed:
                    raise failed[0]
                if not all(reflector.listed for reflector in self._reflectors):
                    self._changed.clear()
                    continue
                await asyncio.sleep(DEBOUNCE_S)
                self._changed.clear()
                yield self._snapshot()
        finally:
            await owner.close()

    def describe(self) -> list[dict[str, Any]]:
        """Return how each kind is followed, for an admin page."""
        return [
            {
                "kind": str(reflector.kind),
                "objects": len(reflector.store.objects),
                "state": _state(reflector),
                "failure": reflector.failure,
                "failingSeconds": reflector.failing_for_s,
                "resourceVersion": reflector.store.resource_version,
            }
            for reflector in self._all
        ]

    def _make_reflectors(self) -> list[Reflector]:
        definitions: Definitions | None = None
        extra: list[Reflector] = []
        if any(kind.custom for kind in self._kinds):
            definitions = Definitions()
            extra.append(self._definitions_reflector(definitions))
        self._reflectors = [
            Reflector(
                self._api,
                kind,
                clock=self._clock,
                chance=self._chance,
                on_change=self._changed.set,
                definitions=definitions,
            )
            for kind in self._kinds
        ]
        self._all = [*extra, *self._reflectors]
        return self._all

    def _definitions_reflector(self, definitions: Definitions) -> Reflector:
        def changed() -> None:
            definitions.update(frozenset(key.name for key in reflector.store.objects))

        reflector = Reflector(
            self._api,
            DEFINITIONS,
            clock=self._clock,
            chance=self._chance,
            on_change=changed,
            metadata_only=True,
        )
        return reflector

    def _snapshot(self) -> Snapshot:
        objects: dict[ObjectKey, RawObject] = {}
        rejections: list[Rejection] = []
        for reflector in self._reflectors:
            objects.update(reflector.store.objects)
            rejections += reflector.store.rejections.values()
        return Snapshot(objects=objects, rejections=tuple(rejections))


def _state(reflector: Reflector) -> str:
    if reflector.absent:
        return "not installed"
    return "followed" if reflector.listed else "not read yet"
