# SPDX-License-Identifier: Apache-2.0
"""Services that the mesh itself asks, by the names that policies use (MeshConfig's extensionProviders)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.model.workload import NamespacedHostname


class AuthoriserProtocol(enum.Enum):
    """How an external authoriser is asked."""

    GRPC = "grpc"
    """`envoy.service.auth.v3.Authorization/Check`."""
    HTTP = "http"
    """The request without its body; 200 lets it pass, another answer is the client's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authoriser:
    """An external authoriser. Header names are lower case; a final `*` matches by prefix."""

    name: str
    service: NamespacedHostname
    port: int
    """Service port, host-order."""
    protocol: AuthoriserProtocol
    timeout_s: float = 600.0
    """Source: MeshConfig, EnvoyExternalAuthorization*.timeout."""
    fail_open: bool = False
    status_on_error: int = 403
    """What a client is answered when the authoriser has none."""
    path_prefix: str = ""
    """HTTP: put before the path."""
    request_headers: tuple[str, ...] = ()
    """HTTP: fields sent beside Host, Method, Path, Content-Length and Authorization."""
    additional_headers: tuple[tuple[str, str], ...] = ()
    """HTTP: fields added to the question."""
    upstream_headers: tuple[str, ...] = ()
    """HTTP: fields of a 200 that are set on the request."""
    denied_headers: tuple[str, ...] = ()
    """HTTP: fields of a refusal that reach the client beside the usual ones; none named: all."""
    allowed_headers: tuple[str, ...] = ()
    """HTTP: fields of a 200 that are added to the response."""
