# SPDX-License-Identifier: Apache-2.0
"""Takes everything of the agent off a node: `python -m daemonset cleanup`.

Needs no running agent and no objects: it goes by the agent's files and the pins. Order as
in leaving the mesh: nothing announces HBONE any more, then capture ends, then routes and
files go. Whatever cannot be removed is named at the end; the rest is removed all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from daemonset import loader, netns
from daemonset.cni_install import CniInstaller
from daemonset.config import Settings
from daemonset.kernel import KernelNetwork
from daemonset.kube import Cluster
from daemonset.lock import StartError
from daemonset.pins import Pins
from daemonset.pods import Pod
from daemonset.store import EnrollmentFiles, Enrollments, PodFiles, Remembered
from daemonset.worker import Subject
from mesh.runtime.clock import SystemClock

_log = logging.getLogger("ambit.agent.cleanup")


class Cleanup:
    """One run; `problems` says what stayed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.removed: list[str] = []
        self.problems: list[str] = []

    async def run(self) -> bool:
        """Remove everything; return whether nothing stayed."""
        settings = self._settings
        # First, so that new pods wait for no agent.
        self._remove_plugin()
        await self._withdraw()
        self._release_maps()
        files = PodFiles(settings.run_dir)
        known = files.load()
        for pod in known.values():
            self._try(f"mark route of {pod.namespace}/{pod.name}", lambda p=pod: self._unroute(p))  # type: ignore[misc]
            self._try(f"file of {pod.namespace}/{pod.name}", lambda p=pod: files.remove(p.uid))  # type: ignore[misc]
        await self._unload()
        for path in (settings.zds_socket, settings.cni_socket):
            if path.exists():
                self._try(str(path), path.unlink)
        self._remove_empty(settings.run_dir / "pods")
        if not settings.objects and settings.ztunnel_cgroup.is_dir():
            # The gate's (daemonset/gate.py); a lab's is the lab's.
            self._try(str(settings.ztunnel_cgroup), settings.ztunnel_cgroup.rmdir)
        return not self.problems

    async def _withdraw(self) -> None:
        """Take back what the controller was told; pods without capture must not be sent HBONE."""
        settings = self._settings
        if settings.objects:
            await self._withdraw_all(EnrollmentFiles(settings.status_dir, settings.node))
            return
        try:
            cluster = await Cluster.open(settings, SystemClock())
        except StartError as error:
            self.problems.append(f"annotations of the pods of node {settings.node}: {error.reason}")
            return
        try:
            await self._withdraw_all(cluster.enrollments)
        finally:
            await cluster.close()

    async def _withdraw_all(self, enrollments: Enrollments) -> None:
        try:
            found = await enrollments.fetch()
        except OSError as error:
            self.problems.append(f"what was said of captured pods: {error}")
            return
        for uid, (namespace, name) in found.items():
            what = f"Enrollment {namespace}/{name}"
            try:
                await enrollments.withdraw(namespace, name, uid)
            except OSError as error:
                self.problems.append(f"{what}: {error}")
            else:
                self.removed.append(what)

    def _try(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except (OSError, netns.NetnsError) as error:
            self.problems.append(f"{what}: {error}")
        else:
            self.removed.append(what)

    def _remove_plugin(self) -> None:
        installer = CniInstaller.of(self._settings)
        if installer is None:
            return
        try:
            self.removed += installer.remove()
        except OSError as error:
            self.problems.append(f"CNI plugin: {error}")

    def _release_maps(self) -> None:
        try:
            pins = Pins(self._settings.bpffs)
            records, lookups = pins.records(), pins.lookups()
        except OSError as error:
            _log.info("no usable pins in %s: %s", self._settings.bpffs, error)
            return
        for cookie in records:
            self._try(f"record of netns cookie {cookie}", lambda c=cookie: pins.remove_record(c))  # type: ignore[misc]
        for uid in lookups:
            self._try(f"sk_lookup link of pod {uid}", lambda u=uid: pins.detach_lookup(u))  # type: ignore[misc]

    def _unroute(self, pod: Remembered) -> None:
        subject = Subject(
            pod=Pod(uid=pod.uid, namespace=pod.namespace, name=pod.name),
            remembered=pod,
            cni_netns=pod.netns_path,
        )
        with netns.open_netns("/proc/self/ns/net") as node:
            network = KernelNetwork(node=node, pods_cgroup=self._settings.pods_cgroup, cluster_dns=())
            space = network.reopen(subject)
            if space is not None:
                with space:
                    network.remove_route(space)

    async def _unload(self) -> None:
        settings = self._settings
        try:
            await loader.run(
                settings.bpf_python,
                ["unload", "--bpffs", str(settings.bpffs)],
                timeout_s=settings.load_timeout_s,
            )
        except loader.LoaderError as error:
            self.problems.append(f"BPF programs and maps: {error.reason}; {error.code.remedy}")
        else:
            self.removed.append(f"BPF programs and maps in {settings.bpffs}")

    def _remove_empty(self, directory: Path) -> None:
        if directory.is_dir() and not any(directory.iterdir()):
            self._try(str(directory), directory.rmdir)
