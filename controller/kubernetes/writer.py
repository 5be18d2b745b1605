# SPDX-License-Identifier: Apache-2.0
"""Writes what the translation wants to the API server: waypoints' objects, root certificates, statuses.

Only while this replica leads. What fails is tried again from the newest state; an object
of that name which somebody else made is left alone, loudly. Objects of a Gateway that is
gone are removed by Kubernetes (owner references).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any

from controller.kubernetes.kinds import MANAGED_LABEL, ROOT_CONFIG_MAP
from controller.kubernetes.lease import Leadership
from controller.kubernetes.plan import Write, plan
from controller.translate.gateway import Status
from controller.translate.waypoint_objects import Object
from mesh.config.kube_api import APPLY_PATCH, MERGE_PATCH, AnswerError, KubeApi, KubeError
from mesh.config.kube_reflector import backoff_s
from mesh.config.objects import ObjectKey, RawObject
from mesh.runtime.clock import Clock

FIELD_MANAGER = "ambit-controller"
RESYNC_S = 30.0
"""How often wanted and present are compared when nothing happens."""
_NOT_FOUND, _CONFLICT = 404, 409
_log = logging.getLogger("controller.writer")


class Writer:
    """The cluster as the place of what is generated (`controller.platform.Output`)."""

    def __init__(
        self, api: KubeApi, leadership: Leadership, clock: Clock, chance: random.Random | None = None
    ) -> None:
        self._api = api
        self._leadership = leadership
        self._clock = clock
        self._chance = chance or random.Random()
        self._live: Mapping[ObjectKey, RawObject] = {}
        self._objects: tuple[Object, ...] = ()
        self._statuses: tuple[Status, ...] = ()
        self._wake = asyncio.Event()
        self._done: dict[tuple[ObjectKey, bool], tuple[str, str]] = {}
        """What was written last, and the version that came of it: the watch may lag behind."""
        self._told: dict[ObjectKey, str] = {}

    def with_statuses(self, objects: Mapping[ObjectKey, RawObject]) -> dict[ObjectKey, RawObject]:
        """Return the objects, whose statuses are the cluster's."""
        self._live = objects
        return dict(objects)

    def write(self, objects: Iterable[Object], statuses: Iterable[Status], now_s: float) -> None:
        """Have the cluster be like this; returns at once."""
        self._objects, self._statuses = tuple(objects), tuple(statuses)
        self._wake.set()

    async def run(self) -> None:
        """Write whenever something differs and we lead, until cancelled."""
        failures = 0
        while True:
            await self._leadership.gained()
            self._wake.clear()
            failures = 0 if await self._round() else failures + 1
            try:
                async with asyncio.timeout(backoff_s(failures, self._chance) if failures else RESYNC_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> bool:
        """Write what differs now; return whether nothing has to be tried again soon."""
        writes = plan(self._objects, self._statuses, self._live, self._clock.wall())
        good = True
        for write in writes:
            if not self._leadership.leading:
                return True
            if not self._is_done(write):
                good = await self._try(write) and good
        return good

    def _is_done(self, write: Write) -> bool:
        known = self._done.get((write.key, write.status))
        there = self._live.get(write.key)
        if known is None or known[0] != write.digest:
            return False
        version = str(there.metadata.get("resourceVersion")) if there is not None else ""
        if not (version.isdigit() and known[1].isdigit()):
            return version == known[1]
        return int(version) <= int(known[1])

    async def _try(self, write: Write) -> bool:
        try:
            answer = await self._send(write)
        except AnswerError as error:
            if error.status == _NOT_FOUND and write.status:
                return True  # Deleted meanwhile.
            if error.status == _CONFLICT and write.status:
                return False  # Changed meanwhile: from its newer version, soon.
            self._tell(write, f"{error}{_advice(error)}")
            return False
        except KubeError as error:
            self._tell(write, str(error))
            return False
        if answer is None:
            return True
        self._told.pop(write.key, None)
        version = str((answer.get("metadata") or {}).get("resourceVersion") or "")
        self._done[(write.key, write.status)] = (write.digest, version)
        _log.info("%s: %s written", write.key, "status" if write.status else "object")
        return True

    async def _send(self, write: Write) -> dict[str, Any] | None:
        if write.status:
            query = {"fieldManager": FIELD_MANAGER}
            return await self._api.call(
                "PATCH", write.path, query=query, body=write.body, content_type=MERGE_PATCH
            )
        if not write.exists and not await self._may_create(write):
            return None
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._api.call(
            "PATCH", write.path, query=query, body=write.body, content_type=APPLY_PATCH
        )

    async def _may_create(self, write: Write) -> bool:
        """Whether nobody else has an object of this name: only our own are followed."""
        if write.key.name == ROOT_CONFIG_MAP:
            return True
        try:
            there = await self._api.call("GET", write.path)
        except AnswerError as error:
            if error.status == _NOT_FOUND:
                return True
            raise
        if MANAGED_LABEL in (there["metadata"].get("labels") or {}):
            return True
        self._tell(write, "exists and is not of this Gateway; rename one")
        return False

    def _tell(self, write: Write, reason: str) -> None:
        """Log each new reason once."""
        if self._told.get(write.key) != reason:
            self._told[write.key] = reason
            _log.warning("%s cannot be written: %s", write.key, reason)


def _advice(error: AnswerError) -> str:
    return "; give the controller's account the verbs of its ClusterRole" if error.status == 403 else ""
