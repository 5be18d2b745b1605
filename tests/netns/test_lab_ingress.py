# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway in a lab: a pod outside the mesh asks it, by HTTP and HTTPS, for what is inside.

The client is curl; the destination admits the gateway's identity alone, in STRICT mode.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_bed import Lab, pod

from tests.support.eventually import eventually
from tests.support.pki import Authority, Leaf

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("ingresstest")
ROOTS = "/tmp/ca.crt"
"""Where the client has the root of the gateway's certificate."""


def server(name: str) -> str:
    script = (
        f"mkdir -p /tmp/site && cd /tmp/site && echo {name} > index.html && "
        "exec /usr/bin/python3 -m http.server 8080 --bind ::"
    )
    return (
        pod(name, "node1", account="server", command=json.dumps(["sh", "-c", script]))
        + f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---"""
    )


MANIFEST = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---"""
    + server("web")
    + server("api")
    + pod("client", "node2", account="client")
    + pod("outsider", "node2", extra=", istio.io/dataplane-mode: none")
    + """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-gateway, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front-ambit]}}]}]
"""
)
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: front
  namespace: shop
  annotations: {networking.istio.io/service-type: ClusterIP}
spec:
  gatewayClassName: ambit
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - name: https
    port: 443
    protocol: HTTPS
    hostname: "*.example.com"
    tls: {certificateRefs: [{name: front-cert}]}
"""
ROUTES = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: redirect, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: http}]
  hostnames: [web.example.com]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: https}]
  hostnames: [web.example.com]
  rules:
  - backendRefs: [{name: web, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{name: front}]
  hostnames: [api.example.com]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v1}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: api, port: 80}]
"""


def secret(leaf: Leaf) -> str:
    crt, key = (base64.b64encode(part).decode() for part in (b"".join(leaf.chain_pem), leaf.key_pem))
    return (
        "{apiVersion: v1, kind: Secret, metadata: {name: front-cert, namespace: shop}, "
        f"type: kubernetes.io/tls, data: {{tls.crt: {crt}, tls.key: {key}}}}}\n---"
    )


class Bed:
    """The lab, with the authority that its clients trust."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority()
        self.leaf = self.authority.leaf(dns=["*.example.com"])
        self.directory = directory

    def address(self) -> str:
        """The gateway's ClusterIP."""
        service = json.loads(LAB.ambit("get", "service", "-n", "shop", "front-ambit", "-o", "json"))
        return str(service["spec"]["clusterIP"])

    def curl(self, url: str, *words: str, who: str = "outsider") -> str:
        """What curl prints: protocol, status, Location and the body."""
        port = "443" if url.startswith("https") else "80"
        host = url.split("/")[2]
        form = "HTTP/%{http_version} %{http_code} %{redirect_url}\n"
        resolve = ("--resolve", f"{host}:{port}:{self.address()}", "--cacert", ROOTS)
        command = ("curl", "-sS", "-m", "5", "-w", form, *resolve, *words, url)
        done = LAB.run("exec", f"shop/{who}", "--", *command)
        return done.stdout + done.stderr


def put(directory: Path, name: str, text: str) -> None:
    path = directory.parent / f"{name}.yaml"
    path.write_text(text)
    LAB.ambit("apply", "-f", str(path))


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A meshed lab with a gateway."""
    directory = tmp_path_factory.mktemp("objects")
    (directory / "shop.yaml").write_text(MANIFEST)
    made = Bed(directory)
    try:
        LAB.ambit("up", "-f", str(directory), "--nodes", "2")
        write = f'printf %s "$1" > {ROOTS}'
        LAB.ambit("exec", "shop/outsider", "--", "sh", "-c", write, "-", made.authority.roots_pem.decode())
        put(directory, "gateway", secret(made.leaf) + GATEWAY)
        put(directory, "routes", ROUTES)
        eventually(lambda: programmed() == "True", "the gateway is programmed")
        yield made
    finally:
        LAB.run("down")


def programmed() -> str:
    gateway = json.loads(LAB.ambit("get", "gateway", "-n", "shop", "front", "-o", "json"))
    conditions = (gateway.get("status") or {}).get("conditions") or ()
    return next((c["status"] for c in conditions if c["type"] == "Programmed"), "")


def test_https_reaches_the_service_with_the_gateways_identity(bed: Bed) -> None:
    eventually(lambda: "HTTP/2 200" in bed.curl("https://web.example.com/"), "the page comes")
    assert "web\n" in bed.curl("https://web.example.com/")
    assert "HTTP/1.1 200" in bed.curl("https://web.example.com/", "--http1.1")
    direct = LAB.run("exec", "shop/client", "--", "curl", "-s", "-m", "5", "http://web/")
    assert direct.returncode != 0, "a pod of the mesh that is not the gateway is denied"


def test_http_is_redirected_to_https(bed: Bed) -> None:
    out = bed.curl("http://web.example.com/a?b=c")
    assert "HTTP/1.1 301 https://web.example.com/a?b=c" in out


def test_another_host_has_its_own_rules(bed: Bed) -> None:
    eventually(lambda: "HTTP/1.1 200" in bed.curl("http://api.example.com/v1/"), "the other service answers")
    assert "api\n" in bed.curl("http://api.example.com/v1/")
    assert "HTTP/2 200" in bed.curl("http://api.example.com/v1/", "--http2-prior-knowledge")
    refused = bed.curl("http://api.example.com/v2/")
    assert " 404 " in refused
    assert "no rule of shop/front/http matches GET /v2/" in refused


def test_an_unknown_host_is_not_found(bed: Bed) -> None:
    out = bed.curl("http://nobody.example.com/")
    assert " 404 " in out
    assert "no route of shop/front/http is for nobody.example.com" in out


def test_a_name_without_a_listener_gets_no_certificate(bed: Bed) -> None:
    out = bed.curl("https://web.example.org/", "-k")
    assert "unrecognized name" in out


def test_the_certificate_is_the_secrets(bed: Bed) -> None:
    bed_without_roots = bed.curl("https://web.example.com/", "--cacert", "/etc/ssl/certs/ca-certificates.crt")
    assert "SSL certificate problem" in bed_without_roots


def test_routes_and_listeners_are_told_what_became_of_them(bed: Bed) -> None:
    route = json.loads(LAB.ambit("get", "httproute", "-n", "shop", "web", "-o", "json"))
    (parent,) = route["status"]["parents"]
    assert {c["type"]: c["status"] for c in parent["conditions"]} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
    }
    gateway = json.loads(LAB.ambit("get", "gateway", "-n", "shop", "front", "-o", "json"))
    assert [each["attachedRoutes"] for each in gateway["status"]["listeners"]] == [2, 2]


NO_ADMIN = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
"""


def test_a_policy_for_the_gateway_holds(bed: Bed) -> None:
    put(bed.directory, "policy", NO_ADMIN)
    eventually(lambda: "HTTP/2 403" in bed.curl("https://web.example.com/admin"), "the path is closed")
    assert "HTTP/2 200" in bed.curl("https://web.example.com/")


MARK = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mark, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-waypoint, value: "yes"}]}
    backendRefs: [{name: api, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
"""


def test_a_label_leads_requests_through_the_services_waypoint(bed: Bed) -> None:
    put(bed.directory, "waypoint", MARK)
    LAB.ambit("label", "service", "api", "istio.io/use-waypoint=wp", "-n", "shop")

    def marked(who: str, *words: str) -> bool:
        """Whether the answer to an API request bears the waypoint's mark."""
        command = ("curl", "-s", "-m", "5", "-i", *words)
        return "x-waypoint: yes" in LAB.run("exec", f"shop/{who}", "--", *command).stdout

    front = ("--resolve", f"api.example.com:80:{bed.address()}", "http://api.example.com/v1/")
    eventually(lambda: marked("client", "http://api/"), "pods of the mesh go through the waypoint")
    assert not marked("outsider", *front), "the gateway goes past it"
    LAB.ambit("label", "service", "api", "istio.io/ingress-use-waypoint=true", "-n", "shop")
    eventually(lambda: marked("outsider", *front), "the gateway goes through it too")


def test_requests_are_counted_as_the_source_sees_them(bed: Bed) -> None:
    bed.curl("https://web.example.com/")
    gateway = next(w for w in LAB.admin("/debug/registry")["workloads"] if w["name"].startswith("front-"))
    command = ("curl", "-s", "-m", "5", f"http://{gateway['addresses'][0]}:15020/metrics")

    def counted() -> bool:
        text = LAB.run("exec", "shop/outsider", "--", *command).stdout
        return any(
            line.startswith("istio_requests_total")
            and 'reporter="source"' in line
            and 'source_workload="front-ambit"' in line
            and 'destination_service_name="web"' in line
            and 'response_code="200"' in line
            for line in text.splitlines()
        )

    eventually(counted, "the request is counted")
