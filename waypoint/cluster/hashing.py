# SPDX-License-Identifier: Apache-2.0
"""Consistent hashing: equal keys go to one host, and few keys move when hosts come and go.

Ring (ketama: many points a host) and Maglev (Eisenbud et al., NSDI 2016, section 3.4). A
host's place depends on its label alone, so that every waypoint has the same tables.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import filterfalse
from struct import unpack
from typing import Protocol

from mesh.model.destination import ConsistentHash, HashAlgorithm
from waypoint.cluster.host import Host
from waypoint.cluster.pick import WeightOf

MAX_RING_SIZE = 65_536
"""Points of a ring, whatever is configured: more cost time and spread no better."""
_PIECE = 2048
"""Entries that are filled in one go."""
_INDEX_BITS = 20
_INDEX_MASK = (1 << _INDEX_BITS) - 1
MAX_TABLE_SIZE = 65_537
"""The same for Maglev; prime. Source: the paper's small table, for up to some hundred hosts."""


def hash_text(text: str, salt: bytes = b"") -> int:
    """Hash to 64 bits, alike in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8, salt=salt).digest(), "big")


class Table(Protocol):
    """A built table."""

    def find(self, key: int, attempt: int) -> Host:
        """Return the host of a key; `attempt` counts the tries before that went elsewhere."""
        ...


class Ring:
    """Each host has points on a ring in proportion to its weight; a key goes to the next point.

    A host's points do not depend on the others, so that a host that comes or goes moves no
    key between two that stay (until `MAX_RING_SIZE` halves everybody's points).
    """

    __slots__ = ("_hosts", "_points")

    def __init__(self, hosts: Sequence[Host], weight_of: WeightOf, size: int) -> None:
        """Build it with `size` points or more; two hosts make that many."""
        weights = [weight_of(host) for host in hosts]
        least = min(weights)
        each = -(-max(2, min(size, MAX_RING_SIZE)) // 2)
        while each > 1 and each * sum(weights) / least > MAX_RING_SIZE:
            each //= 2
        # One number a point, its host in the low bits: numbers are sorted faster than pairs.
        points: list[int] = []
        for index, (host, weight) in enumerate(zip(hosts, weights, strict=True)):
            count = max(1, round(each * weight / least))
            points += [point << _INDEX_BITS | index for point in _points(host.label, count)]
        points.sort()
        self._points = [point >> _INDEX_BITS for point in points]
        self._hosts = [hosts[point & _INDEX_MASK] for point in points]

    def find(self, key: int, attempt: int) -> Host:
        """Walk on to another host for each attempt, as far as there are others."""
        hosts = self._hosts
        size = len(hosts)
        index = bisect_left(self._points, key) % size
        found = hosts[index]
        if not attempt:
            return found
        seen = {found}
        for step in range(1, size):
            host = hosts[(index + step) % size]
            if host not in seen:
                found = host
                seen.add(host)
                if len(seen) > attempt:
                    break
        return found


class Maglev:
    """A table of prime size in which each host has its share of entries, scattered."""

    __slots__ = ("_table",)

    def __init__(self, table: list[Host]) -> None:
        self._table = table

    @classmethod
    def build(cls, hosts: Sequence[Host], weight_of: WeightOf, size: int) -> Generator[None, None, Maglev]:
        """Build it in pieces; hosts take turns, by weight, in claiming the next free entry of their order."""
        size = min(size, MAX_TABLE_SIZE)
        ordered = sorted(hosts, key=lambda host: host.label)
        weights = [weight_of(host) for host in ordered]
        most = max(weights)
        table: list[Host | None] = [None] * size
        taken = bytearray(size)
        modulo = size.__rmod__
        walks = []
        for host in ordered:
            offset = hash_text(host.label, b"offset") % size
            skip = hash_text(host.label, b"skip") % (size - 1) + 1
            order = map(modulo, range(offset, offset + size * skip, skip))
            walks.append(filterfalse(taken.__getitem__, order))
        turns = [0.0] * len(ordered)
        left = size
        while left:
            for index, host in enumerate(ordered):
                turns[index] += weights[index] / most
                if turns[index] < 1:
                    continue
                turns[index] -= 1
                entry = next(walks[index])
                taken[entry] = 1
                table[entry] = host
                left -= 1
                if not left % _PIECE:
                    yield
                if not left:
                    break
        return cls([host for host in table if host is not None])

    def find(self, key: int, attempt: int) -> Host:
        """Look a key up; another entry for each attempt."""
        table = self._table
        return table[(hash((key, attempt)) if attempt else key) % len(table)]


@lru_cache(maxsize=1024)
def _points(label: str, count: int) -> tuple[int, ...]:
    """Return the points of a host: those of a smaller count are among those of a larger one."""
    name = label.encode()
    found: list[int] = []
    for number in range(-(-count // 8)):
        found += unpack(">8Q", blake2b(b"%s_%d" % (name, number), digest_size=64).digest())
    return tuple(found[:count])


def build_table(
    by: ConsistentHash, hosts: Sequence[Host], weight_of: WeightOf
) -> Generator[None, None, Table]:
    """Build the table that a policy asks for, a millisecond's worth at a time; there is at least one host."""
    if by.algorithm is HashAlgorithm.MAGLEV:
        return (yield from Maglev.build(hosts, weight_of, by.size))
    yield
    return Ring(hosts, weight_of, by.size)


def make_table(by: ConsistentHash, hosts: Sequence[Host], weight_of: WeightOf) -> Table:
    """Build it at once."""
    building = build_table(by, hosts, weight_of)
    while True:
        try:
            next(building)
        except StopIteration as done:
            made: Table = done.value
            return made
