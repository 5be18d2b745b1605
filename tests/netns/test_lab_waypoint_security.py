# SPDX-License-Identifier: Apache-2.0
"""Tokens, authorisers and rolls at a waypoint in a lab, from YAML to curl.

The issuer's keys are served by a pod over the mesh; the authoriser is a pod too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from lab_bed import REPOSITORY, Lab, pod

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("waypointsec")
ISSUER = "http://issuer.shop"
KEY = ec.generate_private_key(ec.SECP256R1())
ECHO = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"path": self.path, "headers": headers}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
AUTHORISER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        allowed = self.headers.get("x-ext-authz") == "allow"
        self.send_response(200 if allowed else 418)
        self.send_header("x-checked-by", "authoriser"); self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
LOAD = """
import http.client, json, sys, threading, time
end, failed, done = time.monotonic() + float(sys.argv[1]), [], [0] * 8
def run(n):
    connection = None
    while time.monotonic() < end:
        try:
            connection = connection or http.client.HTTPConnection("echo", timeout=10)
            connection.request("GET", "/load"); response = connection.getresponse(); response.read()
            done[n] += 1
            if response.status != 200: failed.append(response.status)
            if response.will_close: connection.close(); connection = None
        except Exception as error:
            failed.append(repr(error)); connection.close(); connection = None
threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps({"done": sum(done), "failed": failed[:5]}))
"""


def jwks() -> str:
    entry = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(KEY.public_key()))
    return json.dumps({"keys": [entry | {"kid": "k1"}]})


def service(name: str) -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---"""


def python(script: str) -> str:
    return json.dumps(["/usr/bin/python3", "-u", "-c", script])


def issuer() -> str:
    script = f"mkdir -p /tmp/site && cd /tmp/site && echo '{jwks()}' > keys.json && "
    script += "exec /usr/bin/python3 -m http.server 8080 --bind ::"
    return pod("issuer", "node2", command=json.dumps(["sh", "-c", script]))


MANIFEST = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: sample
      envoyExtAuthzHttp:
        service: authoriser.shop.svc.cluster.local
        port: 80
        timeout: 2s
        includeRequestHeadersInCheck: [x-ext-authz]
        headersToUpstreamOnAllow: [x-checked-by]
---"""
    + pod("echo", "node1", command=python(ECHO))
    + pod("authoriser", "node2", command=python(AUTHORISER))
    + issuer()
    + pod("client", "node2", account="client")
    + service("echo")
    + service("authoriser")
    + service("issuer")
    # Neither keys nor verdicts may depend on the waypoint that asks for them.
    .replace("namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: none}}")
)
TOKENS = f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: login, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: "", name: echo}}]
  jwtRules:
  - issuer: {ISSUER}
    jwksUri: {ISSUER}/keys.json
    outputClaimToHeaders: [{{header: x-user, claim: sub}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: logged-in, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: "", name: echo}}]
  action: ALLOW
  rules:
  - from: [{{source: {{requestPrincipals: ["{ISSUER}/ann"]}}}}]
  - to: [{{operation: {{paths: ["/open", "/load"]}}}}]
"""
CUSTOM = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: echo}]
  action: CUSTOM
  provider: {name: PROVIDER}
  rules: [{to: [{operation: {paths: ["/asked*"]}}]}]
"""


def waypoint(*words: str) -> str:
    command = [sys.executable, "-m", "cli", "waypoint", *words, "--lab", LAB.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def curl(path: str, *headers: str) -> tuple[int, str]:
    """Status and body of a request of the client to the echo service."""
    words = [word for header in headers for word in ("-H", header)]
    command = ("curl", "-s", "-m", "5", "-w", "\n%{http_code}", *words, f"http://echo{path}")
    body, _, status = LAB.run("exec", "shop/client", "--", *command).stdout.rpartition("\n")
    return int(status), body


def token(subject: str = "ann", age_s: float = 0, **claims: object) -> str:
    body = {"iss": ISSUER, "sub": subject, "exp": time.time() + 300 - age_s} | claims
    return "Authorization: Bearer " + jwt.encode(body, KEY, algorithm="ES256", headers={"kid": "k1"})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        waypoint("apply", "-n", "shop", "--name", "wp", "--enroll-namespace", "--wait")
        eventually(lambda: "x-request-id" in curl("/")[1], "requests go through the waypoint")
        yield directory
    finally:
        LAB.run("down")


def put(directory: Path, text: str) -> Path:
    path = directory.parent / f"more{len(list(directory.parent.glob('more*')))}.yaml"
    path.write_text(text)
    LAB.ambit("apply", "-f", str(path))
    return path


@pytest.fixture(scope="class")
def tokens(lab: Path) -> Iterator[None]:
    path = put(lab, TOKENS)
    eventually(lambda: curl("/")[0] == 403, "requests without a token are refused")
    yield
    LAB.ambit("delete", "-f", str(path))
    eventually(lambda: curl("/")[0] == 200, "requests without a token pass again")


class TestTokens:
    def test_a_believed_token_opens_and_says_who_asks(self, tokens: None) -> None:
        status, body = curl("/", token())
        assert status == 200
        headers = json.loads(body)["headers"]
        assert headers["x-user"] == "ann"
        assert "authorization" not in headers

    def test_a_stranger_is_told_that_nobody_believes_the_token(self, tokens: None) -> None:
        assert curl("/open", token(iss="http://else")) == (401, "Jwt issuer is not configured")
        assert curl("/open", token(age_s=1000)) == (401, "Jwt is expired")
        assert curl("/open", "Authorization: Bearer a.b.c")[0] == 401
        forged = jwt.encode(
            {"iss": ISSUER, "sub": "ann"}, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"
        )
        assert curl("/open", f"Authorization: Bearer {forged}") == (401, "Jwt verification fails")

    def test_policies_ask_for_the_token_and_open_what_needs_none(self, tokens: None) -> None:
        assert curl("/") == (403, "RBAC: access denied")
        assert curl("/", token("bob")) == (403, "RBAC: access denied")
        status, body = curl("/open", "x-user: admin")
        assert status == 200
        assert "x-user" not in json.loads(body)["headers"], "a claim's header is the token's alone"


def test_an_authoriser_decides_what_its_policy_names(lab: Path) -> None:
    path = put(lab, CUSTOM.replace("PROVIDER", "sample"))
    eventually(lambda: curl("/asked")[0] == 418, "the authoriser's answer is the client's")
    status, body = curl("/asked", "x-ext-authz: allow")
    assert status == 200
    assert json.loads(body)["headers"]["x-checked-by"] == "authoriser"
    assert curl("/else")[0] == 200, "only the paths of the policy are asked about"
    LAB.ambit("delete", "-f", str(path))
    eventually(lambda: curl("/asked")[0] == 200, "without the policy nobody is asked")


def test_an_authoriser_that_nobody_defined_closes(lab: Path) -> None:
    path = put(lab, CUSTOM.replace("PROVIDER", "nobody"))
    eventually(lambda: curl("/asked", "x-ext-authz: allow")[0] == 403, "it is closed")
    assert curl("/else")[0] == 200
    LAB.ambit("delete", "-f", str(path))
    eventually(lambda: curl("/asked")[0] == 200, "without the policy nobody is asked")


def test_no_request_is_lost_while_policies_change_and_waypoints_come_and_go(lab: Path) -> None:
    """Eight keep-alive clients; meanwhile two pods, then other policies, then each pod replaced."""
    command = [sys.executable, "-m", "cli", "lab", "exec", "--name", LAB.name, "shop/client", "--"]
    load = subprocess.Popen(
        [*command, "/usr/bin/python3", "-c", LOAD, "25"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    try:
        LAB.ambit("scale", "shop/wp", "--replicas", "2")
        eventually(lambda: pods() == 2, "two pods run", timeout_s=20)
        path = put(lab, TOKENS)
        for name in names():
            LAB.ambit("restart", "pod", f"shop/{name}")
            eventually(lambda: pods() == 2, "it is replaced", timeout_s=20)
        LAB.ambit("delete", "-f", str(path))
        LAB.ambit("scale", "shop/wp", "--replicas", "1")
        out, _ = load.communicate(timeout=60)
    finally:
        load.kill()
        load.wait()
    result = json.loads(out)
    assert result["failed"] == []
    assert result["done"] > 1000


def names() -> list[str]:
    lines = LAB.run("status").stdout.splitlines()
    return [
        words[1] for line in lines if (words := line.split()) and words[1:] and words[1].startswith("wp-")
    ]


def pods() -> int:
    """Waypoint pods that are ready and none that ends."""
    lines = [line for line in LAB.run("status").stdout.splitlines() if " wp-" in line]
    return len(lines) if all("1/1" in line and "Running" in line for line in lines) else 0
