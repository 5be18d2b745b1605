# SPDX-License-Identifier: Apache-2.0
"""What each enrolment step does: the agent's hands on maps, links, namespaces and ztunnel.

Every step may be repeated, and a releasing step succeeds when there is nothing left to
release. The parts that need a kernel are behind Protocols, so that the order and the
error mapping are tested without one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyroute2.netlink.exceptions import NetlinkError

from daemonset import cgroup, enroll, mark_route, netns
from daemonset.codes import Code
from daemonset.enroll import Step
from daemonset.handoff import Handoff, Offer
from daemonset.pods import NON_TCP_ANNOTATION, parse_resolv_conf
from daemonset.store import EnrollmentFiles, PodFiles, Remembered
from daemonset.worker import StepError, Subject
from mesh.model.address import IPAddress
from mesh.runtime.clock import Clock

_log = logging.getLogger("ambit.agent.steps")

LISTENER_POLL_S = 0.02
LISTENER_TIMEOUT_S = 1.0
"""A listener enters the table in listen(), before the acknowledgement; the wait is for one that comes first."""


class Maps(Protocol):
    """The node's maps and per-pod links as the steps use them (`daemonset.bpffs`)."""

    def allocate_workload_id(self) -> int:
        """Return an id that was never used."""
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
    enrollments: EnrollmentFiles
    clock: Clock
    grace_s: float

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
            netns_path=subject.cni_netns or space.path,
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

    async def _publish(self, subject: Subject) -> None:
        assert subject.remembered is not None
        assert subject.proof is not None
        self.enrollments.publish(subject.remembered, point_to_point=subject.proof.point_to_point)

    async def _withdraw(self, subject: Subject) -> None:
        self.enrollments.withdraw(subject.pod.namespace, subject.pod.name, subject.pod.uid)

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


class KernelNetwork:
    """`Network` on the running kernel."""

    def __init__(self, *, node: netns.Netns, pods_cgroup: Path, cluster_dns: tuple[IPAddress, ...]) -> None:
        self._node = node
        self._pods_cgroup = pods_cgroup
        self._cluster_dns = cluster_dns

    def find(self, subject: Subject) -> tuple[netns.Netns, netns.Proof]:
        """Find the pod's namespace: the CNI's path, the one known from before, those of its processes."""
        return netns.find(list(self._paths(subject)), subject.addresses, self._node)

    def _paths(self, subject: Subject) -> Iterable[str]:
        if subject.cni_netns:
            yield subject.cni_netns
        if subject.remembered is not None:
            yield subject.remembered.netns_path
        yield from (f"/proc/{pid}/ns/net" for pid in cgroup.pod_pids(self._pods_cgroup, subject.pod.uid))

    def reopen(self, subject: Subject) -> netns.Netns | None:
        """Open the namespace that the pod was last known by; None: it is gone, and what was in it too."""
        if subject.remembered is None:
            return None
        for path in self._paths(subject):
            try:
                space = netns.open_netns(path)
            except netns.NetnsError:
                continue
            if space.cookie == subject.remembered.cookie:
                return space
            space.close()
        return None

    def resolvers(self, subject: Subject) -> tuple[IPAddress, ...]:
        """Return the nameservers that the object names, else the pod's own file's, else the cluster's."""
        if subject.pod.nameservers:
            return subject.pod.nameservers
        for pid in cgroup.pod_pids(self._pods_cgroup, subject.pod.uid)[:1]:
            text = cgroup.resolv_conf_of(pid)
            if text is not None and (found := parse_resolv_conf(text)):
                return found
        if subject.remembered is not None and subject.remembered.resolvers:
            return subject.remembered.resolvers
        return self._cluster_dns

    def install_route(self, space: netns.Netns) -> None:
        """Set the mark route inside the pod."""
        _in_pod(space, mark_route.install)

    def remove_route(self, space: netns.Netns) -> None:
        """Remove the mark route inside the pod."""
        _in_pod(space, mark_route.remove)


def _in_pod(space: netns.Netns, work: Callable[[], None]) -> None:
    try:
        netns.run_in(space.fd, work)
    except NetlinkError as error:
        raise OSError(error.code or errno.EIO, f"in {space.path}: {error}") from error
