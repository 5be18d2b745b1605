# SPDX-License-Identifier: Apache-2.0
"""Whether a request's token is believed, and what it says: JSON Web Tokens by issuer.

Decides only; keys come in, time comes in. No token: the request passes without claims. One
token that is believed is enough; if there are tokens and none is, the request is refused
with the first reason. Source: Istio RequestAuthentication, Envoy's JWT filter; RFC 7515, 7519.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jwt
from jwt.exceptions import InvalidTokenError, PyJWTError

from mesh.model.token import TokenRule
from waypoint.http.message import Headers, RequestHead

LEEWAY_S = 60.0
"""Clocks of issuer and waypoint may differ by this much. Source: Envoy's default."""
MAX_TOKEN_BYTES = 16 * 1024
CACHED_TOKENS = 1024
_ALGORITHMS = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "EC": frozenset({"ES256", "ES384", "ES512"}),
    "OKP": frozenset({"EdDSA"}),
    "oct": frozenset({"HS256", "HS384", "HS512"}),
}
"""What each type of key may verify: a token never chooses that for itself."""

Claims = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Key:
    """One verification key."""

    id: str
    algorithms: frozenset[str]
    """What it may verify."""
    material: Any
    """As the library takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of one rule, as they are now."""

    keys: tuple[Key, ...]
    version: int
    """Changes with the keys."""


@dataclass(slots=True, kw_only=True)
class Believed:
    """The token's claims and what they change in the request."""

    claims: Claims
    rule: TokenRule
    found: Found
    payload: str
    """The claims as they were signed: base64url, unpadded."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a token was."""

    token: str
    place: str
    """`header`, `param` or `cookie`."""
    name: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No token of the request is believed; the reason is the client's to read."""

    reason: str


@dataclass(frozen=True, slots=True)
class KeysNeeded:
    """The verdict waits for the keys of these rules."""

    rules: tuple[TokenRule, ...]


class TokenError(Exception):
    """A token is not believed; says why in Envoy's words."""


class MissingKeyError(TokenError):
    """The keys that are known do not have the token's."""


def read_jwks(text: str) -> tuple[Key, ...]:
    """Parse a JSON Web Key Set; keys of kinds that are not known are left out.

    Raises:
        ValueError: it is no key set, or has no key that can verify.
    """
    try:
        entries = json.loads(text)["keys"]
        found = []
        for entry in entries:
            if entry.get("kty") not in _ALGORITHMS or entry.get("use", "sig") != "sig":
                continue
            try:
                made = jwt.PyJWK.from_dict(entry)
            except (PyJWTError, ValueError):
                continue
            algorithms = _ALGORITHMS[entry["kty"]]
            if "alg" in entry:
                algorithms &= {str(entry["alg"])}
            found.append(Key(str(entry.get("kid", "")), algorithms, made.key))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no JSON Web Key Set: {error!r}") from error
    if not found:
        raise ValueError("the JSON Web Key Set has no key that can verify a signature")
    return tuple(found)


class TokenChecker:
    """Judges the tokens of requests; remembers which were verified. Loop thread only."""

    def __init__(self) -> None:
        self._verified: OrderedDict[tuple[str, str, int], Claims] = OrderedDict()

    def check(
        self,
        rules: Sequence[TokenRule],
        head: RequestHead,
        keys: Callable[[TokenRule], Keys | None],
        now_s: float,
        *,
        final: bool,
    ) -> Believed | Refused | KeysNeeded | None:
        """Judge a request; None: it has no token.

        `final` says that keys were just fetched: what is still missing is not waited for again.
        """
        reason = ""
        needed: list[TokenRule] = []
        for rule in rules:
            for found in find_tokens(rule, head):
                try:
                    claims = self._claims(rule, found.token, keys(rule), now_s)
                except MissingKeyError as error:
                    needed.append(rule)
                    reason = reason or str(error)
                except TokenError as error:
                    # "not configured" is said only if no rule knows the issuer.
                    if not reason or reason == _UNKNOWN_ISSUER:
                        reason = str(error)
                else:
                    payload = found.token.split(".")[1]
                    return Believed(claims=claims, rule=rule, found=found, payload=payload)
        if needed and not final:
            return KeysNeeded(tuple(needed))
        return Refused(reason) if reason else None

    def _claims(self, rule: TokenRule, token: str, keys: Keys | None, now_s: float) -> Claims:
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenError("Jwt is too large")
        if keys is not None:
            known = self._verified.get((rule.issuer, token, keys.version))
            if known is not None:
                self._verified.move_to_end((rule.issuer, token, keys.version))
                _check_claims(rule, known, now_s)
                return known
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except InvalidTokenError as error:
            raise TokenError("Jwt is not in the form of Header.Payload.Signature") from error
        if claimed.get("iss") != rule.issuer:
            raise TokenError(_UNKNOWN_ISSUER)
        _check_claims(rule, claimed, now_s)
        if keys is None:
            raise MissingKeyError("Jwks remote fetch is failed")
        _verify(token, header, keys)
        self._verified[rule.issuer, token, keys.version] = claimed
        if len(self._verified) > CACHED_TOKENS:
            self._verified.popitem(last=False)
        return claimed


_UNKNOWN_ISSUER = "Jwt issuer is not configured"


def _verify(token: str, header: Mapping[str, object], keys: Keys) -> None:
    kid, algorithm = header.get("kid"), str(header.get("alg"))
    candidates = [key for key in keys.keys if not kid or not key.id or key.id == kid]
    if not candidates:
        raise MissingKeyError("Jwks doesn't have key to match kid or alg from Jwt")
    for key in candidates:
        if algorithm not in key.algorithms:
            continue
        try:
            jwt.decode(
                token,
                key.material,
                algorithms=[algorithm],
                options={"verify_aud": False, "verify_iat": False, "verify_exp": False, "verify_nbf": False},
            )
        except InvalidTokenError:
            continue
        return
    raise TokenError("Jwt verification fails")


def _check_claims(rule: TokenRule, claims: Claims, now_s: float) -> None:
    expires, begins = _time(claims, "exp"), _time(claims, "nbf")
    if expires is not None and expires + LEEWAY_S < now_s:
        raise TokenError("Jwt is expired")
    if begins is not None and begins - LEEWAY_S > now_s:
        raise TokenError("Jwt not yet valid")
    if rule.audiences:
        named = claims.get("aud")
        audiences = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        if not any(audience in rule.audiences for audience in audiences):
            raise TokenError("Audiences in Jwt are not allowed")


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(f"Jwt payload field [{name}] is not an integer")
    return float(value)


# --- where tokens are


def find_tokens(rule: TokenRule, head: RequestHead) -> list[Found]:
    """Return the tokens in the places that a rule names, in that order."""
    found = []
    for place in rule.headers:
        for name, value in head.headers:
            if name == place.name and value.startswith(place.prefix) and value[len(place.prefix) :].strip():
                found.append(Found(value[len(place.prefix) :].strip(), "header", name))
    query = head.target.partition("?")[2]
    if query and rule.params:
        for name, value in parse_qsl(query):
            if name in rule.params:
                found.append(Found(value, "param", name))
    if rule.cookies:
        for name, value in head.headers:
            if name != "cookie":
                continue
            for pair in value.split(";"):
                key, equals, text = pair.strip().partition("=")
                if equals and key in rule.cookies:
                    found.append(Found(text.strip('"'), "cookie", key))
    return found


def apply(head: RequestHead, believed: Believed) -> None:
    """Change a request as its token's rule says: the token removed, claims passed on."""
    rule, found = believed.rule, believed.found
    headers: Headers = head.headers
    if not rule.forward:
        if found.place == "header":
            headers = [(name, value) for name, value in headers if name != found.name]
        elif found.place == "param":
            head.target = _without_param(head.target, found.name)
    set_headers = {}
    if rule.payload_header:
        set_headers[rule.payload_header] = believed.payload
    for name, claim in rule.claim_headers:
        value = _text(_claim(believed.claims, claim))
        if value is not None:
            set_headers[name] = value
    # What the waypoint vouches for is never the client's to say.
    vouched = {rule.payload_header, *(name for name, _ in rule.claim_headers)}
    headers = [(name, value) for name, value in headers if name not in vouched]
    head.headers = [*headers, *set_headers.items()]


def strip_vouched(head: RequestHead, rules: Sequence[TokenRule]) -> None:
    """Remove from a request without a token the fields that only a token may set."""
    vouched = {name for rule in rules for name, _ in rule.claim_headers}
    vouched |= {rule.payload_header for rule in rules if rule.payload_header}
    if vouched:
        head.headers = [(name, value) for name, value in head.headers if name not in vouched]


def _without_param(target: str, name: str) -> str:
    path, _, query = target.partition("?")
    kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != name]
    return f"{path}?{urlencode(kept)}" if kept else path


def policy_claims(believed: Believed) -> Claims:
    """Return the claims as policies see them: words of spaced claims one by one."""
    spaced = {*believed.rule.spaced_claims, "scope"}
    return {
        name: value.split() if name in spaced and isinstance(value, str) else value
        for name, value in believed.claims.items()
    }


def _claim(claims: Claims, path: str) -> object:
    if path in claims:
        return claims[path]
    value: object = claims
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        text = str(value)
    elif isinstance(value, list | dict):
        text = base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
    else:
        return None
    return text if text.isprintable() and text.isascii() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """The rules in force for one destination."""

    rules: tuple[TokenRule, ...] = ()
    problem: str = ""
    """Why every request is refused; empty: it is not."""
    names: tuple[str, ...] = field(default_factory=tuple)
    """Objects that the rules come from, `namespace/name`."""
