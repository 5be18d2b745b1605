# SPDX-License-Identifier: Apache-2.0
"""Who may have which identity: the node authoriser.

A node's ztunnel gets the identities of the pods that run on its node, and no others;
everyone else gets its own. Nothing is trusted by address. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mesh.config.objects import ObjectKey, RawObject
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.token import TokenClaims

ZTUNNEL = "istio-system/ztunnel"
"""Service account that may ask on behalf of others, unless configured otherwise."""
_ENDED = ("Succeeded", "Failed")


class NotAllowedError(Exception):
    """The caller may not have what it asks for; says who, what and why."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """Which service accounts run on which node, and which pods exist; made anew from each snapshot."""

    accounts: frozenset[tuple[str, str, str]]
    """(node, namespace, service account)"""
    pods: frozenset[tuple[str, str, str]]
    """(namespace, name, uid)"""

    @classmethod
    def of(cls, objects: Mapping[ObjectKey, RawObject]) -> Tenants:
        """Collect the pods that are placed and have not ended."""
        accounts: set[tuple[str, str, str]] = set()
        pods: set[tuple[str, str, str]] = set()
        for pod in objects.values():
            if pod.kind != "Pod" or pod.status.get("phase") in _ENDED:
                continue
            pods.add((pod.namespace, pod.name, str(pod.metadata.get("uid", ""))))
            node = pod.spec.get("nodeName")
            if isinstance(node, str) and node:
                account = pod.spec.get("serviceAccountName") or pod.spec.get("serviceAccount") or "default"
                accounts.add((node, pod.namespace, str(account)))
        return cls(frozenset(accounts), frozenset(pods))


def is_ztunnel(claims: TokenClaims, accounts: Collection[str]) -> bool:
    """Whether a token is a node proxy's: its `namespace/account` is one of `accounts`."""
    return f"{claims.namespace}/{claims.service_account}" in accounts


def authorise(
    claims: TokenClaims,
    asked: str,
    tenants: Tenants,
    trust_domain: str,
    ztunnels: Collection[str] = (ZTUNNEL,),
) -> SpiffeId:
    """Return the identity that the caller gets.

    Args:
        claims: whom the caller's token proves.
        asked: the impersonated identity of the request's metadata; empty: its own.
        tenants: what runs where.
        trust_domain: the mesh's own; no other is certified.
        ztunnels: service accounts of node proxies.

    Raises:
        NotAllowedError: it may not have this identity.
    """
    own = SpiffeId(trust_domain, claims.namespace, claims.service_account)
    impersonates = is_ztunnel(claims, ztunnels)
    if not impersonates and (claims.namespace, claims.pod_name, claims.pod_uid) not in tenants.pods:
        raise NotAllowedError(
            f"the token's pod {claims.namespace}/{claims.pod_name} (uid {claims.pod_uid}) does not exist"
        )
    if not asked:
        return own
    try:
        identity = SpiffeId.parse(asked)
    except IdentityError as error:
        raise NotAllowedError(str(error)) from error
    if identity == own:
        return identity
    if not impersonates:
        raise NotAllowedError(f"{claims.subject} may not ask for {identity}, only for its own identity")
    if identity.trust_domain != trust_domain:
        raise NotAllowedError(f"{identity} is of another trust domain than {trust_domain}")
    if (claims.node, identity.namespace, identity.service_account) not in tenants.accounts:
        raise NotAllowedError(f"no pod of {identity} runs on node {claims.node}")
    return identity
