# SPDX-License-Identifier: Apache-2.0
"""L7 authorisation as a waypoint enforces it: AuthorizationPolicy in full, targets resolved.

A policy matches when one of its rules does; a rule when one of its sources, one of its
operations and each of its conditions hold (a list that is empty holds). Within one source
or operation the attributes given are ANDed, the values of one are ORed, and a `not_`
attribute holds when none of its values does. `mesh.authz.http` is the only reader.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.model.address import IPNetwork
from mesh.model.workload import NamespacedHostname


class HttpAction(enum.Enum):
    """What a matching policy does."""

    ALLOW = "allow"
    DENY = "deny"
    AUDIT = "audit"
    """Logged, never enforced."""
    CUSTOM = "custom"
    """Asked of an external authoriser."""


class TextKind(enum.Enum):
    """How a text is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENT = "present"
    TEMPLATE = "template"
    """A path of which `{*}` is one segment and `{**}` the rest or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMatch:
    """One comparison; `value` is empty for PRESENT."""

    kind: TextKind
    value: str = ""


Texts = tuple[TextMatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who asks."""

    principals: Texts = ()
    """SPIFFE ids without their scheme."""
    not_principals: Texts = ()
    request_principals: Texts = ()
    """`issuer/subject` of a valid token."""
    not_request_principals: Texts = ()
    namespaces: Texts = ()
    not_namespaces: Texts = ()
    service_accounts: tuple[str, ...] = ()
    """`namespace/name`, compared exactly."""
    not_service_accounts: tuple[str, ...] = ()
    ip_blocks: tuple[IPNetwork, ...] = ()
    """Address of the workload that sends."""
    not_ip_blocks: tuple[IPNetwork, ...] = ()
    remote_ip_blocks: tuple[IPNetwork, ...] = ()
    """Address of the first client, through trusted proxies."""
    not_remote_ip_blocks: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is asked for."""

    hosts: Texts = ()
    """Compared without case; the port counts if the client named it."""
    not_hosts: Texts = ()
    methods: Texts = ()
    not_methods: Texts = ()
    paths: Texts = ()
    """Normalised, without query."""
    not_paths: Texts = ()
    ports: tuple[int, ...] = ()
    """Port that the client addressed, host-order."""
    not_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One `when` entry: values and not_values must both hold where given."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRule:
    """One rule; empty parts hold for every request."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAuthorization:
    """One policy; key `namespace/name`."""

    name: str
    namespace: str
    action: HttpAction
    rules: tuple[HttpRule, ...] = ()
    """No rules never match: ALLOW of none denies all, DENY of none does nothing."""
    services: tuple[NamespacedHostname, ...] = ()
    """Services that it guards; empty: whatever the waypoints named in `waypoints` serve."""
    waypoints: tuple[str, ...] = ()
    """Gateways (`namespace/name`) that enforce it for all that they serve; `*`: every waypoint."""
    provider: str = ""
    """External authoriser of a CUSTOM policy."""
    dry_run: bool = False
    """Evaluated and logged, never enforced."""

    @property
    def key(self) -> str:
        """`namespace/name`, its name on the wire."""
        return f"{self.namespace}/{self.name}"
