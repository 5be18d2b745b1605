# SPDX-License-Identifier: Apache-2.0
"""The agent as one whole: start order, what is connected to what, stop order.

Start: lock, load programs, take over what an earlier agent left, wait until those pods
are found again, and only then let ztunnel and the CNI in, so that no snapshot lacks a
pod. Stop: everything stays captured; only the agent's sockets and tasks go.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Mapping
from typing import Any

from daemonset import cgroup, loader, netns, recovery
from daemonset.admin import Admin, Kernel
from daemonset.cni import CniServer
from daemonset.cni_install import CniInstaller
from daemonset.codes import Code
from daemonset.config import Settings
from daemonset.enroll import Step
from daemonset.gate import Gate
from daemonset.handoff import Handoff, Offer
from daemonset.kernel import KernelNetwork
from daemonset.kube import Cluster
from daemonset.lock import AgentLock, StartError
from daemonset.pins import Pins
from daemonset.registry import Objects, Registry
from daemonset.steps import AgentSteps
from daemonset.store import EnrollmentFiles, Enrollments, PodFiles
from daemonset.zds import ZdsListener
from mesh.config.source import DirectorySource, ObjectSource, Snapshot
from mesh.runtime.clock import Clock
from mesh.runtime.http import HttpServer
from mesh.runtime.readiness import Readiness
from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.agent")

SWEEP_S = 30.0
"""How often things in place are compared with the pods that answer for them."""


class Agent:
    """Owns every part; `start`, then `close`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._tasks = TaskOwner("agent")
        self._lock: AgentLock | None = None
        self._node: netns.Netns | None = None
        self._pins: Pins | None = None
        self._pod_files = PodFiles(settings.run_dir)
        self._cluster: Cluster | None = None
        self._source: ObjectSource = DirectorySource(settings.objects)
        self._enrollments: Enrollments = EnrollmentFiles(settings.status_dir, settings.node)
        self.readiness = Readiness(["bpf", "recovery", "objects", "ztunnel"])
        self._registry: Registry | None = None
        self._zds: ZdsListener | None = None
        self._cni: CniServer | None = None
        self._admin: HttpServer | None = None
        self._metrics: HttpServer | None = None
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start in order; on an error what was started is closed by `close`.

        Raises:
            StartError: it cannot run; says why and what to do.
        """
        settings = self.settings
        if os.geteuid() != 0:
            raise StartError(Code.NOT_ROOT, "the agent is not root", 1)
        self._lock = AgentLock(settings.run_dir)
        if not settings.objects:
            self._cluster = await Cluster.open(settings, self._clock)
            self._source, self._enrollments = self._cluster.source, self._cluster.enrollments
        try:
            await self._load()
            await self._connect_parts()
        except loader.LoaderError as error:
            raise StartError(error.code, error.reason, error.exit_code) from error
        except netns.NetnsError as error:
            raise StartError(error.code, error.reason) from error
        except OSError as error:
            raise StartError(_code_of(error), str(error), 69) from error

    async def run(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set.

        Raises:
            StartError: one of the loops that must not end has ended: without it the agent is blind.
        """
        stopped = create_task(stop.wait(), name="wait for stop", owner=self._tasks)
        ended, _ = await asyncio.wait([stopped, *self._loops], return_when=asyncio.FIRST_COMPLETED)
        for loop in self._loops:
            if loop in ended:
                reason = f"task {loop.get_name()!r} ended: {loop.exception()!r}"
                raise StartError(Code.LOOP_ENDED, reason)

    async def _load(self) -> None:
        settings = self.settings
        arguments = loader.load_arguments(settings)
        answer = await loader.run(settings.bpf_python, arguments, timeout_s=settings.load_timeout_s)
        _log.info("BPF programs are in place: %s", answer)
        try:
            self._pins = Pins(settings.bpffs)
        except OSError as error:
            raise StartError(Code.LOADER_FAILED, str(error)) from error
        self._node = netns.open_netns("/proc/self/ns/net")
        self._pins.set_node(self._node.cookie, settings.kubelet_tgid)
        self.readiness.done("bpf")

    async def _connect_parts(self) -> None:
        settings, pins, node = self.settings, self._pins, self._node
        assert pins is not None
        assert node is not None
        handoff = Handoff(offers=self._offers, on_session=self._session, ack_timeout_s=settings.ack_timeout_s)
        network = KernelNetwork(node=node, pods_cgroup=settings.pods_cgroup, cluster_dns=settings.cluster_dns)
        steps = AgentSteps(
            maps=pins,
            network=network,
            handoff=handoff,
            pod_files=self._pod_files,
            enrollments=self._enrollments,
            clock=self._clock,
            tasks=self._tasks,
            grace_s=settings.unenroll_grace_s,
            plaintext_deadline_s=settings.plaintext_deadline_s,
        )
        registry = self._registry = Registry(
            node=settings.node,
            steps=steps,
            clock=self._clock,
            processes=lambda uid: bool(cgroup.pod_pids(settings.pods_cgroup, uid)),
            cookie_of=netns.cookie_of,
            excluded_namespaces=settings.excluded_namespaces,
            cni_timeout_s=settings.cni_timeout_s,
        )
        await self._recover(registry, pins)
        try:
            gate = Gate(settings.ztunnel_cgroup, own_pod=settings.pod_uid)
        except OSError as error:
            raise StartError(Code.NO_CGROUP, str(error), 69) from error
        self._zds = ZdsListener(
            settings.zds_socket,
            gate,
            handoff,
            known=pins.ztunnel(),
            set_ztunnel=pins.set_ztunnel,
            ack_timeout_s=settings.ack_timeout_s,
        )
        await self._zds.start()
        self._cni = CniServer(settings.cni_socket, registry)
        await self._cni.start()
        admin = Admin(
            registry=registry,
            handoff=handoff,
            refused=self._refused,
            kernel=Kernel(counters=pins.counters, fill=pins.fill),
            readiness=self.readiness,
            settings=settings.describe(),
            source=self._describe_source,
        )
        self._admin = HttpServer("agent admin", admin.routes())
        await self._admin.start(settings.admin_host, settings.admin_port)
        # Of all pages only this one may be seen from outside the node.
        self._metrics = HttpServer("agent metrics", {"/metrics": admin.routes()["/metrics"]})
        await self._metrics.start(settings.metrics_host, settings.metrics_port)
        self._loops = [
            create_task(self._watch(registry), name="watch objects", owner=self._tasks),
            create_task(registry.watch_departed(), name="watch departed pods", owner=self._tasks),
            create_task(self._sweep(registry, pins), name="sweep", owner=self._tasks),
        ]
        if (installer := CniInstaller.of(settings)) is not None:
            # Now that the socket is served; it stays when we stop, so that pods wait for the next agent.
            self._loops.append(create_task(installer.run(), name="CNI plugin", owner=self._tasks))

    def _describe_source(self) -> list[dict[str, Any]]:
        if self._cluster is not None:
            return self._cluster.source.describe()
        return [{"directory": str(directory)} for directory in self.settings.objects]

    def _refused(self) -> int:
        return self._zds.refused if self._zds is not None else 0

    @property
    def admin_port(self) -> int:
        """The admin port it listens on."""
        return self._admin.port if self._admin is not None else 0

    async def _recover(self, registry: Registry, pins: Pins) -> None:
        files = self._pod_files.load()
        found = recovery.takeovers(
            files,
            lookups=pins.lookups(),
            records=pins.records(),
            published=await self._enrollments.recall(files),
        )
        if found:
            _log.info("taking over %d pods of an earlier agent", len(found))
        registry.take_over(found)
        await registry.recovered(self.settings.recovery_timeout_s)
        self.readiness.done("recovery")

    def _offers(self) -> Mapping[str, Offer]:
        assert self._registry is not None
        return self._registry.offers()

    def _session(self, number: int) -> None:
        self.readiness.set("ztunnel", ready=number > 0)
        assert self._registry is not None
        self._registry.on_session(number)

    async def _watch(self, registry: Registry) -> None:
        seen: frozenset[str] = frozenset()
        async for snapshot in self._source.watch():
            rejections = frozenset(str(rejection) for rejection in snapshot.rejections)
            for rejection in sorted(rejections - seen):
                _log.warning("a document is rejected, its last good version stays: %s", rejection)
            seen = rejections
            self._enrollments.observe(snapshot)
            registry.apply(objects_of(snapshot))
            self.readiness.done("objects")

    async def _sweep(self, registry: Registry, pins: Pins) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep(registry, pins)
                pins.sweep()
            except OSError as error:
                _log.warning("the sweep failed and is tried again in %g s: %s", SWEEP_S, error)

    async def sweep(self, registry: Registry, pins: Pins) -> recovery.Orphans:
        """Remove what no pod answers for; does nothing while a pod is still looked for."""
        workers = registry.workers
        looking = any(Step.PROVE not in w.state.done for w in workers)
        if not registry.synced or looking:
            return recovery.Orphans()
        published = self._enrollments.published()
        announced = sorted(published.keys() - {w.uid for w in workers})
        for uid in announced:
            namespace, name = published[uid]
            await self._enrollments.withdraw(namespace, name, uid)
        # Only now: pods may have come while the withdrawals went out.
        workers = registry.workers
        found = recovery.orphans(
            known_uids={w.uid for w in workers},
            known_cookies={w.subject.remembered.cookie for w in workers if w.subject.remembered is not None},
            lookups=pins.lookups(),
            records=pins.records(),
            published=announced,
        )
        if found:
            _log.warning("removing what no pod answers for: %s", found)
        for cookie in found.records:
            pins.remove_record(cookie)
        for uid in found.lookups:
            pins.detach_lookup(uid)
        return found

    async def close(self) -> None:
        """Stop; what is captured stays captured."""
        await self._tasks.close()
        for part in (self._cni, self._zds, self._registry, self._admin, self._metrics):
            if part is not None:
                await part.close()
        if self._cluster is not None:
            await self._cluster.close()
        if self._node is not None:
            self._node.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _code_of(error: OSError) -> Code:
    return Code.ADDRESS_IN_USE if error.errno == errno.EADDRINUSE else Code.BAD_SETTING


def objects_of(snapshot: Snapshot) -> Objects:
    """Pick what the agent reads out of a snapshot."""
    return Objects(
        pods=tuple(item.data for item in snapshot.of("Pod")),
        namespaces={item.name: item.labels for item in snapshot.of("Namespace")},
    )
