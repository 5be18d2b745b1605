# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.kubelet STATE NODE`, in the node's namespace: its pods, kernel services and resolver."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import nft, services, shell
from lab.dns import DnsServer
from lab.errors import LabError
from lab.layout import CLUSTER_DOMAIN, DNS_IP, DNS_IP6, Layout, load_layout
from lab.pod import PodRunner
from lab.podspec import decoded
from lab.token import REFRESH_S, pod_token
from mesh.config.source import DirectorySource, Snapshot
from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.lab.kubelet")
Key = tuple[str, str]


class Kubelet:
    """Runs what is assigned to one node; one owner of its pods, table and resolver."""

    def __init__(self, layout: Layout, node: str) -> None:
        self._layout = layout
        self._node = layout.node(node)
        self._assigned = layout.assigned / node
        self._snapshot: Snapshot = Snapshot(objects={})
        self._pods: dict[Key, PodRunner] = {}
        self._stopping: dict[Key, asyncio.Task[None]] = {}
        self._names: dict[str, services.Name] = {}
        self._rules = ""
        self._tasks = TaskOwner(f"kubelet {node}")
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled; pods go on running."""
        dns = DnsServer(lambda: self._names, CLUSTER_DOMAIN)
        for address in (DNS_IP, DNS_IP6):
            await dns.start(address)
        create_task(self._refresh_tokens(), name="tokens", owner=self._tasks)
        create_task(self._watch(), name="watch", owner=self._tasks)
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._reconcile()
        finally:
            dns.close()
            await self._tasks.close()

    async def _watch(self) -> None:
        source = DirectorySource(
            [self._layout.objects, self._layout.generated, self._layout.status, self._assigned]
        )
        async for snapshot in source.watch():
            for rejection in snapshot.rejections:
                _log.warning("%s", rejection)
            self._snapshot = snapshot
            self._changed.set()

    async def _refresh_tokens(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            for runner in self._pods.values():
                await asyncio.to_thread(runner.refresh_token)

    def _reconcile(self) -> None:
        self._run_pods()
        found = [item.data for item in self._snapshot.of("Service")]
        slices = [item.data for item in self._snapshot.of("EndpointSlice")]
        usable = [s for s in found if (s.get("metadata") or {}).get("namespace")]
        self._names = services.names(usable, slices, CLUSTER_DOMAIN)
        rules = nft.ruleset(services.forwards(usable, slices))
        if rules != self._rules:
            try:
                shell.run("nft", "-f", "-", text=rules)
                self._rules = rules
            except LabError:
                _log.exception("the kernel's services were not updated")

    def _run_pods(self) -> None:
        wanted: dict[Key, Mapping[str, Any]] = {}
        for item in self._snapshot.of("Pod"):
            if Path(item.file).is_relative_to(self._assigned):
                wanted[item.namespace, item.name] = item.data
        for key, runner in list(self._pods.items()):
            data = wanted.get(key)
            if data is None or data["metadata"]["uid"] != runner.uid:
                del self._pods[key]
                self._stopping[key] = create_task(
                    self._stop(key, runner), name=f"stop {key}", owner=self._tasks
                )
            else:
                runner.update(data)
        for key, data in wanted.items():
            # A successor of the same name starts when its predecessor is gone.
            if key not in self._pods and key not in self._stopping:
                runner = PodRunner(data, self._layout, self._node, self._lookup_in(key[0]), self._token)
                self._pods[key] = runner
                runner.start()
        self._forget_lost(wanted)

    def _forget_lost(self, wanted: Mapping[Key, Mapping[str, Any]]) -> None:
        """Remove pods that were deleted while no kubelet ran."""
        for item in self._snapshot.of("Pod"):
            key = (item.namespace, item.name)
            ours = item.spec.get("nodeName") == self._node.name and item.metadata.get("uid")
            known = key in wanted or key in self._pods or key in self._stopping
            if ours and not known and Path(item.file).is_relative_to(self._layout.status):
                runner = PodRunner(item.data, self._layout, self._node, self._lookup_in(key[0]), self._token)
                self._stopping[key] = create_task(
                    self._stop(key, runner), name=f"stop {key}", owner=self._tasks
                )

    async def _stop(self, key: Key, runner: PodRunner) -> None:
        try:
            await runner.stop()
        finally:
            del self._stopping[key]
            self._changed.set()

    def _token(self, pod: Mapping[str, Any]) -> str:
        return pod_token(self._layout.state / "tokens", pod)

    def _lookup_in(self, namespace: str) -> Any:
        def lookup(kind: str, name: str) -> Mapping[str, str] | None:
            for item in self._snapshot.of(kind):
                if (item.namespace, item.name) == (namespace, name):
                    return decoded(kind, item.data)
            return None

        return lookup


async def _main(state: Path, node: str) -> None:
    kubelet = Kubelet(load_layout(state), node)
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await kubelet.run()
    except asyncio.CancelledError:
        _log.info("kubelet ends; pods go on")


def main() -> int:
    """Run the process; exit codes as the command contract says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    try:
        asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))
    except LabError as error:
        print(error, file=sys.stderr)
        return error.code.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
