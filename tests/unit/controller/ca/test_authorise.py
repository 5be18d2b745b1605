# SPDX-License-Identifier: Apache-2.0
"""The node authoriser: identities of the own node's pods, and nothing else."""

from __future__ import annotations

import pytest

from controller.ca.authorise import NotAllowedError, Tenants, authorise
from mesh.config.objects import make_object
from mesh.identity.token import TokenClaims


def pod(name: str, node: str = "n1", account: str = "web", phase: str = "Running") -> object:
    return make_object(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"},
            "spec": {"nodeName": node, "serviceAccountName": account},
            "status": {"phase": phase},
        }
    )


PODS = [pod("a"), pod("b", node="n2", account="cart"), pod("old", account="gone", phase="Succeeded")]
TENANTS = Tenants.of({p.key: p for p in PODS})  # type: ignore[attr-defined]
ZTUNNEL = TokenClaims(
    namespace="istio-system", service_account="ztunnel", pod_name="ztunnel-n1", pod_uid="z", node="n1"
)
POD_A = TokenClaims(namespace="shop", service_account="web", pod_name="a", pod_uid="uid-a", node="n1")
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def ask(claims: TokenClaims, asked: str = "") -> str:
    return str(authorise(claims, asked, TENANTS, "cluster.local"))


@pytest.mark.parametrize(
    ("claims", "asked", "given"),
    [
        (ZTUNNEL, WEB, WEB),
        (ZTUNNEL, "", "spiffe://cluster.local/ns/istio-system/sa/ztunnel"),
        (POD_A, "", WEB),
        (POD_A, WEB, WEB),
    ],
)
def test_what_is_given(claims: TokenClaims, asked: str, given: str) -> None:
    assert ask(claims, asked) == given


@pytest.mark.parametrize(
    ("claims", "asked", "reason"),
    [
        (ZTUNNEL, "spiffe://cluster.local/ns/shop/sa/cart", "runs on node n1"),
        (ZTUNNEL, "spiffe://cluster.local/ns/shop/sa/gone", "runs on node n1"),
        (ZTUNNEL, "spiffe://other.example/ns/shop/sa/web", "another trust domain"),
        (ZTUNNEL, "spiffe://cluster.local/ns/shop/sa/web/../cart", "is not spiffe"),
        (ZTUNNEL, "web", "is not spiffe"),
        (POD_A, "spiffe://cluster.local/ns/shop/sa/cart", "only for its own"),
        (
            TokenClaims(namespace="shop", service_account="web", pod_name="a", pod_uid="old-uid", node="n1"),
            "",
            "does not exist",
        ),
        (
            TokenClaims(
                namespace="shop", service_account="gone", pod_name="old", pod_uid="uid-old", node="n1"
            ),
            "",
            "does not exist",
        ),
    ],
)
def test_what_is_refused(claims: TokenClaims, asked: str, reason: str) -> None:
    with pytest.raises(NotAllowedError, match=reason):
        ask(claims, asked)
