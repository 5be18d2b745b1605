# SPDX-License-Identifier: Apache-2.0
"""Hands pods' network namespaces to ztunnel: one snapshot per session, then adds and removals.

A session is one ztunnel connection that passed `Gate`; sessions are numbered, and the
state machines of the pods hear the number of the current one. Adds go to the newest
session, removals to all, as during an upgrade two ztunnels run. The wire is `mesh.zds`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from daemonset.codes import Code
from daemonset.worker import StepError
from mesh.telemetry.logging import fields

_log = logging.getLogger("ambit.agent.zds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One pod as ztunnel gets it; without a descriptor it is told to keep what it has."""

    uid: str
    namespace: str
    name: str
    service_account: str
    netns_fd: int | None
    cookie: int


class Link(Protocol):
    """One ztunnel connection; strictly request and acknowledgement, so one call at a time."""

    async def add(self, offer: Offer, netns_fd: int) -> str:
        """Send AddWorkload with the descriptor; return the acknowledgement's error, empty for none."""
        ...

    async def keep(self, uid: str) -> str:
        """Send KeepWorkload, before the snapshot's end only."""
        ...

    async def delete(self, uid: str) -> str:
        """Send DelWorkload."""
        ...

    async def snapshot_sent(self) -> str:
        """Say that the snapshot is complete."""
        ...

    def close(self) -> None:
        """Cut the connection."""
        ...


class LinkLostError(Exception):
    """The connection ended; the peer's fault or end, safe to retry on the next one."""


@dataclass(slots=True)
class _Session:
    number: int
    link: Link
    peer: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    taken: dict[str, int] = field(default_factory=dict)
    """uid -> netns cookie of what this ztunnel acknowledged."""
    ready: bool = False
    """The snapshot is complete."""


class Handoff:
    """The sessions and what each ztunnel has; owned by the agent, loop thread only."""

    def __init__(
        self,
        *,
        offers: Callable[[], Mapping[str, Offer]],
        on_session: Callable[[int], None],
        ack_timeout_s: float,
    ) -> None:
        """Create it.

        `offers` gives the pods of a snapshot by uid; `on_session` hears the number of the
        current session, 0 for none.
        """
        self._offers = offers
        self._on_session = on_session
        self._ack_timeout_s = ack_timeout_s
        self._sessions: list[_Session] = []
        self._count = 0

    @property
    def current(self) -> int:
        """Number of the session that adds go to; 0: none."""
        ready = [s.number for s in self._sessions if s.ready]
        return ready[-1] if ready else 0

    def describe(self) -> list[dict[str, object]]:
        """Return the sessions for the admin page."""
        return [
            {"session": s.number, "peer": s.peer, "ready": s.ready, "pods": len(s.taken)}
            for s in self._sessions
        ]

    async def opened(self, link: Link, peer: str) -> None:
        """Serve a new, admitted connection: send the snapshot, then make it the current session.

        Returns when the snapshot is complete; the caller calls `lost` when the connection ends.
        """
        self._count += 1
        session = _Session(number=self._count, link=link, peer=peer)
        self._sessions.append(session)
        try:
            async with session.lock:
                for uid in list(self._offers()):
                    # Looked up again when its turn comes: it may have left or moved meanwhile.
                    if (offer := self._offers().get(uid)) is not None:
                        await self._snapshot_entry(session, offer)
                error = await self._bounded(link, link.snapshot_sent())
        except StepError as error_:
            _log.warning("ztunnel %s got no snapshot: %s", peer, error_.reason)
            link.close()
            return
        if error:
            _log.warning("ztunnel %s refused the snapshot: %s", peer, error)
            link.close()
            return
        session.ready = True
        _log.info(
            "ztunnel connected",
            extra=fields({"peer": peer, "session": session.number, "pods": len(session.taken)}),
        )
        self._on_session(self.current)

    async def _snapshot_entry(self, session: _Session, offer: Offer) -> None:
        if offer.netns_fd is None:
            error = await self._bounded(session.link, session.link.keep(offer.uid))
        else:
            error = await self._add(session, offer, offer.netns_fd)
        if not error:
            session.taken[offer.uid] = offer.cookie
        else:
            # The pod's own OFFER step meets the refusal again and reports it.
            _log.warning("ztunnel refused a pod of the snapshot: %s", error, extra=fields({"uid": offer.uid}))

    def lost(self, link: Link) -> None:
        """Note that a connection ended."""
        was = self.current
        ended = [s for s in self._sessions if s.link is link]
        self._sessions = [s for s in self._sessions if s.link is not link]
        for session in ended:
            _log.info("ztunnel disconnected", extra=fields({"peer": session.peer, "session": session.number}))
        if self.current != was:
            self._on_session(self.current)

    async def offer(self, offer: Offer) -> None:
        """Have the current ztunnel take a pod; returns at once if it has it already.

        Raises:
            StepError: ZTUNNEL_ABSENT, or ZTUNNEL_REFUSED with its words; safe to retry.
        """
        number = self.current
        session = next((s for s in self._sessions if s.number == number), None)
        if session is None:
            raise StepError(Code.ZTUNNEL_ABSENT, "no ztunnel is connected")
        async with session.lock:
            if session.taken.get(offer.uid) == offer.cookie:
                return
            assert offer.netns_fd is not None, "a pod is offered once its namespace is open"
            error = await self._add(session, offer, offer.netns_fd)
            if error:
                raise StepError(Code.ZTUNNEL_REFUSED, f"ztunnel answered: {error}")
            session.taken[offer.uid] = offer.cookie

    async def retract(self, uid: str) -> None:
        """Have every ztunnel let go of a pod; a lost connection has let go of it.

        Raises:
            StepError: ZTUNNEL_REFUSED with its words; safe to retry.
        """
        for session in list(self._sessions):
            async with session.lock:
                try:
                    error = await self._bounded(session.link, session.link.delete(uid))
                except StepError as lost:
                    if lost.code is Code.ZTUNNEL_ABSENT:
                        continue
                    raise
                if error and uid in session.taken:
                    raise StepError(Code.ZTUNNEL_REFUSED, f"ztunnel answered: {error}")
                session.taken.pop(uid, None)

    async def _add(self, session: _Session, offer: Offer, netns_fd: int) -> str:
        # A duplicate, so that no one can close or reuse the number before it is sent.
        duplicate = os.dup(netns_fd)
        try:
            return await self._bounded(session.link, session.link.add(offer, duplicate))
        finally:
            os.close(duplicate)

    async def _bounded(self, link: Link, call: Awaitable[str]) -> str:
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                return await call
        except TimeoutError as error:
            # Its late answer would be taken for that of the next request: the session is over.
            link.close()
            raise StepError(
                Code.ZTUNNEL_REFUSED, f"ztunnel did not answer within {self._ack_timeout_s:g} s"
            ) from error
        except LinkLostError as error:
            raise StepError(Code.ZTUNNEL_ABSENT, f"the connection to ztunnel was lost: {error}") from error
