# SPDX-License-Identifier: Apache-2.0
"""AuthorizationPolicy to L4 Authorization, as Istio does it for ztunnel.

Only what ztunnel enforces: policies with a selector or none. A policy whose meaning is
unclear becomes one that allows nothing in its scope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, selects, spec
from controller.translate.types import Severity, problem
from controller.translate.world import ISTIO_SECURITY, World
from mesh.config.objects import RawObject
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

DRY_RUN = "istio.io/dry-run"
L7_SOURCE = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
L7_OPERATION = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
L4_KEYS = (
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.ip",
    "destination.port",
)
L7_KEYS = ("remote.ip", "connection.sni", "request.", "experimental.")
"""Beginnings of the other keys of `when` that Istio knows."""
UNSUPPORTED = "UnsupportedValue"
"""Code of what ztunnel does not enforce."""
_NEVER = "L7 attribute, which only a waypoint enforces"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy and, when its scope is a selector, whom it selects."""

    authorization: Authorization
    selector: Mapping[str, str]
    everywhere: bool
    """Selects in every namespace, not only in its own."""

    def applies(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Tell whether a workload has to list it."""
        return (
            self.authorization.scope is Scope.WORKLOAD_SELECTOR
            and (self.everywhere or namespace == self.authorization.namespace)
            and selects(self.selector, labels)
        )


def translate_authorization(world: World) -> list[Policy]:
    """Return the policies that ztunnels enforce."""
    found = []
    for obj in world.all(ISTIO_SECURITY, "AuthorizationPolicy"):
        try:
            policy = _translate(world, obj)
        except IllTypedError as error:
            policy = _nothing_allowed(world, obj)
            world.report(obj, error, "the policy is unclear, so that nothing is allowed in its scope")
        if policy is not None:
            found.append(policy)
    return found


def _translate(world: World, obj: RawObject) -> Policy | None:
    fields = spec(obj, world.problems)
    if fields.has("targetRef") or fields.has("targetRefs"):
        if fields.has("selector"):
            raise fields.wrong("selector", "selector and targetRefs exclude each other")
        return None  # Waypoints enforce it: http_authorization.py.
    action = fields.choice("action", ("ALLOW", "DENY", "CUSTOM", "AUDIT"), "ALLOW")
    if action in ("CUSTOM", "AUDIT"):
        severity: Severity = "error" if action == "CUSTOM" else "warning"
        reason = f"{action} is not enforced by ztunnel; no effect"
        world.problems.append(problem(obj, ("spec", "action"), reason, severity, UNSUPPORTED))
        return None
    selector = _selector(fields)
    rules = []
    for rule in fields.children("rules"):
        translated = _rule(rule, Action[action], obj.namespace)
        if translated is not None:
            rules.append(translated)
    fields.refuse_unknown()
    return _policy(world, obj, Action[action], tuple(rules), selector)


def _selector(fields: Fields) -> dict[str, str]:
    selector = fields.child("selector")
    labels = selector.string_map("matchLabels")
    selector.refuse_unknown()
    return labels


def _nothing_allowed(world: World, obj: RawObject) -> Policy | None:
    """Deny all that an unclear policy could be about; its selector counts if it can be read."""
    try:
        selector = _selector(spec(obj, []))
    except IllTypedError:
        selector = {}
    return _policy(world, obj, Action.ALLOW, (), selector)


def _policy(
    world: World, obj: RawObject, action: Action, rules: tuple[Rule, ...], selector: Mapping[str, str]
) -> Policy:
    at_root = obj.namespace == world.options.root_namespace
    scope = Scope.GLOBAL if at_root else Scope.NAMESPACE
    if selector:
        scope = Scope.WORKLOAD_SELECTOR
    return Policy(
        authorization=Authorization(
            name=obj.name,
            namespace=obj.namespace,
            scope=scope,
            action=action,
            rules=rules,
            dry_run=obj.annotations.get(DRY_RUN, "").lower() == "true",
        ),
        selector=selector,
        everywhere=at_root,
    )


def _rule(fields: Fields, action: Action, namespace: str) -> Rule | None:
    """Translate one rule; None: it is omitted, as an ALLOW that needs L7 never matches here."""
    clauses: list[Clause] = []
    complete = True
    for name, member, translate_match in (("from", "source", _source), ("to", "operation", _operation)):
        if not fields.has(name):
            continue
        matches = []
        for entry in fields.children(name):
            match, enforceable = translate_match(entry.child(member), namespace)
            entry.refuse_unknown()
            matches.append(match)
            complete = complete and enforceable
        if not matches:
            raise fields.wrong(name, "must not be empty")
        clauses.append(tuple(matches))
    if fields.has("when"):
        conditions = fields.children("when")
        if not conditions:
            raise fields.wrong("when", "must not be empty")
        for condition in conditions:
            match, enforceable = _condition(condition, namespace)
            # Match() where nothing is left: it never holds, while an empty clause always does.
            clauses.append((match,))
            complete = complete and enforceable
    fields.refuse_unknown()
    if complete:
        return tuple(clauses)
    if action is Action.ALLOW:
        reason = f"the rule needs an {_NEVER}; ztunnel omits it, and it allows nothing"
        fields.report("", reason, "warning", UNSUPPORTED)
        return None
    if any(all(match == Match() for match in clause) for clause in clauses):
        reason = f"the rule has a part with no attribute but an {_NEVER}; it denies nothing"
        fields.report("", reason, "error", UNSUPPORTED)
    else:
        reason = f"the rule has an {_NEVER}; ztunnel denies by the others alone"
        fields.report("", reason, "warning", UNSUPPORTED)
    return tuple(clauses)


def _l7(fields: Fields, names: tuple[str, ...]) -> bool:
    given = False
    for name in names:
        given = bool(fields.strings(name)) or given
    return given


def _source(fields: Fields, namespace: str) -> tuple[Match, bool]:
    match = Match(
        namespaces=_matches(fields, "namespaces"),
        not_namespaces=_matches(fields, "notNamespaces"),
        principals=_principals(fields, "principals"),
        not_principals=_principals(fields, "notPrincipals"),
        service_accounts=_accounts(fields, "serviceAccounts", namespace),
        not_service_accounts=_accounts(fields, "notServiceAccounts", namespace),
        source_ips=fields.networks("ipBlocks"),
        not_source_ips=fields.networks("notIpBlocks"),
    )
    return _checked(fields, match, _l7(fields, L7_SOURCE))


def _operation(fields: Fields, _namespace: str) -> tuple[Match, bool]:
    match = Match(
        destination_ports=_ports(fields, "ports"),
        not_destination_ports=_ports(fields, "notPorts"),
    )
    return _checked(fields, match, _l7(fields, L7_OPERATION))


def _checked(fields: Fields, match: Match, has_l7: bool) -> tuple[Match, bool]:
    fields.refuse_unknown()
    if match == Match() and not has_l7:
        raise fields.wrong("", "must name at least one attribute")
    return match, not has_l7


def _condition(fields: Fields, namespace: str) -> tuple[Match, bool]:
    key = fields.text("key")
    if key not in L4_KEYS and not key.startswith(L7_KEYS):
        raise fields.wrong("key", f"{key[:100]!r} is not known")
    match = Match()
    if key == "source.ip":
        match = Match(source_ips=fields.networks("values"), not_source_ips=fields.networks("notValues"))
    elif key == "destination.ip":
        match = Match(
            destination_ips=fields.networks("values"), not_destination_ips=fields.networks("notValues")
        )
    elif key == "destination.port":
        match = Match(
            destination_ports=_ports(fields, "values"), not_destination_ports=_ports(fields, "notValues")
        )
    elif key == "source.namespace":
        match = Match(namespaces=_matches(fields, "values"), not_namespaces=_matches(fields, "notValues"))
    elif key == "source.principal":
        match = Match(
            principals=_principals(fields, "values"), not_principals=_principals(fields, "notValues")
        )
    elif key == "source.serviceAccount":
        match = Match(
            service_accounts=_accounts(fields, "values", namespace),
            not_service_accounts=_accounts(fields, "notValues", namespace),
        )
    if not fields.strings("values") and not fields.strings("notValues"):
        raise fields.wrong("", "values or notValues must be given")
    fields.refuse_unknown()
    return match, key in L4_KEYS


def _matches(fields: Fields, name: str) -> tuple[StringMatch, ...]:
    return tuple(_string_match(fields, name, value) for value in fields.strings(name))


def _string_match(fields: Fields, name: str, value: str) -> StringMatch:
    if not value:
        raise fields.wrong(name, "must not hold an empty text")
    if value == "*":
        return StringMatch(kind=StringMatchKind.PRESENCE)
    if value.startswith("*"):
        return StringMatch(kind=StringMatchKind.SUFFIX, value=value[1:])
    if value.endswith("*"):
        return StringMatch(kind=StringMatchKind.PREFIX, value=value[:-1])
    return StringMatch(kind=StringMatchKind.EXACT, value=value)


def _principals(fields: Fields, name: str) -> tuple[StringMatch, ...]:
    for value in fields.strings(name):
        if value.startswith("spiffe://"):
            raise fields.wrong(name, f"{value[:100]!r}: a principal is written without spiffe://")
    return _matches(fields, name)


def _accounts(fields: Fields, name: str, namespace: str) -> tuple[ServiceAccountMatch, ...]:
    found = []
    for value in fields.strings(name):
        left, slash, right = value.partition("/")
        where, account = (left, right) if slash else (namespace, left)
        if not where or not account or "/" in account or "*" in value:
            raise fields.wrong(name, f"{value[:100]!r} is no service account (name or namespace/name)")
        found.append(ServiceAccountMatch(namespace=where, service_account=account))
    return tuple(found)


def _ports(fields: Fields, name: str) -> tuple[int, ...]:
    found = []
    for value in fields.strings(name):
        if not (value.isascii() and value.isdigit() and len(value) <= 5 and 1 <= int(value) <= MAX_PORT):
            raise fields.wrong(name, f"{value[:100]!r} is no port")
        found.append(int(value))
    return tuple(found)
