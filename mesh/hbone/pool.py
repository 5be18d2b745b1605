# SPDX-License-Identifier: Apache-2.0
"""Which HBONE connection a new tunnel takes: one with room, a new one, or wait for one being dialled.

Sans-io: it dials nothing, closes nothing and reads no clock; it answers what to do and is
told what happened. A connection is shared only by tunnels with the same key, so that
neither identity nor source address is ever borrowed from another workload.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from mesh.model.address import IPAddress, format_host_port


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolKey:
    """What a connection is bound to; tunnels may share one only if all of it is equal."""

    source_identity: str
    destination_identities: frozenset[str]
    """Identities that the peer may have; it was verified against exactly these."""
    address: IPAddress
    port: int
    source_ip: IPAddress | None
    """The client's address, which the peer's policies see."""

    def __str__(self) -> str:
        return f"{self.source_identity} -> {format_host_port(self.address, self.port)} from {self.source_ip}"


class Pooled(Protocol):
    """What the pool asks of a connection."""

    @property
    def room(self) -> int:
        """Tunnels that may be opened now."""
        ...

    @property
    def tunnels(self) -> int:
        """Tunnels that are open or asked for."""
        ...


class Step(enum.Enum):
    """What the caller of `acquire` has to do."""

    DIAL = "dial"
    """Dial, then call `opened` or `failed`."""
    WAIT = "wait"
    """Wait until woken, then `acquire` again; on giving up call `cancel`."""
    FULL = "full"
    """A limit is reached: refuse the connection with LIMIT_EXCEEDED."""


C = TypeVar("C", bound=Pooled)
Waiter = Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds of a worker's pool."""

    max_connections: int = 4096
    """Connections, dials included, over all keys."""
    max_connections_per_key: int = 16
    """Connections, dials included, of one key; with the peer's limit of tunnels this bounds a pair's load."""
    max_waiting: int = 4096
    """Callers that wait for a dial of one key."""
    tunnels_per_dial: int = 100
    """Tunnels that a connection being dialled is expected to take: more callers begin another dial."""
    idle_timeout_s: float = 60.0
    """Time without a tunnel after which a connection is closed."""


@dataclass(slots=True)
class _Group(Generic[C]):
    connections: list[C] = field(default_factory=list)
    dialling: int = 0
    waiting: dict[Waiter, None] = field(default_factory=dict)
    """In the order of arrival."""

    @property
    def empty(self) -> bool:
        return not self.connections and not self.dialling and not self.waiting


class Pool(Generic[C]):
    """Keeps the connections of one worker; loop thread only.

    Invariant: `connections` of a key hold only what `opened` brought and `closed`, `retire` or
    `expire` did not take away. A waiter is woken by exactly one event.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self._groups: dict[PoolKey, _Group[C]] = {}
        self._idle_since: dict[int, float] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of connections, dials included."""
        return self._count

    def connections(self) -> list[tuple[PoolKey, C]]:
        """Return what is open, for the admin view."""
        return [(key, connection) for key, group in self._groups.items() for connection in group.connections]

    def acquire(self, key: PoolKey, waiter: Waiter) -> C | Step:
        """Return a connection with room, or what to do instead.

        The newest connection with room is taken: older ones fall idle and end, so that load
        moves to fresh certificates by itself.
        """
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        group.waiting.pop(waiter, None)
        for connection in reversed(group.connections):
            if connection.room > 0:
                return connection
        limits = self.limits
        if group.dialling and len(group.waiting) < group.dialling * limits.tunnels_per_dial - group.dialling:
            return self._wait(group, waiter)
        room = self._count < limits.max_connections
        if room and len(group.connections) + group.dialling < limits.max_connections_per_key:
            group.dialling += 1
            self._count += 1
            return Step.DIAL
        if group.dialling and len(group.waiting) < limits.max_waiting:
            return self._wait(group, waiter)
        self._drop_if_empty(key, group)
        return Step.FULL

    def _wait(self, group: _Group[C], waiter: Waiter) -> Step:
        group.waiting[waiter] = None
        return Step.WAIT

    def cancel(self, key: PoolKey, waiter: Waiter) -> None:
        """Forget a waiter that gave up."""
        group = self._groups.get(key)
        if group is not None:
            group.waiting.pop(waiter, None)
            self._drop_if_empty(key, group)

    def opened(self, key: PoolKey, connection: C) -> list[Waiter]:
        """Keep a dialled connection; return the waiters to wake, in order.

        The dialler opens its own tunnel on the connection before the woken ones run.
        """
        group = self._groups[key]
        group.dialling -= 1
        group.connections.append(connection)
        return self._wake(group, max(connection.room - 1, 0))

    def failed(self, key: PoolKey) -> list[Waiter]:
        """Count a dial out; return the waiters of that dial, each of which fails for the same cause.

        Other dials of the key keep the rest waiting.
        """
        group = self._groups[key]
        share = len(group.waiting) if group.dialling == 1 else len(group.waiting) // group.dialling
        group.dialling -= 1
        self._count -= 1
        woken = self._wake(group, share)
        self._drop_if_empty(key, group)
        return woken

    def _wake(self, group: _Group[C], count: int) -> list[Waiter]:
        # The last dial leaves nobody behind: who finds no room then begins a new one.
        if not group.dialling:
            count = len(group.waiting)
        woken = list(group.waiting)[:count]
        for waiter in woken:
            del group.waiting[waiter]
        return woken

    def closed(self, key: PoolKey, connection: C) -> None:
        """Forget a connection that ended; no effect when it is gone already."""
        group = self._groups.get(key)
        if group is not None and connection in group.connections:
            self._remove(key, group, connection)

    def retire(self, match: Callable[[PoolKey], bool]) -> list[C]:
        """Take connections of matching keys out and return them, to be drained (identity gone, rotated)."""
        return self._take_out(lambda key, _: match(key))

    def expire(self, now_s: float) -> list[C]:
        """Take out the connections that were seen without a tunnel for the idle time; call regularly."""
        return self._take_out(lambda _, connection: self._is_idle(connection, now_s))

    def _is_idle(self, connection: C, now_s: float) -> bool:
        if connection.tunnels:
            self._idle_since.pop(id(connection), None)
            return False
        return now_s - self._idle_since.setdefault(id(connection), now_s) >= self.limits.idle_timeout_s

    def _take_out(self, match: Callable[[PoolKey, C], bool]) -> list[C]:
        taken = [(key, connection) for key, connection in self.connections() if match(key, connection)]
        for key, connection in taken:
            self._remove(key, self._groups[key], connection)
        return [connection for _, connection in taken]

    def _remove(self, key: PoolKey, group: _Group[C], connection: C) -> None:
        group.connections.remove(connection)
        self._idle_since.pop(id(connection), None)
        self._count -= 1
        self._drop_if_empty(key, group)

    def _drop_if_empty(self, key: PoolKey, group: _Group[C]) -> None:
        if group.empty:
            self._groups.pop(key, None)
