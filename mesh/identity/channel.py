# SPDX-License-Identifier: Apache-2.0
"""gRPC channels to the control plane, for the certificate and the configuration client alike.

One channel a stream or call, so that new roots and a new token take effect with the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc

Option = tuple[str, int | str]


def secure_channel(
    address: str, roots: Path, *, server_name: str = "", options: Sequence[Option] = ()
) -> grpc.aio.Channel:
    """Open a TLS channel to `host:port` (`https://` in front is allowed), verified by the roots in a file.

    `server_name` is the name that the certificate must have, if it is not the host. Nothing is
    connected yet and nothing is retried: backing off is the caller's.

    Raises:
        OSError: the roots cannot be read (local fault).
    """
    chosen: list[Option] = [
        ("grpc.enable_retries", 0),
        # The environment's http_proxy is for the web, not for a neighbour in the cluster.
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        *options,
    ]
    if server_name:
        chosen.append(("grpc.ssl_target_name_override", server_name))
    credentials = grpc.ssl_channel_credentials(root_certificates=roots.read_bytes())
    return grpc.aio.secure_channel(address.removeprefix("https://"), credentials, options=chosen)


def headers(token: Path | None, cluster_id: str) -> tuple[tuple[str, str], ...]:
    """Return the headers that say who calls, with the token as its file has it now.

    Source: Istio's ztunnel sends the same two on every call.

    Raises:
        OSError: the token cannot be read (local fault).
        ValueError: it is not ASCII.
    """
    said = [("clusterid", cluster_id)]
    if token is not None:
        said.append(("authorization", f"Bearer {token.read_text(encoding='ascii').strip()}"))
    return tuple(said)
