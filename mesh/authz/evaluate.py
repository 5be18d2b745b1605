# SPDX-License-Identifier: Apache-2.0
"""Whether a connection is allowed, by the semantics of Istio's L4 AuthorizationPolicy.

Any DENY that matches denies. Otherwise, without an ALLOW everything is allowed, and
with one or more a match is needed. What cannot be judged (a comparison that we do not
know) denies and says so: a policy that is silently skipped is a hole that nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mesh.identity.spiffe import SpiffeId
from mesh.model.address import IPAddress, IPNetwork, canonical
from mesh.model.policy import (
    Action,
    Authorization,
    Clause,
    Match,
    Rule,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)

MAX_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What policies may ask about a connection, as its destination's proxy knows it."""

    source_identity: SpiffeId | None
    """Proven by mutual TLS (or by the kernel on the same node); None: plaintext, nobody."""
    source_ip: IPAddress
    destination_ip: IPAddress
    destination_port: int
    """The workload's own port, after translation from the service's; host-order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement, and the policy that it rests on."""

    allowed: bool
    policy: str | None
    """`namespace/name` of the policy that decided; None: no policy did."""
    reason: str
    """A sentence for the log, the access-log line and `why`."""
    dry_run: tuple[str, ...] = field(default=())
    """A sentence for each dry-run policy that matches or would change the verdict."""


class MalformedPolicyError(Exception):
    """A policy holds something that cannot be compared; says what. The policy's author is at fault."""


_SCOPE_ORDER = {Scope.GLOBAL: 0, Scope.NAMESPACE: 1, Scope.WORKLOAD_SELECTOR: 2}


def evaluate(policies: Iterable[Authorization], connection: Connection) -> Verdict:
    """Judge a connection by the policies that apply to its destination, in whatever order they come.

    Never raises for what a policy holds. The policy named is the first that decides, by
    scope (mesh, namespace, workload) and then key, so that the same policies always give
    the same answer.
    """
    enforced: list[Authorization] = []
    tried: list[Authorization] = []
    for policy in policies:
        (tried if policy.dry_run else enforced).append(policy)
    enforced.sort(key=_order)
    verdict = _judge(enforced, connection)
    if not tried:
        return verdict
    tried.sort(key=_order)
    return Verdict(
        allowed=verdict.allowed,
        policy=verdict.policy,
        reason=verdict.reason,
        dry_run=tuple(_try_out(tried, enforced, connection)),
    )


def matching_rule(policy: Authorization, connection: Connection) -> int | None:
    """Return the index of the first rule that matches, or None.

    Every rule is looked at, so that a comparison that we do not know is found wherever it stands.

    Raises:
        MalformedPolicyError: a rule cannot be judged.
    """
    if policy.action not in (Action.ALLOW, Action.DENY):
        raise MalformedPolicyError(f"action {policy.action!r} is not known")
    found: int | None = None
    for index, rule in enumerate(policy.rules):
        if _rule_holds(rule, connection) and found is None:
            found = index
    return found


def _order(policy: Authorization) -> tuple[int, str]:
    return _SCOPE_ORDER.get(policy.scope, 3), policy.key


def _judge(policies: Sequence[Authorization], connection: Connection) -> Verdict:
    """Apply enforced policies, given in the order in which they are named."""
    for policy in policies:
        if policy.action is Action.ALLOW:
            continue
        try:
            rule = matching_rule(policy, connection)
        except MalformedPolicyError as error:
            return _malformed(policy, error)
        if rule is not None:
            reason = f"DENY policy {policy.key} matches (rule {rule})"
            return Verdict(allowed=False, policy=policy.key, reason=reason)
    return _judge_allow([policy for policy in policies if policy.action is Action.ALLOW], connection)


def _judge_allow(policies: Sequence[Authorization], connection: Connection) -> Verdict:
    if not policies:
        return Verdict(allowed=True, policy=None, reason="no ALLOW policy applies and no DENY policy matches")
    matched: tuple[str, int] | None = None
    for policy in policies:
        try:
            rule = matching_rule(policy, connection)
        except MalformedPolicyError as error:
            return _malformed(policy, error)
        if rule is not None and matched is None:
            matched = policy.key, rule
    if matched is not None:
        reason = f"ALLOW policy {matched[0]} matches (rule {matched[1]})"
        return Verdict(allowed=True, policy=matched[0], reason=reason)
    names = ", ".join(policy.key for policy in policies[:5]) + (", ..." if len(policies) > 5 else "")
    return Verdict(
        allowed=False,
        policy=policies[0].key,
        reason=f"no ALLOW policy matches {_describe(connection)}; ALLOW policies in force: {names}",
    )


def _malformed(policy: Authorization, error: MalformedPolicyError) -> Verdict:
    return Verdict(
        allowed=False,
        policy=policy.key,
        reason=f"policy {policy.key} cannot be judged, so it denies: {error}",
    )


def _describe(connection: Connection) -> str:
    who = str(connection.source_identity or "a peer without identity")
    return f"{who} from {connection.source_ip} to port {connection.destination_port}"


def _try_out(
    tried: Sequence[Authorization], enforced: Sequence[Authorization], connection: Connection
) -> Iterable[str]:
    """Say what each dry-run policy would do if it were enforced beside those that are."""
    for policy in tried:
        try:
            rule = matching_rule(policy, connection)
        except MalformedPolicyError as error:
            yield f"dry-run policy {policy.key} cannot be judged and would deny: {error}"
            continue
        if rule is not None:
            yield f"dry-run {policy.action.name} policy {policy.key} matches (rule {rule})"
        elif policy.action is Action.ALLOW and _would_lack_allow(tried, enforced, connection):
            yield f"dry-run ALLOW policy {policy.key} does not match and would deny"


def _would_lack_allow(
    tried: Sequence[Authorization], enforced: Sequence[Authorization], connection: Connection
) -> bool:
    allows = [policy for policy in (*enforced, *tried) if policy.action is Action.ALLOW]
    return not _judge_allow(allows, connection).allowed


def _rule_holds(rule: Rule, connection: Connection) -> bool:
    """All clauses must hold; no clause is everything."""
    # Lists, not generators: each comparison is made, so that a malformed one is never skipped.
    return all([_clause_holds(clause, connection) for clause in rule])  # noqa: C419


def _clause_holds(clause: Clause, connection: Connection) -> bool:
    """One match must hold; a clause without any restricts nothing, as in Istio's ztunnel."""
    return not clause or any([_match_holds(match, connection) for match in clause])  # noqa: C419


def _match_holds(match: Match, connection: Connection) -> bool:
    """Each attribute that is given must hold; a match of none never does."""
    identity = connection.source_identity
    namespace = identity.namespace if identity else None
    principal = identity.principal if identity else None
    source, destination = canonical(connection.source_ip), canonical(connection.destination_ip)
    outcomes: list[bool] = []
    for strings, value, wanted in (
        (match.namespaces, namespace, True),
        (match.not_namespaces, namespace, False),
        (match.principals, principal, True),
        (match.not_principals, principal, False),
    ):
        if strings:
            outcomes.append(any([_string_holds(string, value) for string in strings]) is wanted)  # noqa: C419
    for accounts, wanted in ((match.service_accounts, True), (match.not_service_accounts, False)):
        if accounts:
            outcomes.append(any(_account_holds(account, identity) for account in accounts) is wanted)
    for networks, address, wanted in (
        (match.source_ips, source, True),
        (match.not_source_ips, source, False),
        (match.destination_ips, destination, True),
        (match.not_destination_ips, destination, False),
    ):
        if networks:
            outcomes.append(_any_network(networks, address) is wanted)
    for ports, wanted in ((match.destination_ports, True), (match.not_destination_ports, False)):
        if ports:
            outcomes.append(_any_port(ports, connection.destination_port) is wanted)
    return bool(outcomes) and all(outcomes)


def _string_holds(match: StringMatch, value: str | None) -> bool:
    """Compare with an attribute of the identity; without identity nothing matches, not even ''."""
    kind = match.kind
    if kind is StringMatchKind.EXACT:
        return value is not None and value == match.value
    if kind is StringMatchKind.PREFIX:
        return value is not None and value.startswith(match.value)
    if kind is StringMatchKind.SUFFIX:
        return value is not None and value.endswith(match.value)
    if kind is StringMatchKind.PRESENCE:
        return bool(value)
    raise MalformedPolicyError(f"comparison {kind!r} is not known")


def _account_holds(match: ServiceAccountMatch, identity: SpiffeId | None) -> bool:
    return (
        identity is not None
        and match.namespace == identity.namespace
        and match.service_account == identity.service_account
    )


def _any_network(networks: Sequence[IPNetwork], address: IPAddress) -> bool:
    return any(address in network for network in networks)


def _any_port(ports: Sequence[int], port: int) -> bool:
    for wanted in ports:
        if not 0 <= wanted <= MAX_PORT:
            raise MalformedPolicyError(f"{wanted} is no port")
    return port in ports
