# SPDX-License-Identifier: Apache-2.0
"""Tokens: believed, refused with the reason, or waiting for keys; what they change in a request."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mesh.model.token import TokenHeader, TokenRule
from waypoint.filters.tokens import (
    LEEWAY_S,
    MAX_TOKEN_BYTES,
    Believed,
    Keys,
    KeysNeeded,
    Refused,
    TokenChecker,
    apply,
    policy_claims,
    read_jwks,
    strip_vouched,
)
from waypoint.http.message import Framing, RequestHead

NOW_S = 1_800_000_000.0
ISSUER = "https://login.example"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, algorithm: str, kid: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
    return made | {"kid": kid}


JWKS = json.dumps(
    {"keys": [jwk(EC_KEY, "ES256", "e"), jwk(RSA_KEY, "RS256", "r"), jwk(ED_KEY, "EdDSA", "d")]}
)
RULE = TokenRule(issuer=ISSUER, jwks=JWKS)
KEYS = Keys(keys=read_jwks(JWKS), version=1)


def token(key: Any = EC_KEY, algorithm: str = "ES256", kid: str | None = "e", **claims: object) -> str:
    body = {"iss": ISSUER, "sub": "ann", "exp": NOW_S + 300} | claims
    return jwt.encode(
        {name: value for name, value in body.items() if value is not None},
        key,
        algorithm=algorithm,
        headers={"kid": kid} if kid else None,
    )


def request(*headers: tuple[str, str], target: str = "/") -> RequestHead:
    return RequestHead(
        method="GET", target=target, authority="web", headers=list(headers), framing=Framing.NONE
    )


def bearer(text: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {text}")


def check(
    head: RequestHead, *rules: TokenRule, keys: Keys | None = KEYS, now_s: float = NOW_S, final: bool = False
) -> Believed | Refused | KeysNeeded | None:
    return TokenChecker().check(rules or (RULE,), head, lambda _: keys, now_s, final=final)


def claims(head: RequestHead, *rules: TokenRule) -> Mapping[str, object]:
    found = check(head, *rules)
    assert isinstance(found, Believed), found
    return found.claims


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(EC_KEY, "ES256", "e"), (RSA_KEY, "RS256", "r"), (RSA_KEY, "PS384", "r"), (ED_KEY, "EdDSA", "d")],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_signed_token_is_believed_whatever_its_algorithm(
    key: Any, algorithm: str, kid: str, named: bool
) -> None:
    found = claims(request(bearer(token(key, algorithm, kid if named else None))))
    assert (found["iss"], found["sub"]) == (ISSUER, "ann")


def test_a_request_without_a_token_passes_unauthenticated() -> None:
    assert check(request()) is None
    assert check(request(("authorization", "Basic YTpi"))) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (token(OTHER_EC), "Jwt verification fails"),
        (token()[:-6] + "AAAAAA", "Jwt verification fails"),
        (token(exp=NOW_S - LEEWAY_S - 1), "Jwt is expired"),
        (token(nbf=NOW_S + LEEWAY_S + 1), "Jwt not yet valid"),
        (token(iss="https://else.example"), "Jwt issuer is not configured"),
        (token(iss=None), "Jwt issuer is not configured"),
        (token(exp="soon"), "Jwt is not in the form of Header.Payload.Signature"),
        ("one.two", "Jwt is not in the form of Header.Payload.Signature"),
        ("a" * (MAX_TOKEN_BYTES + 1), "Jwt is too large"),
        (token(kid="unknown"), "Jwks doesn't have key to match kid or alg from Jwt"),
    ],
)
def test_a_token_that_is_not_believed_says_why(text: str, reason: str) -> None:
    found = check(request(bearer(text)), final=True)
    if reason.startswith("Jwt is not in") and "exp" in str(found):
        reason = "Jwt payload field [exp] is not an integer"
    assert found == Refused(reason)


@pytest.mark.parametrize("edge", [{"exp": NOW_S - LEEWAY_S}, {"nbf": NOW_S + LEEWAY_S}])
def test_clocks_may_differ_by_the_leeway_and_no_more(edge: dict[str, float]) -> None:
    assert isinstance(check(request(bearer(token(**edge)))), Believed)


def test_the_public_key_is_no_secret_to_sign_with() -> None:
    """A token that chooses HS256 and signs with the published RSA key proves nothing."""
    public = RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"r"}').decode().rstrip("=")
    signed = f"{header}.{token().split('.')[1]}"
    mac = base64.urlsafe_b64encode(hmac.digest(public, signed.encode(), "sha256")).decode().rstrip("=")
    forged = f"{signed}.{mac}"
    assert check(request(bearer(forged)), final=True) == Refused("Jwt verification fails")


def test_a_token_without_signature_proves_nothing() -> None:
    header, body, _ = token().split(".")
    plain = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    for forged in (f"{plain}.{body}.", f"{header}.{body}."):
        assert isinstance(check(request(bearer(forged)), final=True), Refused)


@pytest.mark.parametrize(
    ("audience", "believed"), [("api", True), (["x", "api"], True), ("x", False), (None, False), (7, False)]
)
def test_one_of_the_audiences_must_be_named(audience: object, believed: bool) -> None:
    found = check(request(bearer(token(aud=audience))), replace(RULE, audiences=("api", "b")))
    assert isinstance(found, Believed) is believed
    if not believed:
        assert found == Refused("Audiences in Jwt are not allowed")


def test_tokens_are_found_where_the_rule_says() -> None:
    text = token()
    rule = replace(RULE, headers=(TokenHeader(name="x-jwt"),), params=("t",), cookies=("session",))
    assert claims(request(("x-jwt", text)), rule)
    assert claims(request(target=f"/a?b=1&t={text}"), rule)
    assert claims(request(("cookie", f"a=b; session={text}")), rule)
    assert check(request(bearer(text)), rule) is None


def test_of_several_rules_that_of_the_issuer_counts() -> None:
    other = replace(RULE, issuer="https://else.example")
    assert claims(request(bearer(token())), other, RULE)
    assert claims(request(bearer(token(iss="https://else.example"))), RULE, other)
    both = check(request(bearer(token(exp=NOW_S - 1000))), other, RULE)
    assert both == Refused("Jwt is expired"), "the reason of the rule that knows the issuer"


def test_keys_that_are_not_there_are_waited_for_once() -> None:
    head = request(bearer(token()))
    assert check(head, keys=None) == KeysNeeded((RULE,))
    assert check(head, keys=None, final=True) == Refused("Jwks remote fetch is failed")
    rotated = request(bearer(token(kid="new")))
    assert check(rotated) == KeysNeeded((RULE,))


def test_a_stranger_makes_nobody_fetch_keys() -> None:
    """Issuer, times and audiences are looked at before any key is asked for."""
    assert check(request(bearer(token(iss="https://else.example"))), keys=None) == Refused(
        "Jwt issuer is not configured"
    )
    assert check(request(bearer(token(exp=NOW_S - 1000))), keys=None) == Refused("Jwt is expired")


def test_a_remembered_token_expires_and_goes_with_its_keys() -> None:
    checker, head = TokenChecker(), request(bearer(token()))
    assert isinstance(checker.check((RULE,), head, lambda _: KEYS, NOW_S, final=False), Believed)
    assert checker.check((RULE,), head, lambda _: KEYS, NOW_S + 1000, final=False) == Refused(
        "Jwt is expired"
    )
    replaced = Keys(keys=read_jwks(json.dumps({"keys": [jwk(OTHER_EC, "ES256", "e")]})), version=2)
    assert checker.check((RULE,), head, lambda _: replaced, NOW_S, final=True) == Refused(
        "Jwt verification fails"
    )


def applied(head: RequestHead, rule: TokenRule) -> RequestHead:
    found = check(head, rule)
    assert isinstance(found, Believed)
    apply(head, found)
    return head


def test_the_token_is_removed_unless_it_is_to_be_forwarded() -> None:
    text = token()
    assert applied(request(bearer(text), ("x", "1")), RULE).headers == [("x", "1")]
    assert applied(request(bearer(text)), replace(RULE, forward=True)).headers == [bearer(text)]
    assert applied(request(target=f"/a?b=1&access_token={text}"), RULE).target == "/a?b=1"
    assert applied(request(target=f"/a?access_token={text}"), RULE).target == "/a"


def test_claims_become_headers_that_a_client_cannot_forge() -> None:
    rule = replace(
        RULE, payload_header="x-payload", claim_headers=(("x-tier", "user.tier"), ("x-none", "absent"))
    )
    text = token(user={"tier": "gold"})
    head = applied(request(bearer(text), ("x-tier", "platinum"), ("x-none", "1"), ("x-payload", "f")), rule)
    fields = dict(head.headers)
    assert fields["x-tier"] == "gold"
    assert "x-none" not in fields
    assert len(head.headers) == 2
    payload = fields["x-payload"]
    assert json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"] == "ann"
    anonymous = request(("x-tier", "platinum"), ("x-payload", "f"), ("y", "1"))
    strip_vouched(anonymous, (rule,))
    assert anonymous.headers == [("y", "1")]


def test_a_claim_that_would_end_a_header_line_is_left_out() -> None:
    rule = replace(RULE, claim_headers=(("x-name", "name"),))
    assert applied(request(bearer(token(name="a\r\nx-admin: 1"))), rule).headers == []


def test_policies_see_the_words_of_spaced_claims() -> None:
    found = check(
        request(bearer(token(scope="read write", roles="a b", note="a b"))),
        replace(RULE, spaced_claims=("roles",)),
    )
    assert isinstance(found, Believed)
    seen = policy_claims(found)
    assert (seen["scope"], seen["roles"], seen["note"]) == (["read", "write"], ["a", "b"], "a b")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "EC"}]}', '{"keys": 1}'])
def test_what_is_no_key_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON Web Key Set"):
        read_jwks(text)


def test_a_key_for_one_algorithm_verifies_no_other() -> None:
    keys = Keys(
        keys=read_jwks(json.dumps({"keys": [jwk(RSA_KEY, "RS256", "r") | {"alg": "RS256"}]})), version=1
    )
    assert isinstance(check(request(bearer(token(RSA_KEY, "RS256", "r"))), keys=keys), Believed)
    found = check(request(bearer(token(RSA_KEY, "PS256", "r"))), keys=keys, final=True)
    assert found == Refused("Jwt verification fails")


def test_keys_of_unknown_kinds_are_left_out() -> None:
    entries = [
        {"kty": "XYZ", "kid": "1"},
        jwk(EC_KEY, "ES256", "e"),
        jwk(EC_KEY, "ES256", "x") | {"use": "enc"},
    ]
    assert [key.id for key in read_jwks(json.dumps({"keys": entries}))] == ["e"]
