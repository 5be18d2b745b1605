# SPDX-License-Identifier: Apache-2.0
"""Where connections that are not HTTP go: TCPRoute and the tcp part of VirtualService, in one form."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model.route import Backend
from mesh.model.workload import NamespacedHostname


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTable:
    """Shares out the connections to one service and one of its ports; their headers have no meaning."""

    service: NamespacedHostname
    port: int
    """Service port; 0: every port that has no table of its own."""
    source: str
    """Object and rule that wrote it, `kind/namespace/name#index`."""
    backends: tuple[Backend, ...]
    """An invalid one's share is refused; so is every connection where none has a weight."""
    client_namespace: str = ""
    """Only for clients of this namespace, in place of the table for all; empty: all."""
