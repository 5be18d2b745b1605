# SPDX-License-Identifier: Apache-2.0
"""Keeps a valid certificate for each identity that the node needs.

One task per identity fetches, rests until half of the lifetime is over and fetches again.
A failure keeps the certificate in hand until it expires and not a second longer.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh.identity.ca_client import CaError
from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import SpiffeId
from mesh.runtime.clock import Clock
from mesh.runtime.tasks import TaskOwner, create_task

MAX_CONCURRENT_FETCHES = 8
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 150.0
BACKOFF_JITTER = 0.2
"""Source of these four: Istio's ztunnel."""
REFRESH_JITTER = 0.05
"""Part of the lifetime by which a refresh is moved to either side, so that nodes do not ask in step."""
MIN_REST_S = 0.5
"""However short the certificates, an authority is not asked more often for one identity."""
MAX_NAP_S = 60.0
"""The wall clock is looked at again after this long: a suspended machine wakes with old certificates."""

_log = logging.getLogger("ambit.identity")


class CertificateUnavailableError(Exception):
    """There is no valid certificate for an identity; says why and when the next try is."""


class State(enum.Enum):
    """What is done about an identity now."""

    FETCHING = "fetching"
    RESTING = "resting"
    BACKING_OFF = "backing_off"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """One identity for admin pages and metrics."""

    identity: SpiffeId
    state: State
    certificate: WorkloadCertificate | None
    error: str
    """Why the last fetch failed; empty after a success."""
    failures: int
    """Failed fetches in a row."""


@dataclass(slots=True, eq=False)
class _Entry:
    identity: SpiffeId
    state: State = State.FETCHING
    certificate: WorkloadCertificate | None = None
    error: str = ""
    failures: int = 0
    retry_at: float = 0.0
    urgent: bool = False
    """Somebody waits for it."""
    waiters: list[asyncio.Future[WorkloadCertificate]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class CertificateManager:
    """Certificates by identity; loop thread only. `close` forgets all of them."""

    def __init__(
        self,
        fetch: Callable[[SpiffeId], Awaitable[WorkloadCertificate]],
        clock: Clock,
        *,
        max_concurrent: int = MAX_CONCURRENT_FETCHES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Create it; `fetch` raises `CaError` for a failure and bounds its own time."""
        self._fetch = fetch
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._slots = _Slots(max_concurrent)
        self._entries: dict[SpiffeId, _Entry] = {}
        self._callbacks: list[Callable[[WorkloadCertificate], None]] = []
        self._owner = TaskOwner("certificates")

    def on_update(self, callback: Callable[[WorkloadCertificate], None]) -> None:
        """Call `callback` with each certificate that is fetched from now on; it must not wait."""
        self._callbacks.append(callback)

    async def get(self, identity: SpiffeId) -> WorkloadCertificate:
        """Return a certificate that is valid now, waiting for a fetch if there is none.

        All who wait for one identity share one fetch. While failed fetches are backed off
        from, the failure is told at once.

        Raises:
            CertificateUnavailableError: the fetch failed, or the identity was forgotten meanwhile.
        """
        entry = self._ensure(identity)
        held = entry.certificate
        if held is not None and not held.expired(self._clock.wall()):
            return held
        if entry.state is State.BACKING_OFF:
            wait_s = max(0.0, entry.retry_at - self._clock.monotonic())
            raise CertificateUnavailableError(f"{entry.error} (next try in {wait_s:.0f} s)")
        if entry.state is State.RESTING:
            self._start(entry)
        waiter: asyncio.Future[WorkloadCertificate] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        entry.urgent = True
        try:
            return await waiter
        finally:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)

    def prefetch(self, identity: SpiffeId) -> None:
        """See to it that there is a certificate before somebody waits for it."""
        self._ensure(identity)

    def forget(self, identity: SpiffeId) -> None:
        """Drop the identity's certificate and key and refresh it no more; an unknown one is no error."""
        entry = self._entries.pop(identity, None)
        if entry is None:
            return
        if entry.task is not None:
            entry.task.cancel()
        entry.certificate = None
        self._fail(entry, f"{identity} was forgotten: no pod of this node has it any more")

    def statuses(self) -> tuple[CertificateStatus, ...]:
        """Return what there is, ordered by identity."""
        return tuple(
            CertificateStatus(
                identity=entry.identity,
                state=entry.state,
                certificate=entry.certificate,
                error=entry.error,
                failures=entry.failures,
            )
            for entry in sorted(self._entries.values(), key=lambda entry: str(entry.identity))
        )

    async def close(self) -> None:
        """Forget every identity and end every fetch."""
        for identity in list(self._entries):
            self.forget(identity)
        await self._owner.close()

    def _ensure(self, identity: SpiffeId) -> _Entry:
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry(identity)
            self._start(entry)
        return entry

    def _start(self, entry: _Entry) -> None:
        if entry.task is not None:
            entry.task.cancel()
        entry.state = State.FETCHING
        entry.task = create_task(
            self._maintain(entry), name=f"certificate {entry.identity}", owner=self._owner
        )

    async def _maintain(self, entry: _Entry) -> None:
        while True:
            entry.state = State.FETCHING
            if await self._attempt(entry):
                await self._rest(entry)
            else:
                await self._back_off(entry)

    async def _attempt(self, entry: _Entry) -> bool:
        await self._slots.acquire(entry)
        try:
            certificate = await self._fetch(entry.identity)
        except CaError as error:
            entry.error = str(error)
        except Exception as error:  # noqa: BLE001  # a defect must not end the refreshing of an identity
            _log.exception("fetching a certificate for %s failed", entry.identity)
            entry.error = f"internal error: {error!r}"
        else:
            self._accept(entry, certificate)
            return True
        finally:
            self._slots.release()
        entry.failures += 1
        entry.state = State.BACKING_OFF
        self._fail(entry, entry.error)
        return False

    def _accept(self, entry: _Entry, certificate: WorkloadCertificate) -> None:
        entry.certificate, entry.error, entry.failures = certificate, "", 0
        entry.state, entry.urgent = State.RESTING, False
        waiters, entry.waiters = entry.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(certificate)
        for callback in self._callbacks:
            try:
                callback(certificate)
            except Exception:  # noqa: BLE001  # nor may a listener's
                _log.exception("telling of a certificate for %s failed", entry.identity)

    def _fail(self, entry: _Entry, why: str) -> None:
        entry.urgent = False
        waiters, entry.waiters = entry.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(CertificateUnavailableError(why))

    async def _rest(self, entry: _Entry) -> None:
        """Wait until about half of what is left of the lifetime is over, by the wall clock."""
        certificate = entry.certificate
        assert certificate is not None
        now = self._clock.wall()
        refresh_at = refresh_at_s(now, certificate.not_after_s, self._draw())
        while (left := refresh_at - self._clock.wall()) > 0:
            await self._sleep(min(left, MAX_NAP_S))

    async def _back_off(self, entry: _Entry) -> None:
        delay_s = backoff_s(entry.failures, self._draw())
        entry.retry_at = self._clock.monotonic() + delay_s
        held = entry.certificate
        left = "none in hand" if held is None else f"{held.not_after_s - self._clock.wall():.0f} s left"
        _log.warning(
            "no certificate for %s: %s; %s, trying again in %.1f s",
            entry.identity,
            entry.error,
            left,
            delay_s,
        )
        await self._sleep(delay_s)


class _Slots:
    """A bound on concurrent fetches; whom somebody waits for goes first."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._queue: list[tuple[_Entry, asyncio.Future[None]]] = []

    async def acquire(self, entry: _Entry) -> None:
        """Wait for a slot."""
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((entry, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The slot was handed over in the same turn of the loop: pass it on.
                self.release()
            raise
        finally:
            self._queue = [each for each in self._queue if each[1] is not turn]

    def release(self) -> None:
        """Give the slot to the first who is waited for, else to the first."""
        waiting = [(entry, turn) for entry, turn in self._queue if not turn.done()]
        if not waiting:
            self._free += 1
            return
        _, turn = next((each for each in waiting if each[0].urgent), waiting[0])
        turn.set_result(None)


def refresh_at_s(now_s: float, not_after_s: float, draw: float) -> float:
    """Return when to fetch anew a certificate got at `now_s`; `draw` is in [0, 1).

    Counted from when it came, not from its notBefore, which authorities put into the past.
    """
    fraction = 0.5 + (draw - 0.5) * 2 * REFRESH_JITTER
    return now_s + max(MIN_REST_S, (not_after_s - now_s) * fraction)


def backoff_s(failures: int, draw: float) -> float:
    """Return how long to wait after `failures` in a row (at least one); `draw` is in [0, 1)."""
    plain = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 20))
    return plain * (1 + (draw - 0.5) * 2 * BACKOFF_JITTER)
