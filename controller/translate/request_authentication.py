# SPDX-License-Identifier: Apache-2.0
"""RequestAuthentications with targetRefs: the tokens that waypoints believe.

Those with a selector or none are for sidecars and ztunnel, which look into no request. One
that is unclear closes: its targets answer 401, or, if even those are unclear, the waypoints of
its namespace do. Source: istio.io/api RequestAuthentication; Envoy's JWT filter for defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from controller.translate.fields import Fields, IllTypedError, age, spec
from controller.translate.targets import TargetReader, Targets
from controller.translate.types import problem
from controller.translate.world import ISTIO_SECURITY, Outcome, World
from mesh.config.objects import RawObject
from mesh.model.service import Service
from mesh.model.token import (
    DEFAULT_HEADERS,
    DEFAULT_PARAMS,
    DEFAULT_TIMEOUT_S,
    RequestAuthentication,
    TokenHeader,
    TokenRule,
)
from mesh.model.workload import NamespacedHostname

KIND = "RequestAuthentication"
MAX_RULES = 4096
MAX_JWKS_BYTES = 256 * 1024
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def translate_request_authentication(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[str, RequestAuthentication]:
    """Return what waypoints apply, by `namespace/name`."""
    found = {}
    for obj in sorted(world.all(ISTIO_SECURITY, KIND), key=age):
        made = _read(world, obj, services)
        if made is not None:
            found[made.key] = made
    return found


def _read(
    world: World, obj: RawObject, services: Mapping[NamespacedHostname, Service]
) -> RequestAuthentication | None:
    if obj.spec.get("targetRef") is None and obj.spec.get("targetRefs") is None:
        reason = "without targetRefs it is for proxies that look into requests at each pod; no effect"
        path = ("spec", "selector") if obj.spec.get("selector") is not None else ("spec",)
        world.problems.append(problem(obj, path, reason, "error"))
        return None
    fields = spec(obj, world.problems)
    reader = TargetReader(world, obj, services)
    try:
        if fields.has("selector"):
            raise fields.wrong("selector", "stands beside targetRefs; one of them is allowed")
        targets = reader.read(fields)
    except IllTypedError as error:
        names = reader.waypoints_here()
        consequence = f"it is unclear, so that waypoints of {obj.namespace} answer every request 401"
        world.report(obj, error, consequence)
        world.targets[obj.key] = [Outcome(accepted=False, code="Invalid", message=error.reason)]
        return _make(obj, Targets(waypoints=names), problem=error.reason) if names else None
    world.targets[obj.key] = targets.outcomes
    if not targets.services and not targets.waypoints:
        return None
    try:
        rules = fields.children("jwtRules")
        if len(rules) > MAX_RULES:
            raise fields.wrong("jwtRules", f"holds more than {MAX_RULES} rules")
        made = tuple(_rule(child) for child in rules)
        fields.refuse_unknown()
    except IllTypedError as error:
        world.report(obj, error, "it is unclear, so that its targets answer every request 401")
        return _make(obj, targets, problem=error.reason)
    return _make(obj, targets, made)


def _make(
    obj: RawObject, targets: Targets, rules: tuple[TokenRule, ...] = (), problem: str = ""
) -> RequestAuthentication:
    return RequestAuthentication(
        name=obj.name,
        namespace=obj.namespace,
        rules=rules,
        services=tuple(dict.fromkeys(targets.services)),
        waypoints=tuple(dict.fromkeys(targets.waypoints)),
        problem=problem,
    )


def _rule(fields: Fields) -> TokenRule:
    issuer = fields.text("issuer")
    if not issuer:
        raise fields.wrong("issuer", "is missing")
    timeout_s = fields.duration("timeout")
    rule = TokenRule(
        issuer=issuer,
        audiences=fields.strings("audiences"),
        jwks=_keys(fields),
        jwks_uri=_uri(fields),
        forward=fields.boolean("forwardOriginalToken"),
        payload_header=_field_name(fields, "outputPayloadToHeader"),
        claim_headers=tuple(_claim(child) for child in fields.children("outputClaimToHeaders")),
        spaced_claims=fields.strings("spaceDelimitedClaims"),
        timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
    )
    if rule.jwks and rule.jwks_uri:
        raise fields.wrong("jwksUri", "stands beside jwks; one of them is allowed")
    if not rule.jwks and not rule.jwks_uri and urlsplit(issuer).scheme not in ("http", "https"):
        raise fields.wrong("issuer", "is no URL to find the keys by, and neither jwks nor jwksUri is given")
    if not rule.timeout_s:
        raise fields.wrong("timeout", "must be more than 0")
    rule = _places(fields, rule)
    fields.refuse_unknown()
    return rule


def _places(fields: Fields, rule: TokenRule) -> TokenRule:
    """Read where tokens are; nothing said is the usual field and parameter."""
    headers = []
    for child in fields.children("fromHeaders"):
        name = _field_name(child, "name")
        if not name:
            raise child.wrong("name", "is missing")
        headers.append(TokenHeader(name=name, prefix=child.text("prefix")))
        child.refuse_unknown()
    params, cookies = fields.strings("fromParams"), fields.strings("fromCookies")
    if not headers and not params and not cookies:
        return replace(rule, headers=DEFAULT_HEADERS, params=DEFAULT_PARAMS)
    for name, values in (("fromParams", params), ("fromCookies", cookies)):
        if not all(values):
            raise fields.wrong(name, "holds an empty name")
    return replace(rule, headers=tuple(headers), params=params, cookies=cookies)


def _field_name(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if value and _FIELD_NAME.fullmatch(value) is None:
        raise fields.wrong(name, f"{value[:100]!r} is no name of a header field")
    return value.lower()


def _claim(fields: Fields) -> tuple[str, str]:
    header, claim = _field_name(fields, "header"), fields.text("claim")
    if not header or not claim:
        raise fields.wrong("", "needs a header and a claim")
    fields.refuse_unknown()
    return header, claim


def _keys(fields: Fields) -> str:
    text = fields.text("jwks")
    if not text:
        return ""
    if len(text) > MAX_JWKS_BYTES:
        raise fields.wrong("jwks", f"is larger than {MAX_JWKS_BYTES} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fields.wrong("jwks", f"is no JSON: {error}") from error
    keys = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) and key.get("kty") for key in keys):
        raise fields.wrong("jwks", "is no set of keys (RFC 7517)")
    if any("d" in key for key in keys):
        raise fields.wrong("jwks", "holds a private key; replace that key, others may have read it here")
    return text


def _uri(fields: Fields) -> str:
    """Read `jwksUri`, or `jwks_uri` as Istio also allows."""
    name = "jwks_uri" if fields.has("jwks_uri") and not fields.has("jwksUri") else "jwksUri"
    text = fields.text(name)
    try:
        parts = urlsplit(text)
        valid = not text or (parts.scheme in ("http", "https") and bool(parts.hostname))
    except ValueError:
        valid = False
    if not valid:
        raise fields.wrong(name, f"{text[:100]!r} is no http or https URL")
    return text
