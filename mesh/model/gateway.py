# SPDX-License-Identifier: Apache-2.0
"""What an ingress gateway serves: its listeners, the names at each, the rules for each name.

Certificates are named by the directory where they are mounted: private keys are no part of
the configuration.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.model.route import RouteRule
from mesh.model.workload import NamespacedHostname


class ListenerProtocol(enum.Enum):
    """What clients speak to a listener."""

    HTTP = "HTTP"
    HTTPS = "HTTPS"
    """TLS that ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """The rules for one name."""

    hostname: str
    """In lower case; `*.` before a suffix of whole labels, or `*` alone for every name."""
    rules: tuple[RouteRule, ...]
    """In the order of precedence; no rule matches: 404."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayListener:
    """One listener; several may share a port, told apart by their hostnames."""

    name: str
    port: int
    protocol: ListenerProtocol
    hostname: str = "*"
    """Form as of `HostRules`."""
    certificates: tuple[str, ...] = ()
    """Directories with `tls.crt` and `tls.key`, one for each kind of key."""
    hosts: tuple[HostRules, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressGateway:
    """The configuration of one ingress gateway."""

    namespace: str
    name: str
    listeners: tuple[GatewayListener, ...] = ()
    through_waypoint: tuple[NamespacedHostname, ...] = ()
    """Services whose own waypoint takes their requests; those of others go past it."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"
