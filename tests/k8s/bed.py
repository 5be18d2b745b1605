# SPDX-License-Identifier: Apache-2.0
"""The two-node cluster as tests see it: kubectl, pods to run things in, and what passes on the wire."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "tests" / "k8s" / "cluster"
MANIFESTS = ROOT / "daemonset" / "manifests" / "kubernetes"
NAME = os.environ.get("AMBIT_K8S_NAME", "ambitk8s")
SYSTEM = "istio-system"
TOOLS = "ambit.local/tools:1"
"""curl, nginx and netcat of Debian."""
SERVE = "echo {body} >/var/www/html/index.html && exec nginx -g 'daemon off; error_log stderr;'"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str


def run(*command: str, text: str | None = None, timeout_s: float = 60) -> Answer:
    """Run a command to its end."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=timeout_s)
    return Answer(done.returncode, done.stdout, done.stderr)


def ok(answer: Answer) -> str:
    """Return the output of a command that must have succeeded."""
    assert answer.code == 0, f"exit code {answer.code}: {answer.err}{answer.out}"
    return answer.out


def kubectl(*arguments: str, text: str | None = None, timeout_s: float = 60) -> Answer:
    """Run kubectl as the cluster's administrator."""
    return run(str(CLUSTER), "kubectl", *arguments, text=text, timeout_s=timeout_s)


def get(*arguments: str) -> dict[str, Any]:
    """Read objects."""
    return dict(json.loads(ok(kubectl("get", *arguments, "-o", "json"))))


def apply(*objects: dict[str, Any]) -> None:
    """Apply objects."""
    ok(kubectl("apply", "-f", "-", text=yaml.safe_dump_all(objects)))


def install() -> None:
    """Apply the manifests of the mesh and wait until all of it is ready."""
    ok(kubectl("apply", "--server-side", "--force-conflicts", "-k", str(MANIFESTS)))
    for what in ("deployment/ambit-controller", "daemonset/ambit-node"):
        ok(kubectl("-n", SYSTEM, "rollout", "status", what, "--timeout=100s", timeout_s=110))


def on_node(node: int, *command: str) -> str:
    """Run a command on a node and return its output."""
    return ok(run(str(CLUSTER), "exec", str(node), *command))


@dataclass(frozen=True, slots=True)
class Space:
    """A namespace of one test."""

    name: str

    def server(self, name: str, node: int, body: str = "hello", **spec: Any) -> None:
        """Run nginx on a node and give it a service of the same name; ready when its probe says so."""
        container = {
            "name": "web",
            "image": TOOLS,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", SERVE.format(body=body)],
            "readinessProbe": {"httpGet": {"port": 80, "path": "/"}, "periodSeconds": 1},
        }
        apply(
            self._pod(name, node, container, spec),
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": self.name},
                "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
            },
        )

    def client(self, name: str, node: int, **spec: Any) -> None:
        """Run a pod that waits for commands."""
        container = {
            "name": "client",
            "image": TOOLS,
            "imagePullPolicy": "Never",
            "command": ["sleep", "infinity"],
        }
        apply(self._pod(name, node, container, spec))

    def _pod(self, name: str, node: int, container: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
        labels = {"app": name, **spec.pop("labels", {})}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.name, "labels": labels},
            "spec": {
                "nodeName": f"node{node}",
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
                **spec,
            },
        }

    def ready(self) -> None:
        """Wait until all pods of the namespace are ready."""
        ok(kubectl("-n", self.name, "wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s"))

    def address(self, pod: str) -> str:
        """Return a pod's IP address."""
        return str(get("pod", pod, "-n", self.name)["status"]["podIP"])

    def enrolled(self, pod: str) -> bool:
        """Whether the agent has announced that it captures the pod."""
        annotations = get("pod", pod, "-n", self.name)["metadata"].get("annotations", {})
        return annotations.get("ambient.istio.io/redirection") == "enabled"

    def exec(self, pod: str, *command: str) -> Answer:
        """Run a command in a pod."""
        return kubectl("-n", self.name, "exec", pod, "--", *command)

    def curl(self, pod: str, url: str, *arguments: str) -> Answer:
        """Ask for a URL from a pod; the output is the body."""
        return self.exec(pod, "curl", "-sS", "--fail", "--max-time", "5", *arguments, url)

    def apply(self, kind: str, api_version: str, name: str, spec: dict[str, Any]) -> None:
        """Apply an object of this namespace."""
        metadata = {"name": name, "namespace": self.name}
        apply({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec})


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment that was seen."""

    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes

    @property
    def addresses(self) -> frozenset[str]:
        """Both ends."""
        return frozenset((self.source[0], self.destination[0]))

    @property
    def ports(self) -> frozenset[int]:
        """Both ports."""
        return frozenset((self.source[1], self.destination[1]))


class Capture:
    """Segments of a file that tcpdump wrote; filled when the capture is over."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def between(self, first: str, second: str) -> list[Segment]:
        """Return what passed between two addresses."""
        return [s for s in self.segments if s.addresses == {first, second}]


@contextlib.contextmanager
def tcpdump(node: int) -> Iterator[Capture]:
    """Record all TCP on a node's link to the other nodes."""
    found = Capture()
    with tempfile.TemporaryDirectory(prefix="ambit-k8s-") as directory:
        path = Path(directory) / "pcap"
        # Of all namespaces of the node only its network's, so that ending the process ends tcpdump.
        command = ["nsenter", f"--net=/run/netns/{NAME}-node{node}"]
        command += [
            "tcpdump",
            "-Z",
            "root",
            "-i",
            "eth0",
            "-nn",
            "-U",
            "--immediate-mode",
            "-w",
            str(path),
            "tcp",
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                line = process.stderr.readline()
                assert "listening on" in line, line
                yield found
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=10)
        found.segments = list(read_pcap(path.read_bytes()))


def read_pcap(data: bytes) -> Iterator[Segment]:
    """Read IPv4 TCP segments of a little-endian pcap file of Ethernet frames."""
    assert data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"), "no pcap file"
    at = 24
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        if frame[12:14] != b"\x08\x00" or frame[23] != 6:
            continue
        packet = frame[14 : 14 + struct.unpack_from("!H", frame, 16)[0]]
        header = (packet[0] & 15) * 4
        source, destination = struct.unpack_from("!HH", packet, header)
        payload = packet[header + (packet[header + 12] >> 4) * 4 :]
        ends = [".".join(map(str, packet[start : start + 4])) for start in (12, 16)]
        yield Segment((ends[0], source), (ends[1], destination), payload)
