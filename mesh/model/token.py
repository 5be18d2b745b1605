# SPDX-License-Identifier: Apache-2.0
"""Which tokens a waypoint believes: JSON Web Tokens, by who issued them and for whom.

A request without a token passes unauthenticated, and policies decide about it; one whose
token is not believed is answered 401. Of several authentications of one target all rules
count. Source: Istio RequestAuthentication; RFC 7519.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model.workload import NamespacedHostname

DEFAULT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHeader:
    """A header field that holds a token."""

    name: str
    """Lower case."""
    prefix: str = ""
    """What comes before the token; a field without it holds none."""


DEFAULT_HEADERS = (TokenHeader(name="authorization", prefix="Bearer "),)
DEFAULT_PARAMS = ("access_token",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """The tokens of one issuer."""

    issuer: str
    """Compared with `iss` exactly."""
    audiences: tuple[str, ...] = ()
    """`aud` must be or have one of them; empty: any will do."""
    jwks: str = ""
    """The keys themselves (RFC 7517, JSON)."""
    jwks_uri: str = ""
    """Where the keys are; this and `jwks` empty: where the issuer's OpenID configuration says."""
    headers: tuple[TokenHeader, ...] = DEFAULT_HEADERS
    params: tuple[str, ...] = DEFAULT_PARAMS
    """Query parameters; case-sensitive."""
    cookies: tuple[str, ...] = ()
    forward: bool = False
    """Leave the token in the request that goes on."""
    payload_header: str = ""
    """Field for the claims (base64url of the JSON, unpadded); lower case, empty: none."""
    claim_headers: tuple[tuple[str, str], ...] = ()
    """Field (lower case) and the claim that it gets, `a.b` for one inside another."""
    spaced_claims: tuple[str, ...] = ()
    """Claims of which each word is a value, as of `scope`."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """To fetch the keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAuthentication:
    """One object; key `namespace/name`."""

    name: str
    namespace: str
    rules: tuple[TokenRule, ...] = ()
    services: tuple[NamespacedHostname, ...] = ()
    """Services that it is for; empty: whatever the waypoints named in `waypoints` serve."""
    waypoints: tuple[str, ...] = ()
    """Gateways (`namespace/name`) that apply it to all that they serve; `*`: every waypoint."""
    problem: str = ""
    """Why it cannot be applied: every request to its targets is answered 401. Empty: it can."""

    @property
    def key(self) -> str:
        """`namespace/name`, its name on the wire."""
        return f"{self.namespace}/{self.name}"
