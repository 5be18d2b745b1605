# SPDX-License-Identifier: Apache-2.0
"""The workers and everything that each must know: pods, resources, certificates.

The supervisor alone holds state; workers get the same messages in the same order, and a
replacement gets all of it again. It touches no traffic and opens no socket in a pod; the
processes themselves are `workers`' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.runtime.clock import Clock
from mesh.runtime.readiness import Readiness
from mesh.state.store import Store
from mesh.telemetry.metrics import (
    ACTIVE_PROXIES,
    PENDING_PROXIES,
    PROXIES_STARTED,
    PROXIES_STOPPED,
    WORKERS_HUNG,
    WORKERS_STARTED,
)
from mesh.telemetry.series import Delta, Recorder, Totals
from mesh.xds.resource import AUTHORIZATION_TYPE, Rejection, Resource, Update
from mesh.xds.updates import decode_update
from mesh.zds.connection import ZdsRejectedError
from mesh.zds.messages import AddWorkload
from ztunnel.certificates import certificate_message
from ztunnel.config import Config
from ztunnel.control import Message
from ztunnel.netns import NamespaceError, PodNamespace
from ztunnel.plane import PodInfo
from ztunnel.worker import update_message
from ztunnel.workers import Worker, Workers

_log = logging.getLogger("ztunnel.supervisor")

POD_ANSWER_S = 4.0
"""How long workers may take to open a pod's listeners; the agent gives up after 5 s."""


@dataclass(slots=True)
class _Pod:
    info: PodInfo
    namespace: PodNamespace


class Supervisor:
    """Keeps the workers equal; loop thread only. Also the ZDS handler and the workers' owner."""

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
        self._clock = clock
        self._readiness = readiness
        self._workers = Workers(
            config.workers, self, environ=environ, clock=clock, deadline_s=config.worker_deadline_s
        )
        self._pods: dict[str, _Pod] = {}
        self._resources: dict[str, dict[str, Resource]] = {}
        self._broken: dict[str, Resource] = {}
        self._certificates: dict[SpiffeId, WorkloadCertificate] = {}
        self._identities: frozenset[SpiffeId] = frozenset()

    # --- workers (WorkerOwner)

    def start(self) -> None:
        """Start all workers."""
        for index in range(self._workers.count):
            self._readiness.block(f"worker-{index}")
        self._workers.start()

    def worker_started(self, worker: Worker) -> None:
        """Send everything that is in force; policies before pods, so that none opens ungoverned."""
        self.recorder.add(WORKERS_STARTED)
        for type_url, resources in self._resources.items():
            worker.channel.send(update_message(Update(type_url=type_url, upserted=tuple(resources.values()))))
        if self._broken:
            broken = Update(type_url=AUTHORIZATION_TYPE, upserted=tuple(self._broken.values()))
            worker.channel.send(update_message(broken))
        for certificate in self._certificates.values():
            worker.channel.send(certificate_message(certificate))
        for pod in self._pods.values():
            self._send_pod(worker, pod)

    def worker_hung(self, worker: Worker) -> None:
        """Count it."""
        self.recorder.add(WORKERS_HUNG)

    def worker_gone(self, worker: Worker) -> None:
        """Be unready until its successor is up; its gauges count no more."""
        self._readiness.block(worker.name)
        self.totals.forget(worker.name)

    def worker_said(self, worker: Worker, message: Message) -> None:
        """Take what a worker reports or asks."""
        body = message.body
        match message.kind:
            case "hello":
                self._readiness.done(worker.name)
                _log.info("%s (pid %s) is up", worker.name, body["pid"])
            case "metrics":
                self._count(worker, body["deltas"])
            case "want_certificate":
                self._wanted(worker, str(body["identity"]))
            case _:
                _log.error("message %s of %s is not known", message.kind, worker.name)

    def _count(self, worker: Worker, rows: object) -> None:
        assert isinstance(rows, list)
        deltas = [Delta(metric, tuple(labels), tuple(values)) for metric, labels, values in rows]
        self.totals.apply(worker.name, deltas, self._clock.monotonic())

    async def dump(self) -> list[object]:
        """Ask every worker what it is doing, for the admin port."""
        return await self._workers.dump()

    def set_log_level(self, level: str, target: str) -> None:
        """Pass a log level on."""
        self._workers.broadcast(Message("log_level", {"level": level, "target": target}))

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
                    await self._workers.spawned.wait()
        except TimeoutError:
            return f"no worker is running after {POD_ANSWER_S:g} s; see ztunnel's log"
        # A worker that was spawned meanwhile has been sent the pod: asking again changes nothing.
        answers = [self._send_pod(worker, pod) for worker in self._workers]
        done, pending = await asyncio.wait(answers, timeout=POD_ANSWER_S)
        for future in pending:
            future.cancel()
        errors = [future.result() for future in done if not future.cancelled() and future.result()]
        if pending and not errors:
            errors = [f"{len(pending)} workers did not open its listeners within {POD_ANSWER_S:g} s"]
        return errors[0] if errors else ""

    def _send_pod(self, worker: Worker, pod: _Pod) -> asyncio.Future[str]:
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
        self._workers.broadcast(Message("pod_remove", {"uid": uid}))
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
        self._workers.broadcast(update_message(update))
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
            self._workers.broadcast(Message("certificate_forget", {"identity": str(identity)}))
        self._identities = identities
        self.identities_changed(added, gone)

    # --- certificates

    def _wanted(self, worker: Worker, text: str) -> None:
        try:
            identity = SpiffeId.parse(text)
        except IdentityError as error:
            self._refuse(worker, text, str(error))
            return
        if identity not in self._identities:
            self._refuse(worker, text, "no pod of this node has this identity")
            return
        self.want_certificate(identity)

    def _refuse(self, worker: Worker, identity: str, why: str) -> None:
        worker.channel.send(Message("certificate_error", {"identity": identity, "error": why}))

    def certificate(self, certificate: WorkloadCertificate) -> None:
        """Give a new or rotated certificate to every worker."""
        self._certificates[certificate.identity] = certificate
        self._workers.broadcast(certificate_message(certificate))

    def no_certificate(self, identity: SpiffeId, why: str) -> None:
        """Tell every worker that an identity cannot be certified now."""
        self._workers.broadcast(Message("certificate_error", {"identity": str(identity), "error": why}))

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
        await self._workers.drain(deadline_s)
        for pod in self._pods.values():
            pod.namespace.close()
        self._pods.clear()
