# SPDX-License-Identifier: Apache-2.0
"""A node in namespaces with a real agent process on it, for the agent's tests; needs root.

Everything has a name of its own, and `close` removes it all and says what could not go.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.support.eventually import PATIENCE, eventually

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
_MOUNTS = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
V2 = next((Path(words[1]) for words in _MOUNTS if words[2] == "cgroup2"), Path("/sys/fs/cgroup"))
ASK = f"""import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(REPOSITORY)!r}]
import agent_bed
print(*(agent_bed.ask(address, int(sys.argv[1])) for address in sys.argv[2:]), sep="|")
"""
"""A program that connects to a port of addresses and prints what the servers say."""
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def inside(netns: str, work: Callable[[], T]) -> T:
    """Run `work` in a namespace, in a thread of its own."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        try:
            if _libc.setns(fd, 0x40000000):
                raise OSError(ctypes.get_errno(), "setns")
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            failure.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def ask(address: str, port: int, timeout_s: float = 3.0) -> str:
    """Connect and return the line that the server says; `refused` or `timeout` when it does not."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            return connection.makefile().readline().strip() or "closed"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return "refused" if isinstance(error, ConnectionRefusedError) else f"error {error.errno}"


SERVER = """
import socket, sys, threading
def serve(family, address):
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 8080)); s.listen(64)
    while True:
        c, p = s.accept()
        c.sendall(f"app {sys.argv[1]} from {p[0]}\\n".encode()); c.close()
threading.Thread(target=serve, args=(socket.AF_INET6, "::"), daemon=True).start()
serve(socket.AF_INET, "0.0.0.0")
"""


class Pod:
    """A namespace with an application in the pod's cgroup, on a point-to-point veth."""

    def __init__(self, bed: Bed, name: str, *, namespace: str = "shop", run: bool = True) -> None:
        self.bed = bed
        self.name = name
        self.namespace = namespace
        self.number = next(bed.numbers)
        self.uid = f"{bed.name}-{name}-{self.number}"
        self.netns = f"{bed.name}-{name}"
        self.ip = f"10.{bed.subnet}.0.{self.number}"
        self.ip6 = f"fd00:{bed.subnet:x}::{self.number:x}"
        self.veth = f"ds{bed.tag}v{self.number}"
        bed.add_netns(self.netns)
        sh(
            "ip",
            "link",
            "add",
            self.veth,
            "netns",
            bed.node,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.netns,
        )
        self._in("ip", "link", "set", "lo", "up")
        self._in("ip", "link", "set", "eth0", "up")
        self._in("ip", "addr", "add", f"{self.ip}/32", "dev", "eth0")
        self._in("ip", "-6", "addr", "add", f"{self.ip6}/128", "dev", "eth0", "nodad")
        self._in("ip", "route", "add", bed.gateway, "dev", "eth0")
        self._in("ip", "route", "add", "default", "via", bed.gateway)
        bed.on_node("ip", "-6", "addr", "add", "fe80::1/64", "dev", self.veth, "nodad")
        self._in("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        bed.on_node("ip", "link", "set", self.veth, "up")
        bed.on_node("ip", "route", "add", f"{self.ip}/32", "dev", self.veth)
        bed.on_node("ip", "-6", "route", "add", f"{self.ip6}/128", "dev", self.veth)
        self.cgroup = bed.kubepods / self.uid
        self.cgroup.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        if run:
            self.start()

    def _in(self, *command: str) -> None:
        sh("nsenter", f"--net=/run/netns/{self.netns}", *command)

    def start(self) -> None:
        self.process = self.spawn(sys.executable, "-c", SERVER, self.name)
        eventually(lambda: inside(self.netns, lambda: self._listening()), what=f"{self.name} listens")

    def _listening(self) -> bool:
        """Whether the server has its socket; asked of the kernel, not by connecting."""
        return ":1F90 00000000:0000 0A" in Path("/proc/thread-self/net/tcp").read_text()

    def spawn(self, *command: str) -> subprocess.Popen[bytes]:
        return self.bed.spawn(
            "nsenter", f"--net=/run/netns/{self.netns}", *command, cgroup=self.cgroup, log=f"{self.name}.log"
        )

    def call(self, address: str, port: int) -> str:
        """Connect from a process of this pod, so that the hooks of its cgroup run."""
        return self.bed.ask_from(self.netns, self.cgroup, port, address)

    def object(self, *, started: bool = True, **metadata: Any) -> dict[str, Any]:
        status: dict[str, Any] = {"phase": "Pending"}
        if started:
            status = {"phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}, {"ip": self.ip6}]}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, **metadata},
            "spec": {"nodeName": "n1", "serviceAccountName": self.name, "containers": [{"name": "app"}]},
            "status": status,
        }

    def stop(self) -> None:
        if self.process is not None:
            self.bed.stop(self.process)
            self.process = None

    def kernel_mark_rule(self) -> bool:
        return "fwmark 0x111" in sh("nsenter", f"--net=/run/netns/{self.netns}", "ip", "rule")


class Bed:
    """One node."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.tag = f"{os.getpid() % 10000}x{number}"
        self.name = f"dsagent-{self.tag}"
        self.subnet = 100 + (os.getpid() + number) % 100
        self.numbers = itertools.count(10)
        self.gateway, self.gateway6 = f"10.{self.subnet}.0.1", f"fd00:{self.subnet:x}::1"
        self.node = f"{self.name}-node"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/tmp"))
        self.cgroup = V2 / self.name
        self.kubepods = self.cgroup / "kubepods"
        self.system = self.cgroup / "system"
        self.ztunnel_cgroup = self.kubepods / "ztunnel"
        for directory in (self.kubepods, self.system, self.ztunnel_cgroup):
            directory.mkdir(parents=True)
        self.bpffs = Path("/sys/fs/bpf/ambit") / self.name / "n1"
        self.netns_names: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.agent: subprocess.Popen[bytes] | None = None
        self.ztunnel: subprocess.Popen[bytes] | None = None
        self.ztunnel_log = self.directory / "ztunnel.jsonl"
        self.add_netns(self.node)
        self.on_node("ip", "link", "set", "lo", "up")
        self.on_node("ip", "addr", "add", f"{self.gateway}/32", "dev", "lo")
        self.on_node("ip", "-6", "addr", "add", f"{self.gateway6}/128", "dev", "lo")
        self.on_node("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.on_node("sysctl", "-qw", "net.ipv4.conf.default.proxy_arp=1", "net.ipv4.conf.all.proxy_arp=1")
        self.settings = {
            "NODE_NAME": "n1",
            "INPOD_UDS": str(self.directory / "zds.sock"),
            "AMBIT_CNI_UDS": str(self.directory / "cni.sock"),
            "AMBIT_BPFFS": str(self.bpffs),
            "AMBIT_PODS_CGROUP": str(self.kubepods),
            "AMBIT_NODE_CGROUP": str(self.cgroup),
            "AMBIT_OBJECTS": f"{self.directory / 'objects'}:{self.directory / 'status'}",
            "AMBIT_STATUS_DIR": str(self.directory / "status"),
            "AMBIT_RUN_DIR": str(self.directory / "agent"),
            "AMBIT_AGENT_ADDR": "127.0.0.1:15016",
            "AMBIT_UNENROLL_GRACE_S": "0.2",
            "AMBIT_CNI_TIMEOUT_S": "8",
            "AMBIT_CLUSTER_DNS": "10.96.0.10",
        }
        self.label_namespace("shop", "ambient")

    # Parts.

    def add_netns(self, name: str) -> None:
        sh("ip", "netns", "add", name)
        self.netns_names.append(name)

    def on_node(self, *command: str) -> str:
        return sh("nsenter", f"--net=/run/netns/{self.node}", *command)

    def popen(self, *command: str, cgroup: Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program that is in `cgroup` before it runs a line."""
        script = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | options.pop("env", {})
        return subprocess.Popen(
            ["sh", "-c", script, "sh", *command], env=environment, cwd=REPOSITORY, **options
        )

    def spawn(
        self, *command: str, cgroup: Path, log: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as out:
            process = self.popen(*command, cgroup=cgroup, stdout=out, stderr=out, env=env or {})
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise AssertionError(f"process {process.args} did not end on signal {number}") from None

    def start_agent(self, **settings: str) -> None:
        self.agent = self.spawn(
            "nsenter",
            f"--net=/run/netns/{self.node}",
            sys.executable,
            "-m",
            "daemonset",
            cgroup=self.system,
            log="agent.log",
            env=self.settings | settings,
        )
        eventually(
            lambda: self.agent_state("/healthz/ready") is not None,
            timeout_s=60,
            what="the agent's admin port",
        )

    def start_ztunnel(self) -> None:
        self.ztunnel = self.spawn(
            "nsenter",
            f"--net=/run/netns/{self.node}",
            sys.executable,
            str(REPOSITORY / "tests/netns/agent_ztunnel.py"),
            self.settings["INPOD_UDS"],
            str(self.ztunnel_log),
            cgroup=self.ztunnel_cgroup,
            log="ztunnel.log",
        )

    def start(self) -> None:
        self.start_agent()
        self.start_ztunnel()
        eventually(lambda: self.agent_state("/healthz/ready") == "ready", what="the agent is ready")

    def ask_from(self, netns: str, cgroup: Path, port: int, *addresses: str) -> str:
        """Connect from a process in a namespace and a cgroup; answers joined by `|`."""
        process = self.popen(
            "nsenter",
            f"--net=/run/netns/{netns}",
            sys.executable,
            "-c",
            ASK,
            str(port),
            *addresses,
            cgroup=cgroup,
            stdout=subprocess.PIPE,
        )
        out, _ = process.communicate(timeout=20 * PATIENCE)
        return out.decode().strip()

    # Objects.

    def write(self, value: dict[str, Any], *, where: str = "status") -> Path:
        metadata = value["metadata"]
        path = (
            self.directory
            / where
            / value["kind"]
            / metadata.get("namespace", "_")
            / f"{metadata['name']}.yaml"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(yaml.safe_dump(value))
        beside.rename(path)
        return path

    def label_namespace(self, name: str, mode: str | None) -> None:
        labels = {"istio.io/dataplane-mode": mode} if mode else {}
        self.write(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            where="objects",
        )

    # What can be seen.

    def agent_state(self, path: str) -> Any:
        def get() -> Any:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:15016{path}", timeout=5) as answer:
                    body = answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.read().decode().strip()
            except OSError:
                return None
            return json.loads(body) if "json" in answer.headers["content-type"] else body.strip()

        return inside(self.node, get)

    def pod_state(self, pod: Pod) -> dict[str, Any]:
        return next((row for row in self.agent_state("/pods") or [] if row["uid"] == pod.uid), {})

    def wait_enrolled(self, pod: Pod) -> dict[str, Any]:
        def state() -> dict[str, Any] | None:
            row = self.pod_state(pod)
            return row if row.get("state") == "enrolled" else None

        try:
            return eventually(state, what=f"{pod.name} is enrolled")
        except AssertionError as error:
            raise AssertionError(
                f"{error}; {self.pod_state(pod)}; {self.log('agent.log')[-3000:]}"
            ) from error

    def wait_ignored(self, pod: Pod) -> dict[str, Any]:
        def state() -> dict[str, Any] | None:
            row = self.pod_state(pod)
            return row if row.get("state") in (None, "ignored") else None

        return eventually(lambda: state() is not None, what=f"{pod.name} has left") and self.pod_state(pod)

    def enrollment(self, pod: Pod) -> dict[str, Any] | None:
        path = self.directory / "status" / "Enrollment" / pod.namespace / f"{pod.name}.yaml"
        return yaml.safe_load(path.read_text()) if path.exists() else None

    def zds_log(self) -> list[dict[str, Any]]:
        if not self.ztunnel_log.exists():
            return []
        return [json.loads(line) for line in self.ztunnel_log.read_text().splitlines()]

    def log(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    def cni(self, command: str, pod: Pod, timeout_s: float = 20.0, **changes: Any) -> dict[str, Any]:
        request = {
            "cmd": command,
            "uid": pod.uid,
            "namespace": pod.namespace,
            "name": pod.name,
            "netns": f"/run/netns/{pod.netns}",
            "ips": [pod.ip, pod.ip6],
        } | changes
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout_s * PATIENCE)
            link.connect(self.settings["AMBIT_CNI_UDS"])
            link.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(link.makefile().readline())
            return answer

    def cleanup(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.node}", sys.executable, "-m", "daemonset", "cleanup"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | self.settings,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * PATIENCE,
        )

    def close(self) -> None:
        """Remove everything, also after a failed test."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        subprocess.run(
            ["/usr/bin/python3", "-m", "bpf", "unload", "--bpffs", str(self.bpffs)],
            cwd=REPOSITORY,
            capture_output=True,
            check=False,
        )
        with contextlib.suppress(OSError):
            self.bpffs.parent.rmdir()
        for name in self.netns_names:
            sh("ip", "netns", "del", name, check=False)
        eventually(lambda: self._remove_cgroup(self.cgroup), what="cgroups are empty")
        shutil.rmtree(self.directory)

    def _remove_cgroup(self, directory: Path) -> bool:
        for path, _, _ in os.walk(directory, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return not directory.exists()
