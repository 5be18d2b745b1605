# SPDX-License-Identifier: Apache-2.0
"""Keys of token issuers: inline ones parsed once, remote ones fetched, kept and renewed.

A fetch that fails keeps the keys that are there. One that is missing is asked for at most
every `MIN_REFETCH_S`: a stranger's token with an invented key id costs no fetch of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from mesh.model.token import TokenRule
from mesh.runtime.tasks import TaskOwner, create_task
from waypoint.filters.tokens import Key, Keys, read_jwks

MAX_AGE_S = 1200.0
"""Source: Istio, which renews key sets every 20 minutes."""
MIN_REFETCH_S = 10.0
MAX_SETS = 1024
_log = logging.getLogger("waypoint.tokens")

Fetch = Callable[[str, float], Awaitable[str]]
"""Gets the text at a URL within so many seconds. Raises FetchError."""


class FetchError(Exception):
    """A URL could not be read; says why (the other side's or the network's fault)."""


@dataclass(slots=True)
class _Set:
    keys: tuple[Key, ...] = ()
    version: int = 0
    fetched_s: float = float("-inf")
    tried_s: float = float("-inf")
    running: asyncio.Task[None] | None = None


class KeyStore:
    """All key sets of a waypoint; loop thread only."""

    def __init__(self, fetch: Fetch, monotonic: Callable[[], float], owner: TaskOwner) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._owner = owner
        self._inline: dict[str, _Set] = {}
        self._remote: dict[tuple[str, str], _Set] = {}
        self._versions = 0

    def get(self, rule: TokenRule) -> Keys | None:
        """Return the keys of a rule as they are known; None: not fetched yet, or unusable."""
        found = self._inline_set(rule) if rule.jwks else self._remote.get(_place(rule))
        if found is None or not found.keys:
            return None
        if not rule.jwks and self._monotonic() - found.fetched_s > MAX_AGE_S:
            self._start(rule, found)
        return Keys(keys=found.keys, version=found.version)

    async def fetch(self, rules: Iterable[TokenRule]) -> None:
        """Fetch the keys of rules anew and wait for them; those tried a moment ago are left alone."""
        running = []
        for rule in rules:
            if rule.jwks:
                continue
            found = self._remote.get(_place(rule))
            if found is None:
                if len(self._remote) >= MAX_SETS:
                    self._remote.clear()
                found = self._remote[_place(rule)] = _Set()
            self._start(rule, found)
            if found.running is not None:
                running.append(found.running)
        if running:
            await asyncio.wait(running)

    def _start(self, rule: TokenRule, found: _Set) -> None:
        if found.running is None and self._monotonic() - found.tried_s >= MIN_REFETCH_S:
            found.tried_s = self._monotonic()
            found.running = create_task(
                self._renew(rule, found), name=f"keys of {rule.issuer}", owner=self._owner
            )

    async def _renew(self, rule: TokenRule, found: _Set) -> None:
        try:
            uri = rule.jwks_uri or await self._discover(rule)
            keys = read_jwks(await self._fetch(uri, rule.timeout_s))
        except (FetchError, ValueError) as error:
            kept = "; the keys that are known stay in use" if found.keys else ""
            _log.warning("keys of issuer %s: %s%s", rule.issuer, error, kept)
        else:
            self._versions += 1
            found.keys, found.version, found.fetched_s = keys, self._versions, self._monotonic()
        finally:
            found.running = None

    async def _discover(self, rule: TokenRule) -> str:
        """Ask the issuer where its keys are (OpenID Connect Discovery 1.0, section 4)."""
        text = await self._fetch(
            f"{rule.issuer.rstrip('/')}/.well-known/openid-configuration", rule.timeout_s
        )
        uri = json.loads(text).get("jwks_uri")
        if not isinstance(uri, str):
            raise FetchError(f"the OpenID configuration of {rule.issuer} names no jwks_uri")
        return uri

    def _inline_set(self, rule: TokenRule) -> _Set:
        found = self._inline.get(rule.jwks)
        if found is None:
            if len(self._inline) >= MAX_SETS:
                self._inline.clear()
            found = self._inline[rule.jwks] = _Set()
            try:
                found.keys = read_jwks(rule.jwks)
            except ValueError as error:
                _log.warning("inline keys of issuer %s: %s", rule.issuer, error)
            self._versions += 1
            found.version = self._versions
        return found


def _place(rule: TokenRule) -> tuple[str, str]:
    return (rule.issuer, rule.jwks_uri)
