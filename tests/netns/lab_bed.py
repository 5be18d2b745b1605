# SPDX-License-Identifier: Apache-2.0
"""A meshed lab for tests: its objects, its commands, and what its pods and controller say."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.eventually import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]


def pod(
    name: str,
    node: str,
    *,
    account: str = "default",
    command: str = "[sleep, infinity]",
    extra: str = "",
    annotations: str = "",
) -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}{extra}}}, annotations: {{{annotations}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    command: {command}
---"""


SERVER = '[/usr/bin/python3, -u, -m, http.server, "8080", --bind, "::"]'
MANIFEST = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---"""
    + pod("server", "node1", account="server", command=SERVER)
    + pod("friend", "node2", account="friend")
    + pod("snoop", "node2", account="snoop")
    + pod("outsider", "node2", extra=", istio.io/dataplane-mode: none")
    + """
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
)
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
ONLY_FRIEND = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-friend, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/friend]}}]}]
"""
CALL = (
    "import sys,urllib.request as u\n"
    "try: print('got', len(u.urlopen(sys.argv[1], timeout=5).read()))\n"
    "except Exception as e: print('refused', type(e).__name__)"
)


PAGE = "Directory listing"
"""What the server's answer holds, and no answer of the mesh does."""

DIAL = """
import os, socket, ssl, sys
host, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
sock.settimeout(3)
kind, _, value = how.partition("=")
if kind == "mark":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(value, 0))
if kind == "uid":
    os.setresuid(int(value), int(value), int(value))
if kind == "port":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", int(value)))
data = b""
try:
    sock.connect((host, port))
    if kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    while more := sock.recv(65536):
        data += more
except OSError as error:
    print("ended by", type(error).__name__)
print("answer:", data.decode("latin-1"))
"""
"""Dial one address in one way and print what came back."""


class Lab:
    """One lab by its name; `up` and `down` are the fixture's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = Path("/run/ambit", name)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        patience = ("--timeout", f"{120 * PATIENCE:g}") if words[0] == "up" else ()
        return subprocess.run(
            [sys.executable, "-m", "cli", "lab", words[0], "--name", self.name, *patience, *words[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=120 * PATIENCE,
            cwd=REPOSITORY,
        )

    def ambit(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def call(self, name: str, url: str = "http://server/") -> str:
        """Request `url` from a pod; `got` or `refused`."""
        done = self.run("exec", f"shop/{name}", "--", "/usr/bin/python3", "-c", CALL, url)
        return done.stdout.partition(" ")[0] or done.stderr

    @property
    def layout(self) -> dict[str, Any]:
        return json.loads((self.state / "lab.json").read_text())  # type: ignore[no-any-return]

    @property
    def controller(self) -> str:
        """Address of the controller's admin port."""
        return f"127.0.0.{int(self.layout['slot']) + 1}:15014"

    def admin(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.controller}{path}", timeout=5) as answer:
            return json.load(answer)

    def log(self, node: str, program: str = "ztunnel") -> str:
        return (self.state / "nodes" / node / f"{program}.log").read_text()

    def addresses(self, name: str) -> dict[int, str]:
        """Addresses of a pod by IP version, as the controller knows them."""
        (found,) = [w for w in self.admin("/debug/registry")["workloads"] if w["name"] == name]
        return {6 if ":" in address else 4: address for address in found["addresses"]}

    def uid(self, name: str) -> str:
        """The uid of a pod, which its cgroup is named by."""
        found = json.loads(self.ambit("get", "pod", "-n", "shop", name, "-o", "json"))
        return str(found["metadata"]["uid"])


def dial(lab: Lab, client: str, host: str, port: int, how: str = "plain") -> str:
    """Dial from a pod; return what the program printed."""
    done = lab.run("exec", f"shop/{client}", "--", "/usr/bin/python3", "-c", DIAL, host, str(port), how)
    assert "answer:" in done.stdout, done.stderr
    return done.stdout


def in_namespace(
    netns: str, directory: Path, program: str, *arguments: str, cgroup: Path | None = None
) -> str:
    """Run a program as the node's root in a network namespace, and in a cgroup if one is named."""
    path = directory / "program.py"
    path.write_text(program)
    enter = (f"echo 0 > {cgroup}/cgroup.procs; " if cgroup else "") + 'exec "$@"'
    done = subprocess.run(
        ["sh", "-c", enter, "-", "ip", "netns", "exec", netns, "/usr/bin/python3", str(path), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30 * PATIENCE,
    )
    assert "answer:" in done.stdout, done.stderr
    return done.stdout
