# SPDX-License-Identifier: Apache-2.0
"""Whether a request is allowed, by the semantics of Istio's AuthorizationPolicy at a waypoint.

DENY, then ALLOW, then CUSTOM, whose authoriser is asked last: its answer could not open
what the others close. AUDIT and dry-run policies are noted only. Policies are compiled
to closures when they arrive. What cannot be judged (a key or comparison that we
do not know) makes its policy deny, by name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.identity.spiffe import SpiffeId
from mesh.model.address import IPAddress, IPNetwork, canonical
from mesh.model.http_policy import (
    Condition,
    HttpAction,
    HttpAuthorization,
    HttpRule,
    Operation,
    Source,
    TextKind,
    TextMatch,
)

Claim = str | Sequence[str] | Mapping[str, object] | object


@dataclass(slots=True, kw_only=True)
class Asked:
    """What policies may ask about a request."""

    identity: SpiffeId | None
    source_ip: IPAddress
    remote_ip: IPAddress
    destination_ip: IPAddress
    port: int
    """Port that the client addressed, host-order."""
    method: str
    host: str
    path: str
    """Normalised, without query; empty: plain TCP, of which nothing of HTTP is known."""
    headers: Mapping[str, str]
    """Names in lower case; repeated fields joined by a comma."""
    claims: Mapping[str, object] = field(default_factory=dict)
    """Of the valid token; empty: none."""
    sni: str = ""

    @property
    def request_principal(self) -> str | None:
        """`issuer/subject` of the valid token."""
        issuer, subject = self.claims.get("iss"), self.claims.get("sub")
        return f"{issuer}/{subject}" if issuer and subject else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpVerdict:
    """The judgement and the policy that it rests on."""

    allowed: bool
    policy: str | None
    """`namespace/name`; None: no policy decided."""
    reason: str
    ask: str = ""
    """External authoriser to be asked before the request goes on; empty: none."""
    notes: tuple[str, ...] = ()
    """A sentence for each AUDIT or dry-run policy that matches."""


class MalformedPolicyError(Exception):
    """A policy holds what cannot be compared; says what. Its author is at fault."""


Test = Callable[[Asked], bool]


class HttpPolicies:
    """The policies that apply to one service, compiled; immutable."""

    def __init__(self, policies: Iterable[HttpAuthorization]) -> None:
        self._custom: list[tuple[HttpAuthorization, Test]] = []
        self._deny: list[tuple[HttpAuthorization, Test]] = []
        self._allow: list[tuple[HttpAuthorization, Test]] = []
        self._noted: list[tuple[HttpAuthorization, Test]] = []
        self._malformed = ""
        self._malformed_policy: str | None = None
        for policy in sorted(policies, key=lambda p: p.key):
            self._add(policy)

    def _add(self, policy: HttpAuthorization) -> None:
        try:
            test = _any([_compile_rule(rule, tcp=policy.action is HttpAction.DENY) for rule in policy.rules])
        except MalformedPolicyError as error:
            if not policy.dry_run and policy.action is not HttpAction.AUDIT:
                self._malformed_policy = policy.key
                self._malformed = f"policy {policy.key} cannot be judged, so it denies: {error}"
            return
        if policy.dry_run or policy.action is HttpAction.AUDIT:
            self._noted.append((policy, test))
            return
        {
            HttpAction.CUSTOM: self._custom,
            HttpAction.DENY: self._deny,
            HttpAction.ALLOW: self._allow,
        }[policy.action].append((policy, test))

    def __bool__(self) -> bool:
        return bool(self._custom or self._deny or self._allow or self._noted or self._malformed)

    def judge(self, asked: Asked) -> HttpVerdict:
        """Judge one request; O(comparisons)."""
        verdict = self._judge(asked)
        if not self._noted:
            return verdict
        notes = tuple(
            f"{'dry-run ' if policy.dry_run else ''}{policy.action.name} policy {policy.key} matches"
            for policy, test in self._noted
            if test(asked)
        )
        return HttpVerdict(
            allowed=verdict.allowed,
            policy=verdict.policy,
            reason=verdict.reason,
            ask=verdict.ask,
            notes=notes,
        )

    def _judge(self, asked: Asked) -> HttpVerdict:
        if self._malformed:
            return HttpVerdict(allowed=False, policy=self._malformed_policy, reason=self._malformed)
        for policy, test in self._deny:
            if test(asked):
                return HttpVerdict(
                    allowed=False, policy=policy.key, reason=f"DENY policy {policy.key} matches"
                )
        verdict = self._judge_allow(asked)
        if not verdict.allowed:
            return verdict
        for policy, test in self._custom:
            if test(asked):
                reason = f"CUSTOM policy {policy.key} asks {policy.provider}"
                return HttpVerdict(allowed=True, policy=policy.key, reason=reason, ask=policy.provider)
        return verdict

    def _judge_allow(self, asked: Asked) -> HttpVerdict:
        if not self._allow:
            return HttpVerdict(allowed=True, policy=None, reason="no ALLOW policy applies")
        for policy, test in self._allow:
            if test(asked):
                return HttpVerdict(
                    allowed=True, policy=policy.key, reason=f"ALLOW policy {policy.key} matches"
                )
        names = ", ".join(policy.key for policy, _ in self._allow[:5])
        who = str(asked.identity or "a peer without identity")
        return HttpVerdict(
            allowed=False,
            policy=self._allow[0][0].key,
            reason=f"no ALLOW policy matches {asked.method} {asked.path} of {who}; in force: {names}",
        )


def _any(tests: Sequence[Test]) -> Test:
    return lambda asked: any(test(asked) for test in tests)


def _all(tests: Sequence[Test]) -> Test:
    return lambda asked: all(test(asked) for test in tests)


def _compile_rule(rule: HttpRule, *, tcp: bool) -> Test:
    """Compile one rule; `tcp`: a plain connection is judged by what is known of it (DENY)."""
    parts: list[Test] = []
    if rule.sources:
        parts.append(_any([_compile_source(source, tcp=tcp) for source in rule.sources]))
    if rule.operations:
        parts.append(_any([_compile_operation(operation, tcp=tcp) for operation in rule.operations]))
    parts.extend(_compile_condition(condition, tcp=tcp) for condition in rule.conditions)
    return _all(parts)


def _http_only(test: Test, *, tcp: bool) -> Test:
    """Of plain TCP nothing of HTTP is known: an ALLOW that asks for it never matches, a DENY drops it."""
    return lambda asked: test(asked) if asked.path else tcp


def _compile_source(source: Source, *, tcp: bool) -> Test:
    parts: list[Test] = []
    for wanted, matches, attribute in (
        (True, source.principals, _principal),
        (False, source.not_principals, _principal),
        (True, source.namespaces, _namespace),
        (False, source.not_namespaces, _namespace),
        (True, source.request_principals, _request_principal),
        (False, source.not_request_principals, _request_principal),
    ):
        if matches:
            test = _text_test(matches, attribute, wanted=wanted)
            parts.append(_http_only(test, tcp=tcp) if attribute is _request_principal else test)
    for wanted, accounts in ((True, source.service_accounts), (False, source.not_service_accounts)):
        if accounts:
            parts.append(_account_test(frozenset(accounts), wanted=wanted))
    for wanted, blocks, address in (
        (True, source.ip_blocks, _source_ip),
        (False, source.not_ip_blocks, _source_ip),
        (True, source.remote_ip_blocks, _remote_ip),
        (False, source.not_remote_ip_blocks, _remote_ip),
    ):
        if blocks:
            parts.append(_block_test(blocks, address, wanted=wanted))
    return _all(parts)


def _compile_operation(operation: Operation, *, tcp: bool) -> Test:
    http: list[Test] = []
    hosts = tuple(TextMatch(kind=m.kind, value=m.value.lower()) for m in operation.hosts)
    not_hosts = tuple(TextMatch(kind=m.kind, value=m.value.lower()) for m in operation.not_hosts)
    for wanted, matches, attribute in (
        (True, hosts, _host),
        (False, not_hosts, _host),
        (True, operation.methods, _method),
        (False, operation.not_methods, _method),
        (True, operation.paths, _path),
        (False, operation.not_paths, _path),
    ):
        if matches:
            http.append(_text_test(matches, attribute, wanted=wanted))
    ports: list[Test] = []
    if operation.ports:
        ports.append(_port_test(frozenset(operation.ports), wanted=True))
    if operation.not_ports:
        ports.append(_port_test(frozenset(operation.not_ports), wanted=False))
    if http:
        ports.append(_http_only(_all(http), tcp=tcp))
    return _all(ports)


def _principal(asked: Asked) -> str | None:
    return asked.identity.principal if asked.identity else None


def _namespace(asked: Asked) -> str | None:
    return asked.identity.namespace if asked.identity else None


def _request_principal(asked: Asked) -> str | None:
    return asked.request_principal


def _source_ip(asked: Asked) -> IPAddress:
    return asked.source_ip


def _remote_ip(asked: Asked) -> IPAddress:
    return asked.remote_ip


def _destination_ip(asked: Asked) -> IPAddress:
    return asked.destination_ip


def _host(asked: Asked) -> str | None:
    return asked.host.lower()


def _method(asked: Asked) -> str | None:
    return asked.method


def _path(asked: Asked) -> str | None:
    return asked.path


def _text_test(
    matches: Sequence[TextMatch], attribute: Callable[[Asked], str | None], *, wanted: bool
) -> Test:
    tests = [compile_text(match) for match in matches]
    return lambda asked: any(test(attribute(asked)) for test in tests) is wanted


def compile_text(match: TextMatch) -> Callable[[str | None], bool]:
    """Compile one comparison; None, an attribute that is not there, never matches.

    Raises:
        MalformedPolicyError: the comparison is not known.
    """
    value = match.value
    if match.kind is TextKind.EXACT:
        return lambda text: text is not None and text == value
    if match.kind is TextKind.PREFIX:
        return lambda text: text is not None and text.startswith(value)
    if match.kind is TextKind.SUFFIX:
        return lambda text: text is not None and text.endswith(value)
    if match.kind is TextKind.PRESENT:
        return bool
    if match.kind is TextKind.TEMPLATE:
        pattern = _template(value)
        return lambda text: text is not None and pattern.fullmatch(text) is not None
    raise MalformedPolicyError(f"comparison {match.kind!r} is not known")


def _template(value: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\*\*\}|\{\*\})", value)
    pieces = {"{*}": "[^/]+", "{**}": ".*"}
    return re.compile("".join(pieces.get(part) or re.escape(part) for part in parts))


def _account_test(accounts: frozenset[str], *, wanted: bool) -> Test:
    def test(asked: Asked) -> bool:
        identity = asked.identity
        held = identity is not None and f"{identity.namespace}/{identity.service_account}" in accounts
        return held is wanted

    return test


def _block_test(blocks: Sequence[IPNetwork], address: Callable[[Asked], IPAddress], *, wanted: bool) -> Test:
    return lambda asked: any(canonical(address(asked)) in block for block in blocks) is wanted


def _port_test(ports: frozenset[int], *, wanted: bool) -> Test:
    return lambda asked: (asked.port in ports) is wanted


_HEADER = re.compile(r"request\.headers\[([^\]]+)\]")
_CLAIM = re.compile(r"request\.auth\.claims((?:\[[^\]]+\])+)")
_ADDRESSES = {"source.ip": _source_ip, "remote.ip": _remote_ip, "destination.ip": _destination_ip}


def _compile_condition(condition: Condition, *, tcp: bool) -> Test:
    parts: list[Test] = []
    for wanted, values in ((True, condition.values), (False, condition.not_values)):
        if values:
            test = _values_test(condition.key, values, wanted=wanted)
            parts.append(_http_only(test, tcp=tcp) if condition.key.startswith("request.") else test)
    if not parts:
        raise MalformedPolicyError(f"condition {condition.key} has no values")
    return _all(parts)


def _values_test(key: str, values: Sequence[str], *, wanted: bool) -> Test:
    if key in _ADDRESSES:
        return _block_test([_network(key, value) for value in values], _ADDRESSES[key], wanted=wanted)
    if key == "destination.port":
        return _port_test(frozenset(_number(key, value) for value in values), wanted=wanted)
    texts = tuple(parse_text(value) for value in values)
    if key == "source.serviceAccount":
        return _account_test(frozenset(values), wanted=wanted)
    single = {
        "source.namespace": _namespace,
        "source.principal": _principal,
        "request.auth.principal": _request_principal,
        "connection.sni": lambda asked: asked.sni or None,
    }.get(key)
    if single is not None:
        return _text_test(texts, single, wanted=wanted)
    tests = [compile_text(text) for text in texts]
    several = _several(key)
    return lambda asked: any(test(value) for value in several(asked) for test in tests) is wanted


def _several(key: str) -> Callable[[Asked], Sequence[str]]:
    """Return the reader of an attribute that may have several values."""
    if match := _HEADER.fullmatch(key):
        name = match[1].lower()
        return lambda asked: [asked.headers[name]] if name in asked.headers else []
    if key in ("request.auth.audiences", "request.auth.presenter"):
        claim = "aud" if key.endswith("audiences") else "azp"
        return lambda asked: _claim_values(asked.claims.get(claim))
    if match := _CLAIM.fullmatch(key):
        path = re.findall(r"\[([^\]]+)\]", match[1])
        return lambda asked: _claim_values(_claim_at(asked.claims, path))
    raise MalformedPolicyError(f"condition key {key!r} is not known")


def _claim_at(claims: object, path: Sequence[str]) -> object:
    for name in path:
        claims = claims.get(name) if isinstance(claims, Mapping) else None
    return claims


def _claim_values(claim: object) -> list[str]:
    """Return the values of a claim; of text with spaces each word too, as `scope` is written."""
    if isinstance(claim, str):
        return [claim, *claim.split()] if " " in claim else [claim]
    if isinstance(claim, bool):
        return ["true" if claim else "false"]
    if isinstance(claim, Sequence):
        return [item for item in claim if isinstance(item, str)]
    return []


def parse_text(value: str) -> TextMatch:
    """Parse `abc`, `abc*`, `*abc` and `*` as policies write them."""
    if value == "*":
        return TextMatch(kind=TextKind.PRESENT)
    if value.endswith("*"):
        return TextMatch(kind=TextKind.PREFIX, value=value[:-1])
    if value.startswith("*"):
        return TextMatch(kind=TextKind.SUFFIX, value=value[1:])
    return TextMatch(kind=TextKind.EXACT, value=value)


def _network(key: str, value: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise MalformedPolicyError(f"{key}: {value!r} is neither an address nor a block") from error


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 65_536:
        raise MalformedPolicyError(f"{key}: {value!r} is no port")
    return int(value)
