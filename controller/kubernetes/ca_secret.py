# SPDX-License-Identifier: Apache-2.0
"""The authority in a Secret, so that every replica of the controller signs with one root.

The first replica to write it wins; the others load what it wrote. The keys within are
the files of `controller.ca.store`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import random
from collections.abc import Mapping
from typing import Any

from controller.ca.issue import Authority, key_pem, load_authority, new_authority
from controller.ca.store import CERTIFICATE, KEY, OTHERS, StoreError
from mesh.config.kube_api import AnswerError, KubeApi, KubeError

SECRET = "ambit-ca"  # noqa: S105 - its name
CHECK_S = (15.0, 45.0)
"""How long until a replica looks at the Secret again: spread, so that not all end at once."""
_NOT_FOUND, _CONFLICT = 404, 409
_log = logging.getLogger("controller.ca")


class RootReplacedError(Exception):
    """The Secret holds another authority than this process signs with."""


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
        try:
            found = await api.call("POST", collection, body=_secret(namespace, made))
        except AnswerError as error:
            if error.status != _CONFLICT:
                raise
            # Another replica was faster: its root is the mesh's.
            found = await _get(api, f"{collection}/{SECRET}")
            if found is None:
                raise
    return _load(found, f"Secret {namespace}/{SECRET}", now_s)


class SecretGuard:
    """Keeps the Secret and this process the same: restores one that was deleted, ends us for a new one.

    Without it the next replica to start would make another root, and half of the mesh would
    not trust the other.
    """

    def __init__(
        self, api: KubeApi, namespace: str, authority: Authority, chance: random.Random | None = None
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._authority = authority
        self._chance = chance or random.Random()
        self._told = ""

    async def run(self) -> None:
        """Look again and again, until cancelled.

        Raises:
            RootReplacedError: the operator gave the mesh another authority; a new start takes it.
        """
        while True:
            await asyncio.sleep(self._chance.uniform(*CHECK_S))
            try:
                await self._check()
            except (KubeError, StoreError) as error:
                if str(error) != self._told:
                    _log.warning("the authority's Secret cannot be checked, ours stays in force: %s", error)
                self._told = str(error)
            else:
                self._told = ""

    async def _check(self) -> None:
        collection = f"/api/v1/namespaces/{self._namespace}/secrets"
        found = await _get(self._api, f"{collection}/{SECRET}")
        if found is None:
            _log.error("Secret %s/%s was deleted; it is written again", self._namespace, SECRET)
            await self._api.call("POST", collection, body=_secret(self._namespace, self._authority))
            return
        there = _load(found, f"Secret {self._namespace}/{SECRET}", 0.0)
        ours = self._authority
        if (there.bundle_pem, key_pem(there)) != (ours.bundle_pem, key_pem(ours)):
            raise RootReplacedError(
                f"Secret {self._namespace}/{SECRET} was changed; start again to sign with what it holds"
            )


def _secret(namespace: str, authority: Authority) -> dict[str, Any]:
    data = {KEY: _encode(key_pem(authority)), CERTIFICATE: _encode(authority.root_pem)}
    if authority.other_roots_pem:
        data[OTHERS] = _encode(authority.other_roots_pem)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace},
        "type": "Opaque",
        "data": data,
    }


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
