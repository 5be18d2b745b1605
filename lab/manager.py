# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.manager STATE`: keeps a lab's programs running, and turns what was applied into pods.

It stands in for Kubernetes' controllers: Deployments, ClusterIPs, EndpointSlices, Nodes.
All it knows is on disk; one that is killed and started again goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from watchfiles import awatch

from lab import services, token, workloads
from lab.daemons import Supervisor, programs, write_states
from lab.errors import LabError
from lab.layout import Layout, load_layout
from lab.manifests import dump, object_path
from lab.shell import write_file
from mesh.config.objects import RawObject
from mesh.config.source import DirectorySource
from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.lab.manager")

DEBOUNCE_MS = 50
STATES_S = 0.5


def _random(length: int) -> str:
    return secrets.token_hex(length)[:length]


class Manager:
    """One owner of assignments, Services, EndpointSlices, Nodes and the lab's programs."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # What the controller derives from Gateways runs like the user's own, which wins.
        self._objects = DirectorySource([layout.generated, layout.objects])
        self._status = DirectorySource([layout.status])
        self._assigned = DirectorySource([layout.assigned])
        self._tasks = TaskOwner("manager")
        self._supervisors = [Supervisor(program) for program in programs(layout)]
        self._problems: list[str] = []

    async def run(self) -> None:
        """Serve until cancelled; the programs go on."""
        directories = (
            self._layout.objects,
            self._layout.generated,
            self._layout.status,
            self._layout.assigned,
        )
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
        self._write_tokens()
        self._reconcile()
        for supervisor in self._supervisors:
            create_task(supervisor.run(), name=supervisor.program.name, owner=self._tasks)
        create_task(self._publish(), name="states", owner=self._tasks)
        create_task(self._refresh_tokens(), name="tokens", owner=self._tasks)
        try:
            async for _ in awatch(
                *directories, debounce=DEBOUNCE_MS, step=10, yield_on_timeout=True, rust_timeout=2000
            ):
                self._reconcile()
        finally:
            await self._tasks.close()

    async def _publish(self) -> None:
        while True:
            write_states(self._layout, self._supervisors)
            await asyncio.sleep(STATES_S)

    def _write_tokens(self) -> None:
        directory = self._layout.state / "tokens"
        for node in self._layout.node_names:
            text = token.ztunnel_token(directory, node)
            write_file(self._layout.node_dir(node) / "token", text, mode=0o600)

    async def _refresh_tokens(self) -> None:
        while True:
            await asyncio.sleep(token.REFRESH_S)
            self._write_tokens()

    def _reconcile(self) -> None:
        """Bring what is on disk to what it should be; called again after each change."""
        applied = self._objects.read()
        status = self._status.read()
        wanted: dict[Path, dict[str, Any]] = {}
        pods = [item.data for item in status.of("Pod")]
        self._assign(applied.of("Pod", "Deployment"), pods)
        self._add(wanted, self._nodes())
        self._add(wanted, self._namespaces(applied.of("Namespace")))
        known = {(s.namespace, s.name): services.cluster_ips(s.data) for s in status.of("Service")}
        found = services.allocate(applied.of("Service"), known)
        self._add(wanted, found)
        for service in found:
            self._add(wanted, services.endpoint_slices(service, pods))
        self._add(wanted, [workloads.deployment_status(d, pods) for d in applied.of("Deployment")])
        for path, data in wanted.items():
            self._write(path, data)
        for kind in ("Node", "Namespace", "Service", "EndpointSlice", "Deployment"):
            for path in (self._layout.status / kind).glob("*/*.yaml"):
                if path not in wanted:
                    path.unlink(missing_ok=True)

    def _assign(self, items: list[RawObject], pods: list[Any]) -> None:
        assigned = {(i.namespace, i.name): dict(i.data) for i in self._assigned.read().of("Pod")}
        ready = frozenset(
            (p["metadata"]["namespace"], p["metadata"]["name"]) for p in pods if workloads.is_ready(p)
        )
        plan = workloads.plan(items, assigned, ready, self._layout, _random, leaving=pods)
        for key, pod in plan.write.items():
            self._write(self._assignment(key, pod), pod)
        for key in plan.remove:
            self._assignment(key, assigned[key]).unlink(missing_ok=True)
        if plan.problems != self._problems:
            self._problems = plan.problems
            write_file(self._layout.state / "problems.txt", "".join(f"{p}\n" for p in plan.problems))

    def _assignment(self, key: workloads.Key, pod: workloads.PodData) -> Path:
        return object_path(self._layout.assigned / pod["spec"]["nodeName"], "Pod", *key)

    def _add(self, wanted: dict[Path, dict[str, Any]], found: list[dict[str, Any]]) -> None:
        for data in found:
            metadata = data["metadata"]
            path = object_path(
                self._layout.status, data["kind"], metadata.get("namespace", ""), metadata["name"]
            )
            wanted[path] = data

    def _write(self, path: Path, data: dict[str, Any]) -> None:
        text = dump(data)
        if not path.exists() or path.read_text() != text:
            write_file(path, text)

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
                "spec": {"podCIDRs": [node.pod_net, node.pod_net6]},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": node.ip},
                        {"type": "InternalIP", "address": node.ip6},
                        {"type": "Hostname", "address": node.name},
                    ],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
            for node in self._layout.nodes
        ]

    def _namespaces(self, applied: list[RawObject]) -> list[dict[str, Any]]:
        present = {item.name for item in applied}
        return [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in ("default", "istio-system", "kube-system")
            if name not in present
        ]


async def _main(state: Path) -> None:
    manager = Manager(load_layout(state))
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await manager.run()
    except asyncio.CancelledError:
        _log.info("manager ends; the lab goes on")


def main() -> int:
    """Run the process; exit codes as the command contract says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    except LabError as error:
        print(error, file=sys.stderr)
        return error.code.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
