# SPDX-License-Identifier: Apache-2.0
"""Policies on a cluster: who may come in, whether in plain, and that the kubelet's probes always may."""

from __future__ import annotations

from tests.k8s.bed import Space, get, kubectl, ok
from tests.k8s.test_k8s_traffic import enrolled
from tests.support.eventually import eventually

SECURITY = "security.istio.io/v1"
REFUSED = {52, 56}
"""curl: the connection was taken and closed without an answer."""


def test_only_the_named_account_may_come_in(space: Space) -> None:
    ok(kubectl("-n", space.name, "create", "serviceaccount", "friend"))
    space.server("web", node=2)
    space.client("friend", node=1, serviceAccountName="friend")
    space.client("stranger", node=1)
    enrolled(space, "web", "friend", "stranger")
    principal = f"cluster.local/ns/{space.name}/sa/friend"
    rules = [{"from": [{"source": {"principals": [principal]}}]}]
    space.apply("AuthorizationPolicy", SECURITY, "friends", {"action": "ALLOW", "rules": rules})
    eventually(lambda: space.curl("stranger", "http://web/").code in REFUSED, "a stranger is refused")
    assert ok(space.curl("friend", "http://web/")).strip() == "hello"


def test_strict_refuses_plaintext_but_not_probes(space: Space, outside: Space) -> None:
    space.server("web", node=2)
    space.client("client", node=1)
    outside.client("client", node=1)
    enrolled(space, "web", "client")
    outside.ready()
    url = f"http://web.{space.name}/"
    # Outside the mesh the way leads by kube-proxy, which refuses until it has heard of the endpoint.
    eventually(lambda: outside.curl("client", url).out.strip() == "hello", "plaintext passes at first")
    space.apply("PeerAuthentication", SECURITY, "strict", {"mtls": {"mode": "STRICT"}})
    eventually(lambda: outside.curl("client", url).code in REFUSED, "plaintext is refused")
    assert ok(space.curl("client", url)).strip() == "hello"
    # A pod that starts under STRICT becomes ready by the kubelet's probe alone.
    space.server("later", node=1)
    space.ready()
    conditions = {c["type"]: c for c in get("pod", "web", "-n", space.name)["status"]["conditions"]}
    assert conditions["Ready"]["status"] == "True"
