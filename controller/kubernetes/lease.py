# SPDX-License-Identifier: Apache-2.0
"""Which replica writes: one holds a Lease and renews it; the others wait until it is let go or not renewed.

Times of the holder are not compared with our clock: a lease counts from when we saw it
change (as client-go's leader election), so clocks may differ.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.config.kube_api import AnswerError, KubeApi, KubeError
from mesh.runtime.clock import Clock

LEASE = "ambit-controller"
DURATION_S = 15.0
"""So long after its last renewal another replica may take the lease."""
RENEW_S = 10.0
"""A holder that could not renew for so long stops writing: before anyone else can begin."""
EVERY_S = 2.0
_NOT_FOUND, _CONFLICT = 404, 409
_log = logging.getLogger("controller.lease")


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as it was last seen to change."""

    version: str
    at_s: float
    """Monotonic seconds."""


def may_take(spec: Mapping[str, Any], seen: Seen, me: str, now_s: float) -> bool:
    """Whether a lease is ours, nobody's or its holder's no more."""
    holder = spec.get("holderIdentity")
    if not holder or holder == me:
        return True
    duration = spec.get("leaseDurationSeconds")
    valid_s = float(duration) if isinstance(duration, int) and duration > 0 else DURATION_S
    return now_s - seen.at_s > valid_s


class Leadership:
    """Runs for one Lease; `leading` says whether we may write now."""

    def __init__(self, api: KubeApi, namespace: str, me: str, clock: Clock) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._me = me
        self._clock = clock
        self._seen: Seen | None = None
        self._renewed_s: float | None = None
        self._holder = ""
        self._failure = ""
        self._gained = asyncio.Event()

    @property
    def leading(self) -> bool:
        """Whether the lease is ours and was renewed recently enough."""
        return self._renewed_s is not None and self._clock.monotonic() - self._renewed_s < RENEW_S

    async def gained(self) -> None:
        """Return when we lead."""
        while not self.leading:
            self._gained.clear()
            await self._gained.wait()

    async def run(self) -> None:
        """Hold or wait for the lease until cancelled; then let it go."""
        try:
            while True:
                await self._once()
                await asyncio.sleep(EVERY_S)
        finally:
            if self.leading:
                await self._release()

    async def _once(self) -> None:
        was = self._renewed_s is not None
        began_s = self._clock.monotonic()
        try:
            ours = await self._try()
            self._failure = ""
        except KubeError as error:
            ours = self.leading
            if str(error) != self._failure:
                _log.warning("the lease %s/%s: %s; retrying", self._namespace, LEASE, error)
            self._failure = str(error)
        else:
            self._renewed_s = began_s if ours else None
        if ours:
            self._gained.set()
        else:
            self._renewed_s = None
        if ours and not was:
            _log.info("this replica (%s) writes statuses and objects", self._me)
        elif was and not ours:
            _log.warning("the lease is lost; this replica serves on, but writes no more")

    async def _try(self) -> bool:
        """Return whether the lease is ours after one attempt."""
        try:
            lease = await self._api.call("GET", f"{self._collection}/{LEASE}", timeout_s=RENEW_S / 2)
        except AnswerError as error:
            if error.status != _NOT_FOUND:
                raise
            return await self._write("POST", self._collection, self._lease(None))
        spec, version = lease.get("spec") or {}, str(lease["metadata"].get("resourceVersion"))
        now_s = self._clock.monotonic()
        if self._seen is None or self._seen.version != version:
            self._seen = Seen(version, now_s)
        holder = str(spec.get("holderIdentity") or "")
        if holder not in (self._holder, self._me):
            _log.info("the replica %s writes statuses and objects", holder or "(none)")
        self._holder = holder
        if not may_take(spec, self._seen, self._me, now_s):
            return False
        return await self._write("PUT", f"{self._collection}/{LEASE}", self._lease(lease))

    async def _write(self, method: str, path: str, body: Mapping[str, Any]) -> bool:
        try:
            await self._api.call(method, path, body=body, timeout_s=RENEW_S / 2)
        except AnswerError as error:
            if error.status == _CONFLICT:
                return False  # Another replica was faster.
            raise
        return True

    async def _release(self) -> None:
        self._renewed_s = None
        try:
            lease = await self._api.call("GET", f"{self._collection}/{LEASE}", timeout_s=1.0)
            if (lease.get("spec") or {}).get("holderIdentity") != self._me:
                return
            body = {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
            await self._write("PUT", f"{self._collection}/{LEASE}", body)
        except KubeError as error:
            _log.info("the lease is not let go, it ends in %g s: %s", DURATION_S, error)

    def _lease(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        now = datetime.datetime.fromtimestamp(self._clock.wall(), datetime.UTC)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((before or {}).get("spec") or {})
        if spec.get("holderIdentity") != self._me:
            spec["acquireTime"] = stamp
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (before is not None)
        spec |= {
            "holderIdentity": self._me,
            "leaseDurationSeconds": int(DURATION_S),
            "renewTime": stamp,
        }
        metadata = {"name": LEASE, "namespace": self._namespace}
        if before is not None:
            metadata["resourceVersion"] = str(before["metadata"].get("resourceVersion"))
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }
