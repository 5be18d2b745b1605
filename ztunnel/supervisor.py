# SPDX-License-Identifier: Apache-2.0
"""The workers and everything that each must know: pods, resources, certificates.

The supervisor alone holds state; workers get the same messages in the same order, and a
replacement gets all of it again. It touches no traffic and opens no socket in a pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.runtime.clock import Clock
from mesh.runtime.notify import Signal
from mesh.runtime.readiness import Readiness
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.metrics import (
    ACTIVE_PROXIES,
    PENDING_PROXIES,
    PROXIES_STARTED,
    PROXIES_STOPPED,
    WORKERS_STARTED,
)
from mesh.telemetry.series import Delta, Recorder, Totals
from mesh.xds.resource import AUTHORIZATION_TYPE, Rejection, Resource, Update
from mesh.zds.connection import ZdsRejectedError
from mesh.zds.messages import AddWorkload
from ztunnel.certificates import certificate_message
from ztunnel.config import Config
from ztunnel.control import Channel, Message
from ztunnel.netns import NamespaceError, PodNamespace
from ztunnel.plane import PodInfo
from ztunnel.resources import decode_update
from ztunnel.state.store import Store
from ztunnel.worker import update_message

_log = logging.getLogger("ztunnel.supervisor")

POD_ANSWER_S = 4.0
"""How long workers may take to open a pod's listeners; the agent gives up after 5 s."""
DUMP_ANSWER_S = 2.0
RESTART_FIRST_S = 0.1
RESTART_MAX_S = 5.0
STABLE_S = 10.0
"""A worker that lived this long begins again with the first restart delay."""
DRAIN_MARGIN_S = 5.0


@dataclass(slots=True)
class _Pod:
    info: PodInfo
    namespace: PodNamespace


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker process as the supervisor sees it."""

    index: int
    process: asyncio.subprocess.Process
    channel: Channel
    answers: dict[str, asyncio.Future[str]] = field(default_factory=dict)
    """Pod uid -> the answer awaited, an error or ''."""
    dumps: dict[int, asyncio.Future[object]] = field(default_factory=dict)
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """Its name in metrics and logs."""
        return f"worker-{self.index}"


class Supervisor:
    """Keeps N workers running and equal; loop thread only. Also the ZDS handler."""

    def __init__(
        self, config: Config, *, environ: Mapping[str, str], clock: Clock, readiness: Readiness
    ) -> None:
        self.store = Store(network=config.data_plane.network, root_namespace=config.data_plane.root_namespace)
        self.totals = Totals(max_series=config.max_series)
        self.recorder = Recorder()
        self.want_certificate: Callable[[SpiffeId], None] = lambda _identity: None
        """Set by the composition root: fetch a certificate, then call `certificate` or `no_certificate`."""
        self.identities_changed: Callable[[frozenset[SpiffeId], frozenset[SpiffeId]], None] = (
            lambda _added, _gone: None
        )
        """Set by the composition root: told which identities this node needs now and which no more."""
        self._config = config
        self._environ = dict(environ)
        self._clock = clock
        self._readiness = readiness
        self._tasks = TaskOwner("supervisor")
        self._workers: dict[int, _Worker] = {}
        self._pods: dict[str, _Pod] = {}
        self._resources: dict[str, dict[str, Resource]] = {}
        self._broken: dict[str, Resource] = {}
        self._certificates: dict[SpiffeId, WorkloadCertificate] = {}
        self._identities: frozenset[SpiffeId] = frozenset()
        self._dump_numbers = 0
        self._spawned = Signal()
        self._draining = False

    # --- workers

    async def start(self) -> None:
        """Start all workers.

        Raises:
            OSError: a process cannot be started.
        """
        for index in range(self._config.workers):
            self._readiness.block(f"worker-{index}")
            create_task(self._keep(index), name=f"worker-{index}", owner=self._tasks)

    async def _keep(self, index: int) -> None:
        """Run one worker, and the next one when it dies, until the drain."""
        delay_s = RESTART_FIRST_S
        while not self._draining:
            started = self._clock.monotonic()
            worker = await self._spawn(index)
            code = await worker.process.wait()
            self._gone(worker)
            if self._draining:
                return
            if self._clock.monotonic() - started >= STABLE_S:
                delay_s = RESTART_FIRST_S
            _log.error(
                "%s (pid %d) ended with code %d, its connections are cut; a new one starts in %.1f s",
                worker.name,
                worker.process.pid,
                code,
                delay_s,
            )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_MAX_S)

    async def _spawn(self, index: int) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ztunnel.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
            )
        worker: _Worker
        channel = Channel(
            ours,
            lambda message, fds: self._received(worker, message, fds),
            lambda: self._channel_closed(worker),
        )
        worker = _Worker(index, process, channel)
        self._workers[index] = worker
        self.recorder.add(WORKERS_STARTED)
        self._bring_up(worker)
        self._spawned.fire()
        return worker

    def _bring_up(self, worker: _Worker) -> None:
        """Send everything that is in force; policies before pods, so that none opens ungoverned."""
        for type_url, resources in self._resources.items():
            worker.channel.send(update_message(Update(type_url=type_url, upserted=tuple(resources.values()))))
        if self._broken:
            broken = Update(type_url=AUTHORIZATION_TYPE, upserted=tuple(self._broken.values()))
            worker.channel.send(update_message(broken))
        for certificate in self._certificates.values():
            worker.channel.send(certificate_message(certificate))
        for pod in self._pods.values():
            self._send_pod(worker, pod)

    def _gone(self, worker: _Worker) -> None:
        worker.channel.close()
        if self._workers.get(worker.index) is worker:
            del self._workers[worker.index]
            self._readiness.block(worker.name)
        self.totals.forget(worker.name)
        worker.drained.set()
        for answer in worker.answers.values():
            if not answer.done():
                answer.set_result("a worker ended while it opened the pod's listeners; try again")
        for dump in worker.dumps.values():
            dump.cancel()

    def _channel_closed(self, worker: _Worker) -> None:
        # The process may hang while its channel is gone: then it is of no use.
        if worker.process.returncode is None and not worker.drained.is_set():
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    def _received(self, worker: _Worker, message: Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        body = message.body
        match message.kind:
            case "hello":
                self._readiness.done(worker.name)
                _log.info("%s (pid %s) is up", worker.name, body["pid"])
            case "metrics":
                self._count(worker, body["deltas"])
            case "pod_done":
                answer = worker.answers.pop(str(body["uid"]), None)
                if answer is not None and not answer.done():
                    answer.set_result(str(body["error"]))
            case "want_certificate":
                self._wanted(worker, str(body["identity"]))
            case "dumped":
                dump = worker.dumps.pop(int(str(body["id"])), None)
                if dump is not None and not dump.done():
                    dump.set_result(body["value"])
            case "drained":
                worker.drained.set()
            case _:
                _log.error("message %s of %s is not known", message.kind, worker.name)

    def _count(self, worker: _Worker, rows: object) -> None:
        assert isinstance(rows, list)
        deltas = [Delta(metric, tuple(labels), tuple(values)) for metric, labels, values in rows]
        self.totals.apply(worker.name, deltas, self._clock.monotonic())

    def _broadcast(self, message: Message) -> None:
        for worker in self._workers.values():
            worker.channel.send(message)

    async def dump(self) -> list[object]:
        """Ask every worker what it is doing, for the admin port; a worker that is busy is left out."""
        self._dump_numbers += 1
        number = self._dump_numbers
        waiting: list[asyncio.Future[object]] = []
        for worker in self._workers.values():
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            worker.dumps[number] = future
            waiting.append(future)
            worker.channel.send(Message("dump", {"id": number}))
        if waiting:
            await asyncio.wait(waiting, timeout=DUMP_ANSWER_S)
        return [f.result() for f in waiting if f.done() and not f.cancelled()]

    def set_log_level(self, level: str, target: str) -> None:
        """Pass a log level on."""
        self._broadcast(Message("log_level", {"level": level, "target": target}))

    # --- pods (ZdsHandler)

    async def add(self, workload: AddWorkload, netns_fd: int) -> None:
        """Open a pod's listeners in every worker.

        Raises:
            ZdsRejectedError: the namespace cannot be entered, or a reserved port is taken in it.
        """
        info = PodInfo(
            uid=workload.uid,
            name=workload.name,
            namespace=workload.namespace,
            service_account=workload.service_account,
        )
        try:
            namespace = PodNamespace(os.dup(netns_fd))
        except NamespaceError as error:
            raise ZdsRejectedError(f"pod {info}: {error.strerror}") from error
        old = self._pods.get(info.uid)
        pod = self._pods[info.uid] = _Pod(info, namespace)
        if old is not None:
            old.namespace.close()
        else:
            self.recorder.add(ACTIVE_PROXIES, (), 1)
            self.recorder.add(PROXIES_STARTED)
        self._update_identities()
        self.recorder.add(PENDING_PROXIES, (), 1)
        try:
            error_text = await self._ask_workers(pod)
        finally:
            self.recorder.add(PENDING_PROXIES, (), -1)
        if error_text:
            await self.delete(info.uid)
            raise ZdsRejectedError(f"pod {info}: {error_text}")

    async def _ask_workers(self, pod: _Pod) -> str:
        """Send a pod to every worker; return the first error, '' if all serve it."""
        try:
            async with asyncio.timeout(POD_ANSWER_S):
                while not self._workers:
                    await self._spawned.wait()
        except TimeoutError:
            return f"no worker is running after {POD_ANSWER_S:g} s; see ztunnel's log"
        # A worker that was spawned meanwhile has been sent the pod: asking again changes nothing.
        answers = [self._send_pod(worker, pod) for worker in self._workers.values()]
        done, pending = await asyncio.wait(answers, timeout=POD_ANSWER_S)
        for future in pending:
            future.cancel()
        errors = [future.result() for future in done if not future.cancelled() and future.result()]
        if pending and not errors:
            errors = [f"{len(pending)} workers did not open its listeners within {POD_ANSWER_S:g} s"]
        return errors[0] if errors else ""

    def _send_pod(self, worker: _Worker, pod: _Pod) -> asyncio.Future[str]:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        worker.answers[pod.info.uid] = answer
        info = pod.info
        body = {
            "uid": info.uid,
            "name": info.name,
            "namespace": info.namespace,
            "service_account": info.service_account,
            "hbone_only": info.hbone_only,
        }
        fd = pod.namespace.duplicate()
        try:
            worker.channel.send(Message("pod_add", body), (fd,))
        finally:
            os.close(fd)
        return answer

    async def serve_own(self, name: str, namespace: str, service_account: str) -> None:
        """Open HBONE in this process's own namespace, so that its metrics port is reachable over mTLS."""
        info = PodInfo(
            uid="self", name=name, namespace=namespace, service_account=service_account, hbone_only=True
        )
        pod = self._pods[info.uid] = _Pod(info, PodNamespace.own())
        self._update_identities()
        error = await self._ask_workers(pod)
        if error:
            _log.error("ztunnel's own pod %s is not reachable over mTLS: %s", info, error)
            self._pods.pop(info.uid).namespace.close()

    async def keep(self, uid: str) -> None:
        """Check that a pod is still in hand.

        Raises:
            ZdsRejectedError: it is not; the agent then sends it whole.
        """
        if uid not in self._pods:
            raise ZdsRejectedError(f"pod {uid} is not known here; send it with its namespace")

    async def delete(self, uid: str) -> None:
        """Cut everything of a pod; an unknown one is no error."""
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        self.recorder.add(ACTIVE_PROXIES, (), -1)
        self.recorder.add(PROXIES_STOPPED)
        self._broadcast(Message("pod_remove", {"uid": uid}))
        pod.namespace.close()
        self._update_identities()

    async def snapshot(self, uids: frozenset[str]) -> None:
        """Let go of every pod that the agent no longer names."""
        for uid in [u for u, pod in self._pods.items() if u not in uids and not pod.info.hbone_only]:
            await self.delete(uid)

    @property
    def pods(self) -> tuple[PodInfo, ...]:
        """The pods in hand."""
        return tuple(pod.info for pod in self._pods.values())

    # --- resources

    def update(self, update: Update) -> tuple[Rejection, ...]:
        """Take one xDS response over and pass it on to the workers; return what was not taken."""
        state, rejections = decode_update(update)
        changes = self.store.apply(state)
        rejected = {rejection.name for rejection in rejections}
        known = self._resources.setdefault(update.type_url, {})
        policies = update.type_url == AUTHORIZATION_TYPE
        for name in update.removed:
            known.pop(name, None)
            if policies:
                self._broken.pop(name, None)
        for resource in update.upserted:
            if resource.name not in rejected:
                known[resource.name] = resource
                if policies:
                    self._broken.pop(resource.name, None)
            elif policies:
                self._broken[resource.name] = resource
        self._broadcast(update_message(update))
        if changes.workloads:
            self._update_identities()
        return rejections

    def _update_identities(self) -> None:
        """Tell the certificate manager which identities this node's pods have now."""
        found = set()
        for pod in self._pods.values():
            info = pod.info
            workload = self.store.find_local(
                name=info.name,
                namespace=info.namespace,
                service_account=info.service_account,
                node=self._config.data_plane.node_name,
            )
            if workload is not None:
                with contextlib.suppress(IdentityError):
                    found.add(SpiffeId.parse(workload.identity))
        identities = frozenset(found)
        if identities == self._identities:
            return
        added, gone = identities - self._identities, self._identities - identities
        for identity in gone:
            self._certificates.pop(identity, None)
            self._broadcast(Message("certificate_forget", {"identity": str(identity)}))
        self._identities = identities
        self.identities_changed(added, gone)

    # --- certificates

    def _wanted(self, worker: _Worker, text: str) -> None:
        try:
            identity = SpiffeId.parse(text)
        except IdentityError as error:
            self._refuse(worker, text, str(error))
            return
        if identity not in self._identities:
            self._refuse(worker, text, "no pod of this node has this identity")
            return
        self.want_certificate(identity)

    def _refuse(self, worker: _Worker, identity: str, why: str) -> None:
        worker.channel.send(Message("certificate_error", {"identity": identity, "error": why}))

    def certificate(self, certificate: WorkloadCertificate) -> None:
        """Give a new or rotated certificate to every worker."""
        self._certificates[certificate.identity] = certificate
        self._broadcast(certificate_message(certificate))

    def no_certificate(self, identity: SpiffeId, why: str) -> None:
        """Tell every worker that an identity cannot be certified now."""
        self._broadcast(Message("certificate_error", {"identity": str(identity), "error": why}))

    @property
    def certificates(self) -> tuple[WorkloadCertificate, ...]:
        """The certificates in hand."""
        return tuple(self._certificates.values())

    @property
    def identities(self) -> frozenset[SpiffeId]:
        """The identities that this node's pods have."""
        return self._identities

    # --- end

    async def drain(self, deadline_s: float) -> None:
        """Let workers finish their connections, to the deadline; then they are gone."""
        self._draining = True
        workers = tuple(self._workers.values())
        self._broadcast(Message("drain", {"deadline_s": deadline_s}))
        waiting = [create_task(w.drained.wait(), name="drain", owner=self._tasks) for w in workers]
        if waiting:
            await asyncio.wait(waiting, timeout=deadline_s + DRAIN_MARGIN_S)
        await self.close()

    async def close(self) -> None:
        """End every worker now."""
        self._draining = True
        for worker in tuple(self._workers.values()):
            worker.drained.set()
            worker.channel.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await worker.process.wait()
            if worker.process.returncode is None:
                worker.process.send_signal(signal.SIGKILL)
                await worker.process.wait()
        await self._tasks.close()
        for pod in self._pods.values():
            pod.namespace.close()
        self._pods.clear()
