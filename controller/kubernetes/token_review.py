# SPDX-License-Identifier: Apache-2.0
"""Who calls, on a cluster: the API server says whom a token is of, for which audience, on which node.

What it said is believed for a short while, never beyond the token's own end, so that a
node proxy with hundreds of pods does not cost the API server hundreds of reviews.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from controller.authenticate import Metadata, UncheckedError, bearer
from mesh.config.kube_api import AnswerError, KubeApi, KubeError
from mesh.identity.token import AUDIENCE, MAX_TOKEN_BYTES, TokenClaims, TokenError
from mesh.runtime.clock import Clock

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
GOOD_S = 60.0
"""How long an accepted token is not asked about again: so long may a deleted pod's token live on."""
BAD_S = 5.0
MAX_KNOWN = 4096
REVIEW_TIMEOUT_S = 5.0
_PREFIX = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"
_log = logging.getLogger("controller.tokens")

Known = tuple[float, TokenClaims | TokenError]
"""Until when (monotonic seconds), and what."""


class TokenReviewer:
    """Checks tokens with one API server; loop thread only."""

    def __init__(self, api: KubeApi, clock: Clock, audience: str = AUDIENCE) -> None:
        self._api = api
        self._clock = clock
        self._audience = audience
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._locks: dict[bytes, asyncio.Lock] = {}

    async def check(self, metadata: Metadata | None) -> TokenClaims:
        """Return whom the call's token proves.

        Raises:
            TokenError: there is none, or it is not valid (caller's fault).
            UncheckedError: the API server cannot be asked now (retry later).
        """
        token = bearer(metadata)
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenError(f"a token of {len(token)} characters, more than {MAX_TOKEN_BYTES}")
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        # Calls with one token wait for the first one's review.
        lock = self._locks.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                answer = self._recall(digest)
                if answer is None:
                    answer = await self._review(token)
                    self._remember(digest, answer)
        finally:
            if not lock.locked():
                self._locks.pop(digest, None)
        if isinstance(answer, TokenError):
            raise answer
        return answer

    def _recall(self, digest: bytes) -> TokenClaims | TokenError | None:
        known = self._known.get(digest)
        if known is None or known[0] <= self._clock.monotonic():
            return None
        return known[1]

    def _remember(self, digest: bytes, answer: TokenClaims | TokenError) -> None:
        keep_s = BAD_S
        if isinstance(answer, TokenClaims):
            keep_s = min(GOOD_S, max(0.0, answer.expires_at_s - self._clock.wall()))
        self._known[digest] = (self._clock.monotonic() + keep_s, answer)
        self._known.move_to_end(digest)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def _review(self, token: str) -> TokenClaims | TokenError:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._api.call("POST", REVIEWS, body=body, timeout_s=REVIEW_TIMEOUT_S)
        except KubeError as error:
            advice = ""
            if isinstance(error, AnswerError) and error.status == 403:
                advice = "; the controller's account needs the verb create on tokenreviews"
            _log.error("a token cannot be reviewed: %s%s", error, advice)
            raise UncheckedError(f"the token cannot be checked now: {error}") from error
        try:
            return claims_of(answer.get("status") or {}, token, self._audience)
        except TokenError as error:
            return error


def claims_of(status: Mapping[str, Any], token: str, audience: str) -> TokenClaims:
    """Read a review's status.

    Raises:
        TokenError: the token is not valid for `audience`, or not a pod's on a node.
    """
    if status.get("authenticated") is not True:
        raise TokenError(f"the API server does not accept the token: {status.get('error') or 'not valid'}")
    if audience not in (status.get("audiences") or ()):
        raise TokenError(f"the token is not for the audience {audience}")
    user = status.get("user") or {}
    name = str(user.get("username") or "")
    namespace, _, account = name.removeprefix(_PREFIX).partition(":")
    if not name.startswith(_PREFIX) or not namespace or not account:
        raise TokenError(f"the token is of {name or 'nobody'}, not of a service account")
    extra = user.get("extra") or {}

    def bound(part: str) -> str:
        values = extra.get(_EXTRA + part) or ()
        if not values or not values[0]:
            raise TokenError(
                f"the token of {namespace}/{account} names no {part}; "
                "it must be a projected one of a pod, from Kubernetes 1.30 or newer"
            )
        return str(values[0])

    return TokenClaims(
        namespace=namespace,
        service_account=account,
        service_account_uid=str(user.get("uid") or ""),
        pod_name=bound("pod-name"),
        pod_uid=bound("pod-uid"),
        node=bound("node-name"),
        expires_at_s=_expiry(token),
    )


def _expiry(token: str) -> float:
    """Read `exp` of a token that the API server has accepted; 0: it has none, so it is not remembered."""
    try:
        payload = token.split(".")[1]
        value = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        return float(value)
    except (IndexError, ValueError, KeyError, TypeError):
        return 0.0
