# SPDX-License-Identifier: Apache-2.0
"""One proxy's delta ADS stream without I/O: what it has, what it is owed, what it refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controller.xds.snapshot import Change, Encoded, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One response to be sent."""

    type_url: str
    nonce: str
    resources: tuple[tuple[str, Encoded], ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Subscription:
    told: dict[str, str] = field(default_factory=dict)
    """Name -> version that the proxy was sent or says it has."""
    pending: set[str] = field(default_factory=set)
    owed: bool = True
    """The first request is answered, even with nothing."""


class ProxyStream:
    """State of one stream. Every proxy subscribes to all resources of a type (wildcard)."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._subscriptions: dict[str, _Subscription] = {}
        self._nonces = 0
        self._sent: dict[str, tuple[str, ...]] = {}
        self.refused: dict[str, str] = {}
        """Type URL -> the resources that the proxy did not take last, and why."""
        self.unacknowledged = 0

    @property
    def types(self) -> tuple[str, ...]:
        """Types that the proxy asked for."""
        return tuple(self._subscriptions)

    def request(self, type_url: str, *, initial: Mapping[str, str], nonce: str, error: str) -> None:
        """Take a request: a first one subscribes, later ones acknowledge or refuse."""
        if type_url not in self._subscriptions:
            subscription = _Subscription(told=dict(initial))
            now = self._resources.of(type_url)
            subscription.pending = {
                name for name in (*now, *initial) if name not in now or now[name].version != initial.get(name)
            }
            self._subscriptions[type_url] = subscription
        if nonce and nonce in self._sent:
            names = self._sent.pop(nonce)
            self.unacknowledged -= 1
            if error:
                self.refused[type_url] = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: {error}"
            else:
                self.refused.pop(type_url, None)

    def changed(self, changes: Iterable[Change]) -> bool:
        """Note what changed; True if this proxy is to be told."""
        told = False
        for change in changes:
            subscription = self._subscriptions.get(change.type_url)
            if subscription is not None:
                subscription.pending |= change.names
                told = True
        return told

    def next_push(self) -> Push | None:
        """Return the next response that is due; None: the proxy has everything.

        What others name is told before them and withdrawn after them, so that no proxy ever
        holds a workload with a policy that it does not have.
        """
        named = self._resources.named_by_others
        for type_url in self._order():
            push = self._push_of(type_url, removals=type_url not in named)
            if push is not None:
                return push
        for type_url in self._order():
            if type_url in named and (push := self._push_of(type_url, removals=True)) is not None:
                return push
        return None

    def _order(self) -> list[str]:
        """Order types as they are served, those that others name first."""
        named = self._resources.named_by_others
        known = [url for url in self._resources.types if url in self._subscriptions]
        known.sort(key=lambda url: url not in named)
        return known + [url for url in self._subscriptions if url not in known]

    def _push_of(self, type_url: str, *, removals: bool) -> Push | None:
        subscription = self._subscriptions[type_url]
        now = self._resources.of(type_url)
        resources: list[tuple[str, Encoded]] = []
        removed: list[str] = []
        later: set[str] = set()
        # One response, however large: a proxy that had half of a first one would take the rest for unknown.
        for name in sorted(subscription.pending):
            encoded = now.get(name)
            if encoded is None:
                if not removals and not subscription.owed:
                    later.add(name)
                elif subscription.told.pop(name, None) is not None:
                    removed.append(name)
            elif subscription.told.get(name) != encoded.version:
                subscription.told[name] = encoded.version
                resources.append((name, encoded))
        subscription.pending = later
        if not resources and not removed and not subscription.owed:
            return None
        subscription.owed = False
        self._nonces += 1
        nonce = f"{self._nonces}"
        self._sent[nonce] = (*(name for name, _ in resources), *removed)
        self.unacknowledged += 1
        return Push(type_url=type_url, nonce=nonce, resources=tuple(resources), removed=tuple(removed))
