# SPDX-License-Identifier: Apache-2.0
"""Tokens prove what they were signed for, to whom they were meant for, while they last."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mesh.identity.token import (
    LEEWAY_S,
    MAX_TOKEN_BYTES,
    TokenClaims,
    TokenError,
    new_signing_key,
    sign_token,
    verify_token,
)

PRIVATE, PUBLIC = new_signing_key()
NOW = 1_772_366_400.0
CLAIMS = TokenClaims(
    namespace="istio-system",
    service_account="ztunnel",
    service_account_uid="sa-1",
    pod_name="zt-x",
    pod_uid="pod-1",
    node="n1",
)


def body_of(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def forged(**changes: Any) -> str:
    """A well-signed token with another body; a value of None takes the claim away."""
    body = {**body_of(sign_token(CLAIMS, PRIVATE, now_s=NOW)), **changes}
    return jwt.encode({k: v for k, v in body.items() if v is not None}, PRIVATE, algorithm="ES256")


def test_a_token_says_whom_it_speaks_for() -> None:
    token = sign_token(CLAIMS, PRIVATE, now_s=NOW, ttl_s=600)
    assert verify_token(token, PUBLIC, now_s=NOW) == replace(CLAIMS, expires_at_s=NOW + 600)


def test_its_shape_is_that_of_kubernetes() -> None:
    token = sign_token(CLAIMS, PRIVATE, now_s=NOW)
    assert jwt.get_unverified_header(token)["alg"] == "ES256"
    body = body_of(token)
    assert body["aud"] == ["istio-ca"]
    assert body["sub"] == "system:serviceaccount:istio-system:ztunnel"
    assert body["kubernetes.io"] == {
        "namespace": "istio-system",
        "node": {"name": "n1"},
        "pod": {"name": "zt-x", "uid": "pod-1"},
        "serviceaccount": {"name": "ztunnel", "uid": "sa-1"},
    }


def test_it_is_valid_from_its_beginning_to_its_end_and_no_longer() -> None:
    token = sign_token(CLAIMS, PRIVATE, now_s=NOW, ttl_s=600)
    verify_token(token, PUBLIC, now_s=NOW - LEEWAY_S)
    verify_token(token, PUBLIC, now_s=NOW + 600 + LEEWAY_S - 1)
    with pytest.raises(TokenError, match="expired 30 s ago"):
        verify_token(token, PUBLIC, now_s=NOW + 600 + LEEWAY_S)
    with pytest.raises(TokenError, match="not valid yet"):
        verify_token(token, PUBLIC, now_s=NOW - LEEWAY_S - 1)


def test_another_signer_proves_nothing() -> None:
    token = sign_token(CLAIMS, new_signing_key()[0], now_s=NOW)
    with pytest.raises(TokenError, match="Signature verification failed"):
        verify_token(token, PUBLIC, now_s=NOW)


def test_another_audience_proves_nothing() -> None:
    token = sign_token(CLAIMS, PRIVATE, now_s=NOW, audience="vault")
    with pytest.raises(TokenError, match="Audience"):
        verify_token(token, PUBLIC, now_s=NOW)
    assert verify_token(token, PUBLIC, now_s=NOW, audience="vault").node == "n1"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_the_header_does_not_choose_the_algorithm() -> None:
    body = body_of(sign_token(CLAIMS, PRIVATE, now_s=NOW))
    unsigned = jwt.encode(body, None, algorithm="none")
    header, payload, _ = jwt.encode(body, "k" * 64, algorithm="HS256").split(".")
    for token in (unsigned, f"{header}.{payload}.AAAA"):
        with pytest.raises(TokenError, match="alg"):
            verify_token(token, PUBLIC, now_s=NOW)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": None}, '"exp"'),
        ({"aud": None}, "aud"),
        ({"sub": None}, '"sub"'),
        ({"exp": "soon"}, "exp is no time"),
        ({"exp": True}, "exp is no time"),
        ({"nbf": "soon"}, "nbf is no time"),
        ({"kubernetes.io": None}, "no kubernetes.io; is it bound to a pod"),
        ({"kubernetes.io": "x"}, "no kubernetes.io"),
        ({"kubernetes.io": {"namespace": "istio-system"}}, "no serviceaccount"),
        ({"sub": "system:serviceaccount:kube-system:admin"}, "subject is not"),
    ],
)
def test_a_token_that_lacks_something_proves_nothing(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(TokenError, match=why):
        verify_token(forged(**changes), PUBLIC, now_s=NOW)


@pytest.mark.parametrize("missing", ["namespace", "node", "pod", "serviceaccount"])
def test_a_binding_that_lacks_something_proves_nothing(missing: str) -> None:
    bound = body_of(sign_token(CLAIMS, PRIVATE, now_s=NOW))["kubernetes.io"]
    del bound[missing]
    with pytest.raises(TokenError, match=f"no {missing}"):
        verify_token(forged(**{"kubernetes.io": bound}), PUBLIC, now_s=NOW)


@pytest.mark.parametrize("name", ["", None, 7, ["a"]])
def test_a_name_that_is_none_proves_nothing(name: object) -> None:
    bound = body_of(sign_token(CLAIMS, PRIVATE, now_s=NOW))["kubernetes.io"]
    bound["pod"] = {"name": name, "uid": "pod-1"}
    with pytest.raises(TokenError, match="no name"):
        verify_token(forged(**{"kubernetes.io": bound}), PUBLIC, now_s=NOW)


def test_the_time_is_the_callers_and_not_the_machines() -> None:
    for now in (0.0, 4_102_444_800.0):
        assert verify_token(sign_token(CLAIMS, PRIVATE, now_s=now), PUBLIC, now_s=now).node == "n1"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "." * 40, "ä.b.c"])
def test_garbage_proves_nothing(token: str) -> None:
    with pytest.raises(TokenError):
        verify_token(token, PUBLIC, now_s=NOW)


def test_a_huge_token_is_not_looked_at() -> None:
    with pytest.raises(TokenError, match="more than"):
        verify_token("x" * (MAX_TOKEN_BYTES + 1), PUBLIC, now_s=NOW)
    with pytest.raises(TokenError, match="not valid"):
        verify_token("x" * MAX_TOKEN_BYTES, PUBLIC, now_s=NOW)


def test_an_issuer_key_of_another_kind_is_refused() -> None:
    other = rsa.generate_private_key(65537, 2048).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TokenError, match="no elliptic-curve key"):
        verify_token(sign_token(CLAIMS, PRIVATE, now_s=NOW), pem, now_s=NOW)
