# SPDX-License-Identifier: Apache-2.0
"""The lab as an issuer of service account tokens: one key pair, short-lived tokens for pods and ztunnels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.shell import write_file
from mesh.identity.token import TokenClaims, new_signing_key, sign_token

TTL_S = 24 * 3600.0
REFRESH_S = 3600.0
ZTUNNEL_NAMESPACE = "istio-system"
ZTUNNEL_ACCOUNT = "ztunnel"


def make_signer(directory: Path) -> None:
    """Make the key pair, unless there is one."""
    private, public = directory / "signer.pem", directory / "signer.pub"
    if not private.exists() or not public.exists():
        private_pem, public_pem = new_signing_key()
        write_file(private, private_pem.decode(), mode=0o600)
        write_file(public, public_pem.decode())


def pod_token(directory: Path, pod: Mapping[str, Any]) -> str:
    """Return a token for a pod's service account."""
    metadata, spec = pod["metadata"], pod["spec"]
    return _sign(
        directory,
        TokenClaims(
            namespace=metadata["namespace"],
            service_account=spec.get("serviceAccountName", "default"),
            pod_name=metadata["name"],
            pod_uid=metadata["uid"],
            node=spec["nodeName"],
        ),
    )


def ztunnel_token(directory: Path, node: str) -> str:
    """Return a token for the ztunnel of a node."""
    return _sign(
        directory,
        TokenClaims(
            namespace=ZTUNNEL_NAMESPACE,
            service_account=ZTUNNEL_ACCOUNT,
            pod_name=f"ztunnel-{node}",
            pod_uid=f"ztunnel-{node}",
            node=node,
        ),
    )


def _sign(directory: Path, claims: TokenClaims) -> str:
    return sign_token(claims, (directory / "signer.pem").read_bytes(), now_s=time.time(), ttl_s=TTL_S)
