# SPDX-License-Identifier: Apache-2.0
"""What each enrolment step does: the agent's hands on maps, links, namespaces and ztunnel.

Every step may be repeated, and a releasing step succeeds when there is nothing left to
release. The parts that need a kernel are behind Protocols, so that the order and the
error mapping are tested without one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from daemonset import enroll, netns
from daemonset.codes import Code
from daemonset.connections import TcpSocket
from daemonset.enroll import Step
from daemonset.handoff import Handoff, Offer
from daemonset.pods import NON_TCP_ANNOTATION
from daemonset.store import Enrollments, PodFiles, Remembered
from daemonset.worker import StepError, Subject
from mesh.model.address import IPAddress
from mesh.runtime.clock import Clock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.logging import fields

_log = logging.getLogger("ambit.agent.steps")

LISTENER_POLL_S = 0.02
MAX_LISTED = 10
"""Connections that one log line names."""
LISTENER_TIMEOUT_S = 1.0
"""For a ztunnel that acknowledges before it listens; the table knows a listener from listen() on."""


class Maps(Protocol):
    """The node's maps and per-pod links as the steps use them (`daemonset.pins`)."""

    def allocate_workload_id(self) -> int:
        """Return an id that was never used."""
        ...

    def ztunnel(self) -> frozenset[int]:
        """Return ztunnel's cgroup ids."""
        ...

    def record_id(self, cookie: int) -> int | None:
        """Return the workload id of a cookie's record, if it has one."""
        ...

    def write_record(self, pod: Remembered, *, deny_non_tcp: bool) -> None:
        """Write a pod's record."""
        ...

    def remove_record(self, cookie: int) -> None:
        """Remove a pod's record, if there is one."""
        ...

    def missing_listeners(self, cookie: int, addresses: Iterable[IPAddress]) -> Collection[str]:
        """Return which kinds of ztunnel's listeners are not in the map."""
        ...

    def attach_lookup(self, uid: str, netns_fd: int, cookie: int) -> None:
        """Attach the pod's sk_lookup link."""
        ...

    def detach_lookup(self, uid: str) -> None:
        """Detach the pod's sk_lookup link, if there is one."""
        ...


class Network(Protocol):
    """What is done with network namespaces (`KernelNetwork`); calls block."""

    def find(self, subject: Subject) -> tuple[netns.Netns, netns.Proof]:
        """Find and prove the pod's namespace."""
        ...

    def reopen(self, subject: Subject) -> netns.Netns | None:
        """Open the namespace that the pod was last known by; None: it is gone."""
        ...

    def resolvers(self, subject: Subject) -> tuple[IPAddress, ...]:
        """Return the pod's nameservers."""
        ...

    def install_route(self, space: netns.Netns) -> None:
        """Set the mark route."""
        ...

    def older(
        self, space: netns.Netns, addresses: Collection[IPAddress], ztunnels: Collection[int]
    ) -> tuple[TcpSocket, ...]:
        """Return the connections that were made before capture, asked just after it."""
        ...

    def end(self, netns_fd: int, sockets: Collection[TcpSocket]) -> int:
        """End connections; return how many were still there."""
        ...

    def remove_route(self, space: netns.Netns) -> None:
        """Remove the mark route."""
        ...


@dataclass(slots=True, kw_only=True)
class AgentSteps:
    """Implements `daemonset.worker.Steps`; one instance for all pods."""

    maps: Maps
    network: Network
    handoff: Handoff
    pod_files: PodFiles
    enrollments: Enrollments
    clock: Clock
    tasks: TaskOwner
    """Holds the waits for plaintext deadlines."""
    grace_s: float
    plaintext_deadline_s: float

    async def do(self, step: Step, subject: Subject) -> enroll.NetnsReplaced | None:
        """Do one step (see `Steps.do`)."""
        if step is Step.PROVE:
            return await self._prove(subject)
        code, work = {
            Step.ROUTE: (Code.ROUTING_FAILED, self._route),
            Step.OFFER: (Code.ZTUNNEL_REFUSED, self._offer),
            Step.LISTEN: (Code.LISTENERS_MISSING, self._listen),
            Step.CAPTURE_IN: (Code.LOOKUP_FAILED, self._capture_in),
            Step.CAPTURE_OUT: (Code.RECORD_FAILED, self._capture_out),
            Step.PUBLISH: (Code.PUBLISH_FAILED, self._publish),
            Step.WITHDRAW: (Code.RELEASE_FAILED, self._withdraw),
            Step.GRACE: (Code.RELEASE_FAILED, self._grace),
            Step.RELEASE_OUT: (Code.RELEASE_FAILED, self._release_out),
            Step.RELEASE_IN: (Code.RELEASE_FAILED, self._release_in),
            Step.RETRACT: (Code.RELEASE_FAILED, self._retract),
            Step.UNROUTE: (Code.RELEASE_FAILED, self._unroute),
            Step.FORGET: (Code.RELEASE_FAILED, self._forget),
        }[step]
        try:
            await work(subject)
        except netns.NetnsError as error:
            raise StepError(error.code, error.reason) from error
        except OSError as error:
            raise StepError(code, str(error)) from error
        return None

    async def _prove(self, subject: Subject) -> enroll.NetnsReplaced | None:
        try:
            space, proof = await asyncio.to_thread(self.network.find, subject)
            resolvers = await asyncio.to_thread(self.network.resolvers, subject)
        except netns.NetnsError as error:
            raise StepError(error.code, error.reason) from error
        before = subject.remembered
        replaced = before is not None and before.cookie != space.cookie
        try:
            if before is not None and replaced:
                self._drop_namespace(subject, before)
            known = None if before is None or replaced else before.workload_id
            self._remember(subject, space, proof, resolvers, known)
        except OSError as error:
            space.close()
            raise StepError(Code.RECORD_FAILED, str(error)) from error
        return enroll.NetnsReplaced() if replaced else None

    def _drop_namespace(self, subject: Subject, before: Remembered) -> None:
        """Take away what hangs on a namespace that the pod no longer has."""
        self.maps.remove_record(before.cookie)
        self.maps.detach_lookup(before.uid)
        if subject.netns is not None:
            subject.netns.close()
            subject.netns = None

    def _remember(
        self,
        subject: Subject,
        space: netns.Netns,
        proof: netns.Proof,
        resolvers: tuple[IPAddress, ...],
        workload_id: int | None,
    ) -> None:
        if workload_id is None:
            workload_id = self.maps.record_id(space.cookie) or self.maps.allocate_workload_id()
        pod = subject.pod
        remembered = Remembered(
            uid=pod.uid,
            namespace=pod.namespace,
            name=pod.name,
            service_account=pod.service_account,
            netns_path=space.path,
            cookie=space.cookie,
            workload_id=workload_id,
            addresses=subject.addresses,
            resolvers=resolvers,
        )
        self.pod_files.save(remembered)
        subject.proof, subject.remembered = proof, remembered
        if subject.netns is None:
            subject.netns = space
        else:
            # The descriptor in use stays: ztunnel may be about to get it.
            space.close()

    async def _route(self, subject: Subject) -> None:
        await asyncio.to_thread(self.network.install_route, _space(subject))

    async def _offer(self, subject: Subject) -> None:
        await self.handoff.offer(offer_of(subject))

    async def _listen(self, subject: Subject) -> None:
        cookie = _space(subject).cookie
        deadline_s = self.clock.monotonic() + LISTENER_TIMEOUT_S
        while missing := self.maps.missing_listeners(cookie, subject.addresses):
            if self.clock.monotonic() >= deadline_s:
                # It has listeners of before the table was made anew: have it open new ones.
                await self.handoff.retract(subject.pod.uid)
                raise StepError(
                    Code.LISTENERS_MISSING,
                    f"ztunnel took the pod, but has no listener for {', '.join(sorted(missing))}",
                )
            await asyncio.sleep(LISTENER_POLL_S)

    async def _capture_in(self, subject: Subject) -> None:
        space = _space(subject)
        await asyncio.to_thread(self.maps.attach_lookup, subject.pod.uid, space.fd, space.cookie)

    async def _capture_out(self, subject: Subject) -> None:
        remembered = subject.remembered
        assert remembered is not None
        deny = subject.pod.annotations.get(NON_TCP_ANNOTATION) == "deny"
        self.maps.write_record(remembered, deny_non_tcp=deny)
        if subject.older_of == remembered.cookie:
            return
        ztunnels = self.maps.ztunnel()
        subject.older = await asyncio.to_thread(
            self.network.older, _space(subject), subject.addresses, ztunnels
        )
        subject.older_of = remembered.cookie
        if subject.older:
            self._schedule_end(subject)

    def _schedule_end(self, subject: Subject) -> None:
        own = subject.pod.plaintext_deadline_s
        deadline_s = own if own is not None else self.plaintext_deadline_s
        _log.warning(
            "%d connections from before capture go on in plain %s: %s",
            len(subject.older),
            f"for {deadline_s:g} s" if math.isfinite(deadline_s) else "until they end",
            ", ".join(str(item) for item in subject.older[:MAX_LISTED]),
            extra=fields({"pod": subject.pod.key, "uid": subject.pod.uid}),
        )
        if math.isfinite(deadline_s):
            create_task(
                self._end_older(subject, subject.older_of, deadline_s),
                name=f"plaintext deadline of {subject.pod.key}",
                owner=self.tasks,
            )

    async def _end_older(self, subject: Subject, cookie: int, deadline_s: float) -> None:
        await asyncio.sleep(deadline_s)
        left = Step.CAPTURE_OUT not in subject.footprint or subject.older_of != cookie
        if left or subject.netns is None or subject.netns.cookie != cookie:
            return
        # A duplicate, as the pod may leave, and its descriptor close, while the thread runs.
        duplicate = os.dup(subject.netns.fd)
        try:
            ended = await asyncio.to_thread(self.network.end, duplicate, subject.older)
        except OSError as error:
            _log.error("connections of %s from before capture go on: %s", subject.pod.key, error)
            return
        finally:
            os.close(duplicate)
        _log.info("ended %d connections of %s from before capture", ended, subject.pod.key)
        subject.older = ()

    async def _publish(self, subject: Subject) -> None:
        assert subject.remembered is not None
        assert subject.proof is not None
        await self.enrollments.publish(subject.remembered, point_to_point=subject.proof.point_to_point)

    async def _withdraw(self, subject: Subject) -> None:
        pod = subject.pod
        try:
            await self.enrollments.withdraw(pod.namespace, pod.name, pod.uid)
        except OSError as error:
            if not subject.gone:
                raise
            # Nothing answers there any more, HBONE or not, and its successor must not wait for an API server.
            _log.warning("left to the sweep: %s", error, extra=fields({"pod": pod.key, "uid": pod.uid}))

    async def _grace(self, subject: Subject) -> None:
        await asyncio.sleep(self.grace_s)

    async def _release_out(self, subject: Subject) -> None:
        if subject.remembered is not None:
            self.maps.remove_record(subject.remembered.cookie)

    async def _release_in(self, subject: Subject) -> None:
        self.maps.detach_lookup(subject.pod.uid)

    async def _retract(self, subject: Subject) -> None:
        await self.handoff.retract(subject.pod.uid)

    async def _unroute(self, subject: Subject) -> None:
        if subject.netns is None:
            subject.netns = await asyncio.to_thread(self.network.reopen, subject)
        if subject.netns is not None:
            await asyncio.to_thread(self.network.remove_route, subject.netns)

    async def _forget(self, subject: Subject) -> None:
        if subject.netns is not None:
            subject.netns.close()
            subject.netns = None
        self.pod_files.remove(subject.pod.uid)
        subject.remembered = None
        subject.older, subject.older_of = (), 0


def _space(subject: Subject) -> netns.Netns:
    assert subject.netns is not None, "PROVE comes before everything that needs the namespace"
    return subject.netns


def offer_of(subject: Subject) -> Offer:
    """Build what ztunnel gets of a pod; a pod whose namespace is not open now is to be kept."""
    pod = subject.pod
    known = subject.remembered.cookie if subject.remembered is not None else 0
    return Offer(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        service_account=pod.service_account,
        netns_fd=subject.netns.fd if subject.netns is not None else None,
        cookie=subject.netns.cookie if subject.netns is not None else known,
    )
