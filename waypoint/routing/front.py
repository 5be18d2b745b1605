# SPDX-License-Identifier: Apache-2.0
"""The routes of an ingress gateway, compiled: by port and name to a listener, by name to its rules.

Pure. An exact name comes before a wildcard, a longer wildcard before a shorter one; who
serves a name serves it alone. Source: gateway-api v1, Listener and HTTPRoute hostnames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from mesh.model.gateway import GatewayListener, IngressGateway, ListenerProtocol
from mesh.model.route import RouteTable
from mesh.model.workload import NamespacedHostname
from waypoint.routing.match import RouteMatcher

T = TypeVar("T")


class HostTable(Generic[T]):
    """Values by hostname: exact, `*.` and a suffix, or `*`."""

    def __init__(self, values: Mapping[str, T]) -> None:
        self._exact = {name: value for name, value in values.items() if not name.startswith("*")}
        self._suffixes = {name[1:]: value for name, value in values.items() if name.startswith("*.")}
        self._any = values.get("*")

    def find(self, host: str) -> T | None:
        """Find the value for a host in lower case; empty: for whoever names none. O(labels)."""
        found = self._exact.get(host)
        if found is not None:
            return found
        dot = host.find(".", 1)
        while dot >= 0 and self._suffixes:
            found = self._suffixes.get(host[dot:])
            if found is not None:
                return found
            dot = host.find(".", dot + 1)
        return self._any


class FrontListener:
    """One listener with its compiled rules."""

    def __init__(self, gateway: IngressGateway, listener: GatewayListener) -> None:
        """Compile it; ValueError: a regular expression is not valid, says of which rule."""
        self.listener = listener
        self.key = NamespacedHostname(namespace=gateway.namespace, hostname=f"{gateway.name}/{listener.name}")
        """For messages."""
        self.hosts = HostTable(
            {
                host.hostname: RouteMatcher(
                    RouteTable(service=self.key, port=listener.port, rules=host.rules)
                )
                for host in listener.hosts
            }
        )

    @property
    def secure(self) -> bool:
        """Whether clients speak TLS to it."""
        return self.listener.protocol is ListenerProtocol.HTTPS


class Front:
    """A whole gateway; immutable, so it is swapped when its configuration changes."""

    def __init__(self, gateway: IngressGateway) -> None:
        """Compile it; ValueError: a regular expression is not valid, says of which rule."""
        self.gateway = gateway
        self.through_waypoint = frozenset(gateway.through_waypoint)
        ports: dict[int, dict[str, FrontListener]] = {}
        for listener in gateway.listeners:
            ports.setdefault(listener.port, {})[listener.hostname] = FrontListener(gateway, listener)
        self._ports = {port: HostTable(by_name) for port, by_name in ports.items()}
        self.ports = {port: any(each.secure for each in by_name.values()) for port, by_name in ports.items()}
        """Ports to listen on, and whether TLS is spoken there."""

    def listener(self, port: int, host: str) -> FrontListener | None:
        """Find the listener for a host in lower case."""
        table = self._ports.get(port)
        return table.find(host) if table is not None else None


def host_of(authority: str) -> str:
    """Return the host of a request's authority: lower case, without port and last dot."""
    host, colon, port = authority.rpartition(":")
    if not colon or not (port.isdigit() or not port) or (":" in host and not host.endswith("]")):
        host = authority
    return host.lower().removesuffix(".")
