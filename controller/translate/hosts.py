# SPDX-License-Identifier: Apache-2.0
"""Host names as Istio's networking objects write them, and whom they are exported to.

A name without a dot is a Service of the object's own namespace; any other is complete.
`*` and `*.suffix` are wildcards; the more of a name is spelt out, the more specific it is.
Source: istio pkg/config/host, pilot/pkg/model ResolveShortnameToFQDN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller.translate.fields import Fields
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname, NetworkAddress

ALL = "*"


def resolve_host(host: str, namespace: str, cluster_domain: str) -> str:
    """Return the complete name, in lower case."""
    host = host.lower().rstrip(".")
    if "." in host or host == ALL:
        return host
    return f"{host}.{namespace}.svc.{cluster_domain}"


def matches(pattern: str, host: str) -> bool:
    """Tell whether a resolved name or wildcard covers a name."""
    if pattern == ALL:
        return True
    if pattern.startswith("*"):
        return len(host) >= len(pattern) - 1 and host.endswith(pattern[1:])
    return pattern == host


def specificity(pattern: str) -> tuple[bool, int]:
    """Return a key that is greater the more specific a pattern is."""
    return (not pattern.startswith("*"), len(pattern))


class Hosts:
    """Services by host name."""

    def __init__(self, services: Mapping[NamespacedHostname, Service]) -> None:
        self._by_name: dict[str, list[Service]] = {}
        self._by_entry: dict[tuple[str, str], list[NamespacedHostname]] = {}
        for key in sorted(services, key=str):
            service = services[key]
            self._by_name.setdefault(key.hostname, []).append(service)
            if not service.canonical:
                self._by_entry.setdefault((service.namespace, service.name), []).append(key)

    def of_entry(self, namespace: str, name: str) -> list[NamespacedHostname]:
        """Return the services that a ServiceEntry made."""
        return self._by_entry.get((namespace, name), [])

    def find(self, host: str, namespace: str) -> Service | None:
        """Return the service that a reference from `namespace` means.

        Of several with one name: the canonical one (a Kubernetes Service), else that of
        the namespace itself, else the first by namespace.
        """
        found = self._by_name.get(host, [])
        return min(found, key=lambda s: (not s.canonical, s.namespace != namespace), default=None)

    def all(self, pattern: str) -> list[Service]:
        """Return every service that a pattern covers."""
        if not pattern.startswith("*"):
            return self._by_name.get(pattern, [])
        return [
            service
            for name, services in self._by_name.items()
            if matches(pattern, name)
            for service in services
        ]


class Exports:
    """The namespaces that an object is visible in."""

    def __init__(self, fields: Fields, namespace: str) -> None:
        names = fields.strings("exportTo")
        self.everywhere = not names or ALL in names
        self.namespaces = frozenset(namespace if name == "." else name for name in names)

    def visible_in(self, namespace: str) -> bool:
        """Tell whether clients of a namespace see the object."""
        return self.everywhere or namespace in self.namespaces


class WaypointNamespaces:
    """Where the waypoints of services stand: their namespace is the client's, in Istio's terms."""

    def __init__(self, services: Mapping[NamespacedHostname, Service]) -> None:
        self._by_address: dict[NetworkAddress, str] = {
            address: service.namespace for service in services.values() for address in service.addresses
        }

    def of(self, service: Service) -> str:
        """Return the namespace of a service's waypoint; empty: it has none, or nobody knows."""
        if service.waypoint is None:
            return ""
        destination = service.waypoint.destination
        if isinstance(destination, NamespacedHostname):
            return destination.namespace
        return self._by_address.get(destination, "")

    def all(self, services: Iterable[Service]) -> frozenset[str]:
        """Return the namespaces of all waypoints."""
        return frozenset(filter(None, map(self.of, services)))
