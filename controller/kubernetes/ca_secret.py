# SPDX-License-Identifier: Apache-2.0
"""The authority in a Secret, so that every replica of the controller signs with one root.

The first replica to write it wins; the others load what it wrote. The keys within are
the files of `controller.ca.store`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from controller.ca.issue import Authority, key_pem, load_authority, new_authority
from controller.ca.store import CERTIFICATE, KEY, OTHERS, StoreError
from mesh.config.kube_client import AnswerError, KubeApi

SECRET = "ambit-ca"  # noqa: S105 - its name
_NOT_FOUND, _CONFLICT = 404, 409


async def open_secret_authority(api: KubeApi, namespace: str, trust_domain: str, now_s: float) -> Authority:
    """Load the authority, or make one where there is none.

    Raises:
        StoreError: the Secret is there, but is no authority; says what to do.
        AnswerError: the account may not get or create it.
        UnreachableError: the API server does not answer; retry later.
    """
    collection = f"/api/v1/namespaces/{namespace}/secrets"
    found = await _get(api, f"{collection}/{SECRET}")
    if found is None:
        made = new_authority(trust_domain, now_s)
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": namespace},
            "type": "Opaque",
            "data": {KEY: _encode(key_pem(made)), CERTIFICATE: _encode(made.root_pem)},
        }
        try:
            found = await api.call("POST", collection, body=body)
        except AnswerError as error:
            if error.status != _CONFLICT:
                raise
            # Another replica was faster: its root is the mesh's.
            found = await _get(api, f"{collection}/{SECRET}")
            if found is None:
                raise
    return _load(found, f"Secret {namespace}/{SECRET}", now_s)


async def _get(api: KubeApi, path: str) -> dict[str, Any] | None:
    try:
        return await api.call("GET", path)
    except AnswerError as error:
        if error.status == _NOT_FOUND:
            return None
        raise


def _load(secret: Mapping[str, Any], name: str, now_s: float) -> Authority:
    data = secret.get("data") or {}
    for part in (KEY, CERTIFICATE):
        if not data.get(part):
            raise StoreError(f"{name} has no {part}; restore it, or delete the Secret for a new root")
    try:
        parts = [_decode(data.get(part) or "") for part in (CERTIFICATE, KEY, OTHERS)]
        authority = load_authority(parts[0], parts[1], parts[2])
    except ValueError as error:
        raise StoreError(f"{name}: {error}") from error
    if authority.certificate.not_valid_after_utc.timestamp() <= now_s:
        raise StoreError(f"the root in {name} has expired; delete the Secret for a new root")
    return authority


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
