# SPDX-License-Identifier: Apache-2.0
"""A real API server with its etcd on loopback, for tests that need no node: no root, some four seconds.

The binary is the one that `tests/k8s/cluster build` makes; AMBIT_K8S_BIN names another.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0
POLL_S = 0.05


def find_binary() -> Path | None:
    """Return the binary of all components; None when it was not built."""
    if named := os.environ.get("AMBIT_K8S_BIN"):
        path = Path(named)
        return path / "kube" if path.is_dir() else path
    script = '. tests/k8s/lib/common.sh; . tests/k8s/lib/build.sh; printf %s "$BIN"'
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    binaries = Path(done.stdout)
    return binaries / "kube" if (binaries / ".complete").exists() else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ControlPlane:
    """etcd and kube-apiserver as children of the test; `stop` ends them.

    `prefix` is what every command is run by: `nsenter` puts all of it on the loopback of a namespace.
    """

    def __init__(self, binary: Path, directory: Path, prefix: tuple[str, ...] = ()) -> None:
        self.binary = binary
        self.directory = directory
        self._prefix = prefix
        self.api_port, self.etcd_port, self._peer_port = free_port(), free_port(), free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.pki = directory / "pki"
        self.kubeconfig = self.pki / "admin.kubeconfig"

    def start(self) -> None:
        server = f"https://127.0.0.1:{self.api_port}"
        command = [str(self.binary), "pki", "-server", server, "-names", "127.0.0.1", str(self.pki)]
        subprocess.run(command, check=True, timeout=60)
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._launch(
            "etcd",
            *(
                "--name=test",
                f"--data-dir={self.directory / 'etcd'}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            f"--initial-cluster=test={peer}",
        )
        self.start_apiserver()

    def start_apiserver(self) -> None:
        pki = self.pki
        self._launch(
            "kube-apiserver",
            "--advertise-address=192.0.2.1",  # Announced to nobody, but it must not be loopback.
            *(f"--etcd-servers=http://127.0.0.1:{self.etcd_port}", "--bind-address=127.0.0.1"),
            *(f"--secure-port={self.api_port}", "--endpoint-reconciler-type=none", "--profiling=false"),
            *("--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=Node,RBAC"),
            *("--enable-admission-plugins=NodeRestriction", "--disable-admission-plugins=ServiceAccount"),
            *(f"--client-ca-file={pki}/ca.crt", f"--tls-cert-file={pki}/apiserver.crt"),
            *(f"--tls-private-key-file={pki}/apiserver.key", "--service-account-issuer=https://test"),
            *(f"--service-account-signing-key-file={pki}/sa.key", f"--service-account-key-file={pki}/sa.pub"),
        )
        self._wait("kube-apiserver", lambda: self.kubectl("get", "--raw", "/readyz") == "ok")
        self._wait("kube-apiserver", lambda: bool(self.kubectl("get", "namespace", "default", "-o", "name")))

    def kill_apiserver(self) -> None:
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.directory / "etcd")

    def compact(self) -> None:
        """Have etcd forget every version but the last."""
        range_ = self._etcd("/v3/kv/range", {"key": base64.b64encode(b"/").decode()})
        revision = range_["header"]["revision"]
        self._etcd("/v3/kv/compaction", {"revision": revision, "physical": True})

    def _etcd(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.etcd_port}{path}", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    # What a person does.

    def kubectl(self, *arguments: str, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """Run kubectl as administrator; return its output.

        Raises:
            OSError: it failed; says what it said.
        """
        command = [
            *self._prefix,
            str(self.binary),
            "kubectl",
            f"--kubeconfig={kubeconfig or self.kubeconfig}",
            *arguments,
        ]
        environment = {**os.environ, "HOME": str(self.directory)}
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        if done.returncode != 0:
            raise OSError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def apply(self, *objects: dict[str, Any] | str | Path) -> None:
        """Apply objects, texts of YAML or files."""
        texts = [
            item.read_text() if isinstance(item, Path) else item if isinstance(item, str) else yaml.dump(item)
            for item in objects
        ]
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin="\n---\n".join(texts))

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return found

    def pod(
        self, namespace: str, name: str, *, node: str = "n1", account: str = "default", ip: str = "10.244.1.7"
    ) -> str:
        """Create a pod that is placed and has an address, as a kubelet would report it; return its uid."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": account,
                    "containers": [{"name": "main", "image": "none"}],
                },
            }
        )
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        patch = json.dumps({"status": status})
        self.kubectl(
            "-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch
        )
        return str(self.get("pod", namespace, name)["metadata"]["uid"])

    def token(self, namespace: str, account: str, *, audience: str = "", pod: str = "", uid: str = "") -> str:
        """Ask for a token, as the kubelet does for a projected volume."""
        flags = [f"--audience={audience}"] if audience else []
        if pod:
            flags += ["--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={uid}"]
        return self.kubectl("-n", namespace, "create", "token", account, *flags)

    def kubeconfig_of(self, token: str, name: str, *, port: int | None = None) -> Path:
        """Write a kubeconfig that has a token; `port`: of a server in between."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        cluster["server"] = f"https://127.0.0.1:{port or self.api_port}"
        if token:
            config["users"][0]["user"] = {"token": token}
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(yaml.dump(config))
        path.chmod(0o600)
        return path

    def _launch(self, component: str, *flags: str) -> None:
        with (self.directory / f"{component}.log").open("ab") as log:
            self._processes[component] = subprocess.Popen(
                [*self._prefix, str(self.binary), component, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait(self, component: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while True:
            with suppress(OSError):
                if ready():
                    return
            ended = self._processes[component].poll() is not None
            if ended or time.monotonic() > end:
                log = (self.directory / f"{component}.log").read_text(errors="replace")[-2000:]
                self.stop()
                raise AssertionError(f"{component} {'ended' if ended else 'is not ready'}:\n{log}")
            time.sleep(POLL_S)
