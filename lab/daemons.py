# SPDX-License-Identifier: Apache-2.0
"""The programs of a lab, their arguments and environment; and their supervision."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.layout import CLUSTER_DOMAIN, DNS_IP, XDS_PORT, Layout, Node
from lab.process import Process
from lab.shell import write_file

_log = logging.getLogger("ambit.lab.daemons")

REPOSITORY = Path(__file__).resolve().parents[1]
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
STABLE_S = 10.0
"""A program that ran this long is started again at once."""
STOP_GRACE_S = 8.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program to keep running."""

    name: str
    """`controller`, or `agent@NODE`..."""
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    record: Path
    cgroup: Path
    after: tuple[Path, ...] = ()
    """Files of others that it needs; it is started when they exist, so that it meets no closed door."""


def programs(layout: Layout) -> list[Program]:
    """Return a lab's programs in their order of start."""
    found = [_kubelet(layout, node) for node in layout.nodes]
    if layout.mesh:
        found.append(_controller(layout))
        for node in layout.nodes:
            found += [_agent(layout, node), _ztunnel(layout, node)]
    return found


def _base_env() -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if k in ("PATH", "HOME", "LANG", "LC_ALL", "LOG_LEVEL", "LOG_FORMAT")
    }
    return kept | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


def _on_node(node: Node, *argv: str) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{node.netns}", *argv)


def _kubelet(layout: Layout, node: Node) -> Program:
    directory = layout.node_dir(node.name)
    return Program(
        name=f"kubelet@{node.name}",
        argv=_on_node(node, sys.executable, "-m", "lab.kubelet", str(layout.state), node.name),
        env=_base_env(),
        log=directory / "kubelet.log",
        record=directory / "kubelet.pid",
        cgroup=layout.node_cgroup(node.name) / "system",
    )


def _controller(layout: Layout) -> Program:
    argv = [sys.executable, "-m", "controller"]
    # Later directories win: the lab's status of an object over what was applied.
    for directory in (layout.objects, layout.status):
        argv += ["--objects", str(directory)]
    argv += ["--generated", str(layout.generated), "--ca-dir", str(layout.state / "ca")]
    for node in layout.nodes:
        argv += ["--xds-listen", f"{node.machine_ip}:{XDS_PORT}"]
    host, port = layout.admin_address
    argv += ["--admin-listen", f"{host}:{port}", "--token-key", str(layout.state / "tokens" / "signer.pub")]
    argv += ["--cluster-domain", CLUSTER_DOMAIN]
    return Program(
        name="controller",
        argv=tuple(argv),
        env=_base_env(),
        log=layout.state / "controller.log",
        record=layout.state / "controller.pid",
        cgroup=layout.cgroup / "system",
    )


def _node_env(layout: Layout, node: Node) -> dict[str, str]:
    return _base_env() | {
        "NODE_NAME": node.name,
        "INPOD_UDS": str(layout.node_dir(node.name) / "zds.sock"),
        "AMBIT_BPFFS": str(layout.bpffs(node.name)),
    }


def _agent(layout: Layout, node: Node) -> Program:
    directory = layout.node_dir(node.name)
    return Program(
        name=f"agent@{node.name}",
        argv=_on_node(node, sys.executable, "-m", "daemonset"),
        env=_node_env(layout, node)
        | {
            "AMBIT_CNI_UDS": str(directory / "cni.sock"),
            "AMBIT_PODS_CGROUP": str(layout.kubepods(node.name)),
            "AMBIT_NODE_CGROUP": str(layout.node_cgroup(node.name)),
            "AMBIT_OBJECTS": f"{layout.objects}:{layout.status}",
            "AMBIT_STATUS_DIR": str(layout.status),
            "AMBIT_RUN_DIR": str(directory / "agent"),
            "AMBIT_CLUSTER_DNS": DNS_IP,
        },
        log=directory / "agent.log",
        record=directory / "agent.pid",
        cgroup=layout.node_cgroup(node.name) / "system",
    )


def _ztunnel(layout: Layout, node: Node) -> Program:
    directory = layout.node_dir(node.name)
    root = str(layout.state / "ca" / "root-cert.pem")
    address = f"https://{node.machine_ip}:{XDS_PORT}"
    return Program(
        name=f"ztunnel@{node.name}",
        argv=_on_node(node, sys.executable, "-m", "ztunnel"),
        env=_node_env(layout, node)
        | {
            "XDS_ADDRESS": address,
            "XDS_ROOT_CA": root,
            "CA_ADDRESS": address,
            "CA_ROOT_CA": root,
            "AUTH_TOKEN": str(directory / "token"),
        },
        log=directory / "ztunnel.log",
        record=directory / "ztunnel.pid",
        cgroup=layout.kubepods(node.name) / "ztunnel",
        after=(Path(root), directory / "zds.sock"),
    )


class Supervisor:
    """Keeps one program running; adopts one that an earlier manager started."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: Process | None = None
        self.restarts = 0
        self.last = ""

    async def run(self) -> None:
        """Run until cancelled; the program goes on."""
        delay_s = BACKOFF_FIRST_S
        while True:
            began = time.monotonic()
            try:
                self.process = Process.find(self.program.record)
                if self.process is None:
                    await self._wait_for_files()
                    self.process = self._spawn()
                code = await self.process.wait()
                self.last = "it ended" if code is None else f"it ended with code {code}"
            except OSError as error:
                self.last = f"it cannot be started: {error}"
            self.process = None
            _log.warning("%s: %s; see %s", self.program.name, self.last, self.program.log)
            if time.monotonic() - began > STABLE_S:
                delay_s = BACKOFF_FIRST_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)
            self.restarts += 1

    async def _wait_for_files(self) -> None:
        before = self.last
        while lacking := [str(path) for path in self.program.after if not path.exists()]:
            self.last = f"it waits for {' and '.join(lacking)}"
            await asyncio.sleep(POLL_S)
        self.last = before

    def _spawn(self) -> Process:
        program = self.program
        return Process.spawn(
            program.argv,
            record=program.record,
            log=program.log,
            env=program.env,
            cwd=REPOSITORY,
            cgroup=program.cgroup,
        )

    def state(self) -> dict[str, object]:
        """Return its row of daemons.json."""
        return {
            "name": self.program.name,
            "running": self.process is not None and self.process.alive,
            "pid": self.process.pid if self.process is not None else 0,
            "restarts": self.restarts,
            "last": self.last,
            "log": str(self.program.log),
        }


def write_states(layout: Layout, supervisors: Sequence[Supervisor]) -> None:
    """Publish what runs, for the command line."""
    write_file(layout.state / "daemons.json", json.dumps([s.state() for s in supervisors], indent=1))


def restart(program: Program, *, force: bool = False) -> bool:
    """End a program so that its supervisor starts it again; False: it does not run."""
    process = Process.find(program.record)
    if process is None:
        return False
    process.signal(signal.SIGKILL if force else signal.SIGTERM)
    return True
