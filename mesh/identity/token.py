# SPDX-License-Identifier: Apache-2.0
"""Tokens in the shape of Kubernetes' projected service account tokens, signed with ES256.

The lab signs them for its pods and the controller checks them; on a cluster the API server
does both. A token proves a pod, its service account and its node, to one audience.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from jwt.types import Options

AUDIENCE = "istio-ca"
ALGORITHM = "ES256"
LEEWAY_S = 30.0
"""Clocks of signer and checker may differ by this much."""
MAX_TOKEN_BYTES = 16 * 1024


class TokenError(Exception):
    """A token proves nothing; says why, without the token. Its bearer is at fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """Whom a token speaks for."""

    namespace: str
    service_account: str
    pod_name: str
    pod_uid: str
    node: str
    service_account_uid: str = ""
    expires_at_s: float = 0.0
    """Seconds since the epoch; set by the checker."""

    @property
    def subject(self) -> str:
        """`system:serviceaccount:NAMESPACE:ACCOUNT`."""
        return f"system:serviceaccount:{self.namespace}:{self.service_account}"


def new_signing_key() -> tuple[bytes, bytes]:
    """Make a P-256 key; return (private as PKCS#8 PEM, public as PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def sign_token(
    claims: TokenClaims,
    private_key_pem: bytes,
    *,
    now_s: float,
    ttl_s: float = 3600.0,
    issuer: str = "https://ambit.lab",
    audience: str = AUDIENCE,
) -> str:
    """Sign a token that is valid from `now_s` (seconds since the epoch) for `ttl_s`.

    Source: Kubernetes bound service account tokens, claim `kubernetes.io`.
    """
    body = {
        "aud": [audience],
        "exp": int(now_s + ttl_s),
        "iat": int(now_s),
        "nbf": int(now_s),
        "iss": issuer,
        "sub": claims.subject,
        "kubernetes.io": {
            "namespace": claims.namespace,
            "node": {"name": claims.node},
            "pod": {"name": claims.pod_name, "uid": claims.pod_uid},
            "serviceaccount": {"name": claims.service_account, "uid": claims.service_account_uid},
        },
    }
    return jwt.encode(body, private_key_pem, algorithm=ALGORITHM)


def verify_token(token: str, public_key_pem: bytes, *, now_s: float, audience: str = AUDIENCE) -> TokenClaims:
    """Check signature, audience, time and shape, and return whom the token speaks for.

    Only ES256 under the given key is believed, whatever the token's header says.

    Raises:
        TokenError: anything is missing or wrong (bearer's fault).
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError(f"a token of {len(token)} characters, more than {MAX_TOKEN_BYTES}")
    key = load_pem_public_key(public_key_pem)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TokenError("the issuer's key is no elliptic-curve key")
    # Times are checked below, against the clock that the caller has.
    options: Options = {
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        "require": ["exp", "sub", "aud"],
    }
    try:
        body = jwt.decode(token, key, algorithms=[ALGORITHM], audience=audience, options=options)
    except jwt.InvalidTokenError as error:
        raise TokenError(f"the token is not valid: {error}") from error
    expires_at_s = _number(body, "exp")
    if expires_at_s <= now_s - LEEWAY_S:
        raise TokenError(f"the token expired {now_s - expires_at_s:.0f} s ago")
    for name in ("nbf", "iat"):
        if name in body and _number(body, name) > now_s + LEEWAY_S:
            raise TokenError("the token is not valid yet")
    bound = _mapping(body, "kubernetes.io")
    account, pod = _mapping(bound, "serviceaccount"), _mapping(bound, "pod")
    claims = TokenClaims(
        namespace=_text(bound, "namespace"),
        service_account=_text(account, "name"),
        service_account_uid=str(account.get("uid", "")),
        pod_name=_text(pod, "name"),
        pod_uid=_text(pod, "uid"),
        node=_text(_mapping(bound, "node"), "name"),
        expires_at_s=expires_at_s,
    )
    if body["sub"] != claims.subject:
        raise TokenError(f"the token's subject is not {claims.subject}")
    return claims


def _mapping(source: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = source.get(name)
    if not isinstance(value, dict):
        raise TokenError(f"the token has no {name}; is it bound to a pod?")
    return value


def _text(source: Mapping[str, object], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not value:
        raise TokenError(f"the token has no {name}")
    return value


def _number(source: Mapping[str, object], name: str) -> float:
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(f"the token's {name} is no time")
    return float(value)
