# SPDX-License-Identifier: Apache-2.0
"""A node of network namespaces and cgroups on which the programs are loaded, removed again without trace."""

import contextlib
import ctypes
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bpf import load, sources
from bpf.bytecode import Bytecode
from bpf.load import LoadReport
from bpf.maps import NodeMaps, PodRecord
from tests.support.eventually import PATIENCE, eventually

PYTHON = "/usr/bin/python3"
REPOSITORY = Path(__file__).resolve().parents[2]
SO_NETNS_COOKIE = 71
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


def cgroup2() -> Path:
    """Where cgroup v2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise RuntimeError("no cgroup2 mount: mount one, or boot with unified cgroups")


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def bpf_command(*arguments: str | Path, expect: int = 0) -> dict[str, Any]:
    """Run `python3 -m bpf ...` as the agent does; return its JSON line."""
    done = subprocess.run(
        [PYTHON, "-m", "bpf", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
    )
    assert done.returncode == expect, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_netns(name: str, action: Callable[[], Any]) -> Any:
    """Run `action` in a thread that has entered the namespace."""
    box: list[Any] = []

    def run() -> None:
        with open(f"/run/netns/{name}") as file:
            assert _libc.setns(file.fileno(), _CLONE_NEWNET) == 0
        try:
            box.append(action())
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def netns_cookie() -> int:
    with socket.socket() as s:
        return int(struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


class Worker:
    """A process in a namespace and a cgroup; see worker.py."""

    def __init__(self, netns: str, cgroup: Path) -> None:
        def enter() -> None:
            (cgroup / "cgroup.procs").write_text("0")
            fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
            assert _libc.setns(fd, _CLONE_NEWNET) == 0
            os.close(fd)

        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,
        )

    def run(self, code: str) -> Any:
        """Run code there; return what it left in `result`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def call(self, function: str, *arguments: Any, **named: Any) -> Any:
        """Call a function of worker.py's."""
        text = [repr(argument) for argument in arguments] + [
            f"{key}={value!r}" for key, value in named.items()
        ]
        return self.run(f"result = {function}({', '.join(text)})")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Pod:
    """One pod: namespace, cgroup, addresses, and the processes that a test starts in it."""

    def __init__(self, node: "Node", name: str, index: int) -> None:
        self.node, self.name = node, name
        self.uid = f"{node.name}-{name}"
        self.netns = f"{node.name}-{name}"
        self.ipv4 = f"10.213.{index}.2"
        self.ipv6 = f"fd00:213:{index:x}::2"
        self.cgroup = node.pods_cgroup / self.uid
        self.cgroup.mkdir()
        gateway4, gateway6 = f"10.213.{index}.1", f"fd00:213:{index:x}::1"
        outer = f"v{node.tag}{name}"
        ip("netns", "add", self.netns)
        ip(
            "link",
            "add",
            outer,
            "netns",
            node.netns,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.netns,
        )
        ip("-n", node.netns, "addr", "add", f"{gateway4}/24", "dev", outer)
        ip("-n", node.netns, "addr", "add", f"{gateway6}/64", "dev", outer, "nodad")
        ip("-n", node.netns, "link", "set", outer, "up")
        ip("-n", self.netns, "link", "set", "lo", "up")
        ip("-n", self.netns, "addr", "add", f"{self.ipv4}/24", "dev", "eth0")
        ip("-n", self.netns, "addr", "add", f"{self.ipv6}/64", "dev", "eth0", "nodad")
        ip("-n", self.netns, "link", "set", "eth0", "up")
        ip("-n", self.netns, "route", "add", "default", "via", gateway4)
        ip("-n", self.netns, "-6", "route", "add", "default", "via", gateway6)
        self.cookie: int = in_netns(self.netns, netns_cookie)
        self.workers: list[Worker] = []

    def record(self, **changes: Any) -> PodRecord:
        fields: dict[str, Any] = {
            "netns_cookie": self.cookie,
            "workload_id": self.node.maps.allocate_workload_id(),
            "addresses": (ip_address(self.ipv4), ip_address(self.ipv6)),
            **changes,
        }
        return PodRecord(**fields)

    def enroll(self, *, lookup: bool = True, **changes: Any) -> PodRecord:
        record = self.record(**changes)
        self.node.maps.enroll(record)
        if lookup:
            self.attach_lookup()
        return record

    def attach_lookup(self) -> None:
        with open(f"/run/netns/{self.netns}") as file:
            load.attach_pod_lookup(
                self.node.bpffs, uid=self.uid, netns_fd=file.fileno(), netns_cookie=self.cookie
            )

    def unenroll(self) -> None:
        load.detach_pod_lookup(self.node.bpffs, self.uid)
        self.node.maps.unenroll(self.cookie)

    def worker(self, cgroup: Path | None = None) -> Worker:
        worker = Worker(self.netns, cgroup or self.cgroup)
        self.workers.append(worker)
        return worker

    def ztunnel(self, *, ipv6: bool = True) -> Worker:
        """A ztunnel's worker in this pod: listeners of every kind, their connections noted in `seen`."""
        worker = self.worker(self.node.ztunnel_cgroup)
        worker.run("seen = []; listeners = []")
        for kind, port in (("outbound", 15001), ("inbound", 15006), ("hbone", 15008)):
            worker.run(f"listeners.append(listen('127.0.0.1', {port})); serve(listeners[-1], '{kind}', seen)")
            if ipv6:
                worker.run(f"listeners.append(listen('::1', {port}, socket.AF_INET6))")
                worker.run(f"serve(listeners[-1], '{kind}', seen)")
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        ip("netns", "del", self.netns)


class Node:
    """A node with its own cgroups, namespaces and pins."""

    def __init__(self) -> None:
        self.tag = f"{os.getpid() % 100000:x}{next(_serial):x}"
        self.name = f"bpft-{self.tag}"
        self.netns = f"{self.name}-node"
        self.bpffs = Path("/sys/fs/bpf") / self.name
        self.cgroup = cgroup2() / self.name
        self.pods_cgroup = self.cgroup / "kubepods"
        self.ztunnel_cgroup = self.pods_cgroup / "ztunnel"
        self.system_cgroup = self.cgroup / "system"
        self.pods: list[Pod] = []
        self.workers: list[Worker] = []
        self._maps: NodeMaps | None = None

    def start(self) -> None:
        for directory in (self.cgroup, self.pods_cgroup, self.ztunnel_cgroup, self.system_cgroup):
            directory.mkdir()
        ip("netns", "add", self.netns)
        ip("-n", self.netns, "link", "set", "lo", "up")
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            path = Path("/proc/sys") / key.replace(".", "/")
            in_netns(self.netns, lambda path=path: path.write_text("1"))

    def load(self, *arguments: str | Path, expect: int = 0) -> dict[str, Any]:
        return bpf_command(
            "load",
            "--bpffs",
            self.bpffs,
            "--pods-cgroup",
            self.pods_cgroup,
            "--node-cgroup",
            self.cgroup,
            *arguments,
            expect=expect,
        )

    def load_here(self, code: Bytecode, **changes: Any) -> LoadReport:
        """Load in this process: as `load` does, without a Python to start."""
        schema = changes.pop("schema", sources.schema_hash())
        return load.load(
            self.bpffs, code, pods_cgroup=self.pods_cgroup, node_cgroup=self.cgroup, schema=schema, **changes
        )

    @property
    def maps(self) -> NodeMaps:
        if self._maps is None:
            self._maps = NodeMaps.open(self.bpffs)
            self._maps.set_ztunnel(frozenset({self.ztunnel_cgroup.stat().st_ino}))
            self._maps.set_node(in_netns(self.netns, netns_cookie))
        return self._maps

    def reopen(self) -> NodeMaps:
        if self._maps is not None:
            self._maps.close()
            self._maps = None
        return self.maps

    def pod(self, name: str) -> Pod:
        pod = Pod(self, name, len(self.pods) + 1)
        self.pods.append(pod)
        return pod

    def worker(self, cgroup: Path | None = None) -> Worker:
        """A process of the node itself."""
        worker = Worker(self.netns, cgroup or self.system_cgroup)
        self.workers.append(worker)
        return worker

    def counted(self) -> dict[str, int]:
        return {name: number for name, number in self.maps.counters().items() if number}

    @contextlib.contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """Give the counters' growth during the block, after it."""
        before = self.maps.counters()
        grown: dict[str, int] = {}
        yield grown
        after = self.maps.counters()
        grown.update({name: after[name] - before[name] for name in after if after[name] != before[name]})

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for pod in self.pods:
            pod.close()
        if self._maps is not None:
            self._maps.close()
        load.unload(self.bpffs)
        subprocess.run(["ip", "netns", "del", self.netns], capture_output=True)
        for directory in (*(pod.cgroup for pod in self.pods), self.ztunnel_cgroup, self.pods_cgroup):
            _remove(directory)
        _remove(self.system_cgroup)
        _remove(self.cgroup)


def _remove(cgroup: Path) -> None:
    """A cgroup can be removed when its last process has been reaped, which takes a moment."""
    if cgroup.is_dir():
        eventually(lambda: _try_remove(cgroup))


def _try_remove(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True
