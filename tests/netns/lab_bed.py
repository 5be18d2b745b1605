# SPDX-License-Identifier: Apache-2.0
"""A meshed lab for tests: its objects, its commands, and what its pods and controller say."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def pod(
    name: str, node: str, *, account: str = "default", command: str = "[sleep, infinity]", extra: str = ""
) -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}{extra}}}}}
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


class Lab:
    """One lab by its name; `up` and `down` are the fixture's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = Path("/run/ambit", name)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli", "lab", words[0], "--name", self.name, *words[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
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

    def log(self, node: str) -> str:
        return (self.state / "nodes" / node / "ztunnel.log").read_text()
