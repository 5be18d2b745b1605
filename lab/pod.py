# SPDX-License-Identifier: Apache-2.0
"""One pod on its node, from namespace to end: started, probed, restarted, reported, removed.

The owner of the pod's files, namespace, cgroup and Pod object under status/. What it
starts survives it: a kubelet that comes back adopts what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import cgroup, cni, network, podspec, probes, waypoint
from lab.errors import LabError
from lab.layout import Layout, Node
from lab.manifests import dump, object_path
from lab.process import Process
from lab.shell import write_file
from lab.workloads import number_of
from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.lab.pod")

CONTAINER_PROGRAM = Path(__file__).with_name("container.py")
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
BACKOFF_RESET_S = 60.0
"""A container that ran this long is started again at once."""
CNI_RETRY_S = 0.5
DEFAULT_GRACE_S = 30.0
PYTHON = "/usr/bin/python3"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Container:
    """One container: what runs, what became of it, what its probes say."""

    def __init__(self, spec: Mapping[str, Any], *, init: bool) -> None:
        self.spec = spec
        self.name = str(spec["name"])
        self.init = init
        self.process: Process | None = None
        self.restarts = 0
        self.exit_code: int | None = None
        self.waiting = "ContainerCreating"
        self.message = ""
        self.started_at = ""
        self.ready = False

    def status(self) -> dict[str, Any]:
        """Return its containerStatus."""
        state: dict[str, Any]
        if self.process is not None:
            state = {"running": {"startedAt": self.started_at}}
        elif self.exit_code is not None and not self.waiting:
            reason = "Completed" if self.exit_code == 0 else "Error"
            state = {"terminated": {"exitCode": self.exit_code, "reason": reason}}
        else:
            state = {"waiting": {"reason": self.waiting, "message": self.message}}
        last = {"terminated": {"exitCode": self.exit_code}} if self.exit_code is not None else {}
        return {
            "name": self.name,
            "ready": self.ready,
            "restartCount": self.restarts,
            "state": state,
            "lastState": last,
        }


class PodRunner:
    """Runs one pod; `start` once, `update` on changed labels, `stop` at its end."""

    def __init__(
        self,
        data: Mapping[str, Any],
        layout: Layout,
        node: Node,
        lookup: podspec.Lookup,
        token: Callable[[Mapping[str, Any]], str],
    ) -> None:
        self._data = dict(data)
        self._layout = layout
        self._node = node
        self._lookup = lookup
        self._token = token
        metadata = data["metadata"]
        self.uid = str(metadata["uid"])
        self.key = (str(metadata["namespace"]), str(metadata["name"]))
        self._directory = layout.pod_dir(*self.key)
        self._netns = layout.pod_netns(*self.key)
        self._veth = f"p{number_of(data)}"
        self._ips = node.pod_ips(number_of(data))
        self._cgroup = layout.kubepods(node.name) / self.uid
        self._tasks = TaskOwner(f"pod {self.key[0]}/{self.key[1]}")
        spec = data["spec"]
        self._init = [Container(c, init=True) for c in spec.get("initContainers") or ()]
        self._containers = [Container(c, init=False) for c in spec.get("containers") or ()]
        self._policy = str(spec.get("restartPolicy", "Always"))
        self._deleted_at = ""
        self._message = ""
        self._reason = ""
        self._networked = False
        self._started_at = ""
        self._ready_since = ""

    def start(self) -> None:
        """Begin; failures are reported in the pod's status and tried again."""
        create_task(self._run(), name="run", owner=self._tasks)

    def update(self, data: Mapping[str, Any]) -> None:
        """Take changed labels and annotations over."""
        if data["metadata"] != self._data["metadata"]:
            self._data = dict(data)
            self._report()

    async def stop(self) -> None:
        """End the containers, un-enrol, and remove everything of the pod."""
        self._deleted_at = _now()
        self._report()
        grace_s = float(self._data["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_S))
        running = [c.process for c in (*self._containers, *self._init) if c.process is not None]
        await self._tasks.close()
        await asyncio.gather(*(process.stop(grace_s) for process in running))
        await asyncio.to_thread(cgroup.kill, self._cgroup)
        if self._layout.mesh:
            socket = self._layout.node_dir(self._node.name) / "cni.sock"
            with contextlib.suppress(cni.CniError):  # The agent sees the pod gone in any case.
                await cni.call(socket, "DEL", self.object(), f"/run/netns/{self._netns}")
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        network.remove_pod(self._node, self._netns, self._veth)
        cgroup.remove(self._cgroup)
        object_path(self._layout.status, "Pod", *self.key).unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    # Its life.

    async def _run(self) -> None:
        self._started_at = _now()
        delay_s = BACKOFF_FIRST_S
        while True:
            try:
                await asyncio.to_thread(self._prepare)
                break
            except (LabError, podspec.PodSpecError, OSError) as error:
                self._fail("CreateContainerConfigError", str(error))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, BACKOFF_MAX_S)
        self._networked = True
        self._fail("", "")
        if self._layout.mesh:
            await self._enrol()
        for container in self._init:
            await self._run_container(container)
            if container.exit_code != 0:
                return
        async with asyncio.TaskGroup() as group:
            for container in self._containers:
                group.create_task(self._run_container(container), name=container.name)

    def _prepare(self) -> None:
        """Make or find the pod's namespace, cgroup and files."""
        known = self._directory / "uid"
        same = known.exists() and known.read_text() == self.uid
        if not (same and (Path("/run/netns") / self._netns).exists()):
            for entry in self._directory.glob("*.json"):
                entry.unlink()
            network.make_pod(self._node, self._netns, self._veth, self._ips)
        cgroup.make(self._cgroup)
        write_file(self._directory / "resolv.conf", podspec.resolv_conf(self._data))
        write_file(self._directory / "hosts", self._hosts())
        self.refresh_token()
        for volume in self._data["spec"].get("volumes") or ():
            path = self._directory / "volumes" / str(volume["name"])
            path.mkdir(parents=True, exist_ok=True)
            if "emptyDir" in volume:
                path.chmod(0o777)
        for volume_files in podspec.volume_files(self._data, self._lookup):
            for name, text in volume_files.files.items():
                path = self._directory / "volumes" / volume_files.volume / name
                write_file(path, text, mode=volume_files.mode)
                path.chmod(volume_files.mode)
        write_file(known, self.uid)

    def _hosts(self) -> str:
        return podspec.hosts(self._data, self._ips, waypoint.aliases(self._data, self._node))

    def refresh_token(self) -> None:
        """Write the pod's token anew; it is bound to the pod and ends by itself."""
        token = self._token(self._data)
        write_file(self._directory / "token", token, mode=0o600)
        uid = (self._data["spec"].get("securityContext") or {}).get("runAsUser")
        path = self._directory / "secrets" / "istio-token"
        write_file(path, token, mode=0o600)
        if uid is not None:
            os.chown(path, int(uid), -1)

    async def _enrol(self) -> None:
        socket = self._layout.node_dir(self._node.name) / "cni.sock"
        while True:
            try:
                await cni.call(socket, "ADD", self.object(), f"/run/netns/{self._netns}")
            except cni.CniError as error:
                self._fail("WaitingForMesh", str(error))
                await asyncio.sleep(CNI_RETRY_S)
            else:
                self._fail("", "")
                return

    async def _run_container(self, container: Container) -> None:
        """Keep one container running as the restart policy says."""
        delay_s = BACKOFF_FIRST_S
        while True:
            began = time.monotonic()
            try:
                await self._one_run(container)
            except (podspec.PodSpecError, OSError) as error:
                container.waiting, container.message = "CreateContainerConfigError", str(error)
                container.exit_code = None
            self._report()
            if container.exit_code is not None and not self._again(container):
                container.waiting = ""
                self._report()
                return
            if time.monotonic() - began > BACKOFF_RESET_S:
                delay_s = BACKOFF_FIRST_S
            if container.exit_code is not None:
                container.waiting = "CrashLoopBackOff"
                container.message = f"it ended with code {container.exit_code}; see its log"
                self._report()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)
            container.restarts += 1

    def _again(self, container: Container) -> bool:
        if container.init:
            return container.exit_code != 0 and self._policy != "Never"
        return self._policy == "Always" or (self._policy == "OnFailure" and container.exit_code != 0)

    async def _one_run(self, container: Container) -> None:
        """Run a container once, or wait for the end of one that an earlier kubelet started."""
        record = self._directory / f"{container.name}.json"
        exit_file = self._directory / f"{container.name}.exit"
        process = Process.find(record)
        if process is None:
            exit_file.unlink(missing_ok=True)
            spec = podspec.container_spec(self.object(), container.spec, self._layout, self._lookup)
            path = self._directory / f"{container.name}.spec.json"
            write_file(path, json.dumps(spec), mode=0o600)
            process = Process.spawn(
                [PYTHON, "-I", "-S", str(CONTAINER_PROGRAM), "start", str(path)],
                record=record,
                log=self._directory / f"{container.name}.log",
                env={"PATH": podspec.PATH},
                cwd=Path("/"),
            )
        container.process, container.started_at = process, _now()
        container.waiting = container.message = ""
        owner = TaskOwner(f"probes of {container.name}")
        if not container.init:
            self._start_probes(container, owner)
        self._report()
        try:
            code = await process.wait()
        finally:
            await owner.close()
        container.process, container.ready = None, False
        with contextlib.suppress(OSError, ValueError):
            code = int(exit_file.read_text())
        container.exit_code = 137 if code is None or code < 0 else code
        _log.info("container %s of %s ended with %s", container.name, self.key, container.exit_code)

    # Probes.

    def _start_probes(self, container: Container, owner: TaskOwner) -> None:
        try:
            found = {
                n: probes.parse_probe(container.spec, f"{n}Probe")
                for n in ("readiness", "liveness", "startup")
            }
        except ValueError as error:
            container.message = str(error)
            return
        container.ready = found["readiness"] is None and found["startup"] is None
        if any(found.values()):
            create_task(self._probe(container, found), name="probes", owner=owner)

    async def _probe(self, container: Container, found: Mapping[str, probes.Probe | None]) -> None:
        if (startup := found["startup"]) is not None:
            verdict = probes.Verdict(startup, good=False)
            failures = 0
            while not verdict.good:
                await asyncio.sleep(startup.period_s if failures else startup.initial_delay_s)
                verdict.take(await self._ask(container, startup))
                failures += 1
                if not verdict.good and failures >= startup.failure_threshold:
                    await self._kill(container, f"its startup probe failed: {verdict.reason}")
                    return
        async with asyncio.TaskGroup() as group:
            if (readiness := found["readiness"]) is not None:
                group.create_task(self._watch_readiness(container, readiness), name="readiness")
            elif not container.ready:
                container.ready = True
                self._report()
            if (liveness := found["liveness"]) is not None:
                group.create_task(self._watch_liveness(container, liveness), name="liveness")

    async def _watch_readiness(self, container: Container, probe: probes.Probe) -> None:
        verdict = probes.Verdict(probe, good=False)
        await asyncio.sleep(probe.initial_delay_s)
        first = True
        while True:
            changed = verdict.take(await self._ask(container, probe))
            message = "" if verdict.good else f"readiness: {verdict.reason}"
            if changed or message != container.message:
                container.ready, container.message = verdict.good, message
                self._report()
            # Until it is ready the first time it is asked more often, so that a start takes no whole period.
            first = first and not verdict.good
            await asyncio.sleep(min(probe.period_s, 0.5) if first else probe.period_s)

    async def _watch_liveness(self, container: Container, probe: probes.Probe) -> None:
        verdict = probes.Verdict(probe, good=True)
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            verdict.take(await self._ask(container, probe))
            if not verdict.good:
                await self._kill(container, f"its liveness probe failed: {verdict.reason}")
                return
            await asyncio.sleep(probe.period_s)

    async def _kill(self, container: Container, why: str) -> None:
        _log.warning("container %s of %s is ended: %s", container.name, self.key, why)
        container.message = why
        if container.process is not None:
            container.process.signal(signal.SIGTERM)
            await asyncio.sleep(2.0)
            if container.process is not None:
                container.process.signal(signal.SIGKILL)

    async def _ask(self, container: Container, probe: probes.Probe) -> str:
        async def execute(command: tuple[str, ...]) -> int:
            return await self._execute(container, command)

        return await probes.ask(probe, self._ips[0], execute)

    async def _execute(self, container: Container, command: tuple[str, ...]) -> int:
        """Run a probe's command in the container; its output is dropped, as the kubelet does."""
        spec = podspec.container_spec(self.object(), container.spec, self._layout, self._lookup)
        path = self._directory / f"{container.name}.probe.json"
        write_file(path, json.dumps({**spec, "argv": list(command)}), mode=0o600)
        process = await asyncio.create_subprocess_exec(
            PYTHON, "-I", "-S", str(CONTAINER_PROGRAM), "enter", str(path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise

    # What others see.

    def _fail(self, reason: str, message: str) -> None:
        if (reason, message) != (self._reason, self._message):
            if message:
                _log.warning("pod %s/%s: %s", *self.key, message)
            self._reason, self._message = reason, message
        self._report()

    def _phase(self) -> str:
        if any(c.process is not None for c in self._containers):
            return "Running"
        ended = [c for c in self._containers if c.exit_code is not None and not c.waiting]
        if ended and len(ended) == len(self._containers):
            return "Succeeded" if all(c.exit_code == 0 for c in ended) else "Failed"
        if any(c.restarts for c in self._containers):
            return "Running"
        return "Pending"

    def object(self) -> dict[str, Any]:
        """Return the Pod with its status."""
        ready = bool(self._containers) and all(c.ready for c in self._containers) and not self._deleted_at
        if not ready:
            self._ready_since = ""
        elif not self._ready_since:
            self._ready_since = _now()
        status: dict[str, Any] = {
            "phase": self._phase(),
            "hostIP": self._node.ip,
            "startTime": self._started_at,
            "conditions": [
                {"type": "PodReadyToStartContainers", "status": str(self._networked)},
                {
                    "type": "Ready",
                    "status": str(ready),
                    **({"lastTransitionTime": self._ready_since} if ready else self._unready()),
                },
            ],
            "containerStatuses": [c.status() for c in self._containers],
        }
        if self._reason:
            status |= {"reason": self._reason, "message": self._message}
        if self._init:
            status["initContainerStatuses"] = [c.status() for c in self._init]
        if self._networked:
            status |= {"podIP": self._ips[0], "podIPs": [{"ip": ip} for ip in self._ips]}
        metadata = dict(self._data["metadata"])
        if self._deleted_at:
            metadata["deletionTimestamp"] = self._deleted_at
        return {**self._data, "metadata": metadata, "status": status}

    def _unready(self) -> dict[str, str]:
        """Say which container is not ready, and what its probe met."""
        parts = [f"container {c.name}: {c.message}" for c in self._containers if not c.ready and c.message]
        return {"reason": "ContainersNotReady", "message": "; ".join(parts)} if parts else {}

    def _report(self) -> None:
        path = object_path(self._layout.status, "Pod", *self.key)
        try:
            write_file(path, dump(self.object()))
        except OSError:
            _log.exception("the status of pod %s/%s cannot be written to %s", *self.key, path)
