# SPDX-License-Identifier: Apache-2.0
"""AuthorizationPolicy with targetRefs to HttpAuthorization: what waypoints enforce, in full.

Policies with a selector or none are ztunnel's (`authorization.py`). One whose meaning is
unclear becomes one that allows nothing at its targets; if even those are unclear, at
every waypoint of its namespace.
"""

from __future__ import annotations

from collections.abc import Mapping

from controller.translate.authorization import DRY_RUN, L4_KEYS, L7_KEYS
from controller.translate.fields import MAX_PORT, Fields, IllTypedError, spec
from controller.translate.targets import TargetReader, Targets
from controller.translate.world import ISTIO_SECURITY, Outcome, World
from mesh.authz.http import parse_text
from mesh.config.objects import RawObject
from mesh.model.http_policy import (
    Condition,
    HttpAction,
    HttpAuthorization,
    HttpRule,
    Operation,
    Source,
    TextKind,
    TextMatch,
    Texts,
)
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname


def translate_http_authorization(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[str, HttpAuthorization]:
    """Return the policies that waypoints enforce, by `namespace/name`."""
    found = {}
    for obj in world.all(ISTIO_SECURITY, "AuthorizationPolicy"):
        if obj.spec.get("targetRef") is None and obj.spec.get("targetRefs") is None:
            continue
        if obj.spec.get("selector") is not None:
            continue  # Refused, and closed, by ztunnel's translator.
        policy = _Translator(world, obj, services).policy()
        if policy is not None:
            found[policy.key] = policy
    return found


class _Translator:
    """Reads one policy."""

    def __init__(self, world: World, obj: RawObject, services: Mapping[NamespacedHostname, Service]) -> None:
        self._world = world
        self._obj = obj
        self._reader = TargetReader(world, obj, services)

    def policy(self) -> HttpAuthorization | None:
        """Return the policy; None: it has no target."""
        fields = spec(self._obj, self._world.problems)
        try:
            targets = self._reader.read(fields)
        except IllTypedError as error:
            names = self._reader.waypoints_here()
            consequence = f"the policy is unclear, so that waypoints of {self._obj.namespace} allow nothing"
            self._world.report(self._obj, error, consequence)
            outcome = Outcome(accepted=False, code="Invalid", message=error.reason)
            self._world.targets[self._obj.key] = [outcome]
            return self._make(Targets(waypoints=names), HttpAction.ALLOW) if names else None
        self._world.targets[self._obj.key] = targets.outcomes
        if not targets.services and not targets.waypoints:
            return None
        try:
            return self._rules(fields, targets)
        except IllTypedError as error:
            consequence = "the policy is unclear, so that nothing is allowed at its targets"
            self._world.report(self._obj, error, consequence)
            return self._make(targets, HttpAction.ALLOW)

    def _rules(self, fields: Fields, targets: Targets) -> HttpAuthorization:
        action = HttpAction[fields.choice("action", tuple(a.name for a in HttpAction), "ALLOW")]
        provider = ""
        if action is HttpAction.CUSTOM:
            child = fields.child("provider")
            provider = child.text("name")
            child.refuse_unknown()
            if not provider:
                raise fields.wrong("provider", "a CUSTOM policy names its provider")
        rules = tuple(self._rule(rule) for rule in fields.children("rules"))
        fields.refuse_unknown()
        return self._make(targets, action, rules, provider)

    def _make(
        self, targets: Targets, action: HttpAction, rules: tuple[HttpRule, ...] = (), provider: str = ""
    ) -> HttpAuthorization:
        return HttpAuthorization(
            name=self._obj.name,
            namespace=self._obj.namespace,
            action=action,
            rules=rules,
            services=tuple(dict.fromkeys(targets.services)),
            waypoints=tuple(dict.fromkeys(targets.waypoints)),
            provider=provider,
            dry_run=self._obj.annotations.get(DRY_RUN, "").lower() == "true",
        )

    # --- rules

    def _rule(self, fields: Fields) -> HttpRule:
        sources, operations, conditions = [], [], []
        if fields.has("from"):
            sources = [self._source(child) for child in _members(fields, "from", "source")]
        if fields.has("to"):
            operations = [_operation(child) for child in _members(fields, "to", "operation")]
        if fields.has("when"):
            conditions = [self._condition(child) for child in fields.children("when")]
            if not conditions:
                raise fields.wrong("when", "must not be empty")
        fields.refuse_unknown()
        return HttpRule(sources=tuple(sources), operations=tuple(operations), conditions=tuple(conditions))

    def _source(self, fields: Fields) -> Source:
        source = Source(
            principals=self._principals(fields, "principals"),
            not_principals=self._principals(fields, "notPrincipals"),
            request_principals=_texts(fields, "requestPrincipals"),
            not_request_principals=_texts(fields, "notRequestPrincipals"),
            namespaces=_texts(fields, "namespaces"),
            not_namespaces=_texts(fields, "notNamespaces"),
            service_accounts=self._accounts(fields, "serviceAccounts"),
            not_service_accounts=self._accounts(fields, "notServiceAccounts"),
            ip_blocks=fields.networks("ipBlocks"),
            not_ip_blocks=fields.networks("notIpBlocks"),
            remote_ip_blocks=fields.networks("remoteIpBlocks"),
            not_remote_ip_blocks=fields.networks("notRemoteIpBlocks"),
        )
        fields.refuse_unknown()
        if source == Source():
            raise fields.wrong("", "must name at least one attribute")
        return source

    def _principals(self, fields: Fields, name: str) -> Texts:
        found: list[TextMatch] = []
        for value in fields.strings(name):
            if value.startswith("spiffe://"):
                raise fields.wrong(name, f"{value[:100]!r}: a principal is written without spiffe://")
            found += [_text(fields, name, spelling) for spelling in self._spellings(value)]
        return tuple(found)

    def _spellings(self, principal: str) -> tuple[str, ...]:
        """Return a principal also in the mesh's own trust domain: `cluster.local` stands for it."""
        domain, slash, rest = principal.partition("/")
        own = self._world.options.trust_domain
        if slash and domain == "cluster.local" and own != domain:
            return principal, f"{own}/{rest}"
        return (principal,)

    def _accounts(self, fields: Fields, name: str) -> tuple[str, ...]:
        return tuple(self._account(fields, name, value) for value in fields.strings(name))

    def _account(self, fields: Fields, name: str, value: str) -> str:
        left, slash, right = value.partition("/")
        where, account = (left, right) if slash else (self._obj.namespace, left)
        if not where or not account or "/" in account or "*" in value:
            raise fields.wrong(name, f"{value[:100]!r} is no service account (name or namespace/name)")
        return f"{where}/{account}"

    def _condition(self, fields: Fields) -> Condition:
        key = fields.text("key")
        if key not in L4_KEYS and not key.startswith(L7_KEYS):
            raise fields.wrong("key", f"{key[:100]!r} is not known")
        if key.startswith("experimental."):
            # The evaluator denies what it cannot judge.
            reason = f"{key[:100]!r} reads Envoy's metadata, which a waypoint here does not have; it denies"
            fields.report("key", reason, "error")
        values = self._values(fields, "values", key)
        not_values = self._values(fields, "notValues", key)
        if not values and not not_values:
            raise fields.wrong("", "values or notValues must be given")
        fields.refuse_unknown()
        return Condition(key=key, values=values, not_values=not_values)

    def _values(self, fields: Fields, name: str, key: str) -> tuple[str, ...]:
        if key in ("source.ip", "remote.ip", "destination.ip"):
            return tuple(str(network) for network in fields.networks(name))
        if key == "destination.port":
            return tuple(str(port) for port in _ports(fields, name))
        if key == "source.serviceAccount":
            return self._accounts(fields, name)
        if any(not value for value in fields.strings(name)):
            raise fields.wrong(name, "must not hold an empty text")
        if key == "source.principal":
            return tuple(s for value in fields.strings(name) for s in self._spellings(value))
        return fields.strings(name)


def _members(fields: Fields, name: str, member: str) -> list[Fields]:
    found = []
    for entry in fields.children(name):
        found.append(entry.child(member))
        entry.refuse_unknown()
    if not found:
        raise fields.wrong(name, "must not be empty")
    return found


def _operation(fields: Fields) -> Operation:
    operation = Operation(
        hosts=_texts(fields, "hosts"),
        not_hosts=_texts(fields, "notHosts"),
        methods=_texts(fields, "methods"),
        not_methods=_texts(fields, "notMethods"),
        paths=_paths(fields, "paths"),
        not_paths=_paths(fields, "notPaths"),
        ports=_ports(fields, "ports"),
        not_ports=_ports(fields, "notPorts"),
    )
    fields.refuse_unknown()
    if operation == Operation():
        raise fields.wrong("", "must name at least one attribute")
    return operation


def _texts(fields: Fields, name: str) -> Texts:
    return tuple(_text(fields, name, value) for value in fields.strings(name))


def _text(fields: Fields, name: str, value: str) -> TextMatch:
    if not value:
        raise fields.wrong(name, "must not hold an empty text")
    return parse_text(value)


def _paths(fields: Fields, name: str) -> Texts:
    found = []
    for value in fields.strings(name):
        rest = value.replace("{**}", "").replace("{*}", "")
        if rest == value:
            found.append(_text(fields, name, value))
        elif any(character in rest for character in "{}*"):
            raise fields.wrong(name, f"{value[:100]!r}: a template has no wildcard but {{*}} and {{**}}")
        else:
            found.append(TextMatch(kind=TextKind.TEMPLATE, value=value))
    return tuple(found)


def _ports(fields: Fields, name: str) -> tuple[int, ...]:
    found = []
    for value in fields.strings(name):
        if not (value.isascii() and value.isdigit() and len(value) <= 5 and 1 <= int(value) <= MAX_PORT):
            raise fields.wrong(name, f"{value[:100]!r} is no port")
        found.append(int(value))
    return tuple(found)
