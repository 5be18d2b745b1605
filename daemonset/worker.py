# SPDX-License-Identifier: Apache-2.0
"""Drives one pod's state machine: does its steps one at a time, waits between tries.

What a step does is behind `Steps`; what comes next is decided by `daemonset.enroll`.
Loop thread only; the registry owns workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from daemonset import enroll
from daemonset.codes import Code
from daemonset.connections import TcpSocket
from daemonset.enroll import Enrollment, Step
from daemonset.netns import Netns, Proof
from daemonset.pods import NON_TCP_ANNOTATION, RESOLVERS_ANNOTATION, Pod
from daemonset.store import Remembered
from mesh.model.address import IPAddress
from mesh.runtime.clock import Clock
from mesh.telemetry.logging import fields

_log = logging.getLogger("ambit.agent.pod")


class StepError(Exception):
    """A step failed; says why, and by its code what a person can do."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class Subject:
    """What the steps of one pod share; written by them and, for `pod` and `cni_*`, by the worker."""

    pod: Pod
    cni_netns: str = ""
    """Path that the CNI gave; empty: find it by process."""
    cni_addresses: tuple[IPAddress, ...] = ()
    remembered: Remembered | None = None
    netns: Netns | None = None
    proof: Proof | None = None
    older: tuple[TcpSocket, ...] = ()
    """Connections that were open when the pod was captured: they go on in plain."""
    older_of: int = 0
    """Netns cookie that `older` was read of; 0: not read."""
    footprint: frozenset[Step] = field(default_factory=frozenset)
    """The state's, for steps and snapshots that must know what may be in place."""
    gone: bool = False
    """The state's: the pod's processes have ended."""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The addresses to enrol: the object's, else the CNI's, else those known from before."""
        if self.pod.addresses:
            return self.pod.addresses
        if self.cni_addresses:
            return self.cni_addresses
        return self.remembered.addresses if self.remembered is not None else ()

    @property
    def wish(self) -> tuple[object, ...]:
        """All that a record is made of; another value means that the record is to be made again."""
        pod = self.pod
        # Once it runs, its processes show the resolv.conf that they have.
        running = pod.phase == "Running"
        non_tcp = pod.annotations.get(NON_TCP_ANNOTATION)
        resolvers = pod.annotations.get(RESOLVERS_ANNOTATION)
        return self.addresses, pod.nameservers, resolvers, non_tcp, self.cni_netns, running


class Steps(Protocol):
    """Does one step for one pod."""

    async def do(self, step: Step, subject: Subject) -> enroll.NetnsReplaced | None:
        """Do it; idempotent. NetnsReplaced: PROVE found the pod in a new namespace.

        Raises:
            StepError: it failed, and may have left part of its work.
        """
        ...


class PodWorker:
    """One pod from its first decision until nothing of it is left."""

    def __init__(
        self,
        subject: Subject,
        state: Enrollment,
        steps: Steps,
        clock: Clock,
        on_forgotten: Callable[[PodWorker], None],
    ) -> None:
        self.subject = subject
        self.state = state
        subject.footprint = state.footprint
        self._steps = steps
        self._clock = clock
        self._on_forgotten = on_forgotten
        self._wake = asyncio.Event()
        self._changed: set[asyncio.Event] = set()
        self._retry_at_s = 0.0
        self.since_s = clock.wall()
        """When it last became enrolled, or was first seen."""

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return self.subject.pod.uid

    def want(self, pod: Pod, *, netns: str = "", addresses: tuple[IPAddress, ...] = ()) -> None:
        """Have the pod in the mesh, as it is now; `netns` and `addresses` as the CNI said.

        What the CNI says is proven again even if it is what was known: a path may name another
        namespace than before.
        """
        subject = self.subject
        before = subject.wish
        subject.pod = pod
        subject.cni_netns = netns or subject.cni_netns
        subject.cni_addresses = addresses or subject.cni_addresses
        changed = bool(netns) or subject.wish != before
        if changed or not self.state.wanted:
            self.event(enroll.Wanted(changed=changed))

    def release(self, *, gone: bool) -> None:
        """Have the pod out of the mesh; `gone`: nothing of it runs any more."""
        if self.state.wanted or (gone and not self.state.gone):
            self.event(enroll.Unwanted(gone=gone))

    def event(self, event: enroll.Event) -> None:
        """Take note of something that happened."""
        was = self.state.enrolled
        self.state = enroll.apply(self.state, event)
        enroll.validate(self.state)
        self.subject.footprint, self.subject.gone = self.state.footprint, self.state.gone
        if self.state.enrolled and not was:
            self.since_s = self._clock.wall()
            _log.info("enrolled", extra=fields(self._fields()))
        self._wake.set()
        for waiter in self._changed:
            waiter.set()

    async def wait_until(self, condition: Callable[[Enrollment], bool]) -> None:
        """Return as soon as the state meets `condition`."""
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            while not condition(self.state):
                changed.clear()
                await changed.wait()
        finally:
            self._changed.discard(changed)

    def explain(self) -> str:
        """Say in words where the pod stands."""
        state = self.state
        if state.failure is not None:
            return f"{state.failure.step.value} failed: {state.failure.reason} [{state.failure.code}]"
        if state.enrolled:
            return "enrolled"
        if state.running is not None:
            return f"{state.running.value} is being done"
        if state.wanted and not state.session:
            kept = (
                "captured; connections are refused until it comes" if state.captured else "not captured yet"
            )
            return f"waits for ztunnel ({kept})"
        return "is about to go on" if not state.forgotten else "out of the mesh"

    async def run(self) -> None:
        """Do steps until nothing is left of the pod."""
        while not self.state.forgotten:
            self._wake.clear()
            ticket = enroll.next_step(self.state)
            if ticket is not None:
                await self._do(ticket)
            else:
                await self._wait()
        _log.info("left the mesh", extra=fields(self._fields()))
        self._on_forgotten(self)

    async def _do(self, ticket: enroll.Ticket) -> None:
        self.state = enroll.begin(self.state, ticket)
        self.subject.footprint = self.state.footprint
        try:
            replaced = await self._steps.do(ticket.step, self.subject)
        except StepError as error:
            self._fail(ticket, error.code, error.reason)
            return
        except Exception as error:  # noqa: BLE001 - see below
            # A defect in one step must not end the pod's retries, nor leave it half done unseen.
            _log.exception("%s failed unexpectedly", ticket.step.value, extra=fields(self._fields()))
            self._fail(ticket, Code.STEP_DEFECT, repr(error))
            return
        if replaced is not None:
            self.event(replaced)
        self.event(enroll.StepSucceeded(ticket=ticket))

    def _fail(self, ticket: enroll.Ticket, code: Code, reason: str) -> None:
        self.event(enroll.StepFailed(ticket=ticket, code=code, reason=reason))
        failure = self.state.failure
        if failure is None:
            return
        self._retry_at_s = self._clock.monotonic() + failure.delay_s
        # One line when a step begins to fail, then ever more rarely: at 1, 2, 4, 8... tries.
        if failure.attempts & (failure.attempts - 1) == 0:
            _log.warning(
                "%s failed: %s; %s",
                ticket.step.value,
                failure.reason,
                failure.code.remedy,
                extra=fields(self._fields() | {"code": str(failure.code), "attempts": failure.attempts}),
            )

    async def _wait(self) -> None:
        if self.state.failure is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, self._retry_at_s - self._clock.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            self.event(enroll.RetryDue())

    def _fields(self) -> dict[str, str | int | float | bool | None]:
        return {"pod": self.subject.pod.key, "uid": self.uid}


def recovered_state(*, captured: bool, published: bool) -> Enrollment:
    """Return the state of a pod that an earlier agent knew: all it did may be in place, each step is redone.

    It was in the mesh, so it is captured before anything else even when its pins are lost.
    """
    footprint = {Step.PROVE, Step.ROUTE, Step.OFFER}
    if captured:
        footprint |= {Step.CAPTURE_IN, Step.CAPTURE_OUT}
    if published:
        footprint.add(Step.PUBLISH)
    return replace(Enrollment(), closed=captured or published, footprint=frozenset(footprint))
