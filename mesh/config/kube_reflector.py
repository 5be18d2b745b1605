# SPDX-License-Identifier: Apache-2.0
"""Follows one kind on an API server: list, watch, and again after whatever goes wrong.

Objects that were read stay until the server itself says that they are gone: an outage,
a refusal or an expired version changes nothing. Only a CustomResourceDefinition that is
known to be removed takes its objects along.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from mesh.config.kube_api import AnswerError, KubeApi, KubeError, UnreachableError, gather_pages
from mesh.config.kube_store import Kind, Store
from mesh.runtime.clock import Clock

_log = logging.getLogger("ambit.kubernetes")

PAGE = 500
"""Objects a page of a list."""
WATCH_S = (300, 600)
"""How long one watch is asked to last: spread, so that not all are renewed at once."""
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
STEADY_S = 10.0
"""A watch that lasted so long was good: the next failure counts as a first one."""
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_NOT_FOUND = 404

DEFINITIONS = Kind(
    group="apiextensions.k8s.io",
    versions=("v1",),
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
)


class Definitions:
    """Which CustomResourceDefinitions there are; `changed` is set anew with each change."""

    def __init__(self) -> None:
        self.known = False
        """They were listed."""
        self.names: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def update(self, names: frozenset[str]) -> None:
        """Take the names as they are now; called also when one of them changed in itself."""
        self.known = True
        self.names = names
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return at the next change, or when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return


def backoff_s(failures: int, chance: random.Random) -> float:
    """Return the wait after so many failures in a row (from 1): half fixed, half random."""
    longest_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 16))
    return longest_s / 2 + chance.random() * longest_s / 2


class Reflector:
    """Keeps one `Store` like the server's; `run` it as a task. `on_change` is told of each change."""

    def __init__(
        self,
        api: KubeApi,
        kind: Kind,
        *,
        clock: Clock,
        chance: random.Random,
        on_change: Callable[[], None],
        definitions: Definitions | None = None,
        metadata_only: bool = False,
    ) -> None:
        self.store = Store(kind)
        self.kind = kind
        self.listed = False
        """Its objects were read, or are known not to exist."""
        self.absent = False
        """Its definition is not installed."""
        self.failure = ""
        """Why it is not followed right now; empty: it is."""
        self._failing_since_s = 0.0
        self._api = api
        self._clock = clock
        self._chance = chance
        self._on_change = on_change
        self._definitions = definitions
        self._accepts = (METADATA_LIST, METADATA) if metadata_only else ("application/json",) * 2
        self._version = kind.versions[0]
        self._failures = 0
        self._absences = 0
        """Tries since its definition came without it being served."""
        self._watching_since_s: float | None = None

    @property
    def failing_for_s(self) -> float:
        """For how long it has not been followed; 0: it is."""
        return self._clock.monotonic() - self._failing_since_s if self.failure else 0.0

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                if not self.store.resource_version:
                    await self._list()
                if not self.absent:
                    await self._watch()
            except KubeError as error:
                await self._failed(error)

    async def _list(self) -> None:
        items, envelope = await self._read()
        if envelope is None:
            return
        changed = self.store.replace(items, envelope)
        if not self.store.resource_version:
            raise KubeError("the list has no resourceVersion")
        if self.absent:
            _log.info("%s is installed now; %d objects", self.kind, len(items))
        first, self.listed, self.absent = not self.listed, True, False
        self._absences = 0
        self._well()
        if changed or first:
            self._on_change()

    async def _read(self) -> tuple[list[Any], dict[str, Any] | None]:
        """List in the first version that is served; None: the kind is not installed."""
        refusal: AnswerError | None = None
        for version in self.kind.versions:
            try:
                found = await gather_pages(
                    self._api,
                    self.kind.path(version),
                    self.kind.selectors,
                    accept=self._accepts[0],
                    page=PAGE,
                )
            except AnswerError as error:
                if error.status != _NOT_FOUND:
                    raise
                refusal = error
                continue
            self._version = version
            return found
        assert refusal is not None
        await self._not_served(refusal)
        return [], None

    async def _not_served(self, refusal: AnswerError) -> None:
        """Find out whether the kind is not installed; return when it may be, else raise the refusal."""
        definitions = self._definitions
        if definitions is None or not self.kind.custom:
            raise refusal
        if not definitions.known:
            await definitions.wait()
        there = self.kind.definition in definitions.names
        if there and self.listed and not self.absent:
            raise refusal  # Its objects were read once: the server is not ready, they stay.
        if not self.absent:
            versions = " or ".join(self.kind.versions)
            lack = f"is installed, but not in version {versions}" if there else "is not installed"
            _log.info("%s %s; its objects are followed once it is", self.kind, lack)
        changed = self.store.clear() or not self.listed
        self.absent = self.listed = True
        self._well()
        if changed:
            self._on_change()
        # One that is there already is being established, or lacks the version: look again by time, too.
        self._absences = self._absences + 1 if there else 0
        await definitions.wait(backoff_s(self._absences, self._chance) if there else None)

    async def _watch(self) -> None:
        self._watching_since_s = self._clock.monotonic()
        query = {
            **self.kind.selectors,
            "resourceVersion": self.store.resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._chance.randint(*WATCH_S)),
        }
        events = self._api.events(self.kind.path(self._version), query, accept=self._accepts[1])
        heard = False
        async with aclosing(events):
            async for event in events:
                if self.store.apply(event):
                    self._on_change()
                if not heard:
                    heard, self._failures = True, 0
                    self._well()
        if not heard and not self._steady():
            raise UnreachableError("the watch ended at once")

    def _steady(self) -> bool:
        began_s = self._watching_since_s
        return began_s is not None and self._clock.monotonic() - began_s >= STEADY_S

    def _well(self) -> None:
        if self.failure:
            _log.info("%s: followed again", self.kind)
        self.failure = ""

    async def _failed(self, error: KubeError) -> None:
        self._failures = 1 if self._steady() else self._failures + 1
        self._watching_since_s = None
        if _lost(error) and self.store.resource_version:
            # The watch cannot go on from here: a list finds out what there is.
            self.store.resource_version = ""
            _log.info("%s: %s; listing anew", self.kind, error)
            if self._failures == 1:
                return
        wait_s = backoff_s(self._failures, self._chance)
        if isinstance(error, AnswerError) and error.retry_after_s is not None:
            wait_s = max(wait_s, min(error.retry_after_s, RETRY_MAX_S))
        if not self.failure:
            self._failing_since_s = self._clock.monotonic()
            have = "nothing was read yet"
            if self.listed:
                have = f"the {len(self.store.objects)} objects read before stay in force"
            _log.warning("%s: %s; %s, retrying%s", self.kind, error, have, _advice(error, self.kind))
        self.failure = str(error)
        await asyncio.sleep(wait_s)


def _lost(error: KubeError) -> bool:
    """Whether a watch cannot go on from its resourceVersion."""
    if isinstance(error, AnswerError):
        return error.expired or error.status == _NOT_FOUND
    return not isinstance(error, UnreachableError)


def _advice(error: KubeError, kind: Kind) -> str:
    if isinstance(error, AnswerError) and error.status in (401, 403):
        return f"; the account needs the verbs list and watch on {kind.plural}"
    return ""
