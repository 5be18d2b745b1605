# SPDX-License-Identifier: Apache-2.0
"""All pods of this node that the agent handles: objects and CNI calls in, workers told.

One owner of the workers; loop thread only. It decides nothing itself: `pods.decide` says
who belongs into the mesh, `recovery` what an earlier agent left, each worker's machine
what to do next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from daemonset import enroll, pods
from daemonset.cni import CniAnswer, CniRequest
from daemonset.codes import Code
from daemonset.enroll import Enrollment, Step
from daemonset.handoff import Offer
from daemonset.recovery import Takeover
from daemonset.steps import offer_of
from daemonset.worker import PodWorker, Steps, Subject, recovered_state
from mesh.runtime.clock import Clock
from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.agent.registry")

DEPARTED_POLL_S = 1.0
"""How often a pod whose object is gone is looked at for processes that still run."""
DEL_TIMEOUT_S = 15.0
PROOF_TRIES_OF_ADD = 3
"""A CNI call is refused after so many failed proofs: the address is set before the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """The objects that the agent reads, as of one moment."""

    pods: tuple[Mapping[str, object], ...]
    namespaces: Mapping[str, Mapping[str, str]]
    """Namespace name -> its labels."""


class Registry:
    """The workers by pod uid."""

    def __init__(
        self,
        *,
        node: str,
        steps: Steps,
        clock: Clock,
        processes: Callable[[str], bool],
        cookie_of: Callable[[str], int | None],
        excluded_namespaces: frozenset[str],
        cni_timeout_s: float,
    ) -> None:
        """Create it.

        `processes` tells whether any process of a pod uid runs, `cookie_of` the netns cookie of a
        path (None: there is no such namespace).
        """
        self._node = node
        self._steps = steps
        self._clock = clock
        self._processes = processes
        self._cookie_of = cookie_of
        self._excluded = excluded_namespaces
        self._cni_timeout_s = cni_timeout_s
        self._tasks = TaskOwner("pods")
        self._workers: dict[str, PodWorker] = {}
        self._pods: dict[str, pods.Pod] = {}
        self._namespaces: Mapping[str, Mapping[str, str]] = {}
        self._ignored: dict[str, pods.Ignore] = {}
        self._torn_down: set[str] = set()
        """Pods whose sandbox the CNI removed while their object is still there."""
        self._sandboxes: dict[str, CniRequest] = {}
        """What the CNI said of pods whose object is there."""
        self._departed: set[str] = set()
        self._updated = asyncio.Event()
        self._session = 0
        self.synced = False
        """Objects were read at least once."""

    @property
    def workers(self) -> tuple[PodWorker, ...]:
        """The pods that are in the mesh, on their way in or on their way out."""
        return tuple(self._workers.values())

    @property
    def ignored(self) -> tuple[pods.Ignore, ...]:
        """This node's pods that are left alone, with reasons."""
        return tuple(self._ignored.values())

    async def close(self) -> None:
        """Stop all work; what is in place stays, for the next agent."""
        await self._tasks.close()

    # What an earlier agent left.

    def take_over(self, found: Iterable[Takeover]) -> None:
        """Start a worker for each pod that an earlier agent had."""
        for takeover in found:
            subject = Subject(
                pod=takeover.pod(self._node),
                remembered=takeover.remembered,
                cni_netns=takeover.remembered.netns_path,
                cni_addresses=takeover.remembered.addresses,
            )
            state = recovered_state(captured=takeover.captured, published=takeover.published)
            self._start(subject, state)

    async def recovered(self, timeout_s: float) -> None:
        """Return when each pod taken over was proven, or failed to be, or the time is over."""

        def settled(state: Enrollment) -> bool:
            return Step.PROVE in state.done or state.last_failed is not None or not state.wanted

        try:
            async with asyncio.timeout(timeout_s):
                for worker in self.workers:
                    await worker.wait_until(settled)
        except TimeoutError:
            waiting = [w.subject.pod.key for w in self.workers if not settled(w.state)]
            _log.warning("recovery goes on without %s: not found in %g s", ", ".join(waiting), timeout_s)

    # Objects.

    def apply(self, objects: Objects) -> None:
        """Take the objects as they are now: start, change and release workers."""
        self._namespaces = objects.namespaces
        self._pods = self._parse(objects.pods)
        self._torn_down &= self._pods.keys()
        for uid in self._sandboxes.keys() - self._pods.keys():
            del self._sandboxes[uid]
        self._ignored.clear()
        for uid, pod in self._pods.items():
            self._decide(uid, pod)
        self._departed = set(self._workers) - self._pods.keys()
        self._check_departed()
        self.synced = True
        self._updated.set()
        self._updated = asyncio.Event()

    def _parse(self, values: Iterable[Mapping[str, object]]) -> dict[str, pods.Pod]:
        found: dict[str, pods.Pod] = {}
        for value in values:
            try:
                pod = pods.parse_pod(value)
            except pods.MalformedPodError as error:
                self._keep_malformed(value, error, found)
                continue
            if pod.node == self._node and pod.uid:
                found[pod.uid] = pod
        return found

    def _keep_malformed(
        self, value: Mapping[str, object], error: pods.MalformedPodError, found: dict[str, pods.Pod]
    ) -> None:
        """Keep the last good version of a pod that can no longer be read; log it."""
        metadata = value.get("metadata")
        uid = metadata.get("uid") if isinstance(metadata, Mapping) else None
        _log.warning("pod %s is malformed: %s; %s", uid, error, Code.MALFORMED_POD.remedy)
        if isinstance(uid, str) and uid in self._pods:
            found[uid] = self._pods[uid]

    def _decide(self, uid: str, pod: pods.Pod) -> None:
        worker = self._workers.get(uid)
        decision = self._decision(pod, starting=worker is not None and bool(worker.subject.addresses))
        if isinstance(decision, pods.Enroll):
            if uid in self._torn_down:
                return
            if worker is None:
                self._start(self._subject(pod), Enrollment())
            else:
                worker.want(pod)
            return
        self._ignored[uid] = decision
        if worker is not None and decision.code is Code.NOT_LABELLED and not self._namespace_known(pod):
            return  # A pod has a namespace: its object is late or lost, and says nothing.
        if worker is not None:
            worker.release(gone=decision.code is Code.FINISHED)

    def _namespace_known(self, pod: pods.Pod) -> bool:
        return pod.namespace in self._namespaces

    def _subject(self, pod: pods.Pod) -> Subject:
        said = self._sandboxes.get(pod.uid)
        if said is None:
            return Subject(pod=pod)
        return Subject(pod=pod, cni_netns=said.netns, cni_addresses=said.addresses)

    def _decision(self, pod: pods.Pod, *, starting: bool) -> pods.Decision:
        return pods.decide(
            pod,
            self._namespaces.get(pod.namespace, {}),
            node=self._node,
            excluded_namespaces=self._excluded,
            starting=starting,
        )

    def _check_departed(self) -> None:
        """Release pods without an object once none of their processes runs: until then, none may go plain."""
        for uid in list(self._departed):
            worker = self._workers.get(uid)
            if worker is None:
                self._departed.discard(uid)
            elif not self._processes(uid):
                self._departed.discard(uid)
                worker.release(gone=True)

    async def watch_departed(self) -> None:
        """Look at departed pods again and again; runs until cancelled."""
        while True:
            await asyncio.sleep(DEPARTED_POLL_S)
            if self._departed:
                self._check_departed()

    # Workers.

    def _start(self, subject: Subject, state: Enrollment) -> PodWorker:
        state = replace(state, session=self._session)
        worker = PodWorker(subject, state, self._steps, self._clock, self._forgotten)
        self._workers[worker.uid] = worker
        create_task(worker.run(), name=f"pod {subject.pod.key}", owner=self._tasks)
        return worker

    def _forgotten(self, worker: PodWorker) -> None:
        if self._workers.get(worker.uid) is worker:
            del self._workers[worker.uid]
        self._departed.discard(worker.uid)

    # ztunnel.

    def on_session(self, number: int) -> None:
        """Tell every pod which ztunnel session is current; 0: none."""
        self._session = number
        event: enroll.Event = (
            enroll.ZtunnelConnected(session=number) if number else enroll.ZtunnelDisconnected()
        )
        for worker in self.workers:
            worker.event(event)

    def offers(self) -> Mapping[str, Offer]:
        """Return what a new ztunnel must get before its snapshot is complete."""
        return {w.uid: offer_of(w.subject) for w in self.workers if Step.OFFER in w.subject.footprint}

    # The CNI (`daemonset.cni.Enroller`).

    async def add(self, request: CniRequest) -> CniAnswer:
        """Enrol a starting pod; answers when it is captured and its listeners are open."""
        alone = pods.ignored_by_name(request.uid, request.namespace, self._excluded)
        if alone is not None and request.uid not in self._pods:
            reason = f"pod {request.namespace}/{request.name} {alone[1]}"
            return CniAnswer(result="ignored", reason=reason, code=alone[0])
        try:
            async with asyncio.timeout(self._cni_timeout_s):
                pod = await self._known(request.uid)
        except TimeoutError:
            reason = f"no Pod object with uid {request.uid} on node {self._node} was seen"
            return CniAnswer(result="error", reason=reason, code=Code.CNI_UNKNOWN_POD)
        if (pod.namespace, pod.name) != (request.namespace, request.name):
            reason = f"uid {request.uid} is pod {pod.key}, not {request.namespace}/{request.name}"
            return CniAnswer(result="error", reason=reason, code=Code.CNI_BAD_REQUEST)
        # Also for a pod that is left alone: its label may be on its way, or come later.
        self._torn_down.discard(request.uid)
        self._sandboxes[request.uid] = request
        decision = self._decision(pod, starting=True)
        if isinstance(decision, pods.Ignore):
            return CniAnswer(result="ignored", reason=decision.reason, code=decision.code)
        worker = self._admit(pod, request)
        return await self._enrolled(worker)

    async def _known(self, uid: str) -> pods.Pod:
        while uid not in self._pods:
            await self._updated.wait()
        return self._pods[uid]

    def _admit(self, pod: pods.Pod, request: CniRequest) -> PodWorker:
        worker = self._workers.get(pod.uid)
        if worker is None or worker.state.forgotten:
            return self._start(self._subject(pod), Enrollment(closed=True))
        worker.want(pod, netns=request.netns, addresses=request.addresses)
        return worker

    async def _enrolled(self, worker: PodWorker) -> CniAnswer:
        def settled(state: Enrollment) -> bool:
            hopeless = state.last_failed is not None and state.last_failed[0] is Step.PROVE
            return (
                state.served
                or not state.wanted
                or (hopeless and state.failure is not None and state.failure.attempts >= PROOF_TRIES_OF_ADD)
            )

        try:
            async with asyncio.timeout(self._cni_timeout_s):
                await worker.wait_until(settled)
        except TimeoutError:
            return CniAnswer(result="error", reason=worker.explain(), code=Code.CNI_TIMEOUT)
        if worker.state.served:
            return CniAnswer(result="enrolled")
        failure = worker.state.failure
        if failure is not None:
            return CniAnswer(result="error", reason=failure.reason, code=failure.code)
        return CniAnswer(result="ignored", reason="the pod left the mesh while it was enrolled")

    async def delete(self, request: CniRequest) -> CniAnswer:
        """Release a pod whose sandbox goes; answers when nothing of it is in place.

        Runtimes repeat DEL for a sandbox of before while the pod's next one runs: that is answered
        and changes nothing.
        """
        worker = self._workers.get(request.uid)
        if worker is not None and self._of_earlier_sandbox(request, worker):
            return CniAnswer(
                result="removed", reason="that sandbox is gone already; the pod runs in another one"
            )
        self._torn_down.add(request.uid)
        self._sandboxes.pop(request.uid, None)
        if worker is None:
            return CniAnswer(result="removed")
        worker.release(gone=True)
        try:
            async with asyncio.timeout(DEL_TIMEOUT_S):
                await worker.wait_until(lambda state: state.forgotten)
        except TimeoutError:
            return CniAnswer(result="error", reason=worker.explain(), code=Code.RELEASE_FAILED)
        return CniAnswer(result="removed")

    def _of_earlier_sandbox(self, request: CniRequest, worker: PodWorker) -> bool:
        named = self._cookie_of(request.netns) if request.netns else None
        known = worker.subject.remembered
        if named is not None and known is not None:
            return named != known.cookie
        return self._processes(request.uid)

    async def check(self, request: CniRequest) -> CniAnswer:
        """Say how the pod stands now."""
        worker = self._workers.get(request.uid)
        if worker is not None and worker.state.enrolled:
            return CniAnswer(result="enrolled")
        if worker is not None:
            failure = worker.state.failure
            return CniAnswer(
                result="error", reason=worker.explain(), code=failure.code if failure else Code.CNI_TIMEOUT
            )
        ignored = self._ignored.get(request.uid)
        if ignored is not None:
            return CniAnswer(result="ignored", reason=ignored.reason, code=ignored.code)
        reason = f"no Pod object with uid {request.uid} on node {self._node} was seen"
        return CniAnswer(result="error", reason=reason, code=Code.CNI_UNKNOWN_POD)
