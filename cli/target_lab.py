# SPDX-License-Identifier: Apache-2.0
"""A lab as a target: admin ports are asked from inside the nodes' network namespaces, logs are files."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cli.codes import CliError, Code
from cli.target import LABS, Answer, Listener, Part, Program, UnreachableError
from lab import store
from lab.errors import LabError
from lab.layout import Layout
from lab.manifests import object_path
from mesh.config.objects import ObjectKey, RawObject, make_object, parse_documents
from mesh.config.source import Snapshot

TIMEOUT_S = 5.0
"""For one answer of an admin port."""
LOADER_TIMEOUT_S = 30.0
POLL_S = 0.1
BLOCK = 65536
CLONE_NEWNET = 0x40000000
RESERVED_PORTS = frozenset({15001, 15006, 15008})
PORTS = {
    "agent": 15016,
    "agent-metrics": 15017,
    "ztunnel": 15000,
    "ztunnel-metrics": 15020,
    "ztunnel-ready": 15021,
}
WAYPOINT_PORTS = {"waypoint": 15000, "waypoint-metrics": 15020, "waypoint-ready": 15021}
GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
BPF_PYTHON = "/usr/bin/python3"

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Run this thread in a named network namespace; sockets made here stay there.

    Raises:
        OSError: there is no such namespace, or it may not be entered.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class LabTarget:
    """One lab that is up."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"lab {self._layout.name}"

    def fresh(self) -> LabTarget:
        """Return the same lab with nothing remembered."""
        return LabTarget(self._layout)

    def command(self, words: str) -> str:
        """Return the `ambit` command for this lab."""
        layout = self._layout
        alone = layout.state.parent == LABS and len(list(LABS.glob("*/lab.json"))) == 1
        if words == "install":
            words = "lab up"
        if words.startswith("lab "):
            return f"ambit {words}" if layout.name == "ambit" else f"ambit {words} --name {layout.name}"
        return f"ambit {words}" if alone else f"ambit {words} --lab {layout.name}"

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes' names."""
        return self._layout.node_names

    def objects(self) -> Snapshot:
        """Return every object; read from disk once."""
        with self._lock:
            if self._snapshot is None:
                layout = self._layout
                self._snapshot = read_objects([layout.objects, layout.generated, layout.status])
            return self._snapshot

    def written(self, raw: RawObject) -> RawObject:
        """Return an object as it stands in the file that it was applied from; relative to here if below."""
        applied = object_path(self._layout.objects, raw.kind, raw.namespace, raw.name)
        # The controller's copy, which has a status, comes after what was applied.
        found = store.written(raw, applied)
        if found is raw:
            found = _with_lines(raw)
        path = Path(found.file)
        if found is raw or not path.is_relative_to(Path.cwd()):
            return found
        return replace(found, file=str(path.relative_to(Path.cwd())))

    def request(self, part: Part, path: str, *, method: str = "GET") -> Answer:
        """Ask a part."""
        try:
            sock, address = self._socket(part)
            with contextlib.closing(sock):
                sock.settimeout(TIMEOUT_S)
                sock.connect(address)
                connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
                connection.sock = sock
                connection.request(method, path, headers={"Connection": "close"})
                answer = connection.getresponse()
                return Answer(status=answer.status, body=answer.read())
        except TimeoutError as error:
            raise UnreachableError(part, f"no answer within {TIMEOUT_S:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(part, getattr(error, "strerror", "") or str(error)) from error

    def metric_parts(self) -> list[Part]:
        """Return the ztunnels and the waypoints that run."""
        waypoints = [
            Part("waypoint-metrics", f"{pod.namespace}/{pod.name}")
            for pod in self.objects().of("Pod")
            if pod.labels.get(GATEWAY_LABEL) and pod.status.get("phase") == "Running"
        ]
        return [*(Part("ztunnel-metrics", node) for node in self._layout.node_names), *waypoints]

    def _socket(self, part: Part) -> tuple[socket.socket, tuple[str, int]]:
        if part.name == "controller":
            return socket.socket(), self._layout.admin_address
        if part.name in WAYPOINT_PORTS:
            namespace, _, pod = part.node.partition("/")
            with inside(self._layout.pod_netns(namespace, pod)):
                return socket.socket(), ("127.0.0.1", WAYPOINT_PORTS[part.name])
        with inside(self._layout.node(part.node).netns):
            return socket.socket(), ("127.0.0.1", PORTS[part.name])

    def _log_path(self, part: Part) -> Path:
        base = self._layout.node_dir(part.node) if part.node else self._layout.state
        return base / f"{part.name}.log"

    def log(self, part: Part, *, lines: int) -> list[str]:
        """Return the last lines of a log, read from its end."""
        try:
            with self._log_path(part).open("rb") as file:
                at = file.seek(0, os.SEEK_END)
                data = b""
                while at > 0 and data.count(b"\n") <= lines:
                    step = min(BLOCK, at)
                    at = file.seek(at - step)
                    data = file.read(step) + data
        except OSError:
            return []
        return data.decode(errors="replace").splitlines()[-lines:]

    def follow(self, parts: Sequence[Part]) -> Iterator[tuple[Part, str]]:
        """Yield new lines of logs until interrupted."""
        with contextlib.ExitStack() as stack:
            files = []
            for part in parts:
                file = stack.enter_context(self._log_path(part).open(errors="replace"))
                file.seek(0, os.SEEK_END)
                files.append((part, file))
            rest = dict.fromkeys(parts, "")
            while True:
                idle = True
                for part, file in files:
                    text = rest[part] + file.read()
                    *lines, rest[part] = text.split("\n")
                    for line in lines:
                        idle = False
                        yield part, line
                if idle:
                    time.sleep(POLL_S)

    def programs(self) -> list[Program]:
        """Return the processes that the lab's manager keeps."""
        try:
            rows = json.loads((self._layout.state / "daemons.json").read_text())
        except (OSError, ValueError):
            return []
        return [
            Program(
                name=str(row["name"]),
                running=bool(row["running"]) and Path(f"/proc/{row['pid']}").exists(),
                restarts=int(row["restarts"]),
                why=str(row["last"] or ""),
            )
            for row in rows
        ]

    def bpf(self, words: Sequence[str], node: str = "") -> Mapping[str, Any]:
        """Run the BPF loader."""
        arguments = [BPF_PYTHON, "-m", "bpf", *words]
        if node:
            arguments += ["--bpffs", str(self._layout.bpffs(node))]
            arguments += ["--pods-cgroup", str(self._layout.kubepods(node))]
        root = Path(__file__).resolve().parents[1]
        try:
            done = subprocess.run(
                [*arguments, "-o", "json"],
                capture_output=True,
                text=True,
                check=False,
                cwd=root,
                timeout=LOADER_TIMEOUT_S,
            )
            report: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
            raise CliError(Code.BAD_ANSWER, f"`{' '.join(arguments)}` gave no report: {error}") from error
        return report

    def missing_cgroups(self) -> list[str]:
        """Return the nodes' pod cgroups that are not there."""
        paths = [self._layout.kubepods(node) for node in self._layout.node_names]
        return [str(path) for path in paths if not path.is_dir()]

    def listening(self, namespace: str, pod: str) -> frozenset[Listener] | None:
        """Return the listening sockets of a pod's namespace, without ztunnel's."""
        try:
            with inside(self._layout.pod_netns(namespace, pod)):
                # Only sock_diag, which ss asks, knows whether `::` takes IPv4 as well.
                done = subprocess.run(
                    ["ss", "-ltnH"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
                )
        except (OSError, subprocess.SubprocessError):
            return None
        found = {listener(line.split()[3]) for line in done.stdout.splitlines() if len(line.split()) > 3}
        return frozenset(one for one in found if one[1] not in RESERVED_PORTS)

    def set_labels(self, kind: str, namespace: str, name: str, words: Sequence[str]) -> None:
        """Change labels of an object of the lab."""
        try:
            store.set_labels(self._layout, kind, namespace, name, words)
        except LabError as error:
            raise CliError(Code.NOT_FOUND, error.what, remedy=error.remedy) from error
        with self._lock:
            self._snapshot = None

    def apply(self, data: Mapping[str, Any]) -> str:
        """Write an object of the lab."""
        ((_, result),) = store.apply_objects(self._layout, [make_object(data)])
        with self._lock:
            self._snapshot = None
        return result

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Remove an object of the lab."""
        path = object_path(self._layout.objects, kind, namespace, name)
        found = path.exists()
        path.unlink(missing_ok=True)
        with self._lock:
            self._snapshot = None
        return found


def read_objects(directories: Sequence[Path]) -> Snapshot:
    """Read a lab's objects, later directories over earlier ones, without the lines of their fields.

    Three times as fast as with lines, which `written` finds for the few that are asked for. What
    cannot be read is left out: the controller names it.
    """
    found: dict[ObjectKey, RawObject] = {}
    for directory in directories:
        for path in sorted(directory.rglob("*.yaml")):
            try:
                data = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
                item = make_object(data, file=str(path), line=1)
            except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
                continue
            found[item.key] = item
    return Snapshot(objects=found)


def _with_lines(raw: RawObject) -> RawObject:
    """Read an object's file again, with the lines of its fields."""
    try:
        found, _ = parse_documents(Path(raw.file).read_text(), raw.file)
    except (OSError, UnicodeDecodeError):
        return raw
    return next((item for item in found if item.key == raw.key), raw)


def listener(text: str) -> Listener:
    """Read `ADDRESS:PORT` as ss writes it: `*` is both families, an interface may follow the address."""
    address, _, port = text.rpartition(":")
    return address.strip("[]").partition("%")[0], int(port)
