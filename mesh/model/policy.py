# SPDX-License-Identifier: Apache-2.0
"""L4 authorisation as `istio.security.Authorization` carries it.

A policy matches when one of its rules matches; a rule when all of its clauses
match; a clause when one of its matches does; a match when each attribute that it
names holds. A clause without matches restricts nothing; a match without attributes
never holds, so a clause of which nothing enforceable is left is `(Match(),)`, never
`()`. `mesh.authz.evaluate` is the only reader of these semantics.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.model.address import IPNetwork


class Scope(enum.Enum):
    """Whom a policy applies to."""

    GLOBAL = "global"
    NAMESPACE = "namespace"
    WORKLOAD_SELECTOR = "workload_selector"


class Action(enum.Enum):
    """What a matching policy does."""

    ALLOW = "allow"
    DENY = "deny"


class StringMatchKind(enum.Enum):
    """How a string is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENCE = "presence"


@dataclass(frozen=True, slots=True, kw_only=True)
class StringMatch:
    """One comparison; `value` is empty for PRESENCE."""

    kind: StringMatchKind
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountMatch:
    """A service account; both parts compared exactly."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Attributes of a connection: those given are ANDed, values of one are ORed.

    A `not_` attribute holds when none of its values matches. No attribute at all
    never matches.
    """

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    """Compared with the peer's SPIFFE id without its `spiffe://`."""
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    """Workload (target) ports, host-order."""
    not_destination_ports: tuple[int, ...] = ()


Clause = tuple[Match, ...]
"""Matches of which one must hold; empty: always holds (as in Istio's ztunnel)."""
Rule = tuple[Clause, ...]
"""Clauses that must all hold; an empty rule matches everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """One policy; key `namespace/name`."""

    name: str
    namespace: str
    scope: Scope
    action: Action
    rules: tuple[Rule, ...] = ()
    """No rules never match: ALLOW of none denies all, DENY of none does nothing."""
    dry_run: bool = False
    """Evaluated and logged, never enforced."""

    @property
    def key(self) -> str:
        """`namespace/name`, its name on the wire."""
        return f"{self.namespace}/{self.name}"
