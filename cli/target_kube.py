# SPDX-License-Identifier: Apache-2.0
"""A mesh on Kubernetes as a target, over `kubectl`: whoever may use that may use this, and no more.

Admin ports listen on loopback only; they are reached by port-forwards that live as long as the
command. kubectl knows kubeconfigs, contexts and exec plugins, so that nothing of it is here.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import re
import selectors
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.codes import CliError, Code
from cli.target import Answer, Listener, Part, Program, UnreachableError
from mesh.config.objects import RawObject, make_object
from mesh.config.source import Snapshot

SYSTEM = "istio-system"
NODE_LABEL = "app=ambit-node"
CONTROLLER_LABEL = "app=ambit-controller"
GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 8.0
FORWARD_TIMEOUT_S = 15.0
NODE_PORTS = {
    "agent": 15016,
    "agent-metrics": 15017,
    "ztunnel": 15000,
    "ztunnel-metrics": 15020,
    "ztunnel-ready": 15021,
}
WAYPOINT_PORTS = {"waypoint": 15000, "waypoint-metrics": 15020, "waypoint-ready": 15021}
CONTROLLER_PORT = 15014
KINDS = (
    "namespaces",
    "nodes",
    "pods",
    "services",
    "configmaps",
    "deployments.apps",
    "endpointslices.discovery.k8s.io",
    "networkpolicies.networking.k8s.io",
    "gateways.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
    "requestauthentications.security.istio.io",
    "serviceentries.networking.istio.io",
    "workloadentries.networking.istio.io",
    "virtualservices.networking.istio.io",
    "destinationrules.networking.istio.io",
)
"""What verbs look at; those whose definition is not installed are left out."""
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)")


class Kubectl:
    """Runs kubectl for one context."""

    def __init__(self, context: str, kubeconfig: Path | None) -> None:
        self.context = context
        self.arguments = [
            *(["--kubeconfig", str(kubeconfig)] if kubeconfig else []),
            *(["--context", context] if context else []),
        ]
        self.program = os.environ.get("AMBIT_KUBECTL", "kubectl")

    def command(self, *words: str) -> list[str]:
        """Return the whole command."""
        return [*self.program.split(), *self.arguments, *words]

    def run(self, *words: str, text: str | None = None, timeout_s: float = TIMEOUT_S) -> str:
        """Run it and return its output.

        Raises:
            CliError: it is not installed, does not answer, or refuses.
        """
        try:
            done = subprocess.run(
                self.command(*words),
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
            )
        except FileNotFoundError as error:
            raise CliError(
                Code.NO_KUBECTL,
                f"{self.program} is not installed",
                remedy="install kubectl, or set AMBIT_KUBECTL",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise CliError(
                Code.NO_KUBECTL, f"kubectl {words[0]} did not answer within {timeout_s:g} s"
            ) from error
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise CliError(
                Code.NO_KUBECTL, f"kubectl {words[0]}: {said.splitlines()[-1] if said else 'failed'}"
            )
        return done.stdout


class Forward:
    """One `kubectl port-forward` to a pod."""

    def __init__(self, kubectl: Kubectl, namespace: str, pod: str, ports: Sequence[int]) -> None:
        words = ["port-forward", "-n", namespace, "--address", "127.0.0.1", f"pod/{pod}"]
        self._process = subprocess.Popen(
            kubectl.command(*words, *(f":{port}" for port in ports)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            bufsize=0,
        )
        self.ports: dict[int, int] = {}
        try:
            self._wait(len(ports), f"{namespace}/{pod}")
        except BaseException:
            self.close()
            raise

    def _wait(self, wanted: int, name: str) -> None:
        assert self._process.stdout is not None
        deadline = time.monotonic() + FORWARD_TIMEOUT_S
        text = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while len(self.ports) < wanted:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise CliError(
                        Code.NO_KUBECTL, f"no port-forward to {name} within {FORWARD_TIMEOUT_S:g} s"
                    )
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    said = text.strip().splitlines()
                    raise CliError(
                        Code.NO_KUBECTL, f"port-forward to {name}: {said[-1] if said else 'ended'}"
                    )
                text += data.decode(errors="replace")
                self.ports = {int(there): int(here) for here, there in _FORWARDING.findall(text)}

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class KubeTarget:
    """The mesh of one cluster."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._lock = threading.RLock()
        self._snapshot: Snapshot | None = None
        self._forwards: dict[tuple[str, str], Forward | CliError] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        atexit.register(self.close)

    @property
    def kubectl(self) -> Kubectl:
        """What changes the cluster."""
        return self._kubectl

    def close(self) -> None:
        """End every port-forward."""
        with self._lock:
            forwards, self._forwards = list(self._forwards.values()), {}
        for forward in forwards:
            if isinstance(forward, Forward):
                forward.close()

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"cluster {self._kubectl.context or '(current context)'}"

    def fresh(self) -> KubeTarget:
        """Return the same cluster with its objects to be read anew; port-forwards are kept."""
        with self._lock:
            self._snapshot = None
            broken = [key for key, value in self._forwards.items() if isinstance(value, CliError)]
            for key in broken:
                del self._forwards[key]
        return self

    def command(self, words: str) -> str:
        """Return the next step as a command for this cluster."""
        context = f" --context {self._kubectl.context}" if self._kubectl.context else ""
        if not words.startswith("lab "):
            return f"ambit {words}{context}"
        verb, _, rest = words.removeprefix("lab ").partition(" ")
        part = rest.split(" ")[0].partition("@")[0]
        place = "deploy/ambit-controller" if part == "controller" else f"ds/ambit-node -c {part}"
        if verb == "logs":
            return f"kubectl{context} -n {SYSTEM} logs {place} --tail 20"
        return f"kubectl{context} -n {SYSTEM} rollout restart {place.partition(' ')[0]}"

    def _pods(self, label: str) -> list[RawObject]:
        key, _, value = label.partition("=")
        return [p for p in self.objects().of("Pod") if p.namespace == SYSTEM and p.labels.get(key) == value]

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes that have an agent."""
        return tuple(
            sorted(str(p.spec.get("nodeName")) for p in self._pods(NODE_LABEL) if p.spec.get("nodeName"))
        )

    def objects(self) -> Snapshot:
        """Return the objects that verbs look at; read once."""
        with self._lock:
            if self._snapshot is None:
                known = set(self._kubectl.run("api-resources", "--verbs=list", "-o", "name").split())
                kinds = [kind for kind in KINDS if kind in known]
                text = self._kubectl.run("get", ",".join(kinds), "-A", "-o", "json")
                found: dict[Any, RawObject] = {}
                for item in json.loads(text)["items"]:
                    with contextlib.suppress(ValueError):
                        raw = make_object(item)
                        found[raw.key] = raw
                self._snapshot = Snapshot(objects=found)
            return self._snapshot

    def written(self, raw: RawObject) -> RawObject:
        """Return the object itself: a cluster does not know who wrote it where."""
        return raw

    def request(self, part: Part, path: str, *, method: str = "GET") -> Answer:
        """Ask a part."""
        try:
            port = self._port(part)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)
            with contextlib.closing(connection):
                connection.request(method, path, headers={"Connection": "close"})
                answer = connection.getresponse()
                return Answer(status=answer.status, body=answer.read())
        except CliError as error:
            raise UnreachableError(part, error.what) from error
        except TimeoutError as error:
            raise UnreachableError(part, f"no answer within {ANSWER_TIMEOUT_S:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(part, getattr(error, "strerror", "") or str(error)) from error

    def _port(self, part: Part) -> int:
        """Return the local end of a port-forward to a part's pod."""
        if part.name in WAYPOINT_PORTS:
            namespace, _, pod = part.node.partition("/")
            return self._forward(namespace, pod, tuple(WAYPOINT_PORTS.values())).ports[
                WAYPOINT_PORTS[part.name]
            ]
        pod = self._pod_of(part)
        if part.name == "controller":
            return self._forward(SYSTEM, pod, (CONTROLLER_PORT,)).ports[CONTROLLER_PORT]
        return self._forward(SYSTEM, pod, tuple(NODE_PORTS.values())).ports[NODE_PORTS[part.name]]

    def _pod_of(self, part: Part) -> str:
        pods = self._pods(CONTROLLER_LABEL if part.name == "controller" else NODE_LABEL)
        running = [
            p
            for p in pods
            if p.status.get("phase") == "Running" and (not part.node or p.spec.get("nodeName") == part.node)
        ]
        if not running:
            raise CliError(Code.NOT_FOUND, f"no pod of it runs in {SYSTEM}")
        return running[0].name

    def _forward(self, namespace: str, pod: str, ports: tuple[int, ...]) -> Forward:
        key = (namespace, pod)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            found = self._forwards.get(key)
            if found is None:
                try:
                    found = Forward(self._kubectl, namespace, pod, ports)
                except CliError as error:
                    found = error
                with self._lock:
                    self._forwards[key] = found
        if isinstance(found, CliError):
            raise found
        return found

    def metric_parts(self) -> list[Part]:
        """Return the ztunnels and the waypoints that run."""
        waypoints = [
            Part("waypoint-metrics", f"{pod.namespace}/{pod.name}")
            for pod in self.objects().of("Pod")
            if pod.labels.get(GATEWAY_LABEL) and pod.status.get("phase") == "Running"
        ]
        return [*(Part("ztunnel-metrics", node) for node in self.nodes()), *waypoints]

    def _log_words(self, part: Part) -> list[str]:
        container = [] if part.name == "controller" else ["-c", part.name]
        return ["logs", "-n", SYSTEM, f"pod/{self._pod_of(part)}", *container]

    def log(self, part: Part, *, lines: int) -> list[str]:
        """Return the last lines of a part's log."""
        try:
            return self._kubectl.run(*self._log_words(part), "--tail", str(lines)).splitlines()
        except CliError:
            return []

    def follow(self, parts: Sequence[Part]) -> Iterator[tuple[Part, str]]:
        """Yield new lines of logs until interrupted."""
        processes = {
            part: subprocess.Popen(
                self._kubectl.command(*self._log_words(part), "--tail", "0", "-f"),
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            for part in parts
        }
        try:
            with selectors.DefaultSelector() as selector:
                for part, process in processes.items():
                    assert process.stdout is not None
                    selector.register(process.stdout.fileno(), selectors.EVENT_READ, part)
                rest = dict.fromkeys(parts, b"")
                while selector.get_map():
                    for key, _ in selector.select():
                        data = os.read(key.fd, 65536)
                        if not data:
                            selector.unregister(key.fd)
                        *lines, rest[key.data] = (rest[key.data] + data).split(b"\n")
                        yield from ((key.data, line.decode(errors="replace")) for line in lines)
        finally:
            for process in processes.values():
                process.terminate()
                process.wait()

    def programs(self) -> list[Program]:
        """Return the containers of the mesh's own pods."""
        found = []
        for pod in (*self._pods(CONTROLLER_LABEL), *self._pods(NODE_LABEL)):
            for one in pod.status.get("containerStatuses") or ():
                last = (one.get("lastState") or {}).get("terminated") or {}
                waiting = (one.get("state") or {}).get("waiting") or {}
                ended = f"exit code {last['exitCode']}, {last.get('reason', '')}" if last else ""
                found.append(
                    Program(
                        name=f"{one['name']} of {pod.name}",
                        running="running" in (one.get("state") or {}),
                        restarts=int(one.get("restartCount", 0)),
                        why=str(waiting.get("message") or waiting.get("reason") or ended),
                    )
                )
        return found

    def bpf(self, words: Sequence[str], node: str = "") -> Mapping[str, Any]:
        """Run the BPF loader in an agent's container."""
        nodes = self.nodes()
        if not nodes:
            raise CliError(Code.NOT_FOUND, f"no agent runs in {SYSTEM}")
        where = node or nodes[0]
        arguments = ["/usr/bin/python3", "-m", "bpf", *words, "-o", "json"]
        if node:
            settings = json.loads(self.request(Part("agent", node), "/config").body)
            arguments += ["--bpffs", settings["bpffs"], "--pods-cgroup", settings["pods_cgroup"]]
        pod = self._pod_of(Part("agent", where))
        # Its exit code says that something is missing; what, is in the report.
        inner = " ".join(arguments) + "; true"
        text = self._kubectl.run("exec", "-n", SYSTEM, pod, "-c", "agent", "--", "sh", "-c", inner)
        try:
            report: Mapping[str, Any] = json.loads(text.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise CliError(Code.BAD_ANSWER, f"the BPF loader on {where} gave no report") from error
        return report

    def missing_cgroups(self) -> list[str]:
        """Agents refuse to start without theirs: nothing to find here."""
        return []

    def listening(self, namespace: str, pod: str) -> frozenset[Listener] | None:
        """Not to be found out without entering the pod."""
        return None

    def set_labels(self, kind: str, namespace: str, name: str, words: Sequence[str]) -> None:
        """Change labels of an object."""
        place = ["-n", namespace] if namespace else []
        self._kubectl.run("label", kind.lower(), name, *place, *words, "--overwrite")
        self.fresh()

    def apply(self, data: Mapping[str, Any]) -> str:
        """Apply an object as the field manager `ambit`."""
        text = self._kubectl.run(
            "apply", "--server-side", "--field-manager=ambit", "-f", "-", text=json.dumps(data)
        )
        self.fresh()
        return text.strip().rpartition(" ")[2] or "configured"

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Remove an object."""
        place = ["-n", namespace] if namespace else []
        text = self._kubectl.run("delete", kind.lower(), name, *place, "--ignore-not-found", "--wait=false")
        self.fresh()
        return bool(text.strip())


def usable() -> bool:
    """Whether this machine seems to be somebody's way to a cluster."""
    program = os.environ.get("AMBIT_KUBECTL", "kubectl").split()[0]
    configured = os.environ.get("KUBECONFIG") or (Path.home() / ".kube" / "config").exists()
    return bool(configured) and shutil.which(program) is not None
