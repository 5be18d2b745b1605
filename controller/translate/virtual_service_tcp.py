# SPDX-License-Identifier: Apache-2.0
"""One tcp route of a VirtualService: which connections it takes, and who shares them.

Source: istio.io/api TCPRoute, L4MatchAttributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.translate.fields import MAX_PORT, Fields, IllTypedError
from controller.translate.virtual_service_http import HttpReader, backend_at
from controller.translate.virtual_service_match import MESH
from mesh.model.route import Backend
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

_UNKNOWN = ("destinationSubnets", "sourceSubnet", "sourceLabels")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpRule:
    """A rule of which the port is open: where a backend says 0, that of the connection is meant."""

    source: str
    entries: tuple[tuple[int, str], ...]
    """Port (0: every) and namespace of clients (empty: all), of which one must fit."""
    backends: tuple[Backend, ...]

    def at(
        self, port: int, namespace: str, services: Mapping[NamespacedHostname, Service]
    ) -> tuple[Backend, ...] | None:
        """Return who shares the connections to a port; None: the rule is not for them."""
        if not any(p in (0, port) and n in ("", namespace) for p, n in self.entries):
            return None
        return tuple(backend_at(backend, port, services) for backend in self.backends)


def read_tcp_rule(
    fields: Fields, source: str, reader: HttpReader, report: Callable[[IllTypedError, str], None]
) -> TcpRule:
    """Read one tcp route; never raises for what it holds."""
    entries: list[tuple[int, str]] = []
    backends: tuple[Backend, ...]
    try:
        children = fields.children("match")
        for child in children:
            entry = _entry(child, report)
            if entry is not None:
                entries.append(entry)
        if not children:
            entries.append((0, ""))
        backends = reader.read_backends(fields)
    except IllTypedError as error:
        report(error, "the route's connections are refused")
        return TcpRule(
            source=source, entries=tuple(entries), backends=(Backend(service=None, problem=error.reason),)
        )
    fields.finish()
    return TcpRule(source=source, entries=tuple(entries), backends=backends)


def _entry(fields: Fields, report: Callable[[IllTypedError, str], None]) -> tuple[int, str] | None:
    try:
        port = fields.integer("port", 0, 0, MAX_PORT)
        namespace, gateways = fields.text("sourceNamespace"), fields.strings("gateways")
        for name in _UNKNOWN:
            if fields.has(name):
                raise fields.wrong(name, "waypoints choose TCP routes by port and client namespace only")
        fields.finish()
    except IllTypedError as error:
        report(error, "this alternative matches nothing")
        return None
    return None if gateways and MESH not in gateways else (port, namespace)
